"""How far a batch is: a progress bar on a terminal, otherwise a line now and then."""

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

# Seconds between two updates: of a bar that moves, and of a log that lasts a night.
_BAR_INTERVAL = 0.2
_LINE_INTERVAL = 10.0
# Seconds over which the speed is measured: it follows the pace without flickering.
_WINDOW = 30.0

TROUBLE = "Stripe is failing, so the pace is low"


class ProgressDisplay:
    """Shows how far a batch is.

    Args:
        output: Its stderr is used. If it writes JSON to the same terminal, no bar is
            drawn: the two would mix.
        progress: Returns the progress of the batch.
        total: The number of refunds.
        done: The number of them that were settled before.
        clock: Returns seconds.
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
        json_on_terminal = output.on_terminal and not output.as_table
        if output.stderr.is_terminal and not json_on_terminal:
            self._bar = Bar(
                TextColumn("canceling"),
                BarColumn(bar_width=20),
                TextColumn("{task.description}"),
                console=output.stderr,
                transient=True,
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._task = self._bar.add_task("", total=total, completed=done)

    @asynccontextmanager
    async def shown(self) -> AsyncGenerator[None]:
        """Show the progress until the end of the block."""
        self._start()
        ticking = asyncio.create_task(self._tick())
        try:
            yield
        finally:
            ticking.cancel()
            await asyncio.wait([ticking])
            if self._bar is not None:
                self._update()
                self._stop()

    @contextmanager
    def hidden(self) -> Generator[None]:
        """Take the bar off the screen while other lines are written."""
        self._stop()
        try:
            yield
        finally:
            self._start()

    async def _tick(self) -> None:
        interval = _LINE_INTERVAL if self._bar is None else _BAR_INTERVAL
        while True:
            await asyncio.sleep(interval)
            self._update()

    def _update(self) -> None:
        progress = self._progress()
        now = self._clock()
        done = self._before + progress.outcomes.total()
        while now - self._seen[0][0] > _WINDOW and len(self._seen) > 1:
            self._seen.popleft()
        since, then = self._seen[0]
        speed = (done - then) / max(now - since, 1e-9)
        self._seen.append((now, done))
        line = progress_line(progress, done=done, total=self._total, speed=speed)
        if self._bar is None:
            self._output.say(line)
        else:
            self._bar.update(self._task, completed=done, description=line)
            with self._output.stderr_may_break():
                self._bar.refresh()

    def _start(self) -> None:
        if self._bar is not None:
            with self._output.stderr_may_break():
                self._bar.start()

    def _stop(self) -> None:
        if self._bar is not None:
            with self._output.stderr_may_break():
                self._bar.stop()


def progress_line(progress: Progress, *, done: int, total: int, speed: float) -> str:
    """Return the progress of a batch as a line.

    Args:
        progress: Of the batch.
        done: The number of refunds with an outcome.
        total: The number of refunds.
        speed: Refunds per second over the last half minute.
    """
    parts = [f"{done:,}/{total:,}", f"{speed:.1f}/s"]
    if progress.retries:
        parts.append(f"{progress.retries:,} retries")
    if progress.rate:  # 0 once nothing is left to send
        parts.append(f"pace {progress.rate:.1f}/s")
    if speed > 0 and done < total:
        left = timedelta(seconds=round((total - done) / speed))
        parts.append(f"{left} left")
    if progress.in_trouble:
        parts.append(TROUBLE)
    return "  ".join(parts)
