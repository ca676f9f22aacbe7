"""What the next holder of an account begins with, whenever the last one ends."""

from __future__ import annotations

import heapq

import pytest

from async_refunds.batch.rate_control import RateController

LATENCY = 0.1


class Bucket:
    """Stripe's limit: a bucket that holds what one second lets through."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.room, self.at = max(rate, 1.0), 0.0
        self.passed = 0

    def lets_in(self, now: float) -> bool:
        room = min(max(self.rate, 1.0), self.room + (now - self.at) * self.rate)
        self.at = now
        self.room = room - (room >= 1)
        self.passed += room >= 1
        return room >= 1


def refusals(
    pace: RateController, bucket: Bucket, begin: float, end: float
) -> list[float]:
    """Ask at a pace from one time to another; return when the refusals came."""
    answers: list[tuple[float, float, bool]] = []
    refused: list[float] = []
    now = begin
    while now < end:
        while answers and answers[0][0] <= now:
            at, sent_at, passed = heapq.heappop(answers)
            if passed:
                pace.on_success(at, sent_at)
            else:
                pace.on_rate_limit(at, sent_at)
                refused.append(at)
        if pace.free_at <= now:
            pace.reserve(now)
            heapq.heappush(answers, (now + LATENCY, now, bucket.lets_in(now)))
        now = min([max(pace.free_at, now), *(at for at, _, _ in answers[:1])])
    return refused


@pytest.mark.parametrize("limit", [5.0, 8.0, 25.0])
@pytest.mark.parametrize("seconds", [1.5, 2.0, 3.0, 4.0, 6.0, 9.0, 60.0])
@pytest.mark.parametrize("rest", [0.2, 3.0])
@pytest.mark.parametrize("alone", [False, True])
def test_handover_in_the_middle_of_the_search_costs_few_refusals(
    limit: float,
    seconds: float,
    rest: float,
    alone: bool,  # noqa: FBT001 - a parameter
) -> None:
    """Five at most in the next seconds, and no pace far below the limit."""
    bucket = Bucket(limit)
    first = RateController(alone=alone, now=0.0)
    refusals(first, bucket, 0.0, seconds)
    begin = seconds + rest
    second = RateController(start=first.found_rate, alone=alone, now=begin)
    assert len(refusals(second, bucket, begin, begin + 3.0)) <= 5
    assert second.rate >= 0.8 * limit


@pytest.mark.parametrize("age", [0.2, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("late", [0.0, 0.1, 0.2, 0.4, 0.7, 0.9])
def test_takeover_costs_few_refusals_whenever_the_holder_was_killed(
    age: float, late: float
) -> None:
    """Five at most, by what was kept at the end or some time before, if anything."""
    bucket = Bucket(5.0)
    first = RateController(alone=True, now=0.0)
    refusals(first, bucket, 0.0, max(0.0, age - late))
    kept = first.found_rate
    refusals(first, bucket, max(0.0, age - late), age)
    begin = age + 3.0
    second = RateController(start=kept, alone=True, now=begin)
    assert len(refusals(second, bucket, begin, begin + 3.0)) <= 5
    assert second.rate >= 0.8 * bucket.rate


@pytest.mark.parametrize("age", [1.0, 2.0, 3.0, 10.0])
def test_pace_of_an_account_that_was_taken_over_is_kept(age: float) -> None:
    bucket = Bucket(5.0)
    first = RateController(alone=True, now=0.0)
    refusals(first, bucket, 0.0, age)
    begin = age + 3.0
    second = RateController(start=first.found_rate, alone=True, now=begin)
    before = bucket.passed
    refusals(second, bucket, begin, begin + 30.0)
    assert bucket.passed - before >= 0.95 * 30 * bucket.rate


def test_search_that_met_two_refusals_by_chance_comes_back_up() -> None:
    pace = RateController(alone=True, now=0.0)
    pace.on_rate_limit(0.1, 0.05)
    pace.on_rate_limit(0.15, 0.1)
    assert pace.rate == pytest.approx(0.2 * 19.5)
    bucket = Bucket(25.0)
    assert not refusals(pace, bucket, 0.15, 45.0)
    assert pace.rate >= 0.9 * 20


def test_limit_that_is_not_far_below_is_not_guessed() -> None:
    """Two refusals of a stream that jitter has spoilt say little about a limit."""
    pace = RateController(alone=True, now=0.0)
    for number in range(40):
        pace.on_success(0.05 * number, 0.05 * number)
    pace.on_rate_limit(2.0, 2.0)
    pace.on_rate_limit(2.05, 2.05)
    assert pace.rate == pytest.approx(20 * 0.975)


def test_account_that_was_little_used_tells_nothing_of_its_limit() -> None:
    pace = RateController(alone=True, now=0.0)
    for second in range(10):
        pace.on_success(float(second), float(second))
    pace.on_rate_limit(10.0, 10.0)
    pace.on_rate_limit(10.05, 10.05)
    assert pace.rate == pytest.approx(20 * 0.975)


def test_pace_is_not_found_before_it_is_seen_how_far_the_limit_is() -> None:
    pace = RateController(alone=True, now=0.0)
    pace.on_rate_limit(0.3, 0.3)
    assert pace.found_rate is None
    for number in range(4):
        pace.on_success(0.4 + 0.05 * number, 0.4 + 0.05 * number)
    assert pace.found_rate is None
    pace.on_success(0.6, 0.6)
    assert pace.found_rate == pace.rate


@pytest.mark.parametrize(("limit", "most"), [(5.0, 5), (8.0, 5), (15.0, 6)])
def test_search_of_one_that_is_alone_goes_down_at_once(limit: float, most: int) -> None:
    bucket = Bucket(limit)
    pace = RateController(alone=True, now=0.0)
    assert len(refusals(pace, bucket, 0.0, 5.0)) <= most
    refusals(pace, bucket, 5.0, 30.0)
    assert pace.rate == pytest.approx(limit, rel=0.15)
    # With a neighbour it would be the neighbour's share that is missing.
    cautious = RateController(now=0.0)
    assert len(refusals(cautious, Bucket(limit), 0.0, 5.0)) > 2 * most


def test_one_that_is_alone_goes_down_so_far_once() -> None:
    """Later on it is as cautious as any other: a limit may be shared after all."""
    pace = RateController(alone=True, now=0.0)
    for number in range(9):
        pace.on_rate_limit(0.1 * number, 0.1 * number)
    first = pace.rate
    assert first == pytest.approx(0.2 * 19.5)
    for _ in range(8):
        pace.on_rate_limit(0.9, 0.85)
    assert pace.rate == first
    for number in range(20):
        pace.on_rate_limit(2.0 + 0.01 * number, 2.0)
    assert pace.rate >= 0.9 * first


@pytest.mark.parametrize("rate", [2.0, 50.0])
def test_fixed_rate_says_nothing_of_the_limit(rate: float) -> None:
    pace = RateController(rate=rate, now=0.0)
    refusals(pace, Bucket(5.0), 0.0, 3.0)
    assert pace.rate == rate
    assert pace.found_rate is None


def test_next_one_begins_no_lower_than_a_fifth_when_nothing_gets_through() -> None:
    pace = RateController(now=0.0)
    for number in range(9):
        pace.on_rate_limit(0.1 * number, 0.1 * number)
    assert pace.found_rate == pytest.approx(0.2 * pace.rate)


def test_few_answers_change_nothing() -> None:
    """What went out after a cut is little at first: then what was before counts."""
    bucket = Bucket(5.0)
    pace = RateController(now=0.0)
    refusals(pace, bucket, 0.0, 1.3)
    assert pace.rate > 19
    before = pace.found_rate
    assert before is not None
    assert before < 8
    pace.on_rate_limit(1.45, 1.44)  # the next event: the rate is cut
    assert pace.rate < 19
    assert pace.found_rate is not None
    assert pace.found_rate < 8
