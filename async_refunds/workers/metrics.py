"""What a worker has done so far, for whoever watches it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from async_refunds.results import CancelResult

_TOO_MANY = 429


class WorkerMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker holds of a scope, and what it has done there since it began."""

    scope: str
    """Whose limits: ``tenant base_url mode``."""
    worker: str
    """How its leases are shown."""
    accounts: int
    """Accounts whose leases it holds now."""
    takeovers: int
    """Accounts that it took from a worker which had ended without releasing them."""
    fenced: int
    """Operations on an account that were refused, because another worker has it now."""
    transactions: int
    """Statements of the journal that were carried out."""
    results: int
    """Refunds of which it has learned something: settled, failed or unknown."""
    requests: int
    """Requests to Stripe for those."""
    rate_limited: int
    """Of these requests, the ones answered with 429."""


class Counts:
    """What the results of a worker add up to."""

    def __init__(self) -> None:
        self.results = self.requests = self.rate_limited = 0

    def add(self, result: CancelResult) -> None:
        """Count a result."""
        self.results += 1
        self.requests += result.requests
        self.rate_limited += sum(each.status == _TOO_MANY for each in result.attempts)
