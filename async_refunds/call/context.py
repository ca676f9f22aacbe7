"""What the calls of one client share, and what they expect of those around them."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_refunds.models import Attempt, CallRecord
    from async_refunds.protocol.classification import Classification
    from async_refunds.protocol.requests import Request
    from async_refunds.retry import RetryBudget, RetryPolicy
    from async_refunds.telemetry import CallStartHook
    from async_refunds.transport.session import Session


class CallObserver(Protocol):
    """Sees each attempt of a call, such as the scheduler of a batch."""

    def attempt_finished(
        self,
        request: Request[Any],
        classification: Classification[Any],
        attempt: Attempt,
    ) -> None:
        """Record an attempt and what it proves."""
        ...

    def attempt_broken_off(self, attempt: Attempt) -> None:
        """Record an attempt whose call was cancelled before an answer came."""
        ...


class RetryGate(Protocol):
    """Decides when a retry of a call, or its settling read, may go out."""

    async def wait(self, request: Request[Any], seconds: float, until: float) -> bool:
        """Sleep at least so long, then wait until the request may go out.

        Not beyond ``until``, a time on the event loop's clock: no attempt can start
        after that.

        Returns:
            Whether it may go out. If not, the call ends with what it knows.
        """
        ...


class Credentials(Protocol):
    """Gives the session an API key that may change while the client is in use."""

    async def load(self, seconds: float) -> None:
        """Give the session its first key, unless it has one, within so many seconds."""
        ...

    async def renew(self, generation: int, seconds: float) -> bool:
        """Replace the key of a generation that was refused; return whether it could.

        See `Session.key_generation`.
        """
        ...


class InProgress:
    """Counts the calls in progress, and lets a closing client wait for their end."""

    __slots__ = ("calls", "idle")

    def __init__(self) -> None:
        self.calls = 0
        self.idle: asyncio.Event | None = None
        """Set when the last call ends; there only while something waits for it."""

    async def wait_idle(self, seconds: float) -> None:
        """Wait until no call is in progress, at most so long."""
        if not self.calls:
            return
        if self.idle is None:
            self.idle = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.idle.wait(), seconds)


class CallContext(msgspec.Struct, frozen=True):
    """What the calls of one client share."""

    session: Session
    policy: RetryPolicy
    budget: RetryBudget | None
    attempt_timeout: float
    on_attempt: Callable[[Attempt], object] | None
    on_call: Callable[[CallRecord], object] | None
    on_call_start: CallStartHook | None
    credentials: Credentials | None
    """``None`` if the session has a key that stays the same."""
    in_progress: InProgress
