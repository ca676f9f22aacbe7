"""From a reply that is no success to the one error it raises: the only such place."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

import msgspec

from async_refunds import errors

from .classification import decoded, is_success, request_id
from .redaction import scrub
from .requests import Cause, Response, TransportFailure

if TYPE_CHECKING:
    from async_refunds.models import Attempt, Refund

    from .requests import Reply, Request

# Stripe's longest message is 40,000 characters (maxLength in its schema), and a proxy's
# page has no bound; an error's text is for one screen.
_MESSAGE_LIMIT = 1000

_BY_STATUS: dict[int, type[errors.APIStatusError]] = {
    400: errors.InvalidRequestError,
    401: errors.AuthenticationError,
    403: errors.PermissionDeniedError,
    404: errors.InvalidRequestError,
    409: errors.IdempotencyError,
    429: errors.RateLimitError,
}

_BY_CAUSE: dict[Cause, type[errors.APIConnectionError]] = {
    Cause.CONNECT_TIMEOUT: errors.APITimeoutError,
    Cause.TIMEOUT: errors.APITimeoutError,
}

# A refund in one of these never leaves it. `pending` is none of them: the bank may send
# the money back, and the refund waits in `requires_action` again, where a lost request
# could still cancel it.
_FINAL = frozenset({"canceled", "failed", "succeeded"})

# An answer came, and is of no use: to a read, the same as a 5xx.
_UNREADABLE = frozenset({Cause.CUT_BODY, Cause.TOO_LARGE, Cause.MALFORMED})


class Envelope(msgspec.Struct, frozen=True):
    """The fields of Stripe's error object that an error carries, scrubbed.

    https://docs.stripe.com/api/errors
    """

    type: str | None = None
    code: str | None = None
    param: str | None = None
    message: str | None = None


class _Body(msgspec.Struct):
    # Not typed further: one odd field must not cost the others.
    error: dict[str, Any]


_BODY = msgspec.json.Decoder(_Body)


def envelope(response: Response) -> Envelope:
    """Read Stripe's error object; all ``None`` where the body holds none."""
    body = decoded(_BODY, response.body)
    if body is None:
        return Envelope()
    texts = {
        name: scrub(text)[:_MESSAGE_LIMIT]
        for name in Envelope.__struct_fields__
        if isinstance(text := body.error.get(name), str)
    }
    return Envelope(**texts)


def is_state_refusal(reply: Reply) -> bool:
    """Tell whether a refused cancel may be due to the refund's state.

    Stripe gives such a 400 no code and no parameter, and a text that misleads; only a
    read of the refund names the state.
    """
    if isinstance(reply, TransportFailure) or reply.status != 400:  # noqa: PLR2004 - Bad Request
        return False
    found = envelope(reply)
    return (
        found.code is None and found.param is None and found.type != "idempotency_error"
    )


class Limit(enum.Enum):
    """What there was too much of."""

    RATE = "rate"
    """Requests a second."""
    CONCURRENCY = "concurrency"
    """Requests at once."""
    LOCK = "lock"
    """Requests that change the same object, such as two refunds of one charge."""


def limited_by(reply: Reply) -> Limit | None:
    """Tell what a 429 complains of; ``None`` for any other reply.

    A limiter gives its reason in a header (https://docs.stripe.com/rate-limits), a lock
    a code (https://docs.stripe.com/error-codes#lock-timeout). Anything else, such as a
    proxy's own 429, is taken for the most common one.
    """
    if isinstance(reply, TransportFailure) or reply.status != 429:  # noqa: PLR2004 - too many requests
        return None
    reason = reply.headers.get("Stripe-Rate-Limited-Reason")
    if reason is None and envelope(reply).code == "lock_timeout":
        return Limit.LOCK
    if reason is not None and reason.endswith("-concurrency"):
        return Limit.CONCURRENCY
    return Limit.RATE


