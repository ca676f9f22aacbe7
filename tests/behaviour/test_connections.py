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
from async_refunds.transport.connections import ConnectionLimiter, FreshConnector
from async_refunds.transport.deadlines import Deadlines
from tests.conftest import JumpingEventLoop
from tests.support.batches import client, emulator
from tests.support.scripted import KEY, RE, scripted

if TYPE_CHECKING:
    import aiohttp
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

    from async_refunds import Refund

SIZE = 100
"""Connections of an own pool: aiohttp's default."""


def now() -> float:
    return asyncio.get_running_loop().time()


def room(size: int) -> ConnectionLimiter:
    return ConnectionLimiter(size, Deadlines(asyncio.get_running_loop(), 15.0))


async def until_waiting(count: int) -> None:
    """Let tasks that were just made go on until they wait."""
    for _ in range(count):
        await asyncio.sleep(0)


class TestRoom:
    async def test_is_left_to_who_has_waited_longest(self) -> None:
        rest, came = room(1), list[int]()
        rest.free -= 1

        async def come(number: int) -> None:
            await rest.wait(15.0, now())
            came.append(number)
            await asyncio.sleep(1)
            rest.leave()

        async with asyncio.TaskGroup() as group:
            for number in range(5):
                group.create_task(come(number))
            await until_waiting(5)
            rest.leave()
            passing = rest.free
            assert not passing, "a newcomer could pass by those who wait"
        assert came == [0, 1, 2, 3, 4]
        assert rest.free == 1

    async def test_wait_is_told_in_seconds(self) -> None:
        rest = room(0)
        loop = asyncio.get_running_loop()
        loop.call_later(3.0, rest.leave)
        assert await rest.wait(15.0, now()) == pytest.approx(3.0, abs=0.3)

    async def test_wait_ends_in_time(self) -> None:
        rest = room(0)
        with pytest.raises(TimeoutError):
            await rest.wait(2.0, now())
        rest.leave()
        assert rest.free == 1, "who has given up takes no place"

    async def test_who_is_cancelled_lets_the_next_one_in(self) -> None:
        rest = room(0)
        first = asyncio.create_task(rest.wait(15.0, now()))
        second = asyncio.create_task(rest.wait(15.0, now()))
        await until_waiting(2)
        first.cancel()
        rest.leave()
        await second
        assert first.cancelled()

    async def test_who_is_cancelled_with_a_place_in_hand_passes_it_on(self) -> None:
        rest = room(0)
        first = asyncio.create_task(rest.wait(15.0, now()))
        second = asyncio.create_task(rest.wait(15.0, now()))
        await until_waiting(2)
        rest.leave()  # it is the first one's, who has not run yet
        first.cancel()
        await second
        assert first.cancelled()
        assert rest.free == 0

    async def test_one_that_comes_too_late_is_passed_on(self) -> None:
        rest = room(0)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, JumpingEventLoop)

        def leave_and_be_busy() -> None:
            rest.leave()
            loop.jump(20.0)

        loop.call_later(1.0, leave_and_be_busy)
        with pytest.raises(TimeoutError):
            await rest.wait(15.0, now())
        assert rest.free == 1

    async def test_who_is_thrown_away_takes_no_place(self) -> None:
        rest = room(0)
        waiting = rest.wait(15.0, now())
        waiting.send(None)
        waiting.close()
        rest.leave()
        assert rest.free == 1

    async def test_is_for_tasks_and_leaves_nobody_behind(self) -> None:
        rest = room(0)
        errors: list[BaseException] = []

        def wait() -> None:
            try:
                rest.wait(15.0, now()).send(None)
            except RuntimeError as error:
                errors.append(error)

        asyncio.get_running_loop().call_soon(wait)
        await until_waiting(2)
        assert len(errors) == 1
        rest.leave()
        assert rest.free == 1


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


async def test_wait_for_a_place_is_a_part_of_the_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connecting: list[float | None] = []

    class Recording(FreshConnector):
        async def connect(
            self,
            req: aiohttp.ClientRequest,
            traces: list[Trace],
            timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's own argument
        ) -> Connection:
            connecting.append(timeout.connect)
            return await super().connect(req, traces, timeout)

    monkeypatch.setattr("async_refunds.transport.session.FreshConnector", Recording)
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
    assert unknown.attempts[0].seconds == pytest.approx(10.0, abs=0.5)
    # Half of the attempt for the place and the connection together.
    assert connecting[:SIZE] == [5.0] * SIZE
    assert connecting[SIZE] == pytest.approx(1.0, abs=0.3)


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


async def test_busy_event_loop_sends_nothing_that_has_no_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, JumpingEventLoop)
    leave = ConnectionLimiter.leave

    def leave_late(self: ConnectionLimiter) -> None:
        leave(self)
        monkeypatch.undo()  # once
        loop.jump(9.0)

    stripe = emulator()
    stripe.latency = 4.0
    ids = stripe.seed_refunds(SIZE + 1)
    once = RetryPolicy(max_retries=0)
    async with client(stripe, attempt_timeout=10.0, retry=once) as refunds:
        calls = [asyncio.create_task(refunds.cancel(each)) for each in ids]
        loop.call_later(
            2.0, monkeypatch.setattr, ConnectionLimiter, "leave", leave_late
        )
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
    stripe.latency = 1.0
    ids = iter(stripe.seed_refunds(15 * SIZE))
    seconds: list[float] = []

    async def work() -> None:
        for refund_id in ids:
            refund = await refunds.cancel(refund_id)
            seconds.append(refund.last_response.attempts[0].seconds)

    async with client(stripe) as refunds:
        await asyncio.gather(*(work() for _ in range(3 * SIZE)))
    assert len(seconds) == 15 * SIZE
    # Three for each connection, a second each: two turns of others, and its own.
    assert max(seconds) < 4.0


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
