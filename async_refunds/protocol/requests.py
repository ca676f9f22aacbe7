"""Stripe's refund endpoints as values: requests to send and replies that may come back.

https://docs.stripe.com/api/refunds
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import urlencode

import msgspec
from multidict import istr

from . import validation
from .decoding import decode_page, decode_refund

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from async_refunds.models import Refund

    from .decoding import RefundPage

T = TypeVar("T", covariant=True)  # noqa: PLC0105 - one letter is the field's habit

# Their case is folded once, and not for each answer: that takes 0.5 % of a cancel.
IDEMPOTENCY_KEY = istr("Idempotency-Key")
REQUEST_ID = istr("Request-Id")
REPLAYED = istr("Idempotent-Replayed")


class CreatedRange(TypedDict, total=False):
    """Bounds of ``created``, in Unix seconds. Give any of them."""

    gt: int
    gte: int
    lt: int
    lte: int


class Request(msgspec.Struct, Generic[T], frozen=True, gc=False):
    """A request to one of the three endpoints, the same for each attempt of a call."""

    method: Literal["GET", "POST"]
    path: str
    query: str
    """URL-encoded. Empty for a cancel, which sends its parameters as a form."""
    form: bytes | None
    idempotency_key: str | None
    stripe_account: str | None
    decode: Callable[[bytes], T | None]
    """Returns what the body of a successful answer holds; ``None`` if it is anything
    else."""
    refund_id: str
    """Empty for a list."""
    asked_again_by: str | None = None
    """Who asks again with the key while the outcome is unknown, in words; ``None`` if
    the caller has to."""

    @property
    def endpoint(self) -> Literal["cancel", "retrieve", "list"]:
        """The client's method that sends it."""
        if self.method == "POST":
            return "cancel"
        return "retrieve" if self.refund_id else "list"


class Response(msgspec.Struct, frozen=True, gc=False):
    """An HTTP answer that arrived completely."""

    status: int
    headers: Mapping[str, str]
    """Case-insensitive."""
    body: bytes
    waited: float = 0.0
    """Seconds that the client's own pool had no connection free."""

    def __repr__(self) -> str:
        # Headers are left out too, because a proxy may put anything into them.
        return f"Response(status={self.status}, body=<{len(self.body)} bytes>)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("status", self.status), ("body", len(self.body))]


class Cause(enum.StrEnum):
    """Why no complete answer arrived."""

    REFUSED = "refused"
    """No connection: refused, no DNS, unreachable, or the TLS handshake failed."""
    CONNECT_TIMEOUT = "connect_timeout"
    """No connection in time, or the pool had none free in time."""
    CERTIFICATE = "certificate"
    """The server's certificate is not trusted."""
    PROXY_AUTHENTICATION = "proxy_authentication"
    """The proxy wants other credentials (407 to CONNECT)."""
    CLOSED = "closed"
    """The session was closed."""
    NOT_PERMITTED = "not_permitted"
    """The permit to send was refused: another process may work on the account."""
    RESET = "reset"
    """The connection broke."""
    TIMEOUT = "timeout"
    """No complete answer in time."""
    CUT_BODY = "cut_body"
    """The body ended early or could not be decompressed."""
    TOO_LARGE = "too_large"
    """The body exceeded the size limit."""
    MALFORMED = "malformed"
    """The answer is not HTTP."""
    UNEXPECTED = "unexpected"
    """Any other exception, such as one from the caller's own tracing."""


class TransportFailure(msgspec.Struct, frozen=True, gc=False):
    """The reply of an attempt that got no complete answer."""

    cause: Cause
    detail: str
    """For people. Contains nothing of the request."""
    sent: bool
    """Whether any byte of the request may have gone out."""
    waited: float = 0.0
    """Seconds that the client's own pool had no connection free."""


Reply = Response | TransportFailure


def cancel_request(
    refund_id: str,
    *,
    idempotency_key: str,
    expand: Sequence[str] = (),
    stripe_account: str | None = None,
    asked_again_by: str | None = None,
) -> Request[Refund]:
    """Build ``POST /v1/refunds/{id}/cancel``.

    Raises:
        TypeError, ValueError: An argument is not valid; see `validation`.
    """
    refund_id = validation.refund_id(refund_id)
    return Request(
        method="POST",
        path=f"/v1/refunds/{refund_id}/cancel",
        query="",
        form=urlencode(_expansions(expand)).encode() if expand else None,
        idempotency_key=validation.idempotency_key(idempotency_key),
        stripe_account=_account(stripe_account),
        decode=decode_refund,
        refund_id=refund_id,
        asked_again_by=asked_again_by,
    )


def retrieve_request(
    refund_id: str,
    *,
    expand: Sequence[str] = (),
    stripe_account: str | None = None,
) -> Request[Refund]:
    """Build ``GET /v1/refunds/{id}``.

    Raises:
        TypeError, ValueError: An argument is not valid; see `validation`.
    """
    refund_id = validation.refund_id(refund_id)
    return Request(
        method="GET",
        path=f"/v1/refunds/{refund_id}",
        query=urlencode(_expansions(expand)),
        form=None,
        idempotency_key=None,
        stripe_account=_account(stripe_account),
        decode=decode_refund,
        refund_id=refund_id,
    )


def settling_read(cancel: Request[Refund]) -> Request[Refund]:
    """Build the GET of the same refund, account and expansions as a cancel."""
    return Request(
        method="GET",
        path=cancel.path.removesuffix("/cancel"),
        query="" if cancel.form is None else cancel.form.decode(),
        form=None,
        idempotency_key=None,
        stripe_account=cancel.stripe_account,
        decode=cancel.decode,
        refund_id=cancel.refund_id,
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
        TypeError, ValueError: An argument is not valid; see `validation`.
    """
    query: list[tuple[str, str]] = [
        ("limit", str(validation.whole("limit", limit, least=1, most=100)))
    ]
    if charge is not None:
        query.append(("charge", validation.object_id("charge", charge)))
    if payment_intent is not None:
        found = validation.object_id("payment_intent", payment_intent)
        query.append(("payment_intent", found))
    if isinstance(created, int):
        query.append(("created", str(validation.whole("created", created))))
    elif created is not None:
        query += [
            (f"created[{bound}]", str(validation.whole(f"created[{bound}]", when)))
            for bound, when in validation.bounds(created).items()
        ]
    query += _expansions(expand)
    if starting_after is not None:
        # Last, because `next_page` replaces it there.
        query.append(("starting_after", validation.refund_id(starting_after)))
    return Request(
        method="GET",
        path="/v1/refunds",
        query=urlencode(query),
        form=None,
        idempotency_key=None,
        stripe_account=_account(stripe_account),
        decode=decode_page,
        refund_id="",
    )


def next_page(request: Request[RefundPage], page: RefundPage) -> Request[RefundPage]:
    """Build the request for the page after this one, which must not be the last."""
    same, _, _ = request.query.partition("&starting_after=")
    after = urlencode({"starting_after": page.data[-1].id})
    return msgspec.structs.replace(request, query=f"{same}&{after}")


def _account(value: str | None) -> str | None:
    return None if value is None else validation.account_id(value)


def _expansions(expand: Sequence[str]) -> list[tuple[str, str]]:
    return [("expand[]", field) for field in validation.expand(expand)]
