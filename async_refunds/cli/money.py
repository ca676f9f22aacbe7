"""Amounts as people write them: Stripe counts in each currency's smallest unit."""

from __future__ import annotations

from decimal import Decimal

# https://docs.stripe.com/currencies#zero-decimal and #three-decimal. The króna (isk)
# and the Ugandan shilling (ugx) have no smaller unit either, and yet two decimals at
# Stripe: https://docs.stripe.com/currencies#special-cases
_NONE = frozenset(
    (
        *("bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga"),
        *("pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf"),
    )
)
_THREE = frozenset(("bhd", "jod", "kwd", "omr", "tnd"))


def shown(amount: int, currency: str) -> str:
    """Return an amount in the currency's own unit.

    >>> shown(123456, "eur"), shown(123456, "jpy"), shown(123456, "kwd")
    ('1,234.56', '123,456', '123.456')
    """
    decimals = 0 if currency in _NONE else 3 if currency in _THREE else 2
    return f"{Decimal(amount).scaleb(-decimals):,.{decimals}f}"
