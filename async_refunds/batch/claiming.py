"""Claims ahead of need: how many a batch holds, who wants more, who brings them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from async_refunds.journal import LeaseLostError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from async_refunds.journal import Claim, Journal

    from .account_queue import AccountQueue
    from .accounts import Accounts

# Claims held in memory over all accounts: what a process sends in a second or so.
_CLAIMS = 5_000
# The least share of an account in them. With fewer for each, all of thousands of
# accounts could hold some, and every item would have a claim of its own, which costs a
# third more. So accounts that have none wait until others have sent theirs. Those that
# hold this many send 25 a second each, more together than a process can.
_LEAST_SHARE = 8
# With room for so many the next accounts have their turn.
_REFILL = 250
# Claims that one round asks for: a commit of some tens of milliseconds.
_ROUND = 1000

# Items that the journal may be ahead of the claims. All of a usual input, so that a run
# that is killed has it; of one without an end, what a large platform sends in seconds.
_AHEAD = 100_000


class WantedClaims(msgspec.Struct, frozen=True):
    """What one account is to claim from the journal."""

    account: str | None
    limit: int
    version: int
    """Of the account's queue."""


class ClaimBudget:
    """How many claims the queues of a batch hold, and how many more they may.

    One that has none when all are held by others waits, but not while workers have
    nothing to do: what the others hold may be of accounts that are slow.
    """

    __slots__ = ("held", "short_of_work")

    def __init__(self) -> None:
        self.held = 0
        """Claims that no worker has taken."""
        self.short_of_work = False
        """Whether a worker waits and no account is to send soon."""

    @property
    def has_room(self) -> bool:
        """Whether it is worth another round."""
        return self.held <= _CLAIMS - _REFILL

    def share(self, accounts: int) -> int:
        """Return how many one of so many accounts may hold."""
        return max(_LEAST_SHARE, _CLAIMS // max(1, accounts))

    def room_for(self, asked: int) -> int:
        """Return how many more may be asked for in a round that asks for some."""
        if asked >= _ROUND:
            return 0
        room = min(_ROUND - asked, _CLAIMS - self.held - asked)
        return max(int(self.short_of_work), room)


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


async def claim_ahead(journal: Journal, accounts: Accounts) -> None:
    """Bring the accounts the claims they want, until they are stopped.

    One round serves many accounts, whose claims the journal keeps with one commit.
    """
    while not accounts.stopped:
        wanted = await accounts.claims_wanted()
        if returned := accounts.take_returned():
            await give_back(journal, returned)
            accounts.claims_kept(returned)
        if wanted:
            claims = await journal.claim({each.account: each.limit for each in wanted})
            for each in wanted:
                if each.account not in claims:
                    accounts.drop([each.account])
                accounts.add_claims(each, claims.get(each.account, []))


async def give_back(journal: Journal, claims: list[Claim]) -> None:
    """Return claims to the journal, those whose lease is lost excepted."""
    with suppress(LeaseLostError):
        await journal.give_back(claims)
