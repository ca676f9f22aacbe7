"""What a worker sends to the database, and gets from it, row by row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from async_refunds.journal.base import Claim
from async_refunds.journal.facts import Facts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from async_refunds.results import CancelOutcome, CancelResult

_TOO_MANY = 429


class LeasedClaim(Claim, frozen=True, gc=False, kw_only=True):
    """A claim, and under which lease it was given out."""

    run_id: str
    generation: int
    """Of its key."""
    token: str
    """Of the lease."""
    claim_number: int
    """Of the claims under that lease."""


class KnownRow(msgspec.Struct, gc=False, omit_defaults=True):
    """What became of an item. What is ``None`` stays as it is, but the error."""

    run_id: str
    account: str
    refund_id: str
    token: str
    generation: int
    settled: bool | None
    maybe_sent: bool | None
    attempts: int | None
    rate_limited: int | None
    outcome: CancelOutcome | None
    idempotency_key: str | None
    seconds: float | None
    status: str | None = None
    amount: int | None = None
    currency: str | None = None
    created: int | None = None
    charge: str | None = None
    payment_intent: str | None = None
    failure_balance_transaction: str | None = None
    request_id: str | None = None
    error: str | None = None


class UnsentRow(msgspec.Struct, gc=False):
    """An item that goes back unsent."""

    run_id: str
    account: str
    refund_id: str
    token: str
    claim_number: int


def known_row(claim: LeasedClaim, result: CancelResult) -> KnownRow:
    """Return the row of a result."""
    item = Facts()
    item.learn(result, 0.0, claimed_as_sent=claim.maybe_sent)
    return KnownRow(
        claim.run_id,
        claim.stripe_account or "",
        claim.refund_id,
        claim.token,
        claim.generation,
        item.settled,
        item.maybe_sent,
        item.attempts,
        sum(attempt.status == _TOO_MANY for attempt in result.attempts),
        item.outcome,
        item.idempotency_key or claim.idempotency_key,
        item.seconds,
        item.status,
        item.amount,
        item.currency,
        item.created,
        item.charge,
        item.payment_intent,
        item.failure_balance_transaction,
        item.request_id,
        item.error,
    )


def unsent_row(claim: LeasedClaim) -> UnsentRow:
    """Return the row of a claim that goes back."""
    return UnsentRow(
        *(claim.run_id, claim.stripe_account or "", claim.refund_id),
        *(claim.token, claim.claim_number),
    )


def encoded(rows: Sequence[KnownRow | UnsentRow]) -> str:
    """Return rows as JSON that PostgreSQL takes: its text has no NUL."""
    text = msgspec.json.encode(rows)
    if b"\\u0000" in text:
        for row in rows:
            for name in row.__struct_fields__:
                value = getattr(row, name)
                if isinstance(value, str):
                    setattr(row, name, value.replace("\0", "\ufffd"))
        text = msgspec.json.encode(rows)
    return text.decode()