def error_of(
    request: Request[Any], reply: Reply, attempts: tuple[Attempt, ...]
) -> errors.RefundsError:
    """Return the error for a reply that canceled nothing, or that answers a read."""
    if isinstance(reply, TransportFailure):
        return _of_failure(request, reply, attempts)
    details = status_details(request, reply, attempts)
    text = envelope(reply).message or what_failed(reply)
    return _class_of(reply)(f"{_subject(request)}: {text}", **details)


def unsettled(
    request: Request[Any],
    reply: Reply,
    seen: Refund | None,
    *,
    ambiguous: bool,
    attempts: tuple[Attempt, ...],
) -> errors.RefundsError:
    """Return the error for a cancel whose last word a read had to explain.

    Args:
        request: The cancel.
        reply: Its last word.
        seen: The refund as the read found it, or ``None`` where that failed.
        ambiguous: Whether any of its attempts may have landed.
        attempts: All of them, and those of the read.
    """
    if seen is not None and (
        seen.status in _FINAL
        or (not ambiguous and seen.status not in (None, "requires_action"))
    ):
        details = (
            status_details(request, reply, attempts)
            if isinstance(reply, Response)
            else errors.StatusDetails(
                idempotency_key=request.idempotency_key, attempts=attempts
            )
        )
        state = "already canceled" if seen.status == "canceled" else seen.status
        return errors.RefundNotCancelableError(
            f"{_subject(request)}: it is {state}, and only a refund in "
            "requires_action can be canceled",
            refund=seen,
            **details,
        )
    if not ambiguous:
        return error_of(request, reply, attempts)
    found = "could not be read" if seen is None else f"is in state {seen.status}"
    return errors.OutcomeUnknownError(
        f"{request.refund_id} may or may not be canceled: {what_failed(reply)}, and "
        f"the refund {found}; call cancel again with this error's idempotency_key "
        "within 24 hours",
        refund=seen,
        idempotency_key=request.idempotency_key,
        attempts=attempts,
    )


def what_failed(reply: Reply) -> str:
    """Say in a few words, for people, what kept a reply from being an answer."""
    if isinstance(reply, TransportFailure):
        return reply.detail
    if is_success(reply):
        return "the answer could not be read"
    return f"HTTP status {reply.status}"


def status_details(
    request: Request[Any], response: Response, attempts: tuple[Attempt, ...]
) -> errors.StatusDetails:
    """Return what an error tells of the answer it stands for."""
    found = envelope(response)
    return errors.StatusDetails(
        idempotency_key=request.idempotency_key,
        attempts=attempts,
        status_code=response.status,
        type=found.type,
        code=found.code,
        param=found.param,
        request_id=request_id(response),
    )


def _of_failure(
    request: Request[Any], failure: TransportFailure, attempts: tuple[Attempt, ...]
) -> errors.RefundsError:
    text = f"{_subject(request)}: {failure.detail}"
    key = request.idempotency_key
    if failure.sent and failure.cause in _UNREADABLE:
        return errors.APIError(text, idempotency_key=key, attempts=attempts)
    cls = _BY_CAUSE.get(failure.cause, errors.APIConnectionError)
    return cls(text, idempotency_key=key, attempts=attempts)


def _class_of(response: Response) -> type[errors.APIStatusError]:
    found = envelope(response)
    if found.type == "idempotency_error":
        return errors.IdempotencyError
    if response.status == 404 and found.code == "resource_missing":  # noqa: PLR2004 - Not Found
        return errors.RefundNotFoundError
    if response.status in _BY_STATUS:
        return _BY_STATUS[response.status]
    if response.status >= 500 or response.status < 300:  # noqa: PLR2004 - no refusal
        return errors.APIError
    if found.type == "invalid_request_error":
        return errors.InvalidRequestError
    return errors.APIStatusError


def _subject(request: Request[Any]) -> str:
    if request.method == "POST":
        return f"{request.refund_id} was not canceled"
    return f"{request.refund_id or 'the list of refunds'} could not be read"
