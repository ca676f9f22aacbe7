"""Stripe's refund object, and the record of the exchange that brought it.

Field for field https://docs.stripe.com/api/refunds/object, as the schema in
https://github.com/stripe/openapi has it. Fields this version does not know are
ignored, and every status or reason is kept as the ``str`` that Stripe sent, since
both lists are open. A field that Stripe left out is ``None``, and so is one that is not
as described.

The customer's e-mail address is data of the caller: it can be read from the fields,
and it is in no ``repr``.
"""

from __future__ import annotations

import re
from typing import Any, Literal, Self, TypeAlias

import msgspec

# One of Stripe's words or ids, and none of its keys, which have the same letters.
_WORD = re.compile(
    r"(?!.*(?:[srp]k_(?:test|live|org)|whsec)_)[a-z0-9_]{0,255}", re.IGNORECASE
)

Expandable: TypeAlias = str | dict[str, Any] | None
"""The id of another object, or the object itself if it was expanded."""


def id_of(value: Expandable) -> str | None:
    """Return the id in an expandable field, expanded or not.

    >>> id_of("ch_1"), id_of({"id": "ch_1", "object": "charge"}), id_of(None)
    ('ch_1', 'ch_1', None)
    """
    if isinstance(value, dict):
        found = value.get("id")
        return found if isinstance(found, str) else None
    return value


class _Details(msgspec.Struct, frozen=True):
    """A part of a refund, whose repr shows words of Stripe's and nothing else."""

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({shown})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        fields = ((name, getattr(self, name)) for name in self.__struct_fields__)
        return [(name, _plain(value)) for name, value in fields if value is not None]


class EmailSent(msgspec.Struct, frozen=True):
    """When and to whom Stripe wrote for the customer's bank details."""

    email_sent_at: int
    """Unix time in seconds."""
    email_sent_to: str

    def __repr__(self) -> str:
        return f"EmailSent(email_sent_at={self.email_sent_at})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("email_sent_at", self.email_sent_at)]


class DisplayDetails(_Details, frozen=True):
    """What the customer was asked for, and until when the refund waits for it."""

    email_sent: EmailSent
    expires_at: int
    """Unix time in seconds; the refund turns ``failed`` then."""


class NextAction(_Details, frozen=True, omit_defaults=True):
    """What has to happen before a refund in ``requires_action`` can go on."""

    type: str
    display_details: DisplayDetails | None = None


class PresentmentDetails(_Details, frozen=True):
    """The amount in the currency that the customer saw."""

    presentment_amount: int
    """In the smallest unit of ``presentment_currency``."""
    presentment_currency: str


class CardDestination(_Details, frozen=True, omit_defaults=True):
    """A refund to a card."""

    type: str
    """``pending``, ``refund``, ``reversal``, or a later word of Stripe's."""
    reference: str | None = None
    reference_status: str | None = None
    reference_type: str | None = None


class BankDestination(_Details, frozen=True, omit_defaults=True):
    """A refund to a bank account; ``reference`` traces it there."""

    reference: str | None = None
    reference_status: str | None = None


class NetworkDestination(_Details, frozen=True, omit_defaults=True):
    """A refund through a payment network that may decline it."""

    network_decline_code: str | None = None
    reference: str | None = None
    reference_status: str | None = None


class CryptoDestination(_Details, frozen=True, omit_defaults=True):
    """A refund to a wallet; ``reference`` is the transaction."""

    reference: str | None = None


class PaypalDestination(_Details, frozen=True, omit_defaults=True):
    """A refund to a PayPal account."""

    network_decline_code: str | None = None


class PlainDestination(_Details, frozen=True):
    """A refund by a method for which Stripe gives no details."""


