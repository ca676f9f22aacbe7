"""How workers share accounts: rule by rule, then in a simulation of several."""

from __future__ import annotations

import random
from itertools import count

import pytest

from async_refunds.workers.fair_share import FairShare, Presence

TTL = 3.0


def word(
    worker: str, held: int, *, hungry: bool = False, leaving: bool = False
) -> Presence:
    return Presence("scope", worker, held, hungry, leaving)


def test_worker_that_is_alone_takes_what_it_can_use() -> None:
    share = FairShare(most=250, ttl=TTL)
    assert share.room(0, 0.0) == 100
    assert share.room(200, 0.0) == 50
    assert share.room(250, 0.0) == share.room(300, 0.0) == 0
    assert share.hand_over(250, 0, 0.0) == 0


def test_workers_that_begin_together_take_a_few_each() -> None:
    share = FairShare(most=250, ttl=TTL)
    share.hear(word("b", 0), 0.0)
    share.hear(word("c", 0), 0.0)
    assert share.room(0, 0.0) == 4
    assert share.room(4, 0.0) == 2, "further than the average, but not much"
    share.hear(word("b", 4), 0.0)
    share.hear(word("c", 4), 0.0)
    assert share.room(4, 0.0) == 4


def test_worker_takes_no_more_while_another_finds_none() -> None:
    share = FairShare(most=250, ttl=TTL)
    share.hear(word("b", 1, hungry=True), 0.0)
    assert share.room(3, 0.0) == 0
    assert share.room(0, 0.0) == 1


def test_worker_hands_over_what_it_has_above_the_average_once() -> None:
    share = FairShare(most=250, ttl=TTL)
    share.hear(word("b", 0, hungry=True), 0.0)
    assert share.hand_over(8, 0, 0.0) == 4
    assert share.hand_over(4, 4, 0.1) == 0
    assert share.hand_over(4, 0, 1.0) == 0, "the other has not said yet what it got"
    share.hear(word("b", 4), 1.5)
    assert share.hand_over(4, 0, 3.0) == 0


def test_worker_hands_nothing_to_those_that_want_nothing() -> None:
    share = FairShare(most=250, ttl=TTL)
    share.hear(word("b", 0), 0.0)
    assert share.hand_over(8, 0, 0.0) == 0


def test_single_account_stays_where_it_is() -> None:
    share = FairShare(most=250, ttl=TTL)
    share.hear(word("b", 0, hungry=True), 0.0)
    share.hear(word("c", 0, hungry=True), 0.0)
    assert share.hand_over(1, 0, 0.0) == 0


def test_worker_is_short_of_what_others_have_above_the_average() -> None:
    share = FairShare(most=250, ttl=TTL)
    assert not share.is_short(0, 0, 0.0), "nobody else is there"
    share.hear(word("b", 7), 0.0)
    share.hear(word("c", 6), 0.0)
    assert not share.is_short(6, 0, 0.0), "it has as many as its share"
    assert share.is_short(3, 0, 0.0)
    share.hear(word("b", 4), 0.1)
    share.hear(word("c", 4), 0.1)
    assert share.is_short(3, 0, 0.1), "what was handed over is on its way"
    assert not share.is_short(4, 1, 0.2)
    assert not share.is_short(4, 0, 0.3)


@pytest.mark.parametrize("goes", ["silent", "leaving"])
def test_what_one_had_that_is_gone_is_taken_by_those_that_were_short(goes: str) -> None:
    """Each of the two waits for the other, which has less than its share of before."""
    b, c = (FairShare(most=250, ttl=TTL, worker=each) for each in "bc")
    for share, other in ((b, "c"), (c, "b")):
        share.hear(word("a", 9), 0.0)
        share.hear(word(other, 1), 0.0)
        assert share.is_short(1, 0, 0.0)
    b.hear(word("c", 1, hungry=True), 0.1)
    c.hear(word("b", 1, hungry=True), 0.1)
    now = 0.2
    if goes == "leaving":
        for share in (b, c):
            share.hear(word("a", 0, leaving=True), now)
    else:
        now = 2.9
        for share, other in ((b, "c"), (c, "b")):
            assert share.is_short(1, 0, now)
            share.hear(word(other, 1, hungry=True), now)
        now = 3.1  # a is forgotten
    assert b.room(1, now) == c.room(1, now) == 0, "the other was short a moment ago"
    assert not b.is_short(1, 0, now)
    assert not c.is_short(1, 0, now)
    b.hear(word("c", 1), now)
    assert b.room(1, now) == 4


def test_worker_takes_back_nothing_of_what_it_hands_over() -> None:
    share = FairShare(most=250, ttl=TTL)
    share.hear(word("b", 0, hungry=True), 0.0)
    assert share.hand_over(8, 0, 0.0) == 4
    assert share.room(4, 0.1) == 0
    share.hear(word("b", 4), 0.2)
    assert share.room(4, 0.3) == 4


def test_worker_of_hundreds_takes_more_at_a_time() -> None:
    share = FairShare(most=2000, ttl=TTL)
    share.hear(word("b", 400), 0.0)
    assert share.room(400, 0.0) == 100


