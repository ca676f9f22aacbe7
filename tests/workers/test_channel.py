"""The channel between workers, where the database is not there."""

from __future__ import annotations

import asyncio

import pytest

from async_refunds.journal.postgres import Database
from async_refunds.workers.channel import Channel

pytestmark = pytest.mark.asyncio(loop_factories=["real"])


async def test_channel_without_a_connection_ends_at_once() -> None:
    channel = Channel(
        Database("host=/nowhere"),
        presences=list,
        on_work=lambda scope: None,
        on_presence=lambda presence: None,
    )
    running = asyncio.create_task(channel.run())
    channel.close(within=0.0)
    patience_is_over = asyncio.Event()
    asyncio.get_running_loop().call_later(0.0, patience_is_over.set)
    await patience_is_over.wait()
    await running
