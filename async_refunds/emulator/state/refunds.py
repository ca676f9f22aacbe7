"""What the emulator keeps of each refund, and how a refund's status changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

# A refund that waits for bank details expires this long after the e-mail.
# https://docs.stripe.com/payments/customer-balance/refunding
EXPIRES_AFTER = 45 * 24 * 3600

# The customer in the examples of Stripe's own documentation.
SAMPLE_EMAIL = "jenny.rosen@example.com"

# What can happen to a refund: from which statuses, and to which.
# https://docs.stripe.com/refunds, https://docs.stripe.com/api/refunds/cancel
STEPS: Mapping[str, tuple[set[str], str]] = {
    "cancel": ({"requires_action"}, "canceled"),
    "give_details": ({"requires_action"}, "pending"),
    "succeed": ({"pending"}, "succeeded"),
    "return_money": ({"pending", "succeeded"}, "requires_action"),
    "expire": ({"requires_action"}, "failed"),
}


class Market(NamedTuple):
    """How refunds are paid in one currency; amounts in its smallest unit."""

    destination: str
    amounts: tuple[int, int]


# Currencies with payment methods that cannot take money back: the customer must name a
# bank account, so their refunds pass through ``requires_action``.
# https://docs.stripe.com/refunds
MARKETS: Mapping[str, Market] = {
    "jpy": Market("jp_bank_transfer", (500, 30_000)),  # Konbini
    "thb": Market("th_bank_transfer", (10_000, 500_000)),  # PromptPay
    "brl": Market("br_bank_transfer", (2_000, 200_000)),  # Boleto
    "eur": Market("eu_bank_transfer", (1_000, 250_000)),  # bank transfers from here on
    "gbp": Market("gb_bank_transfer", (1_000, 250_000)),
    "usd": Market("us_bank_transfer", (1_000, 250_000)),
}


class Cause(NamedTuple):
    """The request that changes a refund; without one, time or the bank does.

    Args:
        request_id: Its ``Request-Id``.
        key: Its idempotency key.
    """

    request_id: str | None = None
    key: str | None = None


NO_REQUEST = Cause()


@dataclass(slots=True, eq=False)
class Refund:
    """One refund, without its JSON, so that a million fit in memory.

    Attributes:
        charge: The id of the charge; empty for a charge of its own, whose id is
            derived from the refund's.
        payment_intent: The same for the payment intent.
        expires_at: Until when the customer may give bank details, in Unix seconds;
            None is as long as Stripe allows.
        email_sent_at: When the customer was last asked for bank details.
        number: The order in which refunds were added.
        failure_transaction: The id of the balance transaction that returned the money.
    """

    id: str
    partition: Partition
    status: str
    amount: int
    currency: str
    created: int
    instructions_email: str | None
    charge: str = ""
    payment_intent: str = ""
    metadata: dict[str, str] | None = None
    expires_at: int | None = None
    email_sent_at: int = 0
    number: int = 0
    failure_transaction: str | None = None

    @property
    def suffix(self) -> str:
        """The id without its prefix."""
        return self.id.partition("_")[2]

    @property
    def charge_id(self) -> str:
        """The id of the refunded charge."""
        return self.charge or f"ch_{self.suffix}"

    @property
    def payment_intent_id(self) -> str:
        """The id of the refunded payment intent."""
        return self.payment_intent or f"pi_{self.suffix}"

    @property
    def deadline(self) -> int:
        """Until when, in Unix seconds, the customer may give bank details."""
        if self.expires_at is not None:
            return self.expires_at
        return self.email_sent_at + EXPIRES_AFTER

    @property
    def siblings(self) -> list[Refund]:
        """All refunds of the same charge, including this one."""
        refunds = self.partition.by_charge.get(self.charge_id, [])
        return refunds if self.charge else [*refunds, self]

    @property
    def age(self) -> tuple[int, int]:
        """What lists are sorted by: the time, and the order within a second."""
        return self.created, self.number


@dataclass(slots=True, eq=False)
class Partition:
    """The refunds of one account in one mode, oldest first.

    Objects of one account or mode are invisible to the others:
    https://docs.stripe.com/keys#test-live-modes
    """

    account: str | None
    livemode: bool
    refunds: list[Refund] = field(default_factory=list["Refund"])
    by_charge: dict[str, list[Refund]] = field(
        default_factory=dict[str, "list[Refund]"]
    )
    by_intent: dict[str, list[Refund]] = field(
        default_factory=dict[str, "list[Refund]"]
    )


@dataclass(frozen=True, slots=True)
class ListQuery:
    """Which page of which refunds; bounds of ``created`` are inclusive Unix seconds."""

    limit: int = 10
    charge: str | None = None
    payment_intent: str | None = None
    created_from: int | None = None
    created_to: int | None = None
    starting_after: Refund | None = None
    ending_before: Refund | None = None
