"""The policy, the budget, and the loop of tenacity, on an injected clock and chance."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_refunds import OutcomeUnknownError, RetryBudget, RetryPolicy
from async_refunds.retry import retried
from tests.support.scripted import CANCELED, RE, answer, error_json, scripted, seen

FAILING = answer(503, error_json(type="api_error"))


@dataclass(frozen=True)
class Try:
    retry: bool
    timed_out: bool = False


class Bench:
    """A clock that only sleeping moves, and a chance that is always the same."""

    def __init__(self, chance: float = 0.5) -> None:
        self.now = 100.0
        self.slept: list[float] = []
        self.tries = 0
        self.chance = chance
        self.budget = RetryBudget()

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    async def run(
        self,
        *outcomes: Try,
        until: float = 1000.0,
        room: float = 0.0,
        **policy: Any,  # noqa: ANN401 - passed on
    ) -> Try:
        waiting = iter(outcomes)

        async def again(slept: float) -> Try:
            assert slept == self.slept[-1]
            self.tries += 1
            return next(waiting)

        return await retried(
            Try(retry=True),
            again,
            policy=RetryPolicy(**policy),
            budget=self.budget,
            until=until,
            room=room,
            clock=lambda: self.now,
            sleep=self.sleep,
            random=lambda: self.chance,
            before_sleep=lambda failed, pause: None,
        )


BAD, GOOD = Try(retry=True), Try(retry=False)


async def test_retries_end_with_the_first_that_needs_none() -> None:
    bench = Bench()
    assert await bench.run(BAD, GOOD, max_retries=5) is GOOD
    assert bench.tries == 2


async def test_retries_end_with_their_number() -> None:
    bench = Bench()
    assert await bench.run(BAD, BAD, BAD, BAD, BAD) is BAD
    assert bench.tries == 3


async def test_no_retries_is_none() -> None:
    bench = Bench()
    await bench.run(max_retries=0)
    assert bench.tries == 0
    assert bench.budget.tokens == 500


async def test_sleeps_are_jittered_from_the_first_and_double_to_the_maximum() -> None:
    bench = Bench(chance=0.5)
    await bench.run(*[BAD] * 6, max_retries=6, initial_delay=1.0, max_delay=5.0)
    assert bench.slept == [0.5, 1.0, 2.0, 2.5, 2.5, 2.5]


async def test_first_sleep_may_be_none_at_all() -> None:
    bench = Bench(chance=0.0)
    await bench.run(BAD, GOOD)
    assert bench.slept == [0.0, 0.0]


async def test_no_sleep_that_leaves_no_room_for_an_attempt() -> None:
    bench = Bench(chance=1.0)
    await bench.run(BAD, BAD, until=102.0, room=0.6, initial_delay=1.0, max_delay=1.0)
    assert bench.slept == [1.0]


async def test_cancellation_is_never_retried() -> None:
    bench = Bench()

    async def again(slept: float) -> Try:
        bench.tries += 1
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await retried(
            BAD,
            again,
            policy=RetryPolicy(),
            budget=bench.budget,
            until=1000.0,
            room=0.0,
            clock=lambda: bench.now,
            sleep=bench.sleep,
            random=lambda: 0.5,
            before_sleep=lambda failed, pause: None,
        )
    assert bench.tries == 1


async def test_retry_costs_five_tokens_and_ten_after_a_timeout() -> None:
    bench = Bench()
    await bench.run(Try(retry=True, timed_out=True), GOOD)
    assert bench.budget.tokens == 500 - 5 - 10


async def test_nothing_is_retried_on_a_spent_budget() -> None:
    bench = Bench()
    while bench.budget.take(timed_out=False):
        pass
    assert bench.budget.tokens == 0
    assert await bench.run(GOOD) == BAD
    assert bench.slept == []


def test_budget_takes_nothing_where_there_is_not_enough() -> None:
    budget = RetryBudget()
    for _ in range(99):
        assert budget.take(timed_out=False)
    assert not budget.take(timed_out=True)
    assert budget.tokens == 5


def test_success_gives_one_token_back_and_never_more_than_all() -> None:
    budget = RetryBudget()
    budget.succeeded()
    assert budget.tokens == 500
    budget.take(timed_out=False)
    budget.succeeded()
    assert budget.tokens == 496


@given(retry=st.integers(1, 10**9), chance=st.floats(0, 1, exclude_max=True))
def test_backoff_is_never_negative_nor_over_the_maximum(
    retry: int, chance: float
) -> None:
    assert 0.0 <= RetryPolicy().backoff(retry, chance) <= 8.0


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("max_retries", -1, ValueError),
        ("max_retries", 1.5, TypeError),
        ("max_retries", True, TypeError),
        ("deadline", 0, ValueError),
        ("deadline", float("nan"), ValueError),
        ("initial_delay", float("inf"), ValueError),
        ("max_delay", "8", TypeError),
    ],
)
def test_policy_refuses_what_is_no_number_of_that(
    field: str, value: object, error: type[Exception]
) -> None:
    options: dict[str, Any] = {field: value}
    with pytest.raises(error, match=field):
        RetryPolicy(**options)


async def test_brown_out_does_not_multiply_the_load() -> None:
    """100 retries of 5 tokens, and then every call is one request and its read."""
    async with (
        scripted(FAILING, reads=[seen("requires_action")]) as server,
        server.client() as refunds,
    ):
        for _ in range(150):
            with pytest.raises(OutcomeUnknownError):
                await refunds.cancel(RE)
    cancels = server.methods().count("POST")
    # A settling read that succeeds gives a token back, which buys a retry now and then.
    assert 250 <= cancels <= 150 + 100 + 150 // 5


async def test_successes_buy_a_spent_budget_its_next_retry() -> None:
    async with (
        scripted(FAILING, reads=[seen("requires_action")]) as server,
        server.client() as refunds,
    ):
        for _ in range(60):
            with pytest.raises(OutcomeUnknownError):
                await refunds.cancel(RE)
        server.cancels[:] = [CANCELED]
        for _ in range(5):
            await refunds.cancel(RE)
        server.cancels[:] = [FAILING, CANCELED]
        assert len((await refunds.cancel(RE)).last_response.attempts) == 2


async def test_success_never_goes_through_the_retries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def never(*args: object, **options: object) -> None:
        raise AssertionError("a success came to tenacity")

    monkeypatch.setattr("async_refunds.call.retried", never)
    async with scripted(CANCELED) as server, server.client() as refunds:
        assert (await refunds.cancel(RE)).status == "canceled"
