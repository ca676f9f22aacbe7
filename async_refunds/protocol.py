"""Stripe's refund endpoints as values: what to send, and what an answer means.

No I/O, no clock, no randomness: the same request and the same reply always give the
same advice. https://docs.stripe.com/api/refunds
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import urlencode

import msgspec

from . import validate
from .models import Refund

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

T = TypeVar("T", covariant=True)  # noqa: PLC0105 - one letter is the field's habit


class CreatedRange(TypedDict, total=False):
    """Bounds of ``created``, in Unix seconds."""

    gt: int
    gte: int
    lt: int
    lte: int


class RefundPage(msgspec.Struct, frozen=True):
    """One page of a list, newest first (https://docs.stripe.com/api/pagination)."""

    data: list[Refund]
    has_more: bool


class Request(msgspec.Struct, Generic[T], frozen=True, gc=False):
    """One of the three requests, the same for every attempt of a call."""

    method: Literal["GET", "POST"]
    path: str
    query: str
    """Already encoded; empty for a cancel, whose parameters are its form."""
    form: bytes | None
    idempotency_key: str | None
    stripe_account: str | None
    expects: msgspec.json.Decoder[T]
    """What a good answer decodes to."""
    refund_id: str
    """Empty for a list."""


class Response(msgspec.Struct, frozen=True, gc=False):
    """An answer that arrived whole."""

    status: int
    headers: Mapping[str, str]
    """Without regard to case, as aiohttp gives them."""
    body: bytes

    def __repr__(self) -> str:
        # The headers are left out too: a proxy may have put in what it likes.
        return f"Response(status={self.status}, body=<{len(self.body)} bytes>)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("status", self.status), ("body", len(self.body))]


class Cause(enum.StrEnum):
    """Why there is no whole answer."""

    REFUSED = "refused"
    """No connection: refused, no DNS, unreachable, a TLS handshake cut short."""
    CONNECT_TIMEOUT = "connect_timeout"
    """No connection in time, or none free in the pool."""
    CERTIFICATE = "certificate"
    """The other side is not who it should be."""
    CLOSED = "closed"
    """The session was closed by its owner."""
    RESET = "reset"
    """The connection broke."""
    TIMEOUT = "timeout"
    """No whole answer in time."""
    CUT_BODY = "cut_body"
    """The answer began and did not end, or did not decompress."""
    TOO_LARGE = "too_large"
    """The answer's body went over the cap."""
    MALFORMED = "malformed"
    """What came back is not HTTP."""
    UNEXPECTED = "unexpected"
    """An exception nobody foresaw, such as one from the caller's own tracing."""


# A wrong certificate, and a closed session, stay so: the next attempt meets the same.
_FINAL = frozenset({Cause.CERTIFICATE, Cause.CLOSED})


class Failure(msgspec.Struct, frozen=True, gc=False):
    """No whole answer."""

    cause: Cause
    detail: str
    """For people, and with nothing of the request in it."""
    sent: bool
    """Whether anything of the request may have gone out."""


Reply = Response | Failure


class Outcome(enum.Enum):
    """What a reply says about the request that it answers."""

    DONE = "done"
    """The answer asked for: a cancel has canceled."""
    NOT_SENT = "not sent"
    REFUSED = "refused"
    """Answered with a no: a cancel has canceled nothing."""
    AMBIGUOUS = "ambiguous"
    """A cancel may have canceled."""


class Advice(msgspec.Struct, Generic[T], frozen=True):
    """What is known after a reply, and whether the same request may go out again."""

    outcome: Outcome
    retry: bool
    value: T | None = None
    """What a good answer decoded to."""


def cancel_request(
    refund_id: str,
    *,
    idempotency_key: str,
    expand: Sequence[str] = (),
    stripe_account: str | None = None,
) -> Request[Refund]:
    """Build ``POST /v1/refunds/{id}/cancel``.

    Raises:
        TypeError, ValueError: As `async_refunds.validate` says, before any I/O.
    """
    refund_id = validate.refund_id(refund_id)
    return Request(
        method="POST",
        path=f"/v1/refunds/{refund_id}/cancel",
        query="",
        form=urlencode(_expansions(expand)).encode() if expand else None,
        idempotency_key=validate.idempotency_key(idempotency_key),
        stripe_account=_account(stripe_account),
        expects=_REFUND,
        refund_id=refund_id,
    )


def retrieve_request(
    refund_id: str,
    *,
    expand: Sequence[str] = (),
    stripe_account: str | None = None,
) -> Request[Refund]:
    """Build ``GET /v1/refunds/{id}``.

    Raises:
        TypeError, ValueError: As `async_refunds.validate` says, before any I/O.
    """
    refund_id = validate.refund_id(refund_id)
    return Request(
        method="GET",
        path=f"/v1/refunds/{refund_id}",
        query=urlencode(_expansions(expand)),
        form=None,
        idempotency_key=None,
        stripe_account=_account(stripe_account),
        expects=_REFUND,
        refund_id=refund_id,
    )


def list_request(
    *,
    charge: str | None = None,
    payment_intent: str | None = None,
    created: CreatedRange | int | None = None,
    starting_after: str | None = None,
    limit: int = 100,
    expand: Sequence[str] = (),
    stripe_account: str | None = None,
) -> Request[RefundPage]:
    """Build ``GET /v1/refunds`` for the first page.

    Raises:
        TypeError, ValueError: As `async_refunds.validate` says, before any I/O.
    """
    query: list[tuple[str, str]] = [
        ("limit", str(validate.whole("limit", limit, least=1, most=100)))
    ]
    if charge is not None:
        query.append(("charge", validate.object_id("charge", charge)))
    if payment_intent is not None:
        found = validate.object_id("payment_intent", payment_intent)
        query.append(("payment_intent", found))
    if isinstance(created, int):
        query.append(("created", str(validate.whole("created", created))))
    elif created is not None:
        query += [
            (f"created[{bound}]", str(validate.whole(f"created[{bound}]", when)))
            for bound, when in validate.bounds(created).items()
        ]
    query += _expansions(expand)
    if starting_after is not None:
        # At the end, where `next_page` puts its own.
        query.append(("starting_after", validate.refund_id(starting_after)))
    return Request(
        method="GET",
        path="/v1/refunds",
        query=urlencode(query),
        form=None,
        idempotency_key=None,
        stripe_account=_account(stripe_account),
        expects=_PAGE,
        refund_id="",
    )


def next_page(request: Request[RefundPage], page: RefundPage) -> Request[RefundPage]:
    """Build the request for the page after one that has a next."""
    same, _, _ = request.query.partition("&starting_after=")
    return msgspec.structs.replace(request, query=f"{same}&{_cursor(page.data[-1].id)}")


def _cursor(refund_id: str) -> str:
    return urlencode({"starting_after": refund_id})


def advise(request: Request[T], reply: Reply) -> Advice[T]:
    """Say what a reply proves, and whether to send the same request again.

    The table of https://docs.stripe.com/error-low-level: an idempotency key makes a
    retry safe, and only an answer that Stripe gave without executing proves a no.
    A no counts for the call only if no attempt before it was ambiguous; to remember
    that is the caller's part.
    """
    if isinstance(reply, Failure):
        return Advice(
            Outcome.AMBIGUOUS if reply.sent else Outcome.NOT_SENT,
            retry=reply.cause not in _FINAL,
        )
    if _is_of_another(request, reply):
        return Advice(Outcome.AMBIGUOUS, retry=True)
    if is_success(reply):
        return _of_success(request, reply)
    return _of_refusal(reply)


def _is_of_another(request: Request[Any], response: Response) -> bool:
    # Stripe repeats the key in its answer. Another one's answer, which a proxy mixed
    # up, says nothing about this request.
    key = request.idempotency_key
    return key is not None and response.headers.get("Idempotency-Key", key) != key


def _of_success(request: Request[T], response: Response) -> Advice[T]:
    value = decoded(request.expects, response.body)
    if value is None or not _answers(request, value):
        # Cut, mangled, or about something else: the answer was lost on the way, and
        # under the same key Stripe repeats it.
        return Advice(Outcome.AMBIGUOUS, retry=True)
    if request.method == "POST" and getattr(value, "status", None) != "canceled":
        # Nothing documented answers so. The saved answer would come again.
        return Advice(Outcome.AMBIGUOUS, retry=False)
    return Advice(Outcome.DONE, retry=False, value=value)


def _answers(request: Request[Any], value: object) -> bool:
    if isinstance(value, Refund):
        return value.id == request.refund_id
    if isinstance(value, RefundPage) and value.has_more:
        # A page that leads nowhere new would be taken for the end, or go on for ever.
        last = _cursor(value.data[-1].id) if value.data else ""
        return bool(last) and not request.query.endswith(last)
    return True


def _of_refusal(response: Response) -> Advice[Any]:
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
    return Advice(outcome, retry=retry)


def is_success(response: Response) -> bool:
    """Tell whether the status says that the request was carried out."""
    return 200 <= response.status < 300  # noqa: PLR2004 - the success class of HTTP


def is_replay(response: Response) -> bool:
    """Tell whether Stripe answered from what it had saved under the key."""
    return response.headers.get("Idempotent-Replayed") == "true"


def request_id(response: Response) -> str | None:
    """Return Stripe's name for the exchange, ``req_...``."""
    found = response.headers.get("Request-Id")
    if found is None or not validate.is_request_id(found):
        return None
    return found


def decoded(decoder: msgspec.json.Decoder[T], body: bytes) -> T | None:
    """Decode a body, or return ``None`` for whatever it is instead."""
    try:
        return decoder.decode(body)
    except (ValueError, RecursionError):
        # ValueError: msgspec's own errors and bad UTF-8; RecursionError: deep nesting.
        return None


def _account(value: str | None) -> str | None:
    return None if value is None else validate.account_id(value)


def _expansions(expand: Sequence[str]) -> list[tuple[str, str]]:
    return [("expand[]", field) for field in validate.expand(expand)]


_REFUND = msgspec.json.Decoder(Refund)
_PAGE = msgspec.json.Decoder(RefundPage)
