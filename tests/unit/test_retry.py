"""The policy and the budget: what a caller sees of them, on a clock that jumps."""

from __future__ import annotations

import asyncio
import functools
import heapq
import itertools
import random
from typing import TYPE_CHECKING, Any

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from async_refunds import (
    APIConnectionError,
    OutcomeUnknownError,
    RateLimitError,
    RefundsClient,
    RetryBudget,
    RetryPolicy,
)
from tests.support.scripted import (
    CANCELED,
    RE,
    answer,
    error_json,
    refusal,
    scripted,
    seen,
)

if TYPE_CHECKING:
    from collections.abc import Callable

FAILING = answer(503, error_json(type="api_error"))
LIMITED = refusal(429, {"Stripe-Rate-Limited-Reason": "endpoint-rate"})
WAITING = seen("requires_action")


@pytest.mark.parametrize("retries", [0, 1, 5])
async def test_retries_end_with_their_number(retries: int) -> None:
    policy = RetryPolicy(max_retries=retries)
    async with scripted(LIMITED) as server, server.client(retry=policy) as refunds:
        with pytest.raises(RateLimitError) as caught:
            await refunds.cancel(RE)
    assert len(server.received) == 1 + retries
    assert caught.value.retries_stopped_by == "count"
    assert caught.value.attempts[-1].stopped == "count"
    assert {each.stopped for each in caught.value.attempts[:-1]} <= {None}


async def test_sleeps_are_jittered_from_the_first_and_double_to_the_maximum() -> None:
    policy = RetryPolicy(max_retries=5, initial_delay=1.0, max_delay=5.0)
    slept: list[list[float]] = []
    async with scripted(LIMITED) as server:
        for _ in range(40):
            async with server.client(retry=policy, retry_budget=None) as refunds:
                with pytest.raises(RateLimitError) as caught:
                    await refunds.cancel(RE)
                slept.append([each.slept for each in caught.value.attempts])
    for place, bound in enumerate([0.0, 1.0, 2.0, 4.0, 5.0, 5.0]):
        sleeps = [each[place] for each in slept]
        assert max(sleeps) <= bound
        if bound:
            assert max(sleeps) > 0.7 * bound
            assert min(sleeps) < 0.3 * bound


@given(retry=st.integers(1, 10**9))
def test_backoff_is_never_negative_nor_over_the_maximum(retry: int) -> None:
    assert 0.0 <= RetryPolicy().backoff(retry) <= 8.0


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


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("min_tokens", 0, ValueError),
        ("min_tokens", 1.5, TypeError),
        ("seconds", 0, ValueError),
        ("seconds", "2", TypeError),
    ],
)
def test_budget_refuses_what_is_no_number_of_that(
    field: str, value: object, error: type[Exception]
) -> None:
    options: dict[str, Any] = {field: value}
    with pytest.raises(error, match=field):
        RetryBudget(**options)
    with pytest.raises(TypeError, match="retry_budget"):
        RefundsClient("sk_test_x", retry_budget=500)  # type: ignore[arg-type]  # wrong on purpose


async def test_success_never_enters_tenacity(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*args: object, **options: object) -> None:
        raise AssertionError("a success entered tenacity")

    monkeypatch.setattr(tenacity.AsyncRetrying, "__call__", never)
    async with scripted(CANCELED) as server, server.client() as refunds:
        assert (await refunds.cancel(RE)).status == "canceled"


async def test_retry_costs_a_token_and_two_after_a_timeout() -> None:
    budget = RetryBudget(min_tokens=20)
    async with (
        scripted(FAILING, "stall", "stall", CANCELED) as server,
        server.client(retry_budget=budget, attempt_timeout=1.0) as refunds,
    ):
        assert refunds.retry_budget is budget
        assert budget.tokens == 20
        await refunds.cancel(RE)
    # One for the 503, two for each time-out; time and the success give some back.
    assert 15.0 < budget.tokens <= 20 - 5 + 0.5 + 0.02 + 20 * 6 / 60


async def test_what_was_not_sent_is_retried_free() -> None:
    budget = RetryBudget(min_tokens=1)
    refunds = RefundsClient(
        "sk_test_x", base_url="http://127.0.0.1:1", retry_budget=budget
    )
    for _ in range(5):
        with pytest.raises(APIConnectionError) as caught:
            await refunds.cancel(RE)
        assert len(caught.value.attempts) == 4
        assert caught.value.retries_stopped_by == "count"
    assert budget.tokens >= 1
    await refunds.close()


