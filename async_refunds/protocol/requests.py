"""Stripe's refund endpoints as values: what to send, and what may come back.

No I/O, no clock, no randomness. https://docs.stripe.com/api/refunds
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import urlencode

import msgspec

from async_refunds.models import Refund

from . import validation

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


class TransportFailure(msgspec.Struct, frozen=True, gc=False):
    """No whole answer."""

    cause: Cause
    detail: str
    """For people, and with nothing of the request in it."""
    sent: bool
    """Whether anything of the request may have gone out."""


Reply = Response | TransportFailure


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
    refund_id = validation.refund_id(refund_id)
    return Request(
        method="POST",
        path=f"/v1/refunds/{refund_id}/cancel",
        query="",
        form=urlencode(_expansions(expand)).encode() if expand else None,
        idempotency_key=validation.idempotency_key(idempotency_key),
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
    refund_id = validation.refund_id(refund_id)
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
        # At the end, where `next_page` puts its own.
        query.append(("starting_after", validation.refund_id(starting_after)))
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
    after = urlencode({"starting_after": page.data[-1].id})
    return msgspec.structs.replace(request, query=f"{same}&{after}")


def _account(value: str | None) -> str | None:
    return None if value is None else validation.account_id(value)


def _expansions(expand: Sequence[str]) -> list[tuple[str, str]]:
    return [("expand[]", field) for field in validation.expand(expand)]


_REFUND = msgspec.json.Decoder(Refund)
_PAGE = msgspec.json.Decoder(RefundPage)
