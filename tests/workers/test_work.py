"""Workers of a fleet on a real database: in this process, each with its own client."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import psycopg
import pytest

from async_refunds import RefundsClient
from async_refunds.emulator import Emulator
from async_refunds.workers import work
from tests.support.batches import KEY

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from async_refunds import CancelResult

# The database is invisible to the loop whose time jumps.
pytestmark = pytest.mark.asyncio(loop_factories=["real"])
A, B = "acct_A", "acct_B"
RUN = "first"


class Fleet:
    """A database with a run, an emulator, and workers."""

    def __init__(self, database: str, stripe: Emulator, base_url: str) -> None:
        self.database = database
        self.stripe = stripe
        self.base_url = base_url
        self.results: list[CancelResult] = []
        self._told = asyncio.Event()

    async def ask(self, query: str, *values: object) -> list[tuple[object, ...]]:
        async with await psycopg.AsyncConnection.connect(
            self.database, autocommit=True
        ) as connection:
            cursor = await connection.execute(query.encode(), values)
            return await cursor.fetchall() if cursor.description else []

    async def enqueue(
        self, count: int, account: str | None, run: str = RUN
    ) -> list[str]:
        ids = self.stripe.seed_refunds(count, account=account)
        accounts = [account or ""] * count
        await self.ask("SELECT async_refunds.enqueue(%s, %s, %s)", run, ids, accounts)
        return ids

    def note(self, result: CancelResult) -> None:
        self.results.append(result)
        self._told.set()

    async def until_told(self, count: int) -> None:
        async with asyncio.timeout(30.0):
            while len(self.results) < count:
                self._told.clear()
                await self._told.wait()

    @asynccontextmanager
    async def worker(self, **options: object) -> AsyncGenerator[asyncio.Task[None]]:
        """Run a worker until the end of the block."""
        stop = asyncio.Event()
        async with RefundsClient(KEY, base_url=self.base_url) as refunds:
            working = asyncio.create_task(
                work(
                    self.database,
                    refunds,
                    stop=stop,
                    on_result=self.note,
                    **options,
                )
            )
            try:
                yield working
            finally:
                stop.set()
                await working


@pytest.fixture
async def fleet(postgres_database: str) -> AsyncGenerator[Fleet]:
    stripe = Emulator()
    async with stripe.serve() as base_url:
        fleet = Fleet(postgres_database, stripe, base_url)
        await fleet.ask("SELECT async_refunds.create_run(%s, %s, false)", RUN, base_url)
        yield fleet


async def test_worker_cancels_what_is_there_and_what_comes(fleet: Fleet) -> None:
    ids = await fleet.enqueue(20, A) + await fleet.enqueue(20, None)
    async with fleet.worker(rate=5000.0):
        await fleet.until_told(40)
        more = await fleet.enqueue(10, B)
        await fleet.until_told(50)
    assert {each.refund_id for each in fleet.results} == {*ids, *more}
    assert {each.outcome for each in fleet.results} == {"canceled"}
    assert len(fleet.results) == 50
    assert fleet.stripe.books.requests["cancel"] == 50
    rows = await fleet.ask(
        "SELECT count(*) FILTER (WHERE settled), count(*) FROM async_refunds.items"
    )
    assert rows == [(50, 50)]
    held = await fleet.ask(
        "SELECT account FROM async_refunds.leases WHERE token IS NOT NULL"
    )
    assert held == []
