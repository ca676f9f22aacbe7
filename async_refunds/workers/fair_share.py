"""How many accounts a worker takes, so that several share them fairly.

Pure: no I/O, no clock. Each worker tells the others now and then how many accounts it
holds, and whether it wants more and finds none that is free. Nobody decides for others,
and what is told may be late or lost: then some worker holds a few more for a while.
"""

from __future__ import annotations

import math

import msgspec

_STEP = 4
"""Accounts above the average that a worker takes at once, if there are others: a few at
a time, so that workers that start together share."""
_STEP_ALONE = 100
"""The same of one that is alone."""
_FORGOTTEN = 3.0
"""Seconds without a word after which a worker counts as gone."""
_SETTLING = 2.0
"""Seconds after which those that get accounts have said how many they have."""


class Presence(msgspec.Struct, frozen=True):
    """What a worker tells the others."""

    scope: str
    worker: str
    """Another name for each process."""
    held: int
    """Accounts on which it is at work."""
    hungry: bool
    """Whether it has room for more and finds none."""
    leaving: bool = False
    """Whether it ends, and gives its accounts back."""


class FairShare:
    """What one worker knows of the others of its scope.

    Args:
        most: The most accounts that it can make use of.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._others: dict[str, tuple[float, Presence]] = {}
        self._settled_at = -math.inf

    def hear(self, presence: Presence, now: float) -> None:
        """Note what another worker tells."""
        if presence.leaving:
            self._others.pop(presence.worker, None)
        else:
            self._others[presence.worker] = (now, presence)

    def others(self, now: float) -> list[Presence]:
        """Return what the workers have told that are there now."""
        for worker, (heard_at, _) in list(self._others.items()):
            if now - heard_at > _FORGOTTEN:
                del self._others[worker]
        return [presence for _, presence in self._others.values()]

    def room(self, held: int, now: float) -> int:
        """Return how many accounts to take now, if so many are free.

        Args:
            held: Accounts on which this worker is at work.
            now: Seconds of the clock that `hear` is given.
        """
        others = self.others(now)
        if not others:
            return max(0, min(self._most - held, _STEP_ALONE))
        step = 0 if any(each.hungry for each in others) else _STEP
        limit = min(self._most, self._average(held, others) + step)
        return max(0, min(limit - held, _STEP))

    def hand_over(self, held: int, leaving: int, now: float) -> int:
        """Return how many accounts to hand over now, because others find none.

        Args:
            held: Accounts on which this worker is at work.
            leaving: Those that it is about to hand over.
            now: Seconds of the clock that `hear` is given.
        """
        others = self.others(now)
        if now < self._settled_at or not any(each.hungry for each in others):
            return 0
        count = max(0, held - self._average(held + leaving, others))
        if count:
            self._settled_at = now + _SETTLING
        return count

    @staticmethod
    def _average(held: int, others: list[Presence]) -> int:
        total = held + sum(each.held for each in others)
        return math.ceil(total / (1 + len(others)))
