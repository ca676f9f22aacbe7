"""What a reply proves, and whether the same request may go out again.

No I/O, no clock, no randomness: the same request and the same reply always give the
same advice.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from async_refunds.models import Refund

from . import validation
from .requests import Cause, RefundPage, Response, TransportFailure, next_page

if TYPE_CHECKING:
    from .requests import Reply, Request

T = TypeVar("T", covariant=True)  # noqa: PLC0105 - one letter is the field's habit

# A wrong certificate, and a closed session, stay so: the next attempt meets the same.
_FINAL = frozenset({Cause.CERTIFICATE, Cause.CLOSED})


class Outcome(enum.Enum):
    """What a reply says about the request that it answers."""

    DONE = "done"
    """The answer asked for: a cancel has canceled."""
    NOT_SENT = "not sent"
    REFUSED = "refused"
    """Answered with a no: a cancel has canceled nothing."""
    AMBIGUOUS = "ambiguous"
    """A cancel may have canceled."""


class Classification(msgspec.Struct, Generic[T], frozen=True, gc=False):
    """What is known after a reply, and whether the same request may go out again."""

    reply: Reply
    outcome: Outcome
    retry: bool
    value: T | None = None
    """What a good answer decoded to."""

    @property
    def timed_out(self) -> bool:
        """Whether there was none for want of time."""
        return isinstance(self.reply, TransportFailure) and self.reply.cause in (
            Cause.TIMEOUT,
            Cause.CONNECT_TIMEOUT,
        )


def classify(request: Request[T], reply: Reply) -> Classification[T]:
    """Say what a reply proves, and whether to send the same request again.

    The table of https://docs.stripe.com/error-low-level: an idempotency key makes a
    retry safe, and only an answer that Stripe gave without executing proves a no.
    A no counts for the call only if no attempt before it was ambiguous; to remember
    that is the caller's part.
    """
    if isinstance(reply, TransportFailure):
        return Classification(
            reply,
            Outcome.AMBIGUOUS if reply.sent else Outcome.NOT_SENT,
            retry=reply.cause not in _FINAL,
        )
    # Stripe repeats the key in its answer. Another one's answer, which a proxy mixed
    # up, says nothing about this request.
    key = request.idempotency_key
    if key is not None and reply.headers.get("Idempotency-Key", key) != key:
        return Classification(reply, Outcome.AMBIGUOUS, retry=True)
    if not is_success(reply):
        return _of_refusal(reply)
    value = decoded(request.expects, reply.body)
    if value is None or not _answers(request, value):
        # Cut, mangled, or about something else: the answer was lost on the way, and
        # under the same key Stripe repeats it.
        return Classification(reply, Outcome.AMBIGUOUS, retry=True)
    if request.method == "POST" and getattr(value, "status", None) != "canceled":
        # Nothing documented answers so. The saved answer would come again.
        return Classification(reply, Outcome.AMBIGUOUS, retry=False)
    return Classification(reply, Outcome.DONE, retry=False, value=value)


def _answers(request: Request[Any], value: object) -> bool:
    if isinstance(value, Refund):
        return value.id == request.refund_id
    if isinstance(value, RefundPage) and value.has_more:
        # A page that leads nowhere new would be taken for the end, or go on for ever.
        return bool(value.data) and next_page(request, value).query != request.query
    return True


def _of_refusal(response: Response) -> Classification[Any]:
    status = response.status
    if status >= 500 or status < 200:  # noqa: PLR2004 - server errors, or no HTTP at all
        outcome, retry = Outcome.AMBIGUOUS, True
    elif status in (408, 409, 424):
        # 408: what waited too long for us may have begun, and it is a proxy's word,
        # given at moments of its own choosing.
        # 409: "perhaps due to using the same idempotent key", so an attempt with it is
        # under way; 424: something Stripe depends on failed, however far it had come.
        outcome, retry = Outcome.AMBIGUOUS, True
    else:
        outcome, retry = Outcome.REFUSED, status == 429  # noqa: PLR2004 - too many requests
    advised = response.headers.get("Stripe-Should-Retry")
    if advised in ("true", "false"):
        retry = advised == "true"
    if outcome is Outcome.AMBIGUOUS and is_replay(response):
        retry = False  # saved under the key: it will never change
    return Classification(response, outcome, retry=retry)


def is_success(response: Response) -> bool:
    """Tell whether the status says that the request was carried out."""
    return 200 <= response.status < 300  # noqa: PLR2004 - the success class of HTTP


def is_replay(response: Response) -> bool:
    """Tell whether Stripe answered from what it had saved under the key."""
    return response.headers.get("Idempotent-Replayed") == "true"


def request_id(response: Response) -> str | None:
    """Return Stripe's name for the exchange, ``req_...``."""
    found = response.headers.get("Request-Id")
    if found is None or not validation.is_request_id(found):
        return None
    return found


def decoded(decoder: msgspec.json.Decoder[T], body: bytes) -> T | None:
    """Decode a body, or return ``None`` for whatever it is instead."""
    try:
        return decoder.decode(body)
    except (ValueError, RecursionError):
        # ValueError: msgspec's own errors and bad UTF-8; RecursionError: deep nesting.
        return None
