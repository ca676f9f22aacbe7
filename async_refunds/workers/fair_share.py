"""How many accounts a worker takes, so that several share them fairly.

Pure: no I/O, no clock. Each worker tells the others now and then how many accounts it
holds, and whether it wants more and finds none that is free. Nobody decides for others,
and what is told may be late or lost: then some worker holds a few more for a while.
"""

from __future__ import annotations

import math

import msgspec

_STEP, _SHARE = 4, 4
"""Accounts above the average that a worker takes at once, if there are others: a few at
a time, so that workers that start together share. Of an average of many it is this
part, so that what a worker of hundreds has left is taken over in a second."""
_STEP_ALONE = 100
"""The same of one that is alone."""
FORGOTTEN = 3.0
"""Seconds without a word after which a worker counts as gone."""
_SETTLING = 2.0
"""Seconds after which those that get accounts have said how many they have."""
_SOON, _LATE = 2 / 3, 1.0
"""When the leases of a worker that fell silent end: this part of their time after its
last word at the earliest, since it renewed them every third of it; and so many seconds
beyond the whole at the latest, since it speaks more often than that."""


class Presence(msgspec.Struct, frozen=True):
    """What a worker tells the others."""

    scope: str
    worker: str
    """Another name for each process."""
    held: int
    """Accounts on which it is at work."""
    hungry: bool
    """Whether it has less than its share and finds no more."""
    leaving: bool = False
    """Whether it ends, and gives its accounts back."""
    freed: bool = False
    """Whether it has just given accounts back: now they are there for others."""
    name: str = ""
    """How its leases are shown; empty from a worker of an older release."""


class FairShare:
    """What one worker knows of the others of its scope.

    Args:
        most: The most accounts that it can make use of.
        ttl: Seconds for which the leases of all workers last without a renewal.
        worker: Its own name.
    """

    def __init__(self, most: int, *, ttl: float, worker: str = "") -> None:
        self._most = most
        self._worker = worker
        self._ttl = ttl
        self._others: dict[str, tuple[float, Presence]] = {}
        self._silent: dict[str, float] = {}  # gone without a word, since the last one
        self._handed_over_at = self._short_until = -math.inf

    def hear(self, presence: Presence, now: float) -> None:
        """Note what another worker tells."""
        self._silent.pop(presence.worker, None)
        if presence.leaving:
            if self._others.pop(presence.worker, None) is not None:
                self._someone_went()
        else:
            self._others[presence.worker] = (now, presence)

    def is_hungry(self, worker: str) -> bool:
        """Tell whether another worker, by its last word, has less than its share."""
        return worker in self._others and self._others[worker][1].hungry

    def others(self, now: float) -> list[Presence]:
        """Return what the workers have told that are there now."""
        for worker, (heard_at, _) in list(self._others.items()):
            if now - heard_at > FORGOTTEN:
                del self._others[worker]
                self._silent[worker] = heard_at
                self._someone_went()
        return [presence for _, presence in self._others.values()]

    def _someone_went(self) -> None:
        """Ask for no share of what that one had: nobody is to hand it over.

        If two that were short went on to say so, each would leave it to the other.
        """
        self._short_until = -math.inf

    def leases_may_end(self, now: float) -> bool:
        """Tell whether the leases of a worker that fell silent may end any moment.

        It was killed, perhaps, or is cut off.
        """
        for worker, heard_at in list(self._silent.items()):
            if now - heard_at > self._ttl + _LATE:
                del self._silent[worker]
        last_words = [heard_at for heard_at, _ in self._others.values()]
        last_words += self._silent.values()
        earliest = max(_SOON * self._ttl, _LATE)
        return any(now - heard_at >= earliest for heard_at in last_words)

    def room(self, held: int, now: float) -> int:
        """Return how many accounts to take now, if so many are free.

        Args:
            held: Accounts on which this worker is at work.
            now: Seconds of the clock that `hear` is given.
        """
        others = self.others(now)
        if not others:
            return max(0, min(self._most - held, _STEP_ALONE))
        total = held + sum(each.held for each in others)
        average = math.ceil(total / (1 + len(others)))
        step = max(_STEP, average // _SHARE)
        if any(each.hungry for each in others):
            # Those that have less than their share go first.
            limit = max(1, self._share(held, held, others))
        else:
            limit = average + step
        return max(0, min(self._most - held, limit - held, step))

    def is_short(self, held: int, taken: int, now: float) -> bool:
        """Tell whether this worker has less than its share, after a look for more.

        With that, others hand accounts over to it, and take no more before it has them.
        One that could just take more must not ask for that: if each of two did, none of
        them would take what a third one left.

        Args:
            held: Accounts on which this worker is at work, with those it took.
            taken: How many it took just now.
            now: Seconds of the clock that `hear` is given.
        """
        if taken:
            self._short_until = -math.inf
        elif held < min(self._most, self._share(held, held, self.others(now))):
            # Also while what is handed over is on its way, and counts for nobody.
            self._short_until = now + _SETTLING
        return now < self._short_until

    def hand_over(self, held: int, leaving: int, now: float) -> int:
        """Return how many accounts to hand over now, because others find none.

        Args:
            held: Accounts on which this worker is at work.
            leaving: Those that it is about to hand over.
            now: Seconds of the clock that `hear` is given.
        """
        others = self.others(now)
        settling = now < self._handed_over_at + _SETTLING
        if settling or not any(each.hungry for each in others):
            return 0
        count = max(0, held - self._share(held, held + leaving, others))
        if count:
            self._handed_over_at = now
        return count

    def _share(self, held: int, counted: int, others: list[Presence]) -> int:
        """Return how many accounts are this worker's, of those that all have.

        What does not divide is one more for those that have most already: all of them
        come to the same, and nothing moves that need not.

        Args:
            held: Accounts on which this worker is at work.
            counted: The same with those that it is about to hand over.
            others: What the others tell.
        """
        total = counted + sum(each.held for each in others)
        share, more = divmod(total, 1 + len(others))
        mine = -held, self._worker
        before = sum((-each.held, each.worker) < mine for each in others)
        return share + (before < more)