class DestinationDetails(_Details, frozen=True, omit_defaults=True):
    """Where the money went: ``type`` names the field that tells more."""

    type: str
    affirm: PlainDestination | None = None
    afterpay_clearpay: PlainDestination | None = None
    alipay: PlainDestination | None = None
    alma: PlainDestination | None = None
    amazon_pay: PlainDestination | None = None
    au_bank_transfer: PlainDestination | None = None
    blik: NetworkDestination | None = None
    br_bank_transfer: BankDestination | None = None
    card: CardDestination | None = None
    cashapp: PlainDestination | None = None
    crypto: CryptoDestination | None = None
    customer_cash_balance: PlainDestination | None = None
    eps: PlainDestination | None = None
    eu_bank_transfer: BankDestination | None = None
    gb_bank_transfer: BankDestination | None = None
    giropay: PlainDestination | None = None
    grabpay: PlainDestination | None = None
    jp_bank_transfer: BankDestination | None = None
    klarna: PlainDestination | None = None
    mb_way: BankDestination | None = None
    multibanco: BankDestination | None = None
    mx_bank_transfer: BankDestination | None = None
    nz_bank_transfer: PlainDestination | None = None
    p24: BankDestination | None = None
    paynow: PlainDestination | None = None
    paypal: PaypalDestination | None = None
    pix: PlainDestination | None = None
    revolut: PlainDestination | None = None
    scalapay: PlainDestination | None = None
    sofort: PlainDestination | None = None
    swish: NetworkDestination | None = None
    th_bank_transfer: BankDestination | None = None
    twint: PlainDestination | None = None
    us_bank_transfer: BankDestination | None = None
    wechat_pay: PlainDestination | None = None
    zip: PlainDestination | None = None


class Attempt(msgspec.Struct, frozen=True, gc=False):
    """One request of a call, sent or not."""

    number: int
    """1 for the first request of the call; a settling read counts on."""
    method: Literal["GET", "POST"]
    path: str
    status: int | None
    """The HTTP status; ``None`` if no answer came."""
    failure: str | None
    """What went wrong below HTTP (``"refused"``, ``"reset"``, ``"timeout"``, ...);
    ``"broken_off"`` if the call was cancelled meanwhile."""
    request_id: str | None
    """``req_...``: what Stripe's support and its dashboard ask for."""
    seconds: float
    """From when a connection was wanted to the last byte of the body."""
    slept: float
    """Seconds of backoff before this attempt."""
    waited: float = 0.0
    """Seconds of `seconds` that the client's own pool had no connection free."""
    began_at: float = 0.0
    """Unix time in seconds when a connection was wanted."""
    stopped: Literal["count", "deadline", "budget"] | None = None
    """Why no retry followed although the failure allows one: the policy's
    ``max_retries``, the call's deadline, or the retry budget."""
    sent: bool = True
    """Whether any byte of it may have gone out; without a connection none has."""


class CallStart(msgspec.Struct, frozen=True):
    """What is known of a call of the client when it begins, for tracing."""

    method: Literal["cancel", "retrieve", "list"]
    base_url: str
    """Where the API is: ``scheme://host[:port]``."""
    refund_id: str | None
    """``None`` for a list."""
    stripe_account: str | None
    idempotency_key: str | None
    """``None`` for a read."""


class CallRecord(msgspec.Struct, frozen=True):
    """What one call of the client did, for metrics and audit logs."""

    method: Literal["cancel", "retrieve", "list"]
    refund_id: str | None
    """``None`` for a list."""
    stripe_account: str | None
    idempotency_key: str | None
    """``None`` for a read."""
    outcome: str
    """Of a cancel: ``canceled``, ``already_canceled``, ``not_cancelable``, ``failed``,
    ``unknown``, or ``interrupted`` if its task was cancelled and the refund may be
    canceled. Of a read: ``done``, ``failed`` or ``interrupted``."""
    error: str | None
    """The name of the exception that belongs to the outcome, if any."""
    seconds: float
    """From the beginning of the call to its end."""
    attempts: tuple[Attempt, ...]
    """Every request, oldest first: why each was retried, and why retrying stopped."""
    tokens: float | None
    """What is left of the retry budget; ``None`` if there is no budget."""


