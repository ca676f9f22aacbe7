"""From a reply that is no success to the error that it raises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from async_refunds import errors

from .classification import is_from_stripe, is_success, request_id
from .requests import Cause, TransportFailure

if TYPE_CHECKING:
    from async_refunds.models import Attempt

    from .classification import Classification
    from .requests import Request, Response

_BY_STATUS: dict[int, type[errors.APIStatusError]] = {
    400: errors.InvalidRequestError,
    401: errors.AuthenticationError,
    403: errors.PermissionDeniedError,
    404: errors.InvalidRequestError,
    409: errors.IdempotencyError,
    429: errors.RateLimitError,
}

# An answer arrived and is of no use. For a read that is the same as a 5xx.
_UNREADABLE = frozenset({Cause.CUT_BODY, Cause.TOO_LARGE, Cause.MALFORMED})


def error_for(
    request: Request[Any],
    last: Classification[Any],
    attempts: tuple[Attempt, ...],
    stopped: str | None = None,
) -> errors.RefundsError:
    """Return the error for a reply that canceled nothing, or for a failed read."""
    reply = last.reply
    if isinstance(reply, TransportFailure):
        cls: type[errors.RefundsError] = errors.APIConnectionError
        if reply.sent and reply.cause in _UNREADABLE:
            cls = errors.APIError
        elif last.timed_out:
            cls = errors.APITimeoutError
        return cls(
            f"{subject(request)}: {reply.detail}",
            idempotency_key=request.idempotency_key,
            attempts=attempts,
            retries_stopped_by=stopped,
        )
    text = last.envelope.message or describe_failure(last)
    details = status_details(request, last, attempts, stopped)
    return _class_for(last, reply)(f"{subject(request)}: {text}", **details)


def describe_failure(last: Classification[Any]) -> str:
    """Say in a few words, for people, why a reply is not the answer wanted."""
    reply = last.reply
    if isinstance(reply, TransportFailure):
        return reply.detail
    if is_success(reply):
        return "the answer could not be read"
    if reply.status < 500 and not is_from_stripe(reply, last.envelope):  # noqa: PLR2004 - a server error needs no author
        return f"HTTP status {reply.status}, which did not come from Stripe"
    return f"HTTP status {reply.status}"


def status_details(
    request: Request[Any],
    last: Classification[Any],
    attempts: tuple[Attempt, ...],
    stopped: str | None = None,
) -> errors.StatusDetails:
    """Return what an error tells about the HTTP answer behind it."""
    reply, found = last.reply, last.envelope
    assert not isinstance(reply, TransportFailure)  # noqa: S101 - the callers look
    return errors.StatusDetails(
        idempotency_key=request.idempotency_key,
        attempts=attempts,
        retries_stopped_by=stopped,
        status_code=reply.status,
        type=found.type,
        code=found.code,
        param=found.param,
        request_id=request_id(reply),
    )


def subject(request: Request[Any]) -> str:
    """Return the beginning of an error's message."""
    if request.method == "POST":
        return f"{request.refund_id} was not canceled"
    return f"{request.refund_id or 'the list of refunds'} could not be read"


def _class_for(
    last: Classification[Any], response: Response
) -> type[errors.APIStatusError]:
    found = last.envelope
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
