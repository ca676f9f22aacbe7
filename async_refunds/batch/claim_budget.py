"""How many claims a batch holds in memory, over all of its accounts."""

from __future__ import annotations

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
