"""What a journal knows of one refund, and how it learns from a result."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from async_refunds.models import id_of
from async_refunds.protocol.redaction import scrub
from async_refunds.results import CancelOutcome  # noqa: TC001 - a struct's field

if TYPE_CHECKING:
    from async_refunds.models import Refund
    from async_refunds.results import CancelResult

_LONGEST = 500  # characters of an error's text; Stripe's are a sentence or two


class Facts(msgspec.Struct, array_like=True, gc=False):
    """What is known of an item.

    SQLite's journal keeps it as one value, MessagePack's array: that is bound and read
    faster than twenty columns are, and its checksum needs no second encoding.
    """

    settled: bool = False
    maybe_sent: bool = False
    generation: int = 0
    """How many keys it had."""
    idempotency_key: str | None = None
    key_created_at: float | None = None
    attempts: int = 0
    """Requests sent."""
    outcome: CancelOutcome | None = None
    status: str | None = None
    amount: int | None = None
    currency: str | None = None
    created: int | None = None
    charge: str | None = None
    payment_intent: str | None = None
    failure_balance_transaction: str | None = None
    request_id: str | None = None
    error: str | None = None
    seconds: float | None = None
    known_at: float | None = None

    def close(self, refund_id: str, now: float) -> None:
        """Settle it as not canceled, unless a key of it was perhaps sent."""
        if self.settled or self.known == "unknown":
            return
        before = (
            f"{self.error}; then" if self.error else f"{refund_id} was not canceled:"
        )
        self.error = f"{before} its run was closed"
        self.outcome, self.settled, self.known_at = "failed", True, now

    @property
    def failed_at(self) -> float:
        """When it failed, if it was asked for and failed, and is open; else 0."""
        if self.outcome != "failed" or self.settled or not self.attempts:
            return 0.0
        return self.known_at or 0.0

    @property
    def known(self) -> CancelOutcome | None:
        """What became of it; ``unknown`` if a key may have been sent since."""
        if self.maybe_sent and self.outcome in {None, "failed"}:
            return "unknown"
        return self.outcome

    def learn(self, result: CancelResult, now: float, *, claimed_as_sent: bool) -> None:
        """Take over what a batch found out.

        Args:
            result: What became of it. What it does not say stays as it was.
            now: Unix seconds.
            claimed_as_sent: Whether its key may have been sent before that batch.
        """
        error, key = result.error, result.idempotency_key
        # After a definite no the next claim makes a new key: Stripe may have saved the
        # answer to this one. But if nothing was sent now, what an earlier process
        # sent with it may still land.
        refused = result.outcome == "failed" and not (key is None and claimed_as_sent)
        self.outcome, self.settled = result.outcome, result.settled
        self.maybe_sent = not refused
        self.idempotency_key = key or self.idempotency_key
        for attempt in result.attempts:
            self.attempts += attempt.sent
            self.request_id = attempt.request_id or self.request_id
        self.error = None if error is None else _text(error)
        self.seconds, self.known_at = float(result.seconds), float(now)
        refund = result.refund or getattr(error, "refund", None)
        if refund is not None:
            self._see(refund)

    def _see(self, refund: Refund) -> None:
        # Whatever a server puts into an answer has to fit into a row.
        self.amount, self.created = _number(refund.amount), _number(refund.created)
        status, currency = refund.status, refund.currency
        charge, payment_intent = id_of(refund.charge), id_of(refund.payment_intent)
        transaction = id_of(refund.failure_balance_transaction)
        # One look at all of them: nearly always there is nothing that must not be kept.
        text = f"{status} {currency} {charge} {payment_intent} {transaction}"
        if len(text) > _LONGEST or scrub(text) != text:
            status, charge = _word(status), _word(charge)
            payment_intent, transaction = _word(payment_intent), _word(transaction)
            currency = scrub(currency)[:_LONGEST]
        self.currency = currency
        self.status = status or self.status
        self.charge = charge or self.charge
        self.payment_intent = payment_intent or self.payment_intent
        self.failure_balance_transaction = (
            transaction or self.failure_balance_transaction
        )


def _number(value: int) -> int | None:
    """Return a number that SQLite can hold."""
    return value if abs(value) < 2**63 else None


def _word(value: str | None) -> str | None:
    """Return a word of Stripe's, with nothing in it that must not be kept."""
    return None if value is None else scrub(value)[:_LONGEST]


def _text(error: Exception) -> str:
    text = scrub(str(error))
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 3]}..."
    return text.encode(errors="replace").decode()
