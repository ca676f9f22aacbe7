"""Behind a pooler, each transaction may be on another connection to the server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from async_refunds import RefundsClient, cancel_many
from async_refunds.cli.fleet.database import DatabaseOptions, connected
from async_refunds.emulator import Emulator
from async_refunds.journal.base import Run
from async_refunds.journal.postgres import PostgresJournal, enqueue, ensure_run
from async_refunds.journal.postgres.connection import Database, Link
from async_refunds.journal.postgres.reader import FleetReader
from tests.support.batches import KEY
from tests.support.pooler import TransactionPooler

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from psycopg.rows import TupleRow

    from async_refunds.journal.postgres.connection import Connection
    from tests.support.fleets import Fleet

SOME = 20
"""More than the executions after which psycopg prepares a statement."""


@pytest.fixture
async def pooled(postgres_database: str) -> AsyncGenerator[str]:
    """The address of a pooler of transactions."""
    given = conninfo_to_dict(postgres_database)
    folder = str(given.get("host", ""))
    if not folder.startswith("/"):
        pytest.skip("the pooler needs a server on a Unix socket")
    target = Path(folder) / f".s.PGSQL.{given.get('port', '5432')}"
    async with TransactionPooler(target).serve() as port:
        yield make_conninfo(postgres_database, host="127.0.0.1", port=port)


async def test_pooler_moves_what_a_session_has_left(pooled: str) -> None:
    """Or nothing below would show anything."""
    async with await psycopg.AsyncConnection.connect(
        pooled, autocommit=True
    ) as connection:
        with pytest.raises(psycopg.ProgrammingError, match="prepared statement"):
            await connection.execute("SELECT 1", prepare=True)


async def test_no_statement_of_a_worker_is_left_in_a_session(pooled: str) -> None:
    """A result would be written by what another worker has prepared by that name."""

    async def ask(connection: Connection, _: bool) -> list[TupleRow]:  # noqa: FBT001 - as Link calls it
        return await (await connection.execute("SELECT 1 WHERE %s", (True,))).fetchall()

    links = [Link(Database(pooled)) for _ in range(2)]
    for link in links * SOME:
        assert await link.repeat(ask) == [(1,)]
    for link in links:
        await link.close(within=0.0)


async def test_no_statement_that_enqueues_is_left_in_a_session(pooled: str) -> None:
    async with (
        await psycopg.AsyncConnection.connect(pooled, autocommit=True) as one,
        await psycopg.AsyncConnection.connect(pooled, autocommit=True) as two,
    ):
        await ensure_run(one, "run", livemode=False)
        for number in range(SOME):
            assert await enqueue(one, [f"re_a{number}"], run="run") == 1
            assert await enqueue(two.cursor(), [f"re_b{number}"], run="run") == 1


async def test_no_statement_of_a_command_is_left_in_a_session(pooled: str) -> None:
    def ask() -> None:
        with connected(DatabaseOptions(database=pooled)) as connection:
            for _ in range(SOME):
                connection.execute("SELECT 1 WHERE %s", (True,))

    await asyncio.to_thread(ask)


async def test_two_reports_at_once_have_the_refunds_of_their_runs(
    pooled: str, fleet: Fleet
) -> None:
    ids = {run: [f"re_{run}{n}" for n in range(2500)] for run in ("a", "b")}
    for run, added in ids.items():
        fleet.add(added, run=run)
    readers = [
        FleetReader(Database(pooled), run_id=run_id)
        for (run_id,) in fleet.rows(
            "SELECT run_id FROM async_refunds.runs ORDER BY name"
        )
    ]

    def read_in_turn() -> list[list[str]]:
        records = zip(*[each.records() for each in readers], strict=True)
        return [[record.refund_id for record in pair] for pair in records]

    pairs = await asyncio.to_thread(read_in_turn)
    assert pairs == [[a, b] for a, b in zip(*ids.values(), strict=True)]


async def test_batch_behind_a_pooler_tells_and_keeps_each_result(
    pooled: str, fleet: Fleet
) -> None:
    stripe = Emulator()
    async with (
        stripe.serve() as url,
        RefundsClient(KEY, base_url=url) as refunds,
        await PostgresJournal.open(
            pooled, Run(url, livemode=False), name="run"
        ) as journal,
    ):
        ids = stripe.seed_refunds(100)
        told = [
            (result.refund_id, result.outcome)
            async for result in cancel_many(
                refunds, ids, journal=journal, concurrency=2, rate=1000
            )
        ]
    assert sorted(told) == [(refund_id, "canceled") for refund_id in sorted(ids)]
    kept = "SELECT count(*) FROM async_refunds.items WHERE outcome = 'canceled'"
    assert fleet.value(kept) == 100
