"""Idempotency keys that a journal can make again if it has lost them.

A copy from last night is put back, or a database fails over and loses its last commits:
keys drawn at random would be gone, and the refunds would be sent with second ones. A
key derived from the item is the same again, and Stripe answers what it answered before.
"""

from __future__ import annotations

import hashlib

import msgspec

DERIVATION = 1
"""The number of the rule below. A run keeps the number that it began with."""
_DIGITS = 32  # hexadecimal, 128 bits: no two items of all runs meet by chance

_encode = msgspec.json.Encoder().encode


def derive_key(
    seed: bytes, stripe_account: str | None, refund_id: str, generation: int
) -> str:
    """Return the idempotency key of an item.

    Args:
        seed: Of the run, so that two runs never share a key.
        stripe_account: The connected account; ``None`` for the key's own.
        refund_id: The refund.
        generation: 1 for the first key of the item, 2 for its successor, ...
    """
    item = _encode((stripe_account, refund_id, generation))
    return hashlib.sha256(seed + item).hexdigest()[:_DIGITS]
