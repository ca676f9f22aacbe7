"""A fleet in this process: a real database, an emulator, and workers."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from async_refunds import RefundsClient
from async_refunds.emulator import Emulator
from async_refunds.workers import work
from tests.support.batches import KEY
from tests.support.tcp_proxy import TcpProxy

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from async_refunds import CancelResult

RUN = "run"
_PATIENCE = 30.0


class Worker:
    """A worker that runs, and what it has told."""

    def __init__(self) -> None:
        self.results: list[CancelResult] = []
        self.stop = asyncio.Event()
        self.task: asyncio.Task[None]

    async def end(self) -> None:
        """Stop it, and wait for its end."""
        self.stop.set()
        await self.task


class Fleet:
    """What the workers share."""

    def __init__(self, database: str, stripe: Emulator, base_url: str) -> None:
        self.database = database
        self.stripe = stripe
        self.base_url = base_url
        self.workers: list[Worker] = []

    async def ask(self, query: str, *values: object) -> list[Any]:
        """Return the rows that a query finds, each as a tuple."""
        async with await psycopg.AsyncConnection.connect(
            self.database, autocommit=True
        ) as connection:
            cursor = await connection.execute(query.encode(), values or None)
            return await cursor.fetchall() if cursor.description else []

    async def value(self, query: str, *values: object) -> Any:  # noqa: ANN401 - as SQL has it
        ((value,),) = await self.ask(query, *values)
        return value

    async def enqueue(
        self, ids: list[str], account: str | None, run: str = RUN
    ) -> list[str]:
        accounts = [account or ""] * len(ids)
        await self.ask("SELECT async_refunds.enqueue(%s, %s, %s)", run, ids, accounts)
        return ids

    async def seed(self, count: int, account: str | None) -> list[str]:
        """Make refunds, and enqueue them."""
        ids = self.stripe.seed_refunds(count, account=account)
        return await self.enqueue(ids, account)

    @property
    def results(self) -> dict[str, CancelResult]:
        """The results that workers have told, by id, each told once."""
        told = [result for worker in self.workers for result in worker.results]
        found = {result.refund_id: result for result in told}
        assert len(found) == len(told)
        return found

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait until something holds."""
        async with asyncio.timeout(_PATIENCE):
            while not holds():  # noqa: ASYNC110 - of several objects
                await asyncio.sleep(0.01)

    async def until_found(self, query: str) -> None:
        """Wait until the database says that something holds."""
        async with asyncio.timeout(_PATIENCE):
            while not await self.value(query):  # noqa: ASYNC110 - of the database
                await asyncio.sleep(0.02)

    async def until_told(self, count: int) -> None:
        await self.until(lambda: len(self.results) >= count)

    async def owners(self) -> dict[str, str]:
        """The owner of each account that is held now."""
        rows = await self.ask(
            "SELECT account, owner FROM async_refunds.leases "
            "WHERE until > clock_timestamp()"
        )
        return dict(rows)

    @asynccontextmanager
    async def worker(
        self,
        name: str = "one",
        *,
        database: str | None = None,
        **options: Any,  # noqa: ANN401 - as below
    ) -> AsyncGenerator[Worker]:
        """Run a worker until the end of the block."""
        async with (
            RefundsClient(KEY, base_url=self.base_url) as refunds,
            self.hosted(refunds, name, database=database, **options) as worker,
        ):
            yield worker

    @asynccontextmanager
    async def hosted(
        self,
        refunds: Any,  # noqa: ANN401 - whatever `work` takes
        name: str = "one",
        *,
        database: str | None = None,
        **options: Any,  # noqa: ANN401 - those of `work`
    ) -> AsyncGenerator[Worker]:
        """Run a worker with these clients until the end of the block."""
        worker = Worker()
        worker.task = asyncio.create_task(
            work(
                database or self.database,
                refunds,
                name=name,
                stop=worker.stop,
                on_result=worker.results.append,
                **options,
            )
        )
        self.workers.append(worker)
        try:
            yield worker
        finally:
            await worker.end()

    @asynccontextmanager
    async def network(self) -> AsyncGenerator[tuple[TcpProxy, str]]:
        """Give a way to the database that can be cut, and its address."""
        given = conninfo_to_dict(self.database)
        folder = str(given.get("host", ""))
        if not folder.startswith("/"):
            pytest.skip("the proxy needs a server on a Unix socket")
        port = str(given.get("port", "5432"))
        proxy = TcpProxy(Path(folder) / f".s.PGSQL.{port}")
        await proxy.accept()
        try:
            yield (
                proxy,
                make_conninfo(self.database, host="127.0.0.1", port=proxy.port),
            )
        finally:
            proxy.close()


@pytest.fixture
async def fleet(postgres_database: str) -> AsyncGenerator[Fleet]:
    stripe = Emulator()
    async with stripe.serve() as base_url:
        fleet = Fleet(postgres_database, stripe, base_url)
        await fleet.ask("SELECT async_refunds.create_run(%s, %s, false)", RUN, base_url)
        yield fleet
