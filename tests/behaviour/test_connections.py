"""The wait for a connection of an own pool: in order, in time, and nothing sent."""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING

import pytest

from async_refunds import (
    APIConnectionError,
    APITimeoutError,
    OutcomeUnknownError,
    RefundsClient,
    RefundsError,
    RetryPolicy,
)
from tests.conftest import JumpingEventLoop
from tests.support.batches import client, emulator
from tests.support.scripted import KEY, RE, scripted

if TYPE_CHECKING:
    from asyncio import Task

    from async_refunds import Attempt, Refund
    from tests.support.scripted import Scripted

SIZE = 100
"""Connections of an own pool: aiohttp's default."""


async def test_wait_for_an_own_pool_is_not_sent() -> None:
    async with scripted("stall") as server:
        refunds = server.client(attempt_timeout=1000.0)
        holders = [
            asyncio.create_task(refunds.cancel(RE, timeout=5000.0)) for _ in range(SIZE)
        ]
        while len(server.received) < SIZE:
            await server.arrived.wait()
            await asyncio.sleep(0)
        with pytest.raises(APITimeoutError) as caught:
            await refunds.cancel(RE, timeout=10.0)
        assert {each.failure for each in caught.value.attempts} == {"connect_timeout"}
        assert len(server.received) == SIZE
        for holder in holders:
            holder.cancel()
        await asyncio.wait(holders)
        await refunds.close()


async def test_wait_for_a_connection_is_a_part_of_the_attempt() -> None:
    stripe = emulator()
    stripe.latency = 4.0
    stripe.faults.script(*["ok"] * SIZE, "stall")
    ids = stripe.seed_refunds(SIZE + 1)
    once = RetryPolicy(max_retries=0)
    async with client(stripe, attempt_timeout=10.0, retry=once) as refunds:
        ended = await asyncio.gather(
            *(refunds.cancel(each) for each in ids), return_exceptions=True
        )
    unknown = ended[-1]
    assert isinstance(unknown, OutcomeUnknownError)
    assert unknown.attempts[0].waited == pytest.approx(4.0, abs=0.5)
    assert unknown.attempts[0].seconds == pytest.approx(10.0, abs=0.5)


async def test_pool_says_how_full_it_is() -> None:
    stripe = emulator()
    stripe.latency = 4.0
    ids = stripe.seed_refunds(SIZE + 20)
    async with client(stripe) as refunds:
        assert refunds.connections_in_use == refunds.waiting_for_connection == 0
        calls = [asyncio.create_task(refunds.cancel(each)) for each in ids]
        await asyncio.sleep(2.0)
        assert refunds.connections_in_use == SIZE
        assert refunds.waiting_for_connection == 20
        assert refunds.calls_in_progress == SIZE + 20
        await asyncio.wait(calls)
        assert refunds.connections_in_use == refunds.calls_in_progress == 0


async def test_calls_that_wait_for_a_client_that_is_closed_end() -> None:
    async with scripted("stall") as server:
        refunds = server.client(attempt_timeout=1000.0)
        calls = [
            asyncio.create_task(refunds.cancel(RE, timeout=5000.0))
            for _ in range(SIZE + 20)
        ]
        while len(server.received) < SIZE:
            await server.arrived.wait()
            await asyncio.sleep(0)
        await refunds.close()
        ended = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(each, RefundsError) for each in ended)
    waited = [each for each in ended[SIZE:] if isinstance(each, APIConnectionError)]
    assert len(waited) == 20, "they have sent nothing, and can tell"


async def test_busy_event_loop_sends_nothing_that_has_no_time_left() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, JumpingEventLoop)
    ended: list[Attempt] = []

    def be_busy(attempt: Attempt) -> None:
        if not ended:  # the connection that came free is about to be used
            loop.jump(9.0)
        ended.append(attempt)

    stripe = emulator()
    stripe.latency = 4.0
    ids = stripe.seed_refunds(SIZE + 1)
    once = RetryPolicy(max_retries=0)
    options = {"attempt_timeout": 10.0, "retry": once, "on_attempt": be_busy}
    async with client(stripe, **options) as refunds:
        calls = [asyncio.create_task(refunds.cancel(each)) for each in ids]
        await asyncio.wait(calls)
        with pytest.raises(APITimeoutError):
            await calls[-1]
    assert ids[-1] not in {each.path.split("/")[3] for each in stripe.requests}


def check(error: BaseException | None, status: object) -> None:
    """Hold what a call has told of a refund against what became of it."""
    if error is None:
        assert status == "canceled"
    elif not isinstance(error, OutcomeUnknownError):
        assert isinstance(error, RefundsError)
        assert status == "requires_action"


