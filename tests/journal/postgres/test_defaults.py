"""What a database or a role sets for its sessions, and what ours do there all the same.

An operator sets it with ``ALTER DATABASE name SET ...`` or ``ALTER ROLE name SET ...``.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import psycopg
import pytest

from async_refunds.cli.fleet.change import Change
from async_refunds.errors import JournalError, RefundsError
from async_refunds.journal.postgres import (
    Database,
    FleetReader,
    administration,
    migrate,
)
from async_refunds.journal.postgres.schema import VERSION
from tests.support.fleets import Fleet, defaults, ids, result, until, worker

from .test_closed_runs import WAITS, beside

if TYPE_CHECKING:
    from tests.support.postgres_server import PostgresServer

pytestmark = pytest.mark.asyncio(loop_factories=["real"])


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_renewal_that_waits_for_another_write_is_no_outage_at_any_level(
    level: str, fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.add(["re_1"])
    with defaults(fleet.address, default_transaction_isolation=level):
        async with worker(fleet.address) as one:
            await one.acquire()
            with psycopg.connect(fleet.address) as other:
                other.execute("UPDATE async_refunds.leases SET retries = 1")
                renewing = asyncio.create_task(one.leases.renew())
                await until(lambda: fleet.value(WAITS))
                other.commit()
                await renewing
            assert one.leases.may_send(None)
    assert caplog.messages == []


# What each would break otherwise: a statement that waits for another one's lock would
# be told as an outage, and so would the end of a connection that has nothing to say for
# a while; a NULL in an array would be a text.
@pytest.mark.parametrize(
    ("setting", "default", "ours"),
    [
        ("default_transaction_isolation", "serializable", "read committed"),
        ("statement_timeout", "5s", "0"),
        ("lock_timeout", "1s", "0"),
        ("idle_in_transaction_session_timeout", "1s", "0"),
        ("idle_session_timeout", "1s", "0"),
        ("array_nulls", "off", "on"),
        ("extra_float_digits", "-15", "1"),
        # A crash of the server would forget claims that were sent.
        ("synchronous_commit", "off", "on"),
        ("synchronous_commit", "remote_apply", "remote_apply"),
        ("client_encoding", "latin1", "UTF8"),
        # Where procrastinate's tables are is found by it.
        ("search_path", "others", "others"),
    ],
)
async def test_connection_is_set_up_whatever_the_defaults(
    setting: str, default: str, ours: str, fleet: Fleet
) -> None:
    with defaults(fleet.address, **{setting: default}):
        connection = await Database(fleet.address).connect()
        try:
            cursor = await connection.execute("SELECT current_setting(%s)", [setting])
            assert await cursor.fetchone() == (ours,)
        finally:
            await connection.close()


async def test_connection_is_set_up_for_what_only_some_servers_know(
    fleet: Fleet,
) -> None:
    known = fleet.value("SELECT current_setting('transaction_timeout', true)")
    if known is None:
        pytest.skip("it came with PostgreSQL 17")
    with defaults(fleet.address, transaction_timeout="1s"):
        connection = await Database(fleet.address).connect()
        cursor = await connection.execute("SHOW transaction_timeout")
        assert await cursor.fetchone() == ("0",)
        await connection.close()


async def test_text_is_read_and_written_whatever_the_encoding_of_sessions(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1"], run="Erstattungen für März €")
    with defaults(fleet.address, client_encoding="sql_ascii"):
        async with worker(fleet.address) as one:
            await one.acquire()
            (claim,) = await one.claim()
            await one.settle(claim)
        (record,) = FleetReader(Database(fleet.address)).records()
    assert (record.refund_id, record.outcome) == ("re_1", "canceled")


async def test_tables_are_the_same_whatever_a_backslash_means(
    postgres_empty_database: str,
) -> None:
    with defaults(postgres_empty_database, standard_conforming_strings="off"):
        with psycopg.connect(postgres_empty_database, autocommit=True) as connection:
            migrate(connection)
        fleet = Fleet(postgres_empty_database)
        fleet.add(["re_1"])
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="tenant"):
            fleet.do(
                """SELECT async_refunds.create_run('x', 'https://a', false, 'a b')"""
            )
        fleet.close()
    async with worker(postgres_empty_database) as one:
        await one.acquire()
        assert ids(await one.claim()) == ["re_1"]


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_tables_are_made_only_where_any_error_can_be_kept(
    encoding: str, postgres_server: PostgresServer
) -> None:
    with postgres_server.database(migrated=False, encoding=encoding) as address:
        with psycopg.connect(address, autocommit=True) as connection:
            if encoding == "LATIN1":
                with pytest.raises(JournalError, match="encoding LATIN1, in which"):
                    migrate(connection)
                return
            migrate(connection)
        fleet = Fleet(address)
        fleet.add(["re_1"])
        async with worker(address) as one:
            await one.acquire()
            (claim,) = await one.claim()
            failed = msgspec.structs.replace(
                result(claim, "failed"), error=RefundsError("返金 €")
            )
            await one.journal.settle([(claim, failed)])
        (record,) = FleetReader(Database(address)).records()
        assert record.error == "返金 €"
        fleet.close()


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_two_that_make_the_tables_at_once_take_turns_at_any_level(
    level: str, postgres_empty_database: str
) -> None:
    watching = Fleet(postgres_empty_database)

    def second() -> int:
        with psycopg.connect(postgres_empty_database, autocommit=True) as connection:
            return migrate(connection)

    with (
        defaults(postgres_empty_database, default_transaction_isolation=level),
        psycopg.connect(postgres_empty_database) as first,
    ):
        first.execute("SELECT 1")
        assert migrate(first) == 0  # and no commit yet
        assert await beside(watching, first, second) == VERSION
    watching.close()


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_command_that_waits_for_another_one_goes_on_at_any_level(
    level: str, fleet: Fleet
) -> None:
    fleet.add(["re_1"])

    def pause() -> None:
        with psycopg.connect(fleet.address, autocommit=True) as connection:
            with Change("undone", "in doubt").transaction(connection):
                administration.set_state(connection, "run", "paused")
            assert connection.isolation_level is None

    with (
        defaults(fleet.address, default_transaction_isolation=level),
        psycopg.connect(fleet.address) as first,
    ):
        administration.set_state(first, "run", "paused")
        await beside(fleet, first, pause)