async def test_spent_budget_ends_a_call_and_says_so() -> None:
    budget = RetryBudget(min_tokens=1, seconds=0.1)
    async with (
        scripted(FAILING, reads=[WAITING]) as server,
        server.client(retry_budget=budget) as refunds,
    ):
        with pytest.raises(OutcomeUnknownError, match="retry budget") as caught:
            await refunds.cancel(RE)
    assert server.methods() == "POST POST GET", "the settling read needs no token"
    assert caught.value.retries_stopped_by == "budget"
    assert caught.value.attempts[1].stopped == "budget"


async def test_budget_may_be_shared_or_left_out() -> None:
    shared = RetryBudget(min_tokens=4, seconds=0.1)
    async with scripted(FAILING, reads=[WAITING]) as server:
        for _ in range(2):
            async with server.client(retry_budget=shared) as refunds:
                with pytest.raises(OutcomeUnknownError):
                    await refunds.cancel(RE)
        # Four tokens, and what time gave back meanwhile.
        assert 2 + 4 <= server.methods().count("POST") < 2 + 6
        server.received.clear()
        async with server.client(retry_budget=None) as refunds:
            assert refunds.retry_budget is None
            for _ in range(10):
                with pytest.raises(OutcomeUnknownError):
                    await refunds.cancel(RE)
    assert server.methods().count("POST") == 40


async def test_successes_and_time_give_tokens_back() -> None:
    budget = RetryBudget(min_tokens=6)
    async with (
        scripted(FAILING, reads=[WAITING]) as server,
        server.client(retry_budget=budget) as refunds,
    ):
        for _ in range(3):
            with pytest.raises(OutcomeUnknownError):
                await refunds.cancel(RE)
        assert budget.tokens < 2
        server.cancels[:] = [CANCELED]
        for _ in range(4):
            await refunds.cancel(RE)
        assert budget.tokens > 2.5
        await asyncio.sleep(3600)
        await refunds.cancel(RE)
        assert budget.tokens == 6


class Traffic:
    """A simulation of calls at a steady rate against a service that fails for a while.

    An answer takes 50 ms. A cancel that fails for good is followed by its settling
    read, which finds nothing out.
    """

    def __init__(self, budget: RetryBudget | None, seed: int) -> None:
        self.budget = budget
        self.random = random.Random(seed)  # noqa: S311 - no secret
        self.policy = RetryPolicy()
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.order = itertools.count()
        self.unknown = 0
        self.calls = self.requests = 0
        """Those that began during the failure, and their requests."""

    def at(self, when: float, event: Callable[[float], None]) -> None:
        heapq.heappush(self.events, (when, next(self.order), event))

    def run(self, *, rate: float, count: int, fails: tuple[float, float]) -> None:
        for number in range(count):
            self.at(number / rate, functools.partial(self.attempt, fails, 0))
        while self.events:
            when, _, event = heapq.heappop(self.events)
            event(when)

    def attempt(
        self,
        fails: tuple[float, float],
        retry: int,
        now: float,
        *,
        is_cancel: bool = True,
        counted: bool | None = None,
    ) -> None:
        first = counted is None
        failed = fails[0] <= now < fails[1]
        counted = failed if counted is None else counted
        self.calls += first and counted
        self.requests += counted
        if self.budget is not None:
            self.budget.record(now, first=first, succeeded=not failed)
        if not failed:
            self.unknown += not is_cancel
            return
        now += 0.05
        go_on = functools.partial(
            self.attempt, fails, is_cancel=is_cancel, counted=counted
        )
        if retry < self.policy.max_retries and (
            self.budget is None or self.budget.take(now, timed_out=False)
        ):
            bound = min(8.0, 0.5 * 2**retry)
            pause = self.random.uniform(0.0, bound)
            self.at(now + pause, functools.partial(go_on, retry + 1))
        elif is_cancel:
            self.at(now, functools.partial(go_on, 0, is_cancel=False))
        else:
            self.unknown += 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("begins", [0.0, 2.0])
def test_failure_of_a_second_leaves_hardly_a_call_unknown(
    seed: int, begins: float
) -> None:
    traffic = Traffic(RetryBudget(), seed)
    traffic.run(rate=200, count=1000, fails=(begins, begins + 1))
    assert traffic.calls == pytest.approx(200, abs=2)
    assert traffic.unknown <= 20


@pytest.mark.parametrize("seed", range(5))
def test_long_failure_is_not_amplified(seed: int) -> None:
    traffic = Traffic(RetryBudget(), seed)
    traffic.run(rate=25, count=750, fails=(10, 20))
    assert traffic.requests / traffic.calls <= 2.3
    unlimited = Traffic(None, seed)
    unlimited.run(rate=25, count=750, fails=(10, 20))
    assert unlimited.requests / unlimited.calls > 5.0
