"""How far a batch is: a live bar on a terminal, or else a plain line now and then."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator

    from async_refunds.batch import Progress

    from .output import Output

# Seconds. A bar that moves, and lines that a log of a long night can hold.
_BAR_EVERY = 0.2
_LINE_EVERY = 10.0
# Seconds over which the speed is taken: it follows the pace, and does not flicker.
_WINDOW = 30.0

TROUBLE = "Stripe is in trouble, so it goes slowly"


class Watch:
    """Shows a person how far a batch is.

    Args:
        output: Its stderr, and whether results appear on the same screen.
        progress: Tells how far the batch is.
        total: How many refunds there are.
        done: How many of them were settled before.
        clock: Seconds.
    """

    def __init__(
        self,
        output: Output,
        progress: Callable[[], Progress],
        *,
        total: int,
        done: int,
        clock: Callable[[], float],
    ) -> None:
        self._output = output
        self._progress = progress
        self._total = total
        self._before = done
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque([(clock(), done)])
        self._bar: Bar | None = None
        # JSON on the same screen would tear the bar to pieces.
        json_there = output.to_terminal and not output.as_table
        if output.people.is_terminal and not json_there:
            self._bar = Bar(
                TextColumn("canceling"),
                BarColumn(bar_width=20),
                TextColumn("{task.description}"),
                console=output.people,
                transient=True,
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._task = self._bar.add_task("", total=total, completed=done)

    @asynccontextmanager
    async def shown(self) -> AsyncGenerator[None]:
        """Show it until the end of the block."""
        self._start()
        ticking = asyncio.create_task(self._tick())
        try:
            yield
        finally:
            ticking.cancel()
            await asyncio.wait([ticking])
            if self._bar is not None:
                self._show()
                self._stop()

    @contextmanager
    def aside(self) -> Generator[None]:
        """Make room on the screen for lines that stay."""
        self._stop()
        try:
            yield
        finally:
            self._start()

    async def _tick(self) -> None:
        every = _LINE_EVERY if self._bar is None else _BAR_EVERY
        while True:
            await asyncio.sleep(every)
            self._show()

    def _show(self) -> None:
        progress = self._progress()
        now = self._clock()
        done = self._before + progress.outcomes.total()
        while now - self._seen[0][0] > _WINDOW and len(self._seen) > 1:
            self._seen.popleft()
        since, then = self._seen[0]
        speed = (done - then) / max(now - since, 1e-9)
        self._seen.append((now, done))
        line = told(progress, done=done, total=self._total, speed=speed)
        if self._bar is None:
            self._output.say(line)
        else:
            self._bar.update(self._task, completed=done, description=line)
            with self._output.for_people():
                self._bar.refresh()

    def _start(self) -> None:
        if self._bar is not None:
            with self._output.for_people():
                self._bar.start()

    def _stop(self) -> None:
        if self._bar is not None:
            with self._output.for_people():
                self._bar.stop()


def told(progress: Progress, *, done: int, total: int, speed: float) -> str:
    """Tell how far a batch is, in a line.

    Args:
        progress: Of the batch.
        done: How many refunds have their outcome.
        total: How many there are.
        speed: Refunds a second, lately.
    """
    parts = [f"{done:,}/{total:,}", f"{speed:.1f}/s"]
    if progress.retries:
        parts.append(f"{progress.retries:,} retries")
    if progress.rate:  # nothing is under way any more without one
        parts.append(f"pace {progress.rate:.1f}/s")
    if speed > 0 and done < total:
        left = timedelta(seconds=round((total - done) / speed))
        parts.append(f"{left} left")
    if progress.in_trouble:
        parts.append(TROUBLE)
    return "  ".join(parts)
