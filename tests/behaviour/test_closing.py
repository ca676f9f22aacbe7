"""How a client ends: with a drain, in the middle of calls, or forgotten."""

from __future__ import annotations

import asyncio
import gc
import inspect
import warnings
from typing import Any

import pytest

from async_refunds import OutcomeUnknownError, RefundsClient, RefundsError
from tests.support.scripted import (
    CANCELED,
    KEY,
    RE,
    Received,
    Scripted,
    refusal,
    scripted,
    seen,
    served,
)

FAILING = refusal(503, type="api_error")


async def test_drain_lets_calls_end_and_no_new_one_begin() -> None:
    loop = asyncio.get_running_loop()
    async with scripted(FAILING, FAILING, CANCELED) as server:
        refunds = server.client()
        call = asyncio.create_task(refunds.cancel(RE))
        await server.arrived.wait()
        closing = asyncio.create_task(refunds.close(drain=30.0))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="closed"):
            await refunds.cancel(RE)
        assert (await call).status == "canceled"
        ended = loop.time()
        await closing
        assert loop.time() - ended < 1.0, "it waits no longer than for the calls"
        await asyncio.sleep(0.01)
        assert server.open == 0
    assert server.methods() == "POST POST POST"


async def test_drain_lets_the_settling_read_and_a_read_end() -> None:
    async with scripted("reset", reads=[FAILING, seen("canceled")]) as server:
        refunds = server.client()
        calls = [
            asyncio.create_task(refunds.cancel(RE)),
            asyncio.create_task(refunds.retrieve(RE)),
        ]
        await server.arrived.wait()
        await refunds.close(drain=60.0)
        assert {call.result().status for call in calls} == {"canceled"}


async def test_drain_that_takes_too_long_ends_in_unknown_outcomes() -> None:
    loop = asyncio.get_running_loop()
    async with scripted("stall") as server:
        refunds = server.client()
        call = asyncio.create_task(refunds.cancel(RE))
        await server.arrived.wait()
        began = loop.time()
        await refunds.close(drain=5.0)
        assert 5.0 <= loop.time() - began < 6.0
        with pytest.raises(OutcomeUnknownError):
            await call


@pytest.mark.parametrize("drain", [0.0, 10.0])
async def test_nothing_in_progress_is_closed_at_once(drain: float) -> None:
    loop = asyncio.get_running_loop()
    async with scripted(CANCELED) as server:
        refunds = server.client()
        await refunds.cancel(RE)
        began = loop.time()
        await refunds.close(drain=drain)
        assert loop.time() - began < 1.0


async def test_two_may_wait_for_the_same_drain() -> None:
    async with scripted(FAILING, CANCELED) as server:
        refunds = server.client()
        call = asyncio.create_task(refunds.cancel(RE))
        await server.arrived.wait()
        await asyncio.gather(refunds.close(drain=1000.0), refunds.close(drain=1000.0))
        assert call.result().status == "canceled"


async def test_drain_that_is_cancelled_closes_all_the_same() -> None:
    async with scripted("stall") as server:
        refunds = server.client()
        call = asyncio.create_task(refunds.cancel(RE))
        await server.arrived.wait()
        closing = asyncio.create_task(refunds.close(drain=1000.0))
        await asyncio.sleep(1)
        closing.cancel()
        await asyncio.wait([closing, call])
        assert isinstance(call.exception(), OutcomeUnknownError)
        await asyncio.sleep(0.01)
        assert server.open == 0


@pytest.mark.parametrize("drain", [-1.0, float("nan"), "10"])
async def test_drain_that_is_no_number_of_seconds_closes_nothing(drain: Any) -> None:  # noqa: ANN401 - also what is none
    async with scripted(CANCELED) as server, server.client() as refunds:
        with pytest.raises((TypeError, ValueError), match="drain"):
            await refunds.close(drain=drain)
        assert (await refunds.cancel(RE)).status == "canceled"


class Slow(Scripted):
    """Answers a little later each time, and fails some."""

    def act_for(self, request: Received) -> bytes:
        count = len(self.received)
        if request.method == "GET":
            return seen("canceled")
        return FAILING if count % 3 == 0 else CANCELED


async def test_drain_of_many_calls_leaves_none_unknown() -> None:
    async with served(Slow()) as server:
        refunds = server.client()
        calls = [asyncio.create_task(refunds.cancel(RE)) for _ in range(200)]
        await server.arrived.wait()
        await refunds.close(drain=100.0)
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert not [each for each in ended if isinstance(each, RefundsError)]
        assert refunds.calls_in_progress == 0


class OwnClient(RefundsClient):
    """A subclass with a constructor of its own."""

    def __init__(self, shop: str, **options: Any) -> None:  # noqa: ANN401 - passed on
        super().__init__(KEY, **options)
        self.shop = shop


class OwnOwnClient(OwnClient):
    """And one below it."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - passed on
        super().__init__("a shop", **options)


def line() -> int:
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno


MAKERS: dict[type[RefundsClient], tuple[str, ...]] = {
    RefundsClient: (KEY,),
    OwnClient: ("a shop",),
    OwnOwnClient: (),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_forgotten_client_warns_with_its_name_and_where_it_was_made(
    kind: type[RefundsClient],
) -> None:
    make: Any = kind
    shown: list[str] = []

    async def forget() -> None:
        async with scripted(CANCELED) as server:
            refunds = make(*MAKERS[kind], base_url=server.url)
            made = line() - 1
            await refunds.cancel(RE)
            shown[:] = [repr(refunds), f"made at {__file__}:{made}, was not closed"]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(forget())
        gc.collect()
    (ours,) = [str(each.message) for each in caught if "Refunds" in str(each.message)]
    assert all(text in ours for text in shown)


def test_client_that_was_closed_or_never_used_warns_nothing() -> None:
    async def close() -> None:
        async with scripted(CANCELED) as server:
            closed, _unused = server.client(), server.client()
            await closed.cancel(RE)
            await closed.close()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(close())
        gc.collect()
    assert not caught
