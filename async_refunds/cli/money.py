"""Amounts as people write them: Stripe counts in each currency's smallest unit."""

from __future__ import annotations

from decimal import Decimal

# https://docs.stripe.com/currencies#zero-decimal and #three-decimal. The króna (isk)
# and the Ugandan shilling (ugx) have no smaller unit either, but two decimals at
# Stripe: https://docs.stripe.com/currencies#special-cases
_NO_DECIMALS = frozenset(
    (
        *("bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga"),
        *("pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf"),
    )
)
_THREE_DECIMALS = frozenset(("bhd", "jod", "kwd", "omr", "tnd"))


def in_major_units(amount: int, currency: str) -> str:
    """Return an amount in the currency's own unit.

    >>> in_major_units(123456, "eur"), in_major_units(123456, "jpy")
    ('1,234.56', '123,456')
    """
    decimals = 2
    if currency in _NO_DECIMALS:
        decimals = 0
    elif currency in _THREE_DECIMALS:
        decimals = 3
    return f"{Decimal(amount).scaleb(-decimals):,.{decimals}f}"
