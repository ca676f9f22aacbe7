"""One call: its deadline, its attempts, and what they leave possible.

A cancel may take several requests under one key, and a read that settles them. The
call remembers across all of them what a single answer cannot know: that an earlier
attempt may have landed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from async_refunds.protocol import error_mapping
from async_refunds.protocol.classification import (
    Classification,
    Outcome,
    classify,
    is_replay,
    is_success,
    request_id,
)
from async_refunds.protocol.requests import Cause, Reply, Response, TransportFailure

from .models import Attempt, LastResponse, Refund, attach
from .retry import retried

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from async_refunds.protocol.requests import Request
    from async_refunds.transport.session import Session

    from .retry import RetryBudget, RetryPolicy

logger = logging.getLogger("async_refunds")

T = TypeVar("T")

# What the log says of an answer with a good status and a body of no use.
UNREADABLE = "unreadable"

# A quarter of the call, and never more than ten seconds, is kept for the read that
# settles an unknown outcome: Stripe answers a read in well under one.
_SETTLING_SHARE, _SETTLING_LIMIT = 0.25, 10.0
# No retry starts with less than this left. One that is sent and cut off by the deadline
# proves nothing, and takes from what the attempts before it had proved.
_ROOM_SHARE, _ROOM_LIMIT = 0.1, 1.0


class Watch(Protocol):
    """Somebody who has an eye on a call's requests: the batch that it is a part of."""

    @property
    def ambiguous(self) -> bool:
        """Whether a cancel under the same key may have landed before this call."""
        ...

    def ended(
        self, request: Request[Any], advice: Classification[Any], attempt: Attempt
    ) -> None:
        """Take note of an attempt, and of what the log says of it."""
        ...

    async def pause(self, until: float, seconds: float) -> None:
        """Wait before a retry, at least so long, and not beyond ``until``.

        Time that no attempt counts: another one's turn may come first.
        """
        ...


class CallContext(msgspec.Struct, frozen=True):
    """What the calls of one client share."""

    session: Session
    policy: RetryPolicy
    budget: RetryBudget
    attempt_timeout: float
    on_attempt: Callable[[Attempt], object] | None
    sleep: Callable[[float], Awaitable[None]]
    random: Callable[[], float]
    watch: Watch | None = None


class Call(msgspec.Struct):
    """One awaited method of the client."""

    # Seen by the garbage collector: an error holds the frames that hold its call, which
    # holds the hooks of its owner, who may hold the error.

    caller: CallContext
    """What it shares with the other calls."""
    clock: Callable[[], float]
    """The time in seconds."""
    began: float
    timeout: float
    """Seconds for everything: each attempt, each sleep, the settling read."""
    ambiguous: bool
    """Whether a cancel with this call's key may have landed without a word."""
    attempts: tuple[Attempt, ...] = ()
    """Every request so far, oldest first."""

    @property
    def deadline(self) -> float:
        """When all has to be over, on the call's clock."""
        return self.began + self.timeout

    @property
    def settling_from(self) -> float:
        """When the attempts of a cancel have to be over, on the call's clock."""
        return self.deadline - min(self.timeout * _SETTLING_SHARE, _SETTLING_LIMIT)

    async def insist(
        self, first: Classification[T], request: Request[T], until: float
    ) -> Classification[T]:
        """Return the last attempt after a first one that asks for a retry."""
        caller, watch = self.caller, self.caller.watch

        async def again(slept: float) -> Classification[T]:
            return await self.attempt(request, until, slept)

        def note(failed: Classification[T], pause: float) -> None:
            with contextlib.suppress(Exception):  # of the caller's logging
                logger.info(
                    "%s %s: attempt %d failed (%s), next in %.2f s [key %s]",
                    request.method,
                    request.path,
                    len(self.attempts),
                    error_mapping.what_failed(failed.reply),
                    pause,
                    request.idempotency_key,
                )

        return await retried(
            first,
            again,
            policy=caller.policy,
            budget=caller.budget,
            until=until,
            room=min(self.timeout * _ROOM_SHARE, _ROOM_LIMIT),
            clock=self.clock,
            sleep=caller.sleep if watch is None else partial(watch.pause, until),
            random=caller.random,
            before_sleep=note,
        )

    async def attempt(
        self, request: Request[T], until: float, slept: float = 0.0
    ) -> Classification[T]:
        """Send once, ending before ``until``, and write it down.

        Apart from `insist`, so that a success passes through no frame that it has no
        use for: each one is 1 % of a cancel.
        """
        caller = self.caller
        began = self.clock() if self.attempts else self.began
        seconds = min(caller.attempt_timeout, until - began)
        reply: Reply
        if seconds > 0:
            reply = await caller.session.send(request, seconds, began)
        else:
            reply = TransportFailure(Cause.CONNECT_TIMEOUT, "no time left", sent=False)
        advice = classify(request, reply)
        if advice.value is not None:
            caller.budget.succeeded()
        elif advice.outcome is Outcome.AMBIGUOUS and request.method == "POST":
            self.ambiguous = True
        status = failure = name = None
        if isinstance(reply, Response):
            status, name = reply.status, request_id(reply)
            if advice.value is None and is_success(reply):
                failure = UNREADABLE
        else:
            failure = reply.cause.value
        attempt = Attempt(
            number=len(self.attempts) + 1,
            method=request.method,
            path=request.path,
            status=status,
            failure=failure,
            request_id=name,
            seconds=self.clock() - began,
            slept=slept,
        )
        self.attempts += (attempt,)
        if caller.watch is not None:
            caller.watch.ended(request, advice, attempt)
        if caller.on_attempt is not None:
            _tell(caller.on_attempt, attempt)
        return advice

    def remember(self, refund: Refund, reply: Reply, key: str | None) -> None:
        """Attach to a refund the answer that it was read from, and the way there."""
        assert isinstance(reply, Response)  # noqa: S101 - a refund came from one
        attach(
            refund,
            LastResponse(
                status_code=reply.status,
                request_id=self.attempts[-1].request_id,
                idempotency_key=key,
                idempotent_replayed=is_replay(reply),
                attempts=self.attempts,
                body=reply.body,
            ),
        )


def _tell(on_attempt: Callable[[Attempt], object], attempt: Attempt) -> None:
    try:
        on_attempt(attempt)
    except (Exception, asyncio.CancelledError):
        # The caller's own hook must not change what the caller is told of money,
        # nor may the caller's logging.
        with contextlib.suppress(Exception):
            logger.exception("on_attempt raised; the call goes on")
