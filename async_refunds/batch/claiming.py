"""Claims ahead of need: how many a batch holds, and the task that brings them."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from async_refunds.journal import LeaseLostError

if TYPE_CHECKING:
    from async_refunds.journal import Claim, Journal

    from .scheduler import Scheduler

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


async def claim_ahead(journal: Journal, scheduler: Scheduler) -> None:
    """Bring the scheduler the claims it wants, until it is stopped.

    One round serves many accounts, whose claims the journal keeps with one commit.
    """
    while not scheduler.stopped:
        wanted = await scheduler.claims_wanted()
        if returned := scheduler.take_returned():
            await give_back(journal, returned)
            scheduler.claims_kept(returned)
        if wanted:
            claims = await journal.claim({each.account: each.limit for each in wanted})
            for each in wanted:
                if each.account not in claims:
                    scheduler.drop([each.account])
                scheduler.add_claims(each, claims.get(each.account, []))


async def give_back(journal: Journal, claims: list[Claim]) -> None:
    """Return claims to the journal, those whose lease is lost excepted."""
    with suppress(LeaseLostError):
        await journal.give_back(claims)
