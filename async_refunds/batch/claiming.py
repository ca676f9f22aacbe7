"""Claims ahead of need: an account's, those of all, and the task that brings them."""

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

_FIRST_PAGE = 8
LARGEST_PAGE = 2000
"""Claims held ahead for one account, at first and at most: a commit of the journal
serves so many."""

# Seconds within which a page that was used up was too small, and beyond which it was
# too large. A commit takes some hundredths of a second.
_SHORT, _LONG = 0.5, 2.0


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


class ClaimBuffer:
    """The claims of one account that no worker has taken, a page of them at a time.

    Args:
        budget: Of the claims of all accounts.
    """

    __slots__ = (
        "_budget",
        "_filled_at",
        "_page",
        "_used_up_at",
        "asked",
        "exhausted",
        "pending",
        "version",
    )

    def __init__(self, budget: ClaimBudget) -> None:
        self._budget = budget
        # A list: an empty deque takes 600 bytes, and a platform has 5,000 accounts.
        self.pending: list[Claim] = []
        """In the order in which they are to go out."""
        self.asked = False
        """Whether the journal is being asked for more."""
        self.exhausted = False
        """Whether the journal has no more of the account for now."""
        self.version = 0
        """How often the journal got more of it."""
        self._page = _FIRST_PAGE
        # When the last page came, and went: the first one is neither short nor long.
        self._filled_at, self._used_up_at = 0.0, _SHORT

    @property
    def hungry(self) -> bool:
        """Whether to ask the journal for claims.

        Early enough for the commit to end before the last one is sent.
        """
        return not (self.exhausted or self.asked) and self._nearly_used_up

    @property
    def _nearly_used_up(self) -> bool:
        return len(self.pending) <= self._page // 4

    def extend(self) -> None:
        """Note that the journal has got more of the account."""
        self.exhausted = False
        self.version += 1

    def ask(self, most: int, per_second: int) -> int:
        """Return how many claims to ask the journal for; 0 for none now.

        Never more than goes out in about a second: a killed run asks again for all that
        it had claimed.

        Args:
            most: The share of this account in the memory for all claims.
            per_second: How many are used in about a second.
        """
        if not self.hungry:
            return 0
        page = min(self._page, most, per_second)
        self.asked = True
        seconds = self._used_up_at - self._filled_at
        if seconds < _SHORT:
            self._page = min(2 * self._page, LARGEST_PAGE, per_second)
        elif seconds > _LONG:
            self._page = max(1, self._page // 2)
        return max(1, page - len(self.pending))

    def fill(
        self, claims: list[Claim], *, limit: int, version: int, now: float
    ) -> None:
        """Take what the journal gave out.

        Args:
            claims: In the order in which they are to go out.
            limit: How many were asked for: fewer mean that there are no more.
            version: When they were asked for.
            now: The event loop's time.
        """
        self.asked = False
        self._filled_at = self._used_up_at = now
        self.pending.extend(claims)
        self._budget.held += len(claims)
        if len(claims) < limit and version == self.version:
            self.exhausted = True

    def take_next(self, now: float) -> Claim:
        """Remove and return the claim whose turn it is."""
        claim = self.pending.pop(0)
        self._budget.held -= 1
        if self._used_up_at == self._filled_at and self._nearly_used_up:
            self._used_up_at = now
        return claim

    def put_back(self, claim: Claim) -> None:
        """Take back a claim for which nothing was sent."""
        self.pending.append(claim)
        self._budget.held += 1

    def take_all(self) -> list[Claim]:
        """Remove and return all claims, and want no more."""
        self.exhausted = True
        taken, self.pending = self.pending, []
        self._budget.held -= len(taken)
        return taken


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
