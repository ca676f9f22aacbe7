"""Plays many cases at a time, and shrinks what they find."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from . import batches, calls
from .drawing import drawn
from .virtual_time import VirtualTimeLoop
from .world import Finding, Report, fixed_chance, watched_log

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterable

    from .script import Script

_PLAYS = {"calls": calls.play, "batch": batches.play}


@dataclass
class Found:
    """The first case of a kind of finding."""

    kind: str
    """Of the cases: ``calls``, ``batch`` or ``journals``."""
    seed: int
    number: int
    finding: Finding
    damages: frozenset[str]
    script: Script
    lines: list[str]
    times: int = 1

    @property
    def place(self) -> tuple[str, frozenset[str]]:
        """What makes it another finding than the others."""
        return self.finding.kind, self.damages


@dataclass
class Summary:
    """What came of many cases."""

    cases: int = 0
    calls: int = 0
    requests: int = 0
    seconds: float = 0.0
    told: Counter[str] = field(default_factory=Counter[str])
    done: Counter[str] = field(default_factory=Counter[str])
    playing: dict[int, None] = field(default_factory=dict[int, None])
    """Cases that are not over."""
    found: dict[tuple[str, frozenset[str]], Found] = field(
        default_factory=dict[tuple[str, frozenset[str]], "Found"]
    )

    def add(self, other: Summary) -> None:
        """Add what another process has found."""
        self.cases += other.cases
        self.calls += other.calls
        self.requests += other.requests
        self.told += other.told
        self.done += other.done
        for found in other.found.values():
            self.note(found)

    def note(self, found: Found) -> None:
        """Keep the first one of a place, and count."""
        known = self.found.setdefault(found.place, found)
        if known is not found:
            known.times += found.times

    def count(
        self, kind: str, seed: int, number: int, script: Script, report: Report
    ) -> None:
        """Add what came of a case."""
        self.cases += 1
        self.calls += report.calls
        self.requests += report.requests
        self.told += report.told
        self.done += report.done
        for finding in report.findings:
            self.note(
                Found(
                    *(kind, seed, number, finding),
                    damages=report.damages,
                    script=script,
                    lines=report.lines,
                )
            )

    def simplest(self) -> list[Found]:
        """Return the findings that need the fewest damages, each kind of them once."""
        return [
            found
            for found in self.found.values()
            if not any(
                other.finding.kind == found.finding.kind
                and other.damages < found.damages
                for other in self.found.values()
            )
        ]


def played(kind: str, script: Script, seed: str) -> Report:
    """Play one script, alone in an event loop of its own."""
    with _runner(logging.DEBUG) as runner:
        return runner.run(_PLAYS[kind](script, seed))


@contextmanager
def _runner(log_level: int) -> Generator[asyncio.Runner]:
    """Give a loop on virtual time, with chance fixed and the log searched."""
    shown = sys.unraisablehook
    # A full stack is also full for what aiohttp's own `__del__` does.
    sys.unraisablehook = lambda _: None
    try:
        with (
            asyncio.Runner(loop_factory=_quiet_loop) as runner,
            fixed_chance(),
            watched_log(log_level),
        ):
            yield runner
            gc.collect()
    finally:
        sys.unraisablehook = shown


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
    without: Collection[str] = (),
    crowd: int = 16,
    log_level: int = logging.DEBUG,
) -> Summary:
    """Play the cases of a seed.

    Args:
        kind: ``calls`` or ``batch``.
        seed: Of all of them.
        numbers: Which cases.
        without: Acts and options to leave out.
        crowd: How many are played at a time.
        log_level: Of the records that are searched for secrets.
    """
    summary = Summary()
    began = time.perf_counter()
    left = iter(numbers)

    async def worker() -> None:
        for number in left:
            script = drawn(kind, seed, number, without)
            summary.playing[number] = None
            report = await _PLAYS[kind](
                script, f"{seed} {number}", deep=number % 10 == 0
            )
            del summary.playing[number]
            summary.count(kind, seed, number, script, report)

    async def main() -> None:
        workers = [asyncio.create_task(worker()) for _ in range(crowd)]
        for ended in asyncio.as_completed(workers):
            await ended

    with _runner(log_level) as runner:
        runner.run(main())
    summary.seconds = time.perf_counter() - began
    return summary
