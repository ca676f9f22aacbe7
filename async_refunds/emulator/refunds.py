"""The refunds the emulator holds: what is kept of each, and what happens to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# A refund that waits for bank details expires this long after they were asked for.
# https://docs.stripe.com/payments/customer-balance/refunding
EXPIRES_AFTER = 45 * 24 * 3600

# The sample customer of Stripe's own documentation.
SAMPLE_EMAIL = "jenny.rosen@example.com"

# What happens to a refund by itself: from which status, to which.
# https://docs.stripe.com/refunds
STEPS: Mapping[str, tuple[frozenset[str], str]] = {
    "give_details": (frozenset({"requires_action"}), "pending"),
    "succeed": (frozenset({"pending"}), "succeeded"),
    "return_money": (frozenset({"pending", "succeeded"}), "requires_action"),
    "expire": (frozenset({"requires_action"}), "failed"),
}

NEEDS_EMAIL = "a refund in requires_action needs an instructions_email"


@dataclass(slots=True, eq=False)
class Refund:
    """One refund. The JSON is made when asked for, so that a million fit in memory.

    An empty ``charge`` or ``payment_intent`` is derived from the id. ``asked_at`` is
    when the customer was last asked for bank details; with no ``expires_at`` they have
    as long as Stripe gives them.
    """

    id: str
    shelf: Shelf
    number: int
    amount: int
    currency: str
    created: int
    status: str
    instructions_email: str | None
    charge: str
    payment_intent: str
    metadata: dict[str, str] | None
    asked_at: int
    expires_at: int | None = None
    failure_transaction: str | None = None

    @property
    def suffix(self) -> str:
        """The id without its prefix."""
        return self.id.partition("_")[2]

    @property
    def charge_id(self) -> str:
        """The id of the charge that is refunded."""
        return self.charge or f"ch_{self.suffix}"

    @property
    def payment_intent_id(self) -> str:
        """The id of the payment intent that is refunded."""
        return self.payment_intent or f"pi_{self.suffix}"

    @property
    def deadline(self) -> int:
        """Until when, in Unix seconds, the customer may give bank details."""
        if self.expires_at is not None:
            return self.expires_at
        return self.asked_at + EXPIRES_AFTER

    @property
    def siblings(self) -> list[Refund]:
        """All refunds of the same charge, this one among them."""
        rows = self.shelf.by_charge.get(self.charge_id, [])
        return rows if self.charge else [*rows, self]

    @property
    def age(self) -> tuple[int, int]:
        """What lists are sorted by: the time, and the order within a second."""
        return self.created, self.number


@dataclass(slots=True, eq=False)
class Shelf:
    """The refunds of one account in one mode, oldest first.

    Objects of one account or mode are invisible to the other:
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
    """Which page of which refunds: ``created`` bounds are inclusive Unix seconds."""

    limit: int = 10
    charge: str | None = None
    payment_intent: str | None = None
    created_from: int | None = None
    created_to: int | None = None
    starting_after: Refund | None = None
    ending_before: Refund | None = None
