"""Claims ahead of need: which accounts are to claim next, and what goes back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from .claim_budget import ClaimBudget

if TYPE_CHECKING:
    from collections.abc import Mapping

    from async_refunds.journal import Claim

    from .account_queue import AccountQueue

# Items that the journal may be ahead of the claims. All of a usual input, so that a run
# that is killed has it; of one without an end, what a large platform sends in seconds.
_AHEAD = 100_000


class WantedClaims(msgspec.Struct, frozen=True):
    """What one account is to claim from the journal."""

    account: str | None
    limit: int
    version: int
    """Of the account's queue."""


class ClaimRounds:
    """Which accounts are to claim next, and which claims the journal is to take back.

    One round serves many accounts, those first that have waited longest.
    """

    def __init__(self) -> None:
        self.budget = ClaimBudget()
        self.stopped = False
        """Whether nothing more is claimed."""
        self.ahead = 0
        """Items added to the journal and not claimed."""
        self.returned: list[Claim] = []
        """By accounts that are drained."""
        self._hungry: dict[str | None, AccountQueue] = {}  # may want claims
        self._wanted = asyncio.Event()
        self._room = asyncio.Event()

    def stop(self) -> None:
        """Claim nothing more, and let nothing wait."""
        self.stopped = True
        self._room.set()
        self._wanted.set()

    async def wait_for_room(self) -> None:
        """Wait until the journal is no longer too far ahead of what is sent."""
        while self.ahead >= _AHEAD and not self.stopped:
            self._room.clear()
            await self._room.wait()

    def want(self, queue: AccountQueue) -> None:
        """Let an account claim in the next round, if it wants to by then."""
        self._hungry[queue.account] = queue
        self._wanted.set()

    def forget(self, queue: AccountQueue) -> None:
        """Let an account claim nothing more."""
        self._hungry.pop(queue.account, None)

    def note_use(self, queue: AccountQueue) -> None:
        """Note that a worker has taken a claim of an account."""
        if queue.claims.hungry:
            self._hungry[queue.account] = queue
        if self._hungry and self.budget.has_room:
            self._wanted.set()

    def note_short_of_work(self) -> None:
        """Note that a worker waits, and that no account is to send soon."""
        if self._hungry:
            self.budget.short_of_work = True
            self._wanted.set()

    async def wanted(self, queues: Mapping[str | None, object]) -> list[WantedClaims]:
        """Wait until accounts want claims, or return some; nothing if it is stopped.

        Args:
            queues: Of all accounts.
        """
        while not self.stopped:
            wanted = self._next_round(len(queues))
            if wanted or self.returned:
                return wanted
            self._wanted.clear()
            await self._wanted.wait()
        return []

    def _next_round(self, accounts: int) -> list[WantedClaims]:
        share = self.budget.share(accounts)
        wanted: list[WantedClaims] = []
        asked = 0
        while self._hungry and (room := self.budget.room_for(asked)):
            account = next(iter(self._hungry))
            queue = self._hungry.pop(account)
            if limit := queue.ask_for_claims(min(share, room)):
                wanted.append(WantedClaims(account, limit, queue.claims.version))
                asked += limit
        self.budget.short_of_work = False
        return wanted

    def note_claimed(
        self, count: int, queues: Mapping[str | None, AccountQueue]
    ) -> None:
        """Note that the journal gave out so many claims.

        Args:
            count: How many.
            queues: Of all accounts.
        """
        self.ahead = max(0, self.ahead - count)
        if self.ahead >= _AHEAD and all(
            queue.claims.exhausted for queue in queues.values()
        ):
            self.ahead = 0  # what was added was there already
        if self.ahead < _AHEAD:
            self._room.set()

    def give_back(self, queue: AccountQueue, claims: list[Claim]) -> None:
        """Let the journal take back claims of an account that is drained."""
        self.returned += claims
        queue.unkept += len(claims)
        self._wanted.set()

    def take_returned(self) -> list[Claim]:
        """Remove and return the claims that the journal is to take back."""
        returned, self.returned = self.returned, []
        return returned
