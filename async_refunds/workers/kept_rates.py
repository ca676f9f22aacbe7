"""The rates of a worker's accounts, kept with their leases for who holds them next."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_refunds.batch.execution import Execution
    from async_refunds.journal.postgres.leases import Leases

_NEWS = 0.1
"""The change of an account's rate that is kept at once, so that who takes over from a
worker that is killed begins where it was. Less is kept with the next renewal."""
_INTERVAL = 0.7
"""Seconds between two renewals for that, at least."""


class KeptRates:
    """Has the rates of the accounts that a worker holds kept with their leases.

    Args:
        leases: Of the worker.
        execution: Of the batch that finds the rates.
        rate: Requests a second for each account, where none is to be found.
        clock: The event loop's time, in seconds.
    """

    def __init__(
        self,
        leases: Leases,
        execution: Execution,
        rate: float | None,
        clock: Callable[[], float],
    ) -> None:
        self._leases = leases
        self._execution = execution
        self._given = rate
        self._clock = clock
        self._kept: dict[str | None, float] = {}
        self._kept_at = -math.inf

    def note(self, account: str | None) -> float | None:
        """Have an account's rate kept with the next renewal or release; return it."""
        given = self._given
        rate = self._execution.rate_of(account) if given is None else given
        if rate is not None:
            self._leases.note_rate(account, rate, found=given is None)
        return rate

    def note_all(self) -> dict[str | None, float]:
        """Have all rates kept with the next renewal or release, and return them."""
        rates: dict[str | None, float] = {}
        for account in self._leases.accounts:
            rate = self.note(account)
            if rate is not None:
                rates[account] = rate
        return rates

    async def keep(self) -> None:
        """Keep the rates now, if one is far from what was kept last."""
        rates, kept = self.note_all(), self._kept
        now = self._clock()
        if now - self._kept_at >= _INTERVAL and any(
            abs(rate - kept.get(account, 0.0)) > _NEWS * rate
            for account, rate in rates.items()
        ):
            self._kept, self._kept_at = rates, now
            await self._leases.renew()
