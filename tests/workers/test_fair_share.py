"""How workers share accounts: rule by rule, then in a simulation of several."""

from __future__ import annotations

import pytest

from async_refunds.workers.fair_share import FairShare, Presence


def word(
    worker: str, held: int, *, hungry: bool = False, leaving: bool = False
) -> Presence:
    return Presence("scope", worker, held, hungry, leaving)


def test_worker_that_is_alone_takes_what_it_can_use() -> None:
    share = FairShare(most=250)
    assert share.room(0, 0.0) == 100
    assert share.room(200, 0.0) == 50
    assert share.room(250, 0.0) == share.room(300, 0.0) == 0
    assert share.hand_over(250, 0, 0.0) == 0


def test_workers_that_begin_together_take_a_few_each() -> None:
    share = FairShare(most=250)
    share.hear(word("b", 0), 0.0)
    share.hear(word("c", 0), 0.0)
    assert share.room(0, 0.0) == 4
    assert share.room(4, 0.0) == 2, "further than the average, but not much"
    share.hear(word("b", 4), 0.0)
    share.hear(word("c", 4), 0.0)
    assert share.room(4, 0.0) == 4


def test_worker_takes_no_more_while_another_finds_none() -> None:
    share = FairShare(most=250)
    share.hear(word("b", 1, hungry=True), 0.0)
    assert share.room(3, 0.0) == 0
    assert share.room(0, 0.0) == 1


def test_worker_hands_over_what_it_has_above_the_average_once() -> None:
    share = FairShare(most=250)
    share.hear(word("b", 0, hungry=True), 0.0)
    assert share.hand_over(8, 0, 0.0) == 4
    assert share.hand_over(4, 4, 0.1) == 0
    assert share.hand_over(4, 0, 1.0) == 0, "the other has not said yet what it got"
    share.hear(word("b", 4), 1.5)
    assert share.hand_over(4, 0, 3.0) == 0


def test_worker_hands_nothing_to_those_that_want_nothing() -> None:
    share = FairShare(most=250)
    share.hear(word("b", 0), 0.0)
    assert share.hand_over(8, 0, 0.0) == 0


def test_single_account_stays_where_it_is() -> None:
    share = FairShare(most=250)
    share.hear(word("b", 0, hungry=True), 0.0)
    share.hear(word("c", 0, hungry=True), 0.0)
    assert share.hand_over(1, 0, 0.0) == 0


@pytest.mark.parametrize("goes", ["silent", "leaving"])
def test_worker_that_is_gone_counts_no_more(goes: str) -> None:
    share = FairShare(most=250)
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
    shares = [FairShare(most=2000) for _ in range(workers)]
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
            hungry[me] = bool(room) and not taken
            moves += gone + taken
        moved.append(moves)
        assert sum(held) + free + sum(leaving) == accounts
    assert max(held) - min(held) <= 1 + accounts // 50
    assert not any(moved[-20:])