class LastResponse(msgspec.Struct, frozen=True, gc=False):
    """The answer that a refund was read from, and the way there."""

    status_code: int
    request_id: str | None
    idempotency_key: str | None
    """The key of the cancel; ``None`` for a read."""
    idempotent_replayed: bool
    """True if Stripe answered from what it had saved under the key."""
    attempts: tuple[Attempt, ...]
    """Every request of the call, oldest first, settling reads among them."""
    body: bytes
    """As sent. Empty on an error's refund: it may hold the customer's address."""

    def __repr__(self) -> str:
        return (
            f"LastResponse(status_code={self.status_code}, "
            f"request_id={self.request_id!r}, "
            f"idempotency_key={self.idempotency_key!r}, "
            f"attempts={len(self.attempts)}, body=<{len(self.body)} bytes>)"
        )

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [
            ("status_code", self.status_code),
            ("request_id", self.request_id),
            ("idempotency_key", self.idempotency_key),
            ("attempts", len(self.attempts)),
        ]


class Refund(msgspec.Struct, frozen=True, dict=True, omit_defaults=True):
    """A refund as Stripe reported it.

    Amounts are in the smallest unit of ``currency`` (100 for one dollar, 100 for one
    hundred yen), times are Unix times in seconds. ``msgspec.json.encode`` gives the
    object back without the fields that have no value.
    """

    id: str
    object: str
    amount: int
    currency: str
    """Three letters, lower case: ``"jpy"``."""
    created: int
    status: str | None = None
    """``pending``, ``requires_action``, ``succeeded``, ``failed``, ``canceled``."""
    balance_transaction: Expandable = None
    charge: Expandable = None
    customer: Expandable = None
    customer_account: str | None = None
    description: str | None = None
    destination_details: DestinationDetails | None = None
    failure_balance_transaction: Expandable = None
    failure_reason: str | None = None
    """``merchant_request`` once a refund is canceled."""
    instructions_email: str | None = None
    metadata: dict[str, str] | None = None
    next_action: NextAction | None = None
    payment_intent: Expandable = None
    payment_method: Expandable = None
    pending_reason: str | None = None
    presentment_details: PresentmentDetails | None = None
    reason: str | None = None
    receipt_number: str | None = None
    source_transfer_reversal: Expandable = None
    transfer_reversal: Expandable = None

    @property
    def last_response(self) -> LastResponse:
        """The answer this refund was read from.

        No part of the JSON, of equality or of the repr; kept by pickle and copy.

        Raises:
            AttributeError: This refund came from elsewhere than a client's call.
        """
        try:
            found: LastResponse = vars(self)["last_response"]
        except KeyError:
            raise AttributeError(
                "last_response: this refund was not returned by a client"
            ) from None
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the refund as plain dicts, for any JSON library.

        Without the fields that have no value, and without `last_response`. It may
        contain the customer's e-mail address.
        """
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"Refund({shown})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        shown = ("id", "status", "amount", "currency")
        return [(name, _plain(getattr(self, name))) for name in shown]

    def __reduce__(self) -> tuple[Any, ...]:
        fields = tuple(getattr(self, name) for name in self.__struct_fields__)
        return type(self), fields, dict(vars(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def __copy__(self) -> Self:
        fields = (getattr(self, name) for name in self.__struct_fields__)
        copied = type(self)(*fields)
        vars(copied).update(vars(self))
        return copied


def _plain(value: object) -> object:
    """Return a value for a repr; a text only if it can be one of Stripe's words."""
    if isinstance(value, str) and not _WORD.fullmatch(value):
        return "..."  # a server may put anything there, an e-mail address too
    return value


def attach(refund: Refund, last_response: LastResponse) -> None:
    """Set `Refund.last_response`, the answer that a refund was decoded from."""
    # Not as a field: a frozen struct does not let us set one, and a field would be part
    # of the JSON, of equality and of the repr.
    vars(refund)["last_response"] = last_response