@pytest.mark.parametrize("seed", range(6))
async def test_no_place_is_lost_whatever_ends_a_call(seed: int) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, JumpingEventLoop)
    random = Random(seed)  # noqa: S311 - no secret
    stripe = emulator()
    stripe.latency = random.choice([0.0, 0.01, 0.3, 1.0])
    ids = stripe.seed_refunds(4 * SIZE)
    faults = ["stall", "reset_before", "reset_after", "saved_500", "cut_body", "slow"]
    stripe.faults.script(*random.choices([*faults, *["ok"] * 10], k=8 * SIZE))
    attempt_timeout = random.choice([4.0, 10.0, 30.0])
    async with client(stripe, attempt_timeout=attempt_timeout) as refunds:
        calls: list[asyncio.Task[Refund]] = []
        for each in ids:
            timeout = random.choice([0.2, 1.0, 5.0, 30.0])
            calls.append(asyncio.create_task(refunds.cancel(each, timeout=timeout)))
            if random.random() < 0.4:
                # Some at the very moment when waits and attempts end by themselves.
                share = random.choice([0.0, 0.5, 1.0, random.random()])
                loop.call_later(share * attempt_timeout, calls[-1].cancel)
            if random.random() < 0.1:
                await asyncio.sleep(random.random() * 0.2)
            if random.random() < 0.02:
                loop.jump(random.random() * attempt_timeout)
        await asyncio.wait(calls)
        for each, call in zip(ids, calls, strict=True):
            if not call.cancelled():
                check(call.exception(), stripe.refund(each)["status"])
        # All places are there again: so many can be under way at once, and no more.
        stripe.faults.clear()
        stripe.latency = 0.8 * attempt_timeout
        before = len(stripe.requests)
        ids = stripe.seed_refunds(SIZE + 50)
        calls = [asyncio.create_task(refunds.cancel(each, timeout=90)) for each in ids]
        await asyncio.sleep(0.4 * attempt_timeout)
        assert len(stripe.requests) - before == SIZE
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)


async def test_nobody_is_passed_over_while_the_pool_is_full() -> None:
    stripe = emulator()
    stripe.latency = 5.0  # much more than what a busy machine adds
    ids = iter(stripe.seed_refunds(15 * SIZE))
    seconds: list[float] = []

    async def work() -> None:
        for refund_id in ids:
            refund = await refunds.cancel(refund_id)
            seconds.append(refund.last_response.attempts[0].seconds)

    async with client(stripe) as refunds:
        await asyncio.gather(*(work() for _ in range(3 * SIZE)))
    assert len(seconds) == 15 * SIZE
    # Three for each connection, five seconds each: two turns of others, and its own.
    assert max(seconds) < 20.0


@pytest.mark.parametrize("cancelled", [True, False], ids=["cancelled", "closed"])
async def test_look_up_that_is_broken_off_has_sent_nothing(
    cancelled: bool,  # noqa: FBT001 - a parameter of the test
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = asyncio.Event()

    async def never(*_: object, **__: object) -> list[object]:
        asked.set()
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", never)
    refunds = RefundsClient(KEY, base_url="https://api.stripe.invalid")
    call = asyncio.create_task(refunds.cancel(RE))
    await asked.wait()
    if cancelled:
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert call.cancelled()
        await refunds.close()
    else:
        await refunds.close()
        with pytest.raises(APIConnectionError) as caught:
            await call
        assert [each.failure for each in caught.value.attempts] == ["closed"]


async def full_pool(server: Scripted, refunds: RefundsClient) -> list[Task[Refund]]:
    """Have calls in progress on all connections."""
    holders = [asyncio.create_task(refunds.cancel(RE)) for _ in range(SIZE)]
    await server.received_at_least(SIZE)
    return holders


async def test_call_that_is_admitted_as_it_gives_up_passes_its_place_on() -> None:
    async with scripted("stall") as server, server.client() as refunds:
        holders = await full_pool(server, refunds)
        first, second = [asyncio.create_task(refunds.cancel(RE)) for _ in range(2)]
        await asyncio.sleep(0)
        assert refunds.waiting_for_connection == 2
        holders[0].cancel()
        while refunds.waiting_for_connection == 2:  # noqa: ASYNC110 - no longer than that
            await asyncio.sleep(0)  # until the first is admitted, and does not know yet
        first.cancel()
        await asyncio.wait([first])
        await server.received_at_least(SIZE + 1)
        assert refunds.connections_in_use == SIZE
        for call in (*holders, second):
            call.cancel()
        await asyncio.wait([*holders, second])
        assert refunds.connections_in_use == 0


async def test_call_that_is_thrown_away_in_the_queue_leaves_it() -> None:
    async with scripted("stall") as server, server.client() as refunds:
        holders = await full_pool(server, refunds)
        thrown = refunds.cancel(RE)
        thrown.send(None)  # as far as it gets without the event loop
        assert refunds.waiting_for_connection == 1
        thrown.close()
        assert refunds.waiting_for_connection == 0
        for holder in holders:
            holder.cancel()
        await asyncio.wait(holders)
        assert refunds.calls_in_progress == refunds.connections_in_use == 0
