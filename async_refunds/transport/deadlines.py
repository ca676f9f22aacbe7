"""Deadlines for many attempts at once, with one timer for all of them.

`asyncio.timeout` sets and removes a timer for each attempt, which takes a tenth of the
CPU of a whole cancel (``benchmarks/bench_cancel.py`` shows both). Here, nearly all
attempts of a client have the same time limit, so the oldest attempt always expires
first. One timer, set for the oldest, is enough: when it fires, it ends what has expired
and is set for the next one. An attempt that ends in time only leaves a dictionary.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

import msgspec

if TYPE_CHECKING:
    from types import TracebackType

# Seconds. If a timer fires this late, the event loop was blocked or the process was
# stopped (SIGSTOP, a suspended laptop), and an answer may lie in the socket unread.
_LATE = 0.1
# Seconds that an attempt gets to read it, in that case.
_GRACE = 0.05


class Deadlines:
    """Ends attempts that take too long, in one event loop.

    Args:
        loop: The event loop.
        seconds: The time limit of nearly all attempts. An attempt with a shorter one
            gets a timer of its own.
    """

    __slots__ = ("_loop", "_pending", "_seconds", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._loop = loop
        self._seconds = seconds
        # Those in progress, oldest first: a dictionary keeps that order.
        self._pending: dict[Deadline, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(
        self, seconds: float, now: float, task: asyncio.Task[Any] | None = None
    ) -> Deadline:
        """Return a deadline from now, to enter with ``with`` in the same task.

        Args:
            seconds: Until it expires.
            now: The event loop's time.
            task: The current one, if the caller has it at hand.
        """
        if task is None:
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
        # Last: if a line above raises (RecursionError), nothing is left to expire.
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
    """The deadlines in progress; this one leaves them when its attempt ends."""
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
