"""Journals of runs that have ended, as a batch writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from async_refunds.errors import OutcomeUnknownError
from async_refunds.journal import Run, SqliteJournal
from async_refunds.models import Refund
from async_refunds.results import CancelRequest, CancelResult

if TYPE_CHECKING:
    from pathlib import Path

    from async_refunds.journal import Claim, Journal
    from async_refunds.results import CancelOutcome


async def journal_with(
    path: Path,
    *results: tuple[CancelOutcome, Refund | None, str],
    account: str | None = None,
    never_sent: int = 1,
) -> None:
    """Write a journal with these results: outcome, refund and error of each.

    Args:
        path: Where.
        results: In the order of the ids ``re_0``, ``re_1``, ...
        account: Of all refunds.
        never_sent: How many more there are.
    """
    run = Run("https://a.example", livemode=False)
    count = len(results) + never_sent
    async with SqliteJournal.open(path, run) as journal:
        await journal.add([CancelRequest(f"re_{n}", account) for n in range(count)])
        claims = await claimed(journal, account, len(results)) if results else []
        for claim, (outcome, refund, error) in zip(claims, results, strict=True):
            failure = OutcomeUnknownError(
                error, refund=None, idempotency_key=None, attempts=()
            )
            result = CancelResult(
                refund_id=claim.refund_id,
                stripe_account=account,
                outcome=outcome,
                refund=refund,
                error=failure if error else None,
                idempotency_key=claim.idempotency_key,
            )
            await journal.settle([(claim, result)])


async def claimed(journal: Journal, account: str | None, limit: int) -> list[Claim]:
    """Claim the next items of one account."""
    return (await journal.claim({account: limit}))[account]


def refund(number: int, amount: int, currency: str, status: str = "canceled") -> Refund:
    """Return a refund of the first days of 2026."""
    return Refund(f"re_{number}", "refund", amount, currency, 1_767_323_040, status)
