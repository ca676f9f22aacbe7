from __future__ import annotations

import asyncio

import pytest

from async_refunds.emulator import Clock, Emulator, Limits
from tests.support.stripe_caller import LIVE_KEY, Caller, serving

NOW = 1_800_000_000.0


@pytest.fixture
def emulator() -> Emulator:
    """An emulator whose time stands still."""
    emulator = Emulator(clock=lambda: NOW)
    emulator.add_account("acct_1")
    return emulator


async def reasons(api: Caller, count: int) -> list[str | None]:
    """Send list requests one after the other; return why each is refused."""
    answers = [await api.get("") for _ in range(count)]
    assert {answer.status for answer in answers} <= {200, 429}
    return [answer.headers.get("Stripe-Rate-Limited-Reason") for answer in answers]


async def test_nothing_is_limited_by_default(api: Caller) -> None:
    assert await reasons(api, 150) == [None] * 150


async def test_stripes_own_limits_are_25_an_endpoint_and_100_in_all(
    api: Caller,
) -> None:
    limits = Limits()
    assert (limits.global_rate, limits.endpoint_rate) == (100, 25)
    assert (limits.global_concurrency, limits.endpoint_concurrency) == (None, None)
    api.emulator.limits = limits
    assert await reasons(api, 26) == [None] * 25 + ["endpoint-rate"]


async def test_requests_of_one_endpoint_count_together_whatever_the_id(
    api: Caller,
) -> None:
    api.emulator.limits = Limits(endpoint_rate=2)
    refund_ids = api.emulator.seed_refunds(3)
    answers = [await api.get(f"/{refund_id}") for refund_id in refund_ids]
    other_endpoint = await api.get("")
    other_mode = await api.get("/re_1", key=LIVE_KEY)
    other_account = await api.get("/re_1", headers={"Stripe-Account": "acct_1"})
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert answers[2].error["code"] == "rate_limit"
    assert answers[2].error["type"] == "invalid_request_error"
    assert other_endpoint.status == 200
    assert other_mode.status == other_account.status == 404
    assert api.emulator.books.rate_limited == {"endpoint-rate": 1}


async def test_requests_of_all_endpoints_count_for_the_account(api: Caller) -> None:
    api.emulator.limits = Limits(global_rate=2, endpoint_rate=None)
    await api.get("")
    await api.get("/re_1")
    answer = await api.cancel("re_1")
    assert answer.status == 429
    assert answer.headers["Stripe-Rate-Limited-Reason"] == "global-rate"


async def test_limiter_admits_again_as_the_emulators_time_passes(api: Caller) -> None:
    api.emulator.limits = Limits(endpoint_rate=4)
    await reasons(api, 4)
    assert await reasons(api, 1) == ["endpoint-rate"]
    api.emulator.clock.advance(0.5)
    assert await reasons(api, 3) == [None, None, "endpoint-rate"]
    api.emulator.clock.advance(3600)
    assert await reasons(api, 5) == [None] * 4 + ["endpoint-rate"]


async def test_refused_request_uses_up_nothing(api: Caller) -> None:
    api.emulator.limits = Limits(global_rate=3, endpoint_rate=1)
    assert await reasons(api, 3) == [None, "endpoint-rate", "endpoint-rate"]
    assert (await api.get("/re_1")).status == 404
    assert (await api.cancel("re_1")).status == 404
    assert await reasons(api, 1) == ["global-rate"]


async def test_limits_can_be_changed_while_serving(api: Caller) -> None:
    assert await reasons(api, 2) == [None, None]
    api.emulator.limits = Limits(global_rate=None, endpoint_rate=1)
    assert await reasons(api, 2) == [None, "endpoint-rate"]
    api.emulator.limits.endpoint_rate = None
    assert await reasons(api, 2) == [None, None]
    api.emulator.limits = None
    assert await reasons(api, 2) == [None, None]


async def test_clock_set_back_does_not_empty_the_limiter() -> None:
    now = NOW
    emulator = Emulator(limits=Limits(endpoint_rate=2), clock=lambda: now)
    async with serving(emulator) as api:
        await api.get("")
        now -= 3600
        assert await reasons(api, 2) == [None, "endpoint-rate"]


@pytest.mark.parametrize(
    ("limits", "reason", "other_endpoint"),
    [
        (Limits(global_concurrency=1), "global-concurrency", 429),
        (Limits(endpoint_concurrency=1), "endpoint-concurrency", 404),
    ],
)
async def test_requests_in_flight_are_limited(
    limits: Limits, reason: str, other_endpoint: int, api: Caller
) -> None:
    api.emulator.limits = limits
    api.emulator.faults.script("slow")
    slow = asyncio.create_task(api.get(""))
    await asyncio.sleep(0.1)
    assert await reasons(api, 1) == [reason]
    assert (await api.get("/re_1")).status == other_endpoint
    assert (await slow).status == 200
    assert await reasons(api, 2) == [None, None]


async def test_limiter_stands_before_the_idempotency_keys(
    api: Caller, refund_id: str
) -> None:
    api.emulator.limits = Limits(endpoint_rate=1)
    await api.cancel(refund_id, "k")
    refused = await api.cancel(refund_id, "k")
    fresh = await api.cancel(refund_id, "k2")
    api.emulator.clock.advance(1)
    replay = await api.cancel(refund_id, "k")
    assert refused.status == fresh.status == 429
    assert not refused.replayed
    assert replay.status == 200
    assert replay.replayed


async def test_request_without_a_good_key_is_not_counted(api: Caller) -> None:
    api.emulator.limits = Limits(endpoint_rate=1)
    for _ in range(3):
        assert (await api.get("", key="bad")).status == 401
    assert await reasons(api, 1) == [None]


def test_time_does_not_run_backwards() -> None:
    clock = Clock(lambda: 10.0)
    clock.advance(2.5)
    assert clock.time() == 12.5
    for seconds in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="seconds must be 0 or more"):
            clock.advance(seconds)
