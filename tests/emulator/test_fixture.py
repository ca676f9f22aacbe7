"""The fixtures of the plugin in this process; others: test_pytest_plugin."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import aiohttp

if TYPE_CHECKING:
    from async_refunds.emulator import Emulator


async def test_fixture_serves_an_emulator(
    stripe_emulator: Emulator, stripe_emulator_session: Emulator
) -> None:
    assert stripe_emulator is not stripe_emulator_session
    for emulator in (stripe_emulator, stripe_emulator_session):
        refund_id = emulator.add_refund()
        async with aiohttp.request(
            "GET",
            f"{emulator.base_url}/v1/refunds/{refund_id}",
            headers={"Authorization": "Bearer sk_test_1"},
        ) as response:
            assert (await response.json())["id"] == refund_id
        assert emulator.requests[-1].path.endswith(refund_id)


async def test_test_with_the_fixture_has_a_clock_that_goes_on_while_it_serves(
    stripe_emulator: Emulator,
) -> None:
    """Its thread has all the time of the real loop, however busy the machine is."""
    assert stripe_emulator.base_url
    assert type(asyncio.get_running_loop()) is asyncio.SelectorEventLoop
