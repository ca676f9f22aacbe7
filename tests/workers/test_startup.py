"""The database at the moment at which a worker begins."""

from __future__ import annotations

import asyncio
import logging
import struct
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from async_refunds import JournalError, RefundsClient
from async_refunds.workers import work
from tests.support.batches import KEY

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from tests.workers.conftest import Fleet

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

A = "acct_A"
WAITING = "waiting for the database"
_FAR_TOO_LONG = 30.0  # seconds


async def refused(database: str) -> str:
    """Return with what a worker ends at once."""
    async with RefundsClient(KEY) as refunds:
        with pytest.raises(
            JournalError, match="cannot connect to the database: "
        ) as caught:
            async with asyncio.timeout(_FAR_TOO_LONG):  # or it would wait for ever
                await work(database, refunds)
    text = str(caught.value)
    assert "\n" not in text
    return text


async def test_worker_waits_for_a_database_that_is_away_when_it_begins(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "psycopg")  # each attempt
    ids = await fleet.seed(3, A)
    async with fleet.network() as (network, address):
        network.refuse()
        async with fleet.worker(database=address) as worker:
            await fleet.until(lambda: caplog.text.count("connection failed: host") > 2)
            assert not worker.task.done()
            await network.accept()
            await fleet.until_told(3)
    assert fleet.results.keys() == set(ids)
    (said,) = [each for each in caplog.messages if WAITING in each]
    assert "\n" not in said
    assert any("the database is back after" in each for each in caplog.messages)


