"""The fixture of the plugin, in this process; test_pytest_plugin has it in others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
import pytest

if TYPE_CHECKING:
    from async_refunds.emulator import Emulator


@pytest.mark.asyncio(loop_factories=["real"])
async def test_fixture_serves_an_emulator(stripe_emulator: Emulator) -> None:
    refund_id = stripe_emulator.add_refund()
    async with aiohttp.request(
        "GET",
        f"{stripe_emulator.base_url}/v1/refunds/{refund_id}",
        headers={"Authorization": "Bearer sk_test_1"},
    ) as response:
        assert (await response.json())["id"] == refund_id
    assert len(stripe_emulator.requests) == 1