def test_leases_of_a_silent_worker_end_after_most_of_their_time() -> None:
    share = FairShare(most=250, ttl=30.0)
    share.hear(word("b", 7), 0.0)
    share.hear(word("c", 7), 0.0)
    for now in range(20):
        share.hear(word("c", 7), float(now))
        assert not share.leases_may_end(float(now))
    assert [each.worker for each in share.others(19.5)] == ["c"]
    assert share.leases_may_end(20.0)
    assert share.leases_may_end(31.0)
    share.hear(word("c", 7, leaving=True), 31.0)
    assert not share.leases_may_end(31.1), "nobody else has fallen silent"


def test_worker_that_is_heard_again_has_its_leases() -> None:
    share = FairShare(most=250, ttl=TTL)
    share.hear(word("b", 7), 0.0)
    assert share.others(3.5) == []
    assert share.leases_may_end(3.5)
    share.hear(word("b", 7), 3.6)
    assert not share.leases_may_end(3.7)


@pytest.mark.parametrize("goes", ["silent", "leaving"])
def test_worker_that_is_gone_counts_no_more(goes: str) -> None:
    share = FairShare(most=250, ttl=TTL)
    share.hear(word("b", 0, hungry=True), 0.0)
    if goes == "leaving":
        share.hear(word("b", 0, hungry=True, leaving=True), 1.0)
        share.hear(word("never heard of", 0, leaving=True), 1.0)
        assert share.others(1.0) == []
    assert share.hand_over(8, 0, 3.1) == 0
    assert share.room(8, 3.1) == 100


@pytest.mark.parametrize(("workers", "accounts"), [(2, 20), (3, 20), (5, 7), (4, 1000)])
def test_late_workers_end_up_with_a_fair_share_and_then_nothing_moves(
    workers: int, accounts: int
) -> None:
    """The first has all. What is handed over is free a round later."""
    shares = [FairShare(most=2000, ttl=TTL, worker=str(me)) for me in range(workers)]
    held, free, leaving = [accounts] + [0] * (workers - 1), 0, [0] * workers
    hungry = [False] * workers
    moved: list[int] = []
    for number in range(400):
        now = number * 0.7
        free += sum(leaving)
        leaving = [0] * workers
        moves = 0
        for me, share in enumerate(shares):
            for other in range(workers):
                if other != me:
                    words = word(str(other), held[other], hungry=hungry[other])
                    share.hear(words, now)
            gone = share.hand_over(held[me], leaving[me], now)
            held[me] -= gone
            leaving[me] += gone
            room = share.room(held[me], now)
            taken = min(room, free)
            held[me] += taken
            free -= taken
            hungry[me] = share.is_short(held[me], taken, now)
            moves += gone + taken
        moved.append(moves)
        assert sum(held) + free + sum(leaving) == accounts
    assert max(held) - min(held) <= 1 + accounts // 50
    assert not any(moved[-20:])


_STEP = 0.05


class Simulated:
    """Workers that look for work and tell what they have, each in a rhythm of its own.

    Nobody is woken.
    """

    def __init__(self, held: list[int], seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - no secret
        self.held = held
        self.hungry = [False] * len(held)
        self.shares = [
            FairShare(most=2000, ttl=TTL, worker=str(me)) for me in range(len(held))
        ]
        self.looks = [self.chance.uniform(0, 0.7) for _ in held]
        self.words = [self.chance.uniform(0, 0.7) for _ in held]
        self.free = 0
        self.gone: int | None = None

    def look(self, me: int, now: float) -> None:
        """Take what there is room for, as `ScopeWorker` does."""
        share = self.shares[me]
        while True:
            room = share.room(self.held[me], now)
            taken = min(room, self.free)
            self.held[me] += taken
            self.free -= taken
            self.hungry[me] = share.is_short(self.held[me], taken, now)
            if taken:
                self.tell(me, now)
            if not taken or taken < room:
                break
        self.looks[me] = now + (0.2 if share.leases_may_end(now) else 0.7)

    def tell(self, me: int, now: float) -> None:
        for other, share in enumerate(self.shares):
            if other != me:
                said = word(str(me), self.held[me], hungry=self.hungry[me])
                share.hear(said, now)
        self.words[me] = now + 0.7

    def run(self, until: float) -> float:
        """Go on for so long, and return the time."""
        now = 0.0
        while now < until:
            now += _STEP
            self.step(now)
        return now

    def step(self, now: float) -> None:
        """Let those that are there do what they have to do by now."""
        for me in range(len(self.held)):
            if me != self.gone and self.words[me] <= now:
                self.tell(me, now)
            if me != self.gone and self.looks[me] <= now:
                self.look(me, now)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("held", [[7, 7, 6], [1, 1, 1], [5, 5, 5, 5, 5], [40, 40, 40]])
def test_what_a_killed_worker_had_is_taken_within_a_second(
    held: list[int], seed: int
) -> None:
    """Of its leases' end: none waits for another that waits for it."""
    fleet = Simulated(list(held), seed)
    killed_at = fleet.run(20.0)
    fleet.gone = fleet.chance.randrange(len(held))
    orphans, fleet.held[fleet.gone] = fleet.held[fleet.gone], 0
    ended_at = killed_at + fleet.chance.uniform(2 / 3, 1) * TTL
    for now in count(killed_at, _STEP):
        if now >= ended_at and orphans:
            fleet.free, orphans = fleet.free + orphans, 0
        fleet.step(now)
        if now >= ended_at and not fleet.free:
            break
        assert now < ended_at + 1.0, (fleet.held, fleet.free, fleet.hungry)
    assert sum(fleet.held) == sum(held)
