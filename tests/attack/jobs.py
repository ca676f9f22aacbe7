"""Shares the cases of an attack between processes."""

from __future__ import annotations

import faulthandler
import itertools
import logging
import multiprocessing
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import TYPE_CHECKING

from . import campaign, journal_campaign
from .campaign import Summary

if TYPE_CHECKING:
    from collections.abc import Callable

# How many cases a job takes at a time.
_PIECE = 200
# Real seconds that a piece may take. It takes about ten, and more than a hundred on a
# machine that does much else.
_STUCK = 600.0


def attack(
    kind: str,
    goal: int,
    *,
    seed: int,
    jobs: int,
    without: tuple[str, ...],
    progress: Callable[[Summary], None],
) -> Summary:
    """Play cases until so many calls were made, or so many journals damaged."""
    began = time.perf_counter()
    summary = Summary()
    firsts = itertools.count(step=_PIECE)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        playing: set[Future[Summary]] = set()
        while playing or _amount(kind, summary) < goal:
            while len(playing) < jobs and _amount(kind, summary) < goal:
                first = next(firsts)
                playing.add(pool.submit(piece, kind, seed, first, without))
            done, playing = wait(playing, return_when=FIRST_COMPLETED)
            for future in done:
                summary.add(future.result())
            summary.seconds = time.perf_counter() - began
            progress(summary)
    return summary


def _amount(kind: str, summary: Summary) -> int:
    return summary.cases if kind == "journals" else summary.calls


def piece(kind: str, seed: int, first: int, without: tuple[str, ...]) -> Summary:
    """Play one piece of the cases."""
    numbers = range(first, first + _PIECE)
    # What never ends in real time shows where it is, and ends the whole attack.
    faulthandler.dump_traceback_later(_STUCK, exit=True)
    try:
        return _played(kind, seed, numbers, without)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _played(kind: str, seed: int, numbers: range, without: tuple[str, ...]) -> Summary:
    if kind == "journals":
        return journal_campaign.attack(seed, numbers, without=without)
    # A record of each attempt takes a tenth of the time: most pieces go without.
    level = logging.INFO if numbers.start // _PIECE % 4 else logging.DEBUG
    return campaign.attack(kind, seed, numbers, without=without, log_level=level)