@pytest.mark.parametrize("how", ["refuse", "hold"])
async def test_worker_that_waits_for_the_database_can_be_stopped(
    fleet: Fleet, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with fleet.network() as (network, address):
        getattr(network, how)()
        patient = make_conninfo(address, connect_timeout=3600)
        async with fleet.worker(database=patient) as worker:
            if how == "hold":
                await fleet.until(lambda: network.ends)
            else:
                await fleet.until(lambda: WAITING in caplog.text)
            async with asyncio.timeout(_FAR_TOO_LONG):
                await worker.end()


async def test_missing_database_and_role_are_told_at_once(fleet: Fleet) -> None:
    missing = make_conninfo(fleet.database, dbname="test_missing")
    assert 'database "test_missing" does not exist' in await refused(missing)
    nobody = make_conninfo(fleet.database, user="test_nobody")
    assert 'role "test_nobody" does not exist' in await refused(nobody)


@asynccontextmanager
async def unkind_server(words: str) -> AsyncGenerator[str]:
    """Give the address of a server that refuses everybody with these words."""

    async def answer(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        # https://www.postgresql.org/docs/current/protocol-message-formats.html
        (length,) = struct.unpack("!I", await reader.readexactly(4))
        await reader.readexactly(length - 4)
        fields = b"SFATAL\0VFATAL\0C28P01\0M" + words.encode() + b"\0\0"
        writer.write(b"E" + struct.pack("!I", 4 + len(fields)) + fields)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield f"host=127.0.0.1 port={port} sslmode=disable gssencmode=disable"


@pytest.mark.parametrize(
    "words",
    [
        'password authentication failed for user "refunds"',
        'no pg_hba.conf entry for host "10.0.0.1", user "refunds", no encryption',
        'role "refunds" is not permitted to log in',
        'permission denied for database "refunds"',
    ],
)
async def test_what_does_not_pass_is_told_at_once(words: str) -> None:
    async with unkind_server(words) as address:
        assert words in await refused(address)


@pytest.mark.parametrize(
    "words",
    ["the database system is starting up", "sorry, too many clients already"],
)
async def test_what_passes_is_waited_for(
    words: str, fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    async with unkind_server(words) as address, fleet.worker(database=address):
        await fleet.until(lambda: words in caplog.text)


@pytest.fixture
def plain_user(fleet: Fleet) -> Generator[str]:
    """The address for a user with no more rights than a worker needs, none to history.

    Of the database alone: a server's own functions are granted in each.
    """
    name = str(conninfo_to_dict(fleet.database)["dbname"])
    role = sql.Identifier(f"{name}_user")
    with psycopg.connect(fleet.database, autocommit=True) as connection:
        for statement in (
            "CREATE ROLE {} LOGIN",
            "GRANT USAGE ON SCHEMA async_refunds TO {}",
            "GRANT ALL ON ALL TABLES IN SCHEMA async_refunds TO {}",
            "GRANT ALL ON ALL SEQUENCES IN SCHEMA async_refunds TO {}",
            "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC",
        ):
            connection.execute(sql.SQL(statement).format(role))
        yield make_conninfo(fleet.database, user=f"{name}_user")
        for statement in (
            "GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC",
            "DROP OWNED BY {}",
            "DROP ROLE {}",
        ):
            connection.execute(sql.SQL(statement).format(role))


async def test_history_that_is_hidden_is_told_with_what_to_grant(
    fleet: Fleet, plain_user: str, caplog: pytest.LogCaptureFixture
) -> None:
    ids = await fleet.seed(2, A)
    async with fleet.worker(database=plain_user):
        await fleet.until_told(2)
    assert fleet.results.keys() == set(ids)
    (told,) = [each for each in caplog.messages if "timeline" in each]
    assert "may be reported already_canceled" in told
    assert "\n" not in told
    grant = told[told.index("GRANT") :]
    assert grant.startswith("GRANT EXECUTE ON FUNCTION pg_control_system() TO ")
    caplog.clear()
    await fleet.ask(grant)
    await fleet.seed(1, A)
    async with fleet.worker("two", database=plain_user):
        await fleet.until_told(3)
    assert not any("timeline" in each for each in caplog.messages)


async def test_history_that_nobody_is_told_needs_no_grant(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    await fleet.ask(
        """CREATE OR REPLACE FUNCTION async_refunds.timeline() RETURNS text
            LANGUAGE sql AS 'SELECT NULL::text'"""
    )
    await fleet.seed(1, A)
    async with fleet.worker():
        await fleet.until_told(1)
    (told,) = [each for each in caplog.messages if "timeline" in each]
    assert "GRANT" not in told
    assert told.endswith("this server does not tell it to anybody")


async def test_worker_waits_for_a_key_that_a_callable_gives(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It tells which runs are the worker's: those of a sandbox, or the live ones."""
    monkeypatch.setattr("async_refunds.workers.startup._ASK_AGAIN", 0.0)
    ids = await fleet.seed(3, A)
    await fleet.ask("SELECT async_refunds.create_run('live', %s, true)", fleet.base_url)
    await fleet.enqueue(ids, A, "live")
    tries = count(1)

    def provide() -> str:
        number = next(tries)
        if number < 4:
            raise OSError("the vault is away")
        if number < 6:
            raise KeyError("STRIPE_API_KEY")
        return KEY

    async with (
        RefundsClient(provide, base_url=fleet.base_url) as refunds,
        fleet.hosted(refunds),
    ):
        await fleet.until_told(3)
    assert {each.outcome for each in fleet.results.values()} == {"canceled"}
    found = await fleet.ask(
        "SELECT r.livemode, count(*), sum(i.attempts) FROM async_refunds.items i "
        "JOIN async_refunds.runs r USING (run_id) GROUP BY 1 ORDER BY 1"
    )
    assert found == [(False, 3, 3), (True, 3, 0)]
    gave_none = "the api_key callable gave no key"
    assert [each for each in caplog.messages if "gave no key" in each] == [
        f"{gave_none} (OSError); nothing was sent; trying again",
        f"{gave_none} (KeyError: STRIPE_API_KEY); nothing was sent; trying again",
    ]


@pytest.mark.parametrize("how", ["fails", "hangs"])
async def test_worker_that_waits_for_a_key_can_be_stopped(
    fleet: Fleet, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    asked = asyncio.Event()

    async def provide() -> str:
        asked.set()
        if how == "fails":
            raise OSError("the vault is away")
        await asyncio.Event().wait()
        return KEY

    async with (
        RefundsClient(provide, base_url=fleet.base_url) as refunds,
        fleet.hosted(refunds) as worker,
    ):
        await fleet.until(
            lambda: asked.is_set() if how == "hangs" else "gave no key" in caplog.text
        )
        async with asyncio.timeout(_FAR_TOO_LONG):
            await worker.end()
