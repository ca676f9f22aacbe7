"""Amounts as people write them: Stripe counts in each currency's smallest unit."""

from __future__ import annotations

_CODES = """
aed afn all amd ang aoa ars aud awg azn bam bbd bdt bgn bhd bif bmd bnd bob brl bsd
btn bwp byn bzd cad cdf chf clp cny cop crc cup cve czk djf dkk dop dzd egp ern etb
eur fjd fkp gbp gel ghs gip gmd gnf gtq gyd hkd hnl htg huf idr ils inr iqd irr isk
jmd jod jpy kes kgs khr kmf kpw krw kwd kyd kzt lak lbp lkr lrd lsl lyd mad mdl mga
mkd mmk mnt mop mro mru mur mvr mwk mxn myr mzn nad ngn nio nok npr nzd omr pab pen
pgk php pkr pln pyg qar ron rsd rub rwf sar sbd scr sdg sek sgd shp sle sll sos srd
ssp std stn svc syp szl thb tjs tmt tnd top try ttd twd tzs uah ugx usd uyu uzs ved
ves vnd vuv wst xaf xcd xcg xof xpf yer zar zmw zwg
"""
CURRENCIES = frozenset(_CODES.split())
"""ISO 4217, and the older codes that Stripe keeps."""

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
    # Not by `Decimal`, which rounds beyond 28 digits.
    whole, rest = divmod(abs(amount), 10**decimals)
    sign = "-" if amount < 0 else ""
    return f"{sign}{whole:,}" + (f".{rest:0{decimals}}" if decimals else "")
