"""The requests of one call: each is sent, recorded, and judged with those before it.

A call remembers across all of them what a single answer cannot know: that an earlier
attempt may have been executed.
"""

from __future__ import annotations

from logging import DEBUG
from time import time
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from async_refunds import telemetry
from async_refunds.models import Attempt, LastResponse, attach
from async_refunds.protocol.classification import (
    Classification,
    Outcome,
    Proof,
    classify,
    is_replay,
    is_success,
    request_id,
)
from async_refunds.protocol.requests import Cause, Response, TransportFailure
from async_refunds.telemetry import logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_refunds.models import CallRecord, Refund
    from async_refunds.protocol.outcome import SentBefore
    from async_refunds.protocol.requests import Reply, Request
    from async_refunds.retry import StopReason
    from async_refunds.transport.connections import SendEvidence

    from .context import CallContext, CallObserver, RetryGate

T = TypeVar("T")

# How `Attempt.failure` names a good status with a body that is not the answer.
UNREADABLE = "unreadable"
# And an attempt whose call was cancelled meanwhile.
BROKEN_OFF = "broken_off"

# A quarter of the call, and at most ten seconds, is kept for the read that settles an
# unknown outcome: Stripe answers a read in well under one.
_SETTLING_SHARE, _SETTLING_LIMIT = 0.25, 10.0
# The first attempt may take three sevenths of the time until then, so that a stalled
# one leaves room for a retry: 30 of the 70 seconds of the default policy, as long as
# the default attempt time-out.
_FIRST_SHARE = 3 / 7
# No retry starts with less than this left. One that is sent and cut off by the deadline
# proves nothing, and destroys what the attempts before it had proved.
_ROOM_SHARE, _ROOM_LIMIT = 0.1, 1.0

_TOO_MANY_REQUESTS = 429


