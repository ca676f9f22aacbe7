"""A permit is asked as late as possible: what it refuses is not sent."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import aiohttp
import pytest

from async_refunds import OutcomeUnknownError, RetryPolicy
from async_refunds.client import begin_call
from async_refunds.protocol.requests import cancel_request
from tests.support.batches import asked, client, emulator
from tests.support.scripted import CANCELED, RE, answer, refund_json, scripted

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_refunds import RefundsClient
    from async_refunds.call import Call
    from async_refunds.protocol.outcome import Conclusion

SIZE = 100  # of the pool
WAITING = answer(body=refund_json("requires_action"))


class Permit:
    """Permits the first sends."""

    def __init__(self, sends: int) -> None:
        self.sends = sends
        self.asked = 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked <= self.sends


def begun(refunds: RefundsClient, permit: Callable[[], bool]) -> Call:
    return begin_call(refunds, None, permit=permit)


async def canceled(refunds: RefundsClient, permit: Callable[[], bool]) -> Conclusion:
    request = cancel_request(RE, idempotency_key="key_1")
    return await begun(refunds, permit).cancel(request)


@pytest.mark.parametrize("borrowed", [False, True])
async def test_refused_cancel_is_not_sent_and_not_retried(*, borrowed: bool) -> None:
    async with scripted(CANCELED) as server, aiohttp.ClientSession() as session:
        async with server.client(session=session if borrowed else None) as refunds:
            permit = Permit(0)
            conclusion = await canceled(refunds, permit)
            assert conclusion.outcome == "failed"
            assert not conclusion.settled
            assert "not permitted" in str(conclusion.error)
            assert permit.asked == 1
            assert server.received == []
            assert (await canceled(refunds, Permit(1))).outcome == "canceled"
        # An own session uses the connection on which nothing was sent.
        assert server.connections == (2 if borrowed else 1)


@pytest.mark.parametrize("borrowed", [False, True])
async def test_retries_and_the_settling_read_need_a_permit_too(
    *, borrowed: bool
) -> None:
    async with (
        scripted("reset", "reset", CANCELED, reads=[WAITING]) as server,
        aiohttp.ClientSession() as session,
        server.client(session=session if borrowed else None) as refunds,
    ):
        conclusion = await canceled(refunds, Permit(2))
    # What was sent before may have been executed, and nobody may look.
    assert server.methods() == "POST POST"
    assert conclusion.outcome == "unknown"
    assert isinstance(conclusion.error, OutcomeUnknownError)


async def test_read_needs_a_permit() -> None:
    async with (
        scripted("reset", reads=[WAITING]) as server,
        server.client(retry=RetryPolicy(max_retries=0)) as refunds,
    ):
        conclusion = await canceled(refunds, Permit(1))
        assert server.methods() == "POST"
        assert conclusion.outcome == "unknown"
        conclusion = await canceled(refunds, Permit(2))
        assert server.methods() == "POST POST GET"


async def test_permit_is_asked_after_the_wait_for_a_connection() -> None:
    """A process that was frozen in that wait has lost its lease when it wakes up."""
    stripe = emulator()
    stripe.latency = 4.0
    *held, waits = stripe.seed_refunds(SIZE + 1)
    permitted = True
    async with client(stripe) as refunds:
        calls = [asyncio.create_task(refunds.cancel(each)) for each in held]
        call = begun(refunds, lambda: permitted)
        calling = asyncio.create_task(
            call.cancel(cancel_request(waits, idempotency_key="key_1"))
        )
        await asyncio.sleep(2.0)
        assert refunds.waiting_for_connection == 1
        permitted = False
        assert (await calling).outcome == "failed"
        await asyncio.wait(calls)
    assert asked(stripe, waits) == []
