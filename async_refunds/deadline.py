"""Deadlines for many attempts at once, on one timer.

`asyncio.timeout` sets a timer for each attempt and takes it back, which is a tenth of
the CPU of a whole cancel (``benchmarks/bench_cancel.py`` shows both). But nearly all
attempts of a client may take equally long, so they end in the order they began, and one
timer for the oldest of them serves all: most end long before it, and cost a dictionary
entry each.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType


class Deadlines:
    """Ends attempts that take too long, in one event loop.

    Args:
        loop: The event loop.
        seconds: What nearly all attempts may take; a shorter one has its own timer.
    """

    __slots__ = ("_loop", "_seconds", "_timer", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._loop = loop
        self._seconds = seconds
        # Those under way, oldest first: a dictionary keeps that order.
        self._waiting: dict[Deadline, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self, seconds: float) -> Deadline:
        """Return a deadline from now, to enter with ``with`` in the same task."""
        if seconds < self._seconds:
            deadline = Deadline(self._waiting, self._loop.time() + seconds)
            deadline.timer = self._loop.call_at(deadline.when, deadline.expire)
            return deadline
        deadline = Deadline(self._waiting, self._loop.time() + self._seconds)
        self._waiting[deadline] = None
        if self._timer is None:
            self._timer = self._loop.call_at(deadline.when, self._expire)
        return deadline

    def close(self) -> None:
        """Take the timer back, unless somebody's end still hangs on it."""
        if self._timer is not None and not self._waiting:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._waiting:
            deadline = next(iter(self._waiting))
            if deadline.when > now:
                self._timer = self._loop.call_at(deadline.when, self._expire)
                return
            del self._waiting[deadline]
            deadline.expire()


class Deadline:
    """One attempt's, as a context manager that raises `TimeoutError`.

    It cancels its task, and tells that from a cancellation by somebody else by the same
    rules as `asyncio.timeout`, whose place it takes.
    """

    timer: asyncio.TimerHandle | None = None
    """Its own, if it does not wait for the common one."""
    _expired = False

    def __init__(self, waiting: dict[Deadline, None], when: float) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a deadline is for the code of a task")
        self.when = when
        """On the event loop's clock."""
        self._waiting = waiting
        self._task = task
        self._cancelling = task.cancelling()

    def expire(self) -> None:
        """Cancel the task, which turns that into `TimeoutError` on its way out."""
        self._expired = True
        self._task.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._expired:
            if self.timer is None:
                self._waiting.pop(self, None)
            else:
                self.timer.cancel()
        elif (
            self._task.uncancel() <= self._cancelling
            and kind is not None
            and issubclass(kind, asyncio.CancelledError)
        ):
            raise TimeoutError from error
