"""The accounts of a run that one batch works on, each with its lease."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import psycopg

from async_refunds.errors import JournalError

from .connection import describe
from .lease_statements import NOT_TAKEN
from .writer import Operation

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .leases import Leases
    from .writer import Writer

_OVER, _POLL = 2.0, 0.2
"""Seconds that a process waits for a lease beyond its TTL, and between two looks."""


class RunAccounts:
    """Takes the lease of each account that a batch comes to, once in a batch.

    Args:
        leases: Through which they are taken.
        writer: By which it asks who has those that it does not get.
    """

    def __init__(self, leases: Leases, writer: Writer) -> None:
        self._leases, self._writer = leases, writer
        self._tokens: dict[str | None, str] = {}

    def begin(self) -> None:
        """Begin a batch, which has taken none."""
        self._tokens.clear()

    @property
    def tokens(self) -> set[str]:
        """Of the leases that the batch has or had."""
        return set(self._tokens.values())

    @property
    def lost(self) -> set[str | None]:
        """The accounts that were taken over from it."""
        return {each for each in self._tokens if self._leases.get(each) is None}

    async def take(self, accounts: Iterable[str | None]) -> None:
        """Take those that the batch has not had yet and that have something open.

        Waits for a holder that does not renew its lease: it was killed. After a
        failover also for what was perhaps held before it, which ends as late.

        Raises:
            JournalError: A worker has one, and does not end; or the database refuses.
        """
        missing = [account for account in accounts if account not in self._tokens]
        try:
            for account in missing:  # of the batch before
                await self._leases.release(account, retry_later=False)
            until, history = 0.0, None
            while missing:
                taken = await self._leases.acquire(len(missing), only=missing)
                self._tokens.update((lease.account, lease.token) for lease in taken)
                missing = [each for each in missing if each not in self._tokens]
                values = {"accounts": [account or "" for account in missing]}
                not_taken = await self._writer.do(Operation(NOT_TAKEN, values))
                if not not_taken:
                    return  # there is nothing to do for them
                account, owner, began_at = not_taken[0]
                if began_at != history:  # at first, and after a failover
                    history = began_at
                    until = time.monotonic() + self._leases.ttl + _OVER
                if time.monotonic() > until:
                    whose = account or "the key's own account"
                    raise JournalError(f"{owner} works on {whose}: wait for its end")
                await asyncio.sleep(_POLL)
        except psycopg.Error as error:
            raise JournalError(
                f"the leases could not be taken: {describe(error)}"
            ) from None
