"""Refunds and pages of them, from JSON; also where a field is not as Stripe has it.

What became of a refund is in its ``id`` and ``status``. One odd field beside them, such
as a later version of Stripe's API may have, must not make a canceled refund unknown, or
a page of a hundred unreadable: it is left out.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from async_refunds.models import Refund

T = TypeVar("T")


class RefundPage(msgspec.Struct, frozen=True):
    """One page of a list, newest first (https://docs.stripe.com/api/pagination)."""

    data: list[Refund]
    has_more: bool


class _LoosePage(msgspec.Struct):
    data: list[dict[str, Any]]
    has_more: bool


_REFUND = msgspec.json.Decoder(Refund)
_PAGE = msgspec.json.Decoder(RefundPage)
_OBJECT = msgspec.json.Decoder(dict[str, Any])
_LOOSE_PAGE = msgspec.json.Decoder(_LoosePage)

# What a refund is of no use without. An odd status is none that could be told.
_NEEDED = frozenset({"id", "object", "amount", "currency", "created", "status"})


def decode_refund(body: bytes | msgspec.Raw) -> Refund | None:
    """Return the refund in a body; ``None`` if there is none."""
    try:
        return _REFUND.decode(body)
    except (ValueError, RecursionError):
        fields = decode_or_none(_OBJECT, body)
    return None if fields is None else _refund_of(fields)


def decode_page(body: bytes) -> RefundPage | None:
    """Return the page in a body; ``None`` if there is none."""
    page = decode_or_none(_PAGE, body)
    if page is not None:
        return page
    loose = decode_or_none(_LOOSE_PAGE, body)
    if loose is None:
        return None
    refunds = [_refund_of(fields) for fields in loose.data]
    # One that cannot be read at all would be missing without a word.
    found = [refund for refund in refunds if refund is not None]
    return RefundPage(found, loose.has_more) if len(found) == len(refunds) else None


def decode_or_none(
    decoder: msgspec.json.Decoder[T], body: bytes | msgspec.Raw
) -> T | None:
    """Decode a body, or return ``None`` if it is anything else."""
    try:
        return decoder.decode(body)
    except (ValueError, RecursionError):
        # ValueError: msgspec's own errors and bad UTF-8; RecursionError: deep nesting.
        return None


def _refund_of(fields: dict[str, Any]) -> Refund | None:
    """Return a refund with those fields that are as they should be."""
    good: dict[str, Any] = {}
    for field in msgspec.structs.fields(Refund):
        if field.name in fields:
            try:
                good[field.name] = msgspec.convert(fields[field.name], field.type)
            except (ValueError, RecursionError):
                if field.name in _NEEDED:
                    return None
        elif field.required:
            return None
    return Refund(**good)
