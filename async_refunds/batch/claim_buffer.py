"""The claims that one account holds ahead of need."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from async_refunds.journal import Claim

    from .claiming import ClaimBudget

_FIRST_PAGE = 8
LARGEST_PAGE = 2000
"""Claims held ahead for one account, at first and at most: a commit of the journal
serves so many."""

# Seconds within which a page that was used up was too small, and beyond which it was
# too large. A commit takes some hundredths of a second.
_SHORT, _LONG = 0.5, 2.0


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
