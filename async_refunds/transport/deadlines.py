"""Deadlines for many attempts at once, on one timer.

`asyncio.timeout` sets and removes a timer for each attempt, a tenth of the CPU of a
whole cancel (``benchmarks/bench_cancel.py`` shows both). But nearly all attempts of a
client may take equally long, so they end in the order they began, and one timer for the
oldest serves all: most end long before it and cost a dictionary entry each.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

import msgspec

if TYPE_CHECKING:
    from types import TracebackType

# Seconds. A timer that fires later than the first was held up by a blocked event loop
# or a stopped process (SIGSTOP, a suspended laptop), and the answer may wait in the
# socket unread. Then the attempt gets the second to read it.
_LATE, _GRACE = 0.1, 0.05


class Deadlines:
    """Ends attempts that take too long, in one event loop.

    Args:
        loop: The event loop.
        seconds: What nearly all attempts may take; a shorter one has its own timer.
    """

    __slots__ = ("_loop", "_pending", "_seconds", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._loop = loop
        self._seconds = seconds
        # Those in progress, oldest first: a dictionary keeps that order.
        self._pending: dict[Deadline, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self, seconds: float, now: float) -> Deadline:
        """Return a deadline from now, to enter with ``with`` in the same task."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("async_refunds needs a running asyncio task")
        if seconds < self._seconds:
            deadline = Deadline(self._pending, now + seconds, task, task.cancelling())
            deadline.timer = self._loop.call_at(
                deadline.when, self._expire_one, deadline
            )
            return deadline
        when = now + self._seconds
        deadline = Deadline(self._pending, when, task, task.cancelling())
        if self._timer is None:
            self._timer = self._loop.call_at(when, self._expire_oldest)
        # Last: where the stack is full, an attempt that did not begin must not expire.
        self._pending[deadline] = None
        return deadline

    def close(self) -> None:
        """Remove the common timer, unless an attempt still depends on it."""
        if self._timer is not None and not self._pending:
            self._timer.cancel()
            self._timer = None

    def _expire_oldest(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._pending:
            deadline = next(iter(self._pending))
            if deadline.when > now:
                self._timer = self._loop.call_at(deadline.when, self._expire_oldest)
                return
            del self._pending[deadline]
            self._expire_one(deadline)

    def _expire_one(self, deadline: Deadline) -> None:
        now = self._loop.time()
        if now - deadline.when > _LATE:
            deadline.timer = self._loop.call_at(now + _GRACE, deadline.expire)
        else:
            deadline.expire()


class Deadline(msgspec.Struct, eq=False):
    """The deadline of one attempt, a context manager that raises `TimeoutError`.

    It cancels its task, and tells that apart from any other cancellation by the same
    rules as `asyncio.timeout`.
    """

    pending: dict[Deadline, None]
    """From where it is removed when the attempt ends in time."""
    when: float
    """On the event loop's clock."""
    task: asyncio.Task[Any]
    cancelling: int
    """How often the task had been cancelled before."""
    timer: asyncio.TimerHandle | None = None
    """Its own timer, if it does not wait for the common one."""
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
                self.pending.pop(self, None)
            else:
                self.timer.cancel()
        elif (
            self.task.uncancel() <= self.cancelling
            and kind is not None
            and issubclass(kind, asyncio.CancelledError)
        ):
            raise TimeoutError from error