class CallAttempts(msgspec.Struct, eq=False):
    """The requests of one call, and what they leave possible."""

    # Tracked by the garbage collector: an error holds the frames that hold its call,
    # which holds the hooks of its owner, who may hold the error.

    context: CallContext
    clock: Callable[[], float]
    """The event loop's time, in seconds."""
    began: float
    timeout: float
    """Seconds for everything: each attempt, each sleep, the settling read."""
    sent_before: SentBefore | None = None
    """What earlier calls may have sent with the same key; ``None`` if nothing."""
    maybe_sent: bool = False
    """Whether a cancel with this call's key may have been executed unnoticed."""
    observer: CallObserver | None = None
    retry_gate: RetryGate | None = None
    permit: Callable[[], bool] | None = None
    """Asked before each send, as late as possible; ``False`` sends nothing."""
    attempts: tuple[Attempt, ...] = ()
    """Every request so far, oldest first."""
    stopped: StopReason | None = None
    """Why no further retry came."""
    in_flight: bool = False
    """Whether a cancel was handed to the session, and what it did is not accounted for
    by `maybe_sent` or by a refusal that counts by itself."""
    unconfirmed: bool = False
    """Whether a refusal without proof is the last thing that Stripe said."""
    refused_before: tuple[int, str | None] | None = None
    """Status and code of the last refusal that may answer another request."""
    refused_alike: bool = False
    """Whether that one came twice."""
    evidence: SendEvidence | None = None
    """Whether anything of the last attempt may have gone out, and with which key."""
    on_end: Callable[[CallRecord], object] | None = None
    """What ``on_call_start`` returned."""

    @property
    def may_have_canceled(self) -> bool:
        """Whether a cancel with this call's key may have been executed unnoticed."""
        return (
            self.maybe_sent
            or self.sent_before is not None
            or self.unconfirmed
            or (
                self.in_flight
                and self.evidence is not None
                and self.evidence.maybe_sent
            )
        )

    @property
    def deadline(self) -> float:
        """When everything has to be over, on the call's clock."""
        return self.began + self.timeout

    @property
    def settling_from(self) -> float:
        """When the attempts of a cancel have to be over, on the call's clock."""
        kept = min(self.timeout * _SETTLING_SHARE, _SETTLING_LIMIT)
        return self.began + self.timeout - kept

    @property
    def room(self) -> float:
        """How many seconds must be left for another attempt to start."""
        return min(self.timeout * _ROOM_SHARE, _ROOM_LIMIT)

    async def attempt(
        self, request: Request[T], until: float, slept: float = 0.0
    ) -> Classification[T]:
        """Send once, ending before ``until``, and record it.

        Apart from `retry`, so that a success passes through no frame that it does not
        need: each one is 1 % of a cancel.
        """
        context = self.context
        is_cancel = request.idempotency_key is not None
        first = not self.attempts
        began = self.began if first and context.credentials is None else self.clock()
        room = until - began
        if first:
            room *= _FIRST_SHARE
        seconds = min(context.attempt_timeout, room)
        began_at = time()
        reply: Reply
        if seconds > 0:
            self.in_flight = is_cancel
            # Two late answers on two kept connections may well be the same. A limiter
            # refuses until the retries end, which so many are not.
            before = self.refused_before
            self.evidence = evidence = context.session.new_evidence(
                alone=before is not None and before[0] != _TOO_MANY_REQUESTS,
                permit=self.permit,
            )
            try:
                reply = await context.session.send(request, seconds, began, evidence)
            except BaseException:
                self._note_broken_off(request, evidence, slept, began_at)
                raise
        else:
            reply = TransportFailure(Cause.CONNECT_TIMEOUT, "no time left", sent=False)
        result = classify(request, reply)
        now = self.clock()
        status = failure = name = None
        sent = True
        if isinstance(reply, Response):
            status, name = reply.status, request_id(reply)
            if result.value is None and is_success(reply):
                failure = UNREADABLE
        else:
            failure, sent = reply.cause.value, reply.sent
        if is_cancel and result.value is None:
            result = self._remember(result)
            # Not after a success: an error on its way to the caller must not hide it.
            self.in_flight = False
        attempt = Attempt(
            len(self.attempts) + 1,
            request.method,
            request.path,
            status,
            failure,
            name,
            now - began,
            slept,
            reply.waited,
            began_at,
            None,
            sent,
        )
        self.attempts += (attempt,)
        if context.budget is not None:
            context.budget.record(now, first=first, succeeded=result.value is not None)
        if self.observer is not None:
            self.observer.attempt_finished(request, result, attempt)
        if context.on_attempt is not None or logger.isEnabledFor(DEBUG):
            self._tell(request, attempt)
        return result

    def _tell(self, request: Request[Any], attempt: Attempt) -> None:
        """Tell the hook and the log of an attempt that has ended."""
        if self.context.on_attempt is not None:
            telemetry.call_hook("on_attempt", self.context.on_attempt, attempt)
        if logger.isEnabledFor(DEBUG):
            telemetry.log_attempt(request, attempt)

    def _note_broken_off(
        self, request: Request[Any], evidence: SendEvidence, slept: float, at: float
    ) -> None:
        """Record an attempt whose end nobody waits for, if anything of it was sent."""
        if not evidence.maybe_sent:
            return
        attempt = Attempt(
            number=len(self.attempts) + 1,
            method=request.method,
            path=request.path,
            status=None,
            failure=BROKEN_OFF,
            request_id=None,
            seconds=max(0.0, time() - at),
            slept=slept,
            began_at=at,
        )
        self.attempts += (attempt,)
        if self.observer is not None:
            self.observer.attempt_broken_off(attempt)

    def _remember(self, failed: Classification[T]) -> Classification[T]:
        """Remember what a failed cancel leaves possible.

        A refusal that may answer another request is believed if it comes twice, the
        second time on a connection of its own.
        """
        if failed.outcome is Outcome.AMBIGUOUS:
            self.maybe_sent = True
        if failed.outcome is not Outcome.REFUSED:
            return failed
        assert isinstance(failed.reply, Response)  # noqa: S101 - only answers refuse
        seen = (failed.reply.status, failed.envelope.code)
        twice = seen == self.refused_before
        if failed.is_first_answer:
            self.refused_before = None  # that one, too, has canceled nothing
        elif self.refused_before is not None and not (twice or self.refused_alike):
            # What came before was no answer to this request, perhaps: then that one's
            # is lost, and it may be carried out.
            self.maybe_sent = True
        # Only the read makes a no of it.
        self.unconfirmed = failed.proof is not Proof.KEY
        if failed.proof is Proof.KEY:
            return failed
        self.refused_before, self.refused_alike = seen, twice
        if not twice:
            return failed
        retry = failed.retry and failed.limit is not None
        return msgspec.structs.replace(failed, proof=Proof.TWICE, retry=retry)

    def attach_last_response(
        self, refund: Refund, reply: Reply, key: str | None
    ) -> None:
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
