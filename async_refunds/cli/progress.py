"""Progress: when will it be over, and is it going well.

One line. A terminal shows it in place, several times per second and as wide as it is;
a log gets it now and then.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from async_refunds.results import CANCELED

from .output import width
from .tables import counted, utc

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from async_refunds.batch import Progress

    from .output import Output

# Seconds between two updates: of a line that moves, and of a log that lasts a night.
_STATUS_INTERVAL = 0.2
_LOG_INTERVAL = 10.0
# Seconds over which the speed is measured: it follows the pace without flickering.
_WINDOW = 30.0
_BAR = 20
# A log line has all parts.
_LOG_WIDTH = 1000

TROUBLE = "Stripe is failing, so the pace is low"


@asynccontextmanager
async def shown(output: Output, line: Callable[[int], str]) -> AsyncGenerator[None]:
    """Show progress until the end of the block.

    Args:
        output: Its stderr shows it.
        line: Returns the line for a width.
    """

    def draw() -> None:
        # The last column stays free: some terminals wrap after it.
        columns = width(sys.stderr) - 1
        output.draw_status(line(columns)[:columns])

    async def tick() -> None:
        while True:
            if output.shows_status:
                draw()
                await asyncio.sleep(_STATUS_INTERVAL)
            else:
                await asyncio.sleep(_LOG_INTERVAL)
                output.say(line(_LOG_WIDTH))

    ticking = asyncio.create_task(tick())
    try:
        yield
    finally:
        ticking.cancel()
        await asyncio.wait([ticking])
        if output.shows_status:
            draw()
            output.erase_status()


class Speed:
    """Measures how many per second were done lately.

    Args:
        clock: Returns seconds.
        done: The number at the start.
    """

    def __init__(self, clock: Callable[[], float], done: int = 0) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque([(clock(), done)])

    def per_second(self, done: int) -> float:
        """Return the speed, now that this many are done."""
        now = self._clock()
        while now - self._seen[0][0] > _WINDOW and len(self._seen) > 1:
            self._seen.popleft()
        since, before = self._seen[0]
        self._seen.append((now, done))
        return (done - before) / max(now - since, 1e-9)


class BatchProgress:
    """The progress of a batch as a line.

    Args:
        progress: Returns the progress of the batch.
        total: The number of refunds.
        done: The number of them that were settled before.
        clock: Returns seconds.
    """

    def __init__(
        self,
        progress: Callable[[], Progress],
        *,
        total: int,
        done: int,
        clock: Callable[[], float],
    ) -> None:
        self._progress = progress
        self._total = total
        self._before = done
        self._speed = Speed(clock, done)

    def line(self, columns: int) -> str:
        """Return the line, with the parts that fit into so many columns."""
        progress = self._progress()
        done = self._before + progress.outcomes.total()
        return batch_line(
            progress,
            done=done,
            total=self._total,
            speed=self._speed.per_second(done),
            columns=columns,
        )


def batch_line(
    progress: Progress, *, done: int, total: int, speed: float, columns: int
) -> str:
    """Return the progress of a batch as a line.

    Args:
        progress: Of the batch.
        done: The number of refunds with an outcome.
        total: The number of refunds.
        speed: Refunds per second, lately.
        columns: What does not fit is left out, the least important first.
    """
    bad = sum(
        count for name, count in progress.outcomes.items() if name not in CANCELED
    )
    # With the order in which they are given up, the last ones first.
    parts = [
        (6, bar(done, total)),
        (0, f"{done:,}/{total:,}"),
        (4, f"{speed:.1f}/s"),
        (1, time_left(total - done, speed)),
        (3, f"{bad:,} not canceled" if bad else ""),
        (2, TROUBLE if progress.in_trouble else ""),
        (5, f"{progress.retries:,} retries" if progress.retries else ""),
        # No pace once nothing is left to send.
        (7, f"pace {progress.rate:.1f}/s" if progress.rate else ""),
    ]
    return fitted(parts, columns)


class ReadProgress:
    """The progress of reads as a line.

    Args:
        done: Returns the number of reads that ended, and of those that failed.
        total: The number of reads.
        clock: Returns seconds.
    """

    def __init__(
        self,
        done: Callable[[], tuple[int, int]],
        *,
        total: int,
        clock: Callable[[], float],
    ) -> None:
        self._done = done
        self._total = total
        self._speed = Speed(clock)

    def line(self, columns: int) -> str:
        """Return the line, with the parts that fit into so many columns."""
        done, failed = self._done()
        speed = self._speed.per_second(done)
        parts = [
            (4, bar(done, self._total)),
            (0, f"{done - failed:,}/{self._total:,} read"),
            (3, f"{speed:.1f}/s"),
            (2, time_left(self._total - done, speed)),
            (1, f"{failed:,} not" if failed else ""),
        ]
        return fitted(parts, columns)


class SearchProgress:
    """The progress of a search through the list of refunds, newest first."""

    def __init__(self) -> None:
        self.seen = 0
        self.matches = 0
        self._reached = ""

    @asynccontextmanager
    async def shown(self, output: Output) -> AsyncGenerator[None]:
        """Show the progress as a line until the end of the block."""
        speed = Speed(asyncio.get_running_loop().time)

        def line(columns: int) -> str:
            parts = [
                (0, f"{self.seen:,} searched"),
                (1, f"{self.matches:,} match"),
                (2, self._reached),
                (3, f"{speed.per_second(self.seen):.0f}/s"),
            ]
            return fitted(parts, columns)

        async with shown(output, line):
            yield

    def see(self, created: int) -> None:
        """Count a refund that was created at a Unix time."""
        self.seen += 1
        self._reached = f"back to {utc(created, '%Y-%m-%d')}"

    @property
    def incomplete(self) -> str:
        """What an interrupted search has to say."""
        where = f", {self._reached}" if self._reached else ""
        return f"{counted(self.seen, 'refund')} searched{where}, older ones not"


def time_left(count: int, speed: float) -> str:
    """Return how long so many take, or nothing if none are left."""
    if not count:
        return ""
    if speed <= 0:
        return "time left unknown"
    return f"{timedelta(seconds=round(count / speed))} left"


def bar(done: int, total: int) -> str:
    """Return a bar of text, which any terminal can show."""
    full = _BAR * done // max(total, 1)
    return f"[{'#' * full}{'-' * (_BAR - full)}]"


def fitted(parts: list[tuple[int, str]], columns: int) -> str:
    """Join the parts that fit; of each pair the lowest number stays longest."""
    chosen = sorted(
        ((rank, place, text) for place, (rank, text) in enumerate(parts) if text),
    )
    while len(chosen) > 1 and sum(len(each[2]) + 2 for each in chosen) - 2 > columns:
        chosen.pop()
    return "  ".join(text for _, _, text in sorted(chosen, key=lambda each: each[1]))
