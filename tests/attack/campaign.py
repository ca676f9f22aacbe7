"""Plays many cases at a time, and shrinks what they find."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from . import batches, calls
from .drawing import drawn
from .virtual_time import VirtualTimeLoop
from .world import Finding, Report, fixed_chance, watched_log

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from .script import Script

_PLAYS = {"calls": calls.play, "batch": batches.play}


@dataclass
class Found:
    """The first case of a kind of finding."""

    kind: str
    """Of the cases: ``calls`` or ``batch``."""
    seed: int
    number: int
    finding: Finding
    script: Script
    lines: list[str]
    times: int = 1


@dataclass
class Summary:
    """What came of many cases."""

    cases: int = 0
    calls: int = 0
    requests: int = 0
    seconds: float = 0.0
    told: Counter[str] = field(default_factory=Counter[str])
    found: dict[str, Found] = field(default_factory=dict[str, Found])

    def add(self, other: Summary) -> None:
        """Add what another process has found."""
        self.cases += other.cases
        self.calls += other.calls
        self.requests += other.requests
        self.told += other.told
        for name, found in other.found.items():
            if name in self.found:
                self.found[name].times += found.times
            else:
                self.found[name] = found


def played(kind: str, script: Script, seed: str) -> Report:
    """Play one script, alone in an event loop of its own."""
    with (
        asyncio.Runner(loop_factory=_quiet_loop) as runner,
        fixed_chance(),
        watched_log(),
    ):
        return runner.run(_PLAYS[kind](script, seed))


def _quiet_loop() -> VirtualTimeLoop:
    loop = VirtualTimeLoop()
    # What a task leaves behind shows in what its case was told.
    loop.set_exception_handler(lambda _loop, _context: None)
    return loop


def attack(
    kind: str,
    seed: int,
    numbers: Iterable[int],
    *,
    enough: Callable[[Summary], bool] = lambda _: False,
    without: Collection[str] = (),
    crowd: int = 64,
    progress: Callable[[Summary], None] = lambda _: None,
) -> Summary:
    """Play the cases of a seed.

    Args:
        kind: ``calls`` or ``batch``.
        seed: Of all of them.
        numbers: Which cases.
        enough: Tells when to stop before they are all played.
        without: Acts and options to leave out.
        crowd: How many are played at a time.
        progress: Called now and then.
    """
    summary = Summary()
    began = time.perf_counter()
    left = iter(numbers)

    async def worker() -> None:
        for number in left:
            if enough(summary):
                return
            script = drawn(kind, seed, number, without)
            report = await _PLAYS[kind](
                script, f"{seed} {number}", deep=number % 10 == 0
            )
            _count(summary, kind, seed, number, script, report)
            if summary.cases % 500 == 0:
                summary.seconds = time.perf_counter() - began
                progress(summary)

    async def main() -> None:
        workers = [asyncio.create_task(worker()) for _ in range(crowd)]
        for ended in asyncio.as_completed(workers):
            await ended

    with (
        asyncio.Runner(loop_factory=_quiet_loop) as runner,
        fixed_chance(),
        watched_log(),
    ):
        runner.run(main())
    summary.seconds = time.perf_counter() - began
    return summary


def _count(
    summary: Summary, kind: str, seed: int, number: int, script: Script, report: Report
) -> None:
    summary.cases += 1
    summary.calls += report.calls
    summary.requests += report.requests
    summary.told += report.told
    for finding in report.findings:
        known = summary.found.get(finding.kind)
        if known is not None:
            known.times += 1
            continue
        found = Found(kind, seed, number, finding, script, report.lines)
        summary.found[finding.kind] = found


def naturals(first: int = 0) -> Iterable[int]:
    """Return all numbers of cases."""
    return itertools.count(first)
