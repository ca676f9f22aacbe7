"""The fixtures of the plugin in this process; others: test_pytest_plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
import pytest

if TYPE_CHECKING:
    from async_refunds.emulator import Emulator


@pytest.mark.asyncio(loop_factories=["real"])
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
