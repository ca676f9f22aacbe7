"""How money is paid, and paid back, in the currencies the emulator knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Market:
    """How money is paid, and paid back, in one currency."""

    payment_method: str
    destination: str
    amounts: tuple[int, int]


# The payment methods that have no way back: the customer must name a bank account,
# so their refunds pass through ``requires_action``. Amounts in the smallest unit.
# https://docs.stripe.com/refunds
MARKETS: Mapping[str, Market] = {
    "jpy": Market("konbini", "jp_bank_transfer", (500, 30_000)),
    "thb": Market("promptpay", "th_bank_transfer", (10_000, 500_000)),
    "brl": Market("boleto", "br_bank_transfer", (2_000, 200_000)),
    "eur": Market("customer_balance", "eu_bank_transfer", (1_000, 250_000)),
    "gbp": Market("customer_balance", "gb_bank_transfer", (1_000, 250_000)),
    "usd": Market("customer_balance", "us_bank_transfer", (1_000, 250_000)),
}
