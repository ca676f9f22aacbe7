"""The wait for a connection of an own pool: in order, in time, and nothing sent."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from batches import client, emulator
from scripted import KEY, RE, scripted

from async_refunds import (
    APIConnectionError,
    APITimeoutError,
    OutcomeUnknownError,
    RefundsClient,
    RefundsError,
    RetryPolicy,
)
from async_refunds.deadline import Deadlines
from async_refunds.pool import Connector, Room

if TYPE_CHECKING:
    import aiohttp
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

SIZE = 100
"""Connections of an own pool: aiohttp's default."""


def now() -> float:
    return asyncio.get_running_loop().time()


def room(size: int) -> Room:
    return Room(size, Deadlines(asyncio.get_running_loop(), 15.0))


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

    class Recording(Connector):
        async def connect(
            self,
            req: aiohttp.ClientRequest,
            traces: list[Trace],
            timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's own argument
        ) -> Connection:
            connecting.append(timeout.connect)
            return await super().connect(req, traces, timeout)

    monkeypatch.setattr("async_refunds.session.Connector", Recording)
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
