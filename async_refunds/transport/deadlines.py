"""Deadlines for many attempts at once, on one timer.

`asyncio.timeout` sets a timer for each attempt and takes it back, which is a tenth of
the CPU of a whole cancel (``benchmarks/bench_cancel.py`` shows both). But nearly all
attempts of a client may take equally long, so they end in the order they began, and one
timer for the oldest of them serves all: most end long before it, and cost a dictionary
entry each.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

import msgspec

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

    def start(self, seconds: float, now: float) -> Deadline:
        """Return a deadline from now, to enter with ``with`` in the same task."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a deadline is for the code of a task")
        if seconds < self._seconds:
            deadline = Deadline(self._waiting, now + seconds, task, task.cancelling())
            deadline.timer = self._loop.call_at(deadline.when, deadline.expire)
            return deadline
        when = now + self._seconds
        deadline = Deadline(self._waiting, when, task, task.cancelling())
        self._waiting[deadline] = None
        if self._timer is None:
            self._timer = self._loop.call_at(when, self._expire)
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


class Deadline(msgspec.Struct, eq=False):
    """One attempt's, as a context manager that raises `TimeoutError`.

    It cancels its task, and tells that from a cancellation by somebody else by the same
    rules as `asyncio.timeout`, whose place it takes.
    """

    waiting: dict[Deadline, None]
    """Where it is to be taken out of when it was left in time."""
    when: float
    """On the event loop's clock."""
    task: asyncio.Task[Any]
    cancelling: int
    """How often somebody had cancelled the task before."""
    timer: asyncio.TimerHandle | None = None
    """Its own, if it does not wait for the common one."""
    expired: bool = False

    def expire(self) -> None:
        """Cancel the task, which turns that into `TimeoutError` on its way out."""
        self.expired = True
        self.task.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self.expired:
            if self.timer is None:
                self.waiting.pop(self, None)
            else:
                self.timer.cancel()
        elif (
            self.task.uncancel() <= self.cancelling
            and kind is not None
            and issubclass(kind, asyncio.CancelledError)
        ):
            raise TimeoutError from error
