"""What became of a cancel: the one place that decides it, for calls and for batches.

The rows of the table are tried from the top. "Maybe sent" means that an attempt of this
or an earlier call with the same key may have been executed without a clear answer; a
refusal without `Proof` counts as such. So does one that came twice, if the read finds
the refund canceled or fails, unless it is refused for the same reason.

| maybe sent | last answer to the cancel        | refund as read  | outcome          |
|------------|----------------------------------|-----------------|------------------|
| -          | 200, canceled                    | not read        | canceled         |
| before     | 400 of its state, with our key   | canceled        | already_canceled |
| before     | 404, with our key                | 404             | failed           |
| yes        | any                              | canceled        | canceled         |
| yes        | any                              | final otherwise | not_cancelable   |
| yes        | any                              | not final, none | unknown          |
| no         | 400 of its state                 | canceled        | already_canceled |
| no         | 400 of its state                 | requires_action | failed           |
| no         | 400 of its state                 | no status, none | failed           |
| no         | 400 of its state                 | any other state | not_cancelable   |
| no         | another refusal, or not sent     | not read        | failed           |

"Before" is maybe sent by earlier calls or runs, and by no attempt of this call; see
`SentBefore`. After a lost answer of this very call, a refusal is not believed.

- The 400: for a day Stripe gives its first answer to a key again and again
  (https://docs.stripe.com/api/idempotent_requests). So one that repeats our key proves
  that no earlier request with it has canceled: it was somebody else.
- The 404: what is not in the account was not canceled in it. Another account's refund
  looks alike, so the earlier requests need to have had the same credentials.

A refund in state ``pending`` is not final: the bank may return the money, the refund
waits in ``requires_action`` again, and a lost request could still cancel it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from async_refunds.errors import (
    APIConnectionError,
    InvalidRequestError,
    OutcomeUnknownError,
    RefundNotCancelableError,
    RefundNotFoundError,
    RefundsError,
    StatusDetails,
)
from async_refunds.results import CancelOutcome  # noqa: TC001 - a struct's field

from .classification import Outcome, Proof, is_from_stripe
from .error_mapping import (
    describe_failure,
    error_for,
    status_details,
    subject,
)
from .redaction import excerpt, redact_refund
from .requests import Response

if TYPE_CHECKING:
    from async_refunds.models import Attempt, Refund

    from .classification import Classification
    from .requests import Request

_FINAL = frozenset({"canceled", "failed", "succeeded"})
# States in which a refund certainly was not canceled. Another word proves nothing: a
# later version's, or one that something between Stripe and here has put there.
_NOT_CANCELED = frozenset({"requires_action", "pending", "succeeded", "failed"})


class SentBefore(msgspec.Struct, frozen=True):
    """What is known of requests with the same key that earlier calls may have sent."""

    remembered: bool = False
    """Whether Stripe certainly remembers what the key has done."""
    same_credentials: bool = False
    """Whether all of them had the credentials that this call has."""


class Conclusion(msgspec.Struct, frozen=True):
    """What became of a cancel."""

    outcome: CancelOutcome
    refund: Refund | None = None
    """As last seen. Without e-mail addresses if there is an error that has it too."""
    error: RefundsError | None = None
    """What `RefundsClient.cancel` raises; ``None`` for ``canceled``."""
    settled: bool = True
    """Whether another call, also with another key or later, would change nothing."""
    passing: bool = False
    """Whether another call with the same key may well end differently in a minute."""


def needs_read(last: Classification[Refund], *, maybe_sent: bool) -> bool:
    """Tell whether only a read of the refund can conclude the call."""
    return (
        maybe_sent
        or last.outcome is Outcome.AMBIGUOUS
        or last.is_state_refusal
        or last.proof is not Proof.KEY
    )


def conclude(
    request: Request[Refund],
    last: Classification[Refund],
    read: Classification[Refund] | None,
    *,
    maybe_sent: bool,
    before: SentBefore | None = None,
    attempts: tuple[Attempt, ...],
    stopped: str | None = None,
) -> Conclusion:
    """Decide what became of a cancel whose last answer was not ``canceled``.

    Args:
        request: The cancel.
        last: Its last attempt.
        read: The settling read, where `needs_read` asked for one.
        maybe_sent: Whether an attempt of this call may have been executed.
        before: Those of earlier calls that may have been; ``None`` if there is none.
        attempts: Every attempt, the read's included.
        stopped: Why no further retry came.
    """
    refund = None if read is None else read.value
    canceled = refund is not None and refund.status == "canceled"
    if maybe_sent or last.outcome is Outcome.AMBIGUOUS:
        is_no = False
    elif before is not None:
        is_no = last.proof is Proof.KEY and (
            (before.remembered and last.is_state_refusal and canceled)
            or (
                before.same_credentials
                and last.is_missing
                and _is_refused_alike(last, read)
            )
        )
    elif last.proof is Proof.KEY:
        is_no = True
    elif last.proof is Proof.TWICE:
        is_no = (
            refund.status in _NOT_CANCELED
            if refund is not None
            else _is_refused_alike(last, read)
        )
    else:
        is_no = False
    decide = _conclude_no if is_no else _conclude_ambiguous
    return decide(request, last, read, attempts, stopped)


def _is_refused_alike(
    last: Classification[Refund], read: Classification[Refund] | None
) -> bool:
    """Tell whether Stripe refused the read for the same reason as the cancel."""
    if read is None or read.outcome is not Outcome.REFUSED:
        return False
    one, other = last.reply, read.reply
    return (
        isinstance(one, Response)
        and isinstance(other, Response)
        and is_from_stripe(other, read.envelope)
        and one.status == other.status
        and last.envelope.code == read.envelope.code
    )


def _conclude_ambiguous(
    request: Request[Refund],
    last: Classification[Refund],
    read: Classification[Refund] | None,
    attempts: tuple[Attempt, ...],
    stopped: str | None,
) -> Conclusion:
    refund = None if read is None else read.value
    if refund is not None and refund.status == "canceled":
        return Conclusion("canceled", refund)
    if refund is not None and refund.status in _FINAL:
        return _not_cancelable(request, last, refund, attempts, stopped)
    if refund is not None:
        found = f"is in state {_shown_status(refund)}"
    elif read is not None and read.is_missing:
        found = "was not found with this API key"
    else:
        found = "could not be read"
    why = _lost_before(attempts) + describe_failure(last)
    seen = None if refund is None else redact_refund(refund)
    return Conclusion(
        "unknown",
        seen,
        OutcomeUnknownError(
            f"{request.refund_id} may or may not be canceled: {why}"
            f"{_stop_words(stopped)}, and the refund {found}; " + _ask_again(request),
            refund=seen,
            idempotency_key=request.idempotency_key,
            attempts=attempts,
            retries_stopped_by=stopped,
        ),
        settled=False,
        # A saved answer comes again for a day, and a proxy's page after that too.
        passing=last.retry or (read is not None and refund is None and read.retry),
    )


def _conclude_no(
    request: Request[Refund],
    last: Classification[Refund],
    read: Classification[Refund] | None,
    attempts: tuple[Attempt, ...],
    stopped: str | None,
) -> Conclusion:
    refund = None if read is None else read.value
    if (
        refund is not None
        and last.is_state_refusal
        and refund.status not in (None, "requires_action")
    ):
        return _not_cancelable(request, last, refund, attempts, stopped)
    error = error_for(request, last, attempts, stopped)
    if last.is_state_refusal:
        # The refund may be canceled already, so this is worth another look.
        return Conclusion(
            "failed",
            error=error,
            settled=False,
            passing=read is not None and read.value is None and read.retry,
        )
    return Conclusion(
        "failed",
        error=error,
        # Another account's key does not find the refund either, so that one is open.
        settled=isinstance(error, InvalidRequestError)
        and not isinstance(error, RefundNotFoundError),
        passing=last.retry and (last.outcome is Outcome.NOT_SENT or bool(last.limit)),
    )


def _not_cancelable(
    request: Request[Refund],
    last: Classification[Refund] | None,
    refund: Refund,
    attempts: tuple[Attempt, ...],
    stopped: str | None = None,
) -> Conclusion:
    reply = None if last is None else last.reply
    details = (
        status_details(request, last, attempts, stopped)
        if last is not None and isinstance(reply, Response)
        else StatusDetails(
            idempotency_key=request.idempotency_key,
            attempts=attempts,
            retries_stopped_by=stopped,
        )
    )
    canceled = refund.status == "canceled"
    state = "already canceled" if canceled else _shown_status(refund)
    seen = redact_refund(refund)
    error = RefundNotCancelableError(
        f"{subject(request)}: it is {state}, and only a refund in requires_action can "
        "be canceled",
        refund=seen,
        **details,
    )
    if canceled:
        return Conclusion("already_canceled", refund, error)
    return Conclusion("not_cancelable", seen, error)


def conclude_expired_key(
    request: Request[Refund],
    read: Classification[Refund],
    attempts: tuple[Attempt, ...],
) -> Conclusion | None:
    """Decide what a cancel of over a day ago did, from a read of the refund.

    Stripe may have forgotten the key, and a request that was lost a day ago will not be
    executed any more. So the state is the whole truth, if it is one that is known.

    Returns:
        The conclusion; ``None`` if the refund still waits in ``requires_action``, so
        that a fresh key may be sent.
    """
    refund = read.value
    if refund is not None and refund.status == "requires_action":
        return None
    if refund is not None and refund.status == "canceled":
        return Conclusion("canceled", refund)
    if refund is not None and refund.status in _NOT_CANCELED:
        return _not_cancelable(request, None, refund, attempts)
    if refund is None:
        found = f"it could not be read ({describe_failure(read)})"
    elif refund.status is None:
        found = "it was read without a status"
    else:
        found = f"it is in state {_shown_status(refund)}"
    seen = None if refund is None else redact_refund(refund)
    return Conclusion(
        "unknown",
        seen,
        OutcomeUnknownError(
            f"{request.refund_id} may or may not be canceled: its idempotency key is "
            f"over a day old, and {found}",
            refund=seen,
            idempotency_key=request.idempotency_key,
            attempts=attempts,
        ),
        settled=False,
        passing=True,
    )


def conclude_given_up(
    request: Request[Refund],
    read: Classification[Refund],
    attempts: tuple[Attempt, ...],
) -> Conclusion:
    """Return that a refund was not canceled, which waits and gets no fresh key."""
    seen = None if read.value is None else redact_refund(read.value)
    error = RefundsError(
        f"{request.refund_id} was not canceled: it is still in requires_action, its "
        "idempotency key is over a day old",
        idempotency_key=request.idempotency_key,
        attempts=attempts,
    )
    return Conclusion("failed", seen, error, settled=False)


def conclude_interrupted(
    request: Request[Refund],
    attempts: tuple[Attempt, ...],
    why: str,
    *,
    maybe_sent: bool = True,
) -> Conclusion:
    """Return the conclusion of a call that ended before its outcome was known.

    Args:
        request: The cancel.
        attempts: Every attempt so far.
        why: What ended the call, such as ``"the call was interrupted"``.
        maybe_sent: Whether an attempt with this key may have been executed.
    """
    if not maybe_sent:
        refused = any(
            attempt.method == "POST" and attempt.status is not None
            for attempt in attempts
        )
        when = "after Stripe had refused it" if refused else "before it was sent"
        return Conclusion(
            "failed",
            error=APIConnectionError(
                f"{subject(request)}: {why} {when}",
                idempotency_key=request.idempotency_key,
                attempts=attempts,
            ),
            settled=False,
        )
    error = OutcomeUnknownError(
        f"{request.refund_id} may or may not be canceled: {why}; "
        + _ask_again(request),
        refund=None,
        idempotency_key=request.idempotency_key,
        attempts=attempts,
    )
    return Conclusion("unknown", error=error, settled=False, passing=True)


def _ask_again(request: Request[Refund]) -> str:
    """Return the advice for an unknown outcome, with the key.

    Some job queues and formatted tracebacks keep nothing of an error but its message,
    so the message has to contain the key.
    """
    key = f"idempotency_key={request.idempotency_key!r}"
    if request.asked_again_by is not None:
        return f"{request.asked_again_by} asks again with {key}"
    return f"call cancel again with {key} within 24 hours"


def _lost_before(attempts: tuple[Attempt, ...]) -> str:
    """Return how an answer was lost, if the last request does not say the same.

    That may be a 409, since the lost request is still under way: a reader would look
    for a conflict.
    """
    sent = [each for each in attempts if each.method == "POST"]
    lost = next((each for each in sent if each.sent and each.failure), None)
    if lost is None or lost.failure == sent[-1].failure:
        return ""
    return f"an answer was lost ({lost.failure}), then "


def _shown_status(refund: Refund) -> str:
    return excerpt(str(refund.status))


_STOP_WORDS = {
    "count": ", after all retries",
    "deadline": ", with no time left for a retry",
    "budget": ", with the retry budget spent",
}


def _stop_words(stopped: str | None) -> str:
    return _STOP_WORDS.get(stopped or "", "")
