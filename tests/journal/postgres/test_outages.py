"""A database that is lost at the worst moment: after a commit and before its answer."""

from __future__ import annotations

import asyncio
import functools
import logging
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from async_refunds.errors import JournalError
from async_refunds.journal import Run
from async_refunds.journal.postgres import Database, FleetReader, PostgresJournal
from async_refunds.journal.postgres.connection import PATIENCE, Link
from async_refunds.results import CancelRequest
from tests.support.fleets import (
    FAR_TOO_LONG,
    URL,
    Worker,
    begin_history,
    ids,
    result,
    until,
    worker,
)
from tests.support.tcp_proxy import TcpProxy

from .test_claims import attempt

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from async_refunds.journal.postgres.connection import Connection
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

ATTEMPT_FAILED = "connection failed: host"


@asynccontextmanager
async def proxied(fleet: Fleet) -> AsyncGenerator[tuple[TcpProxy, str]]:
    """Give a proxy to the database, and the address through it."""
    parts = conninfo_to_dict(fleet.address)
    host = str(parts["host"])
    proxy = TcpProxy(Path(host) / ".s.PGSQL.5432")
    await proxy.accept()
    address = make_conninfo(fleet.address, host="127.0.0.1", port=str(proxy.port))
    try:
        yield proxy, address
    finally:
        proxy.close()


@asynccontextmanager
async def proxied_worker(fleet: Fleet) -> AsyncGenerator[tuple[TcpProxy, Worker]]:
    """Give a worker whose connections go through a proxy, and are open."""
    async with proxied(fleet) as (proxy, address), worker(address) as made:
        await made.acquire()
        await made.journal.claim({None: 1, "acct_none": 1})
        try:
            yield proxy, made
        finally:
            proxy.release()
            await proxy.accept()


def reader(fleet: Fleet) -> FleetReader:
    """Return one that does not go through the proxy, which is in this loop."""
    return FleetReader(Database(fleet.address))


async def test_claim_whose_answer_was_lost_is_given_out_once(fleet: Fleet) -> None:
    fleet.add(f"re_{number}" for number in range(6))
    fleet.add(["re_1"], "acct_1")
    fleet.add(["re_1"], "acct_2")
    fleet.do("UPDATE async_refunds.items SET settled = true WHERE account = 'acct_1'")
    fleet.do(
        "INSERT INTO async_refunds.leases (scope, account) SELECT scope, 'acct_0' "
        "FROM async_refunds.runs"
    )
    async with proxied_worker(fleet) as (proxy, one):
        proxy.lose_next_answer()
        found = await one.journal.claim({None: 3, "acct_2": 3})
        assert ids(found[None]) == ["re_1", "re_2", "re_3"]
        assert ids(found["acct_2"]) == ["re_1"]
        assert not any(claim.maybe_sent for each in found.values() for claim in each)
        assert not proxy.losing_answer
        counted = (
            "SELECT count(*), max(claims) FROM async_refunds.items WHERE maybe_sent"
        )
        assert fleet.rows(counted) == [(5, 1)]
        proxy.lose_next_answer()
        assert ids(await one.claim()) == ["re_4", "re_5"]
        proxy.lose_next_answer()
        assert await one.claim() == []


async def test_answer_that_was_lost_is_of_the_claim_in_doubt_alone(
    fleet: Fleet,
) -> None:
    """Not of an earlier holder's with the same number, nor of its own one before."""
    fleet.add(["re_1", "re_2", "re_3"])
    async with worker(fleet.address, "before") as before:
        await before.acquire()
        assert len(await before.claim()) == 3
        fleet.expire()
        async with proxied(fleet) as (proxy, address), worker(address) as one:
            await one.acquire()
            assert ids(await one.claim(limit=1)) == ["re_1"]
            fleet.do("UPDATE async_refunds.items SET claim_number = 2 WHERE number > 1")
            proxy.lose_next_answer()
            assert ids(await one.claim(limit=1)) == ["re_2"]
            proxy.lose_next_answer()
            assert ids(await one.claim(limit=1)) == ["re_3"]


async def test_result_whose_commit_was_in_doubt_counts_once(fleet: Fleet) -> None:
    fleet.add(["re_1", "re_2"])
    async with proxied_worker(fleet) as (proxy, one):
        (second,) = await one.claim()
        proxy.lose_next_answer()
        known = result(second, "unknown", (attempt(429), attempt(500)))
        await one.journal.settle([(second, known)])
        (_, record) = reader(fleet).records()
        assert (record.attempts, record.outcome) == (2, "unknown")
        assert reader(fleet).tally().rate_limited == 1


async def test_unsent_claim_whose_commit_was_in_doubt_goes_back_once(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1", "re_2"])
    async with proxied_worker(fleet) as (proxy, one):
        (claim,) = await one.claim()
        fleet.do("UPDATE async_refunds.items SET claims = 3")
        proxy.lose_next_answer()
        await one.journal.give_back([claim])
        counted = "SELECT claims, maybe_sent FROM async_refunds.items ORDER BY number"
        assert fleet.rows(counted) == [(3, True), (2, False)]


async def test_new_key_whose_commit_was_in_doubt_is_one_generation(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1", "re_2"])
    async with proxied_worker(fleet) as (proxy, one):
        (claim,) = await one.claim()
        proxy.lose_next_answer()
        new = await one.journal.rekey(claim)
        assert fleet.value("SELECT max(generation) FROM async_refunds.items") == 2
        (_, record) = reader(fleet).records()
        assert record.idempotency_key == new.idempotency_key


async def test_leases_whose_commits_were_in_doubt_are_held_once(fleet: Fleet) -> None:
    for account in ("", "acct_1", "acct_2", "acct_3"):
        fleet.add(["re_1"], account)
    held = "SELECT count(*) FROM async_refunds.leases WHERE token IS NOT NULL"
    async with proxied(fleet) as (proxy, address), worker(address) as one:
        assert len(await one.acquire(1)) == 1
        proxy.lose_next_answer()
        assert len(await one.acquire(2)) == 2
        assert fleet.value(held) == 3
        proxy.lose_next_answer()
        await one.leases.renew()
        assert one.lost == []
        proxy.lose_next_answer()
        await one.leases.release(one.leases.accounts[0])
        assert fleet.value(held) == 2


@pytest.mark.parametrize("failover", [False, True])
async def test_lease_whose_commit_was_in_doubt_for_long_counts_from_now_on(
    fleet: Fleet,
    failover: bool,  # noqa: FBT001 - a parameter
) -> None:
    fleet.add(["re_1"])
    owner = "SELECT owner FROM async_refunds.leases"
    async with (
        proxied(fleet) as (proxy, address),
        worker(address) as one,
        worker(fleet.address, "two") as two,
    ):
        assert await one.acquire(1) == {None}
        await one.leases.release(None)
        proxy.lose_next_answer()
        proxy.refuse()  # but for the connection that it has
        acquiring = asyncio.create_task(one.acquire(1))
        await until(lambda: fleet.value(owner) == "one")
        fleet.expire()  # while the database is away
        if failover:
            begin_history(fleet)
        await proxy.accept()
        assert await acquiring == {None}
        assert one.leases.may_send(None) is not failover, "another may have it"
        assert await two.acquire() == set()


async def test_added_items_whose_commit_was_in_doubt_are_there_once(
    fleet: Fleet,
) -> None:
    run = Run(URL, livemode=False)
    async with (
        proxied(fleet) as (proxy, address),
        await PostgresJournal.open(address, run, name="run") as journal,
    ):
        await journal.add([CancelRequest("re_1")])
        proxy.lose_next_answer()
        await journal.add([CancelRequest("re_2")])
        assert reader(fleet).tally().total == 2


async def test_work_goes_on_after_the_database_was_away(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "psycopg")  # each attempt
    fleet.add(["re_1", "re_2"])
    async with proxied_worker(fleet) as (proxy, one):
        (claim,) = await one.claim()
        proxy.refuse()
        proxy.cut()
        settling = asyncio.create_task(one.settle(claim))
        renewing = asyncio.create_task(one.leases.renew())
        await until(lambda: caplog.text.count(ATTEMPT_FAILED) > 3)
        assert not settling.done()
        await proxy.accept()
        await settling
        await renewing
        assert one.leases.may_send(None)
        assert one.lost == []
        told = [each for each in caplog.records if each.name == "async_refunds"]
        words = [each.getMessage() for each in told]
        assert "trying again" in words[0]
        assert not any("\n" in each for each in words), "libpq has two lines"


async def test_backend_that_is_ended_and_a_standby_are_passing(fleet: Fleet) -> None:
    fleet.add(["re_1", "re_2", "re_3"])
    async with worker(fleet.address) as one:
        await one.acquire()
        await one.claim(limit=1)
        name = conninfo_to_dict(fleet.address)["dbname"]
        read_only = f"ALTER DATABASE {name} SET default_transaction_read_only ="
        fleet.do(f"{read_only} on")
        fleet.do(
            """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE application_name = 'async_refunds'"""
        )
        claiming = asyncio.create_task(one.claim())
        await asyncio.wait([claiming], timeout=0.3)
        assert not claiming.done()
        fleet.do(f"SET default_transaction_read_only = off; {read_only} off")
        assert ids(await claiming) == ["re_2", "re_3"]


async def test_silent_network_is_given_up_after_a_while(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    async with proxied(fleet) as (proxy, address):
        link = Link(Database(address), patience=0.2)
        tries: list[bool] = []

        async def work(connection: Any, in_doubt: bool) -> list[Any]:  # noqa: ANN401, FBT001 - as Link calls it
            tries.append(in_doubt)
            found: list[Any] = await (await connection.execute("SELECT 1")).fetchall()
            return found

        await link.repeat(work)
        proxy.hold()
        working = asyncio.create_task(link.repeat(work))
        await until(lambda: "trying again" in caplog.text)
        proxy.cut()
        proxy.release()
        assert await working == [(1,)]
        assert tries == [False, False, True]
        await link.close(within=1)


@pytest.mark.parametrize("how", ["refuse", "hold"])
async def test_close_does_not_wait_for_a_database_that_is_away(
    how: str, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else a close that waits would end too, once a statement counts as lost.
    endless = functools.partial(Link, patience=3600.0)
    for module in ("journal", "leases"):
        monkeypatch.setattr(f"async_refunds.journal.postgres.{module}.Link", endless)
    fleet.add(["re_1"])
    async with proxied(fleet) as (proxy, address), worker(address) as one:
        await one.acquire()
        (claim,) = await one.claim()
        if how == "hold":
            proxy.hold()
        else:
            proxy.refuse()
            proxy.cut()
        settling = asyncio.create_task(one.settle(claim))
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(FAR_TOO_LONG):
                await one.journal.close(within=0.1)
                await one.leases.close(within=0.1)
                with pytest.raises(JournalError, match="was closed"):
                    await settling
        finally:  # what waits ends
            proxy.cut()
            proxy.release()
            await proxy.accept()
        assert not fleet.value("SELECT settled FROM async_refunds.items")


async def test_close_does_not_wait_for_a_connection_that_is_not_made(
    fleet: Fleet,
) -> None:
    async with proxied(fleet) as (proxy, address):
        link = Link(Database(address))
        proxy.hold()
        working = asyncio.create_task(link.repeat(no_work))
        await until(lambda: proxy.ends)
        await link.close(within=0.05)
        with pytest.raises(JournalError, match="was closed"):
            await working


async def no_work(connection: Any, in_doubt: bool) -> list[Any]:  # noqa: ANN401, FBT001 - as Link calls it
    raise AssertionError((connection, in_doubt))


async def test_connection_that_is_made_at_the_moment_of_the_end_is_closed(
    fleet: Fleet,
) -> None:
    class Late(Database):
        async def connect(self, *, patience: float = PATIENCE) -> Connection:
            made.append(connection := await super().connect(patience=patience))
            closing.append(asyncio.create_task(link.close(within=0.0)))
            await asyncio.sleep(0)  # it gives up after this, and before it is seen
            return connection

    made: list[Connection] = []
    closing: list[asyncio.Task[None]] = []
    link = Link(Late(fleet.address))
    with pytest.raises(JournalError, match="was closed"):
        await link.repeat(no_work)
    await closing[0]
    assert [each.closed for each in made] == [True]


async def test_run_whose_leases_cannot_be_taken_says_so(fleet: Fleet) -> None:
    run = Run(URL, livemode=False)
    async with await PostgresJournal.open(fleet.address, run, name="run") as journal:
        await journal.add([CancelRequest("re_1")])
        fleet.do("ALTER TABLE async_refunds.leases RENAME TO gone")
        with pytest.raises(JournalError, match="leases could not be taken: relation"):
            await journal.claim({None: 1})


async def test_database_without_tables_or_with_newer_ones_is_told(
    postgres_empty_database: str, fleet: Fleet
) -> None:
    run = Run(URL, livemode=False)
    with pytest.raises(JournalError, match="no tables of async_refunds: run"):
        await PostgresJournal.open(postgres_empty_database, run, name="run")
    fleet.do("UPDATE async_refunds.meta SET min_worker_version = 99")
    with pytest.raises(JournalError, match="go on with a newer release"):
        await PostgresJournal.open(fleet.address, run, name="run")


async def test_worker_learns_of_newer_tables_when_it_connects_again(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address) as one:
        await one.acquire()
        fleet.do("UPDATE async_refunds.meta SET min_worker_version = 99")
        fleet.do(
            """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE application_name = 'async_refunds'"""
        )
        with pytest.raises(JournalError, match="go on with a newer release"):
            await one.leases.renew()


async def test_mistake_is_raised_and_not_repeated(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address) as one:
        await one.acquire()
        fleet.do("ALTER TABLE async_refunds.items RENAME TO others")
        with pytest.raises(
            JournalError, match=r"async_refunds\.items. does not exist$"
        ):
            await one.claim()
        assert "could not be written" in caplog.text
        with pytest.raises(psycopg.errors.UndefinedTable):
            await one.leases.acquire(1)
        fleet.do("ALTER TABLE async_refunds.leases RENAME TO others_too")
        caplog.clear()


async def test_failed_renewal_is_told_and_tried_again(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address, ttl=0.1) as one:
        await one.acquire()
        fleet.do("ALTER TABLE async_refunds.leases RENAME TO others")
        await one.leases.start()
        await until(lambda: "could not be renewed" in caplog.text)
        fleet.do("ALTER TABLE async_refunds.others RENAME TO leases")
        ends = fleet.value("SELECT until FROM async_refunds.leases")
        await until(
            lambda: fleet.value("SELECT until FROM async_refunds.leases") != ends
        )


async def test_caller_that_is_cancelled_cancels_no_write(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address) as one:
        await one.acquire()
        (claim,) = await one.claim()
        settling = asyncio.create_task(one.settle(claim))
        await asyncio.sleep(0)
        settling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await settling
        acquiring = asyncio.create_task(one.leases.renew())
        await asyncio.sleep(0)
        acquiring.cancel()
        await one.journal.close()
    assert fleet.value("SELECT settled FROM async_refunds.items")


async def test_address_is_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "hunter2"
    with pytest.raises(JournalError) as caught:
        FleetReader(Database(f"postgres://u:{secret}@[")).tally()
    with pytest.raises(JournalError) as refused:
        FleetReader(Database(f"host=/nowhere password={secret}")).tally()
    for error in (caught.value, refused.value):
        assert secret not in str(error)
        assert error.__cause__ is None
    assert secret not in repr(Database(f"password={secret}"))
    assert secret not in caplog.text


async def test_database_that_cannot_be_reached_is_told_at_the_start() -> None:
    run = Run(URL, livemode=False)
    with pytest.raises(JournalError, match="cannot be opened"):
        await PostgresJournal.open("host=/nowhere", run, name="run")


async def test_commit_in_doubt_stays_so_while_the_database_is_away(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "psycopg")  # each attempt
    async with proxied(fleet) as (proxy, address):
        link = Link(Database(address))
        tries: list[bool] = []

        async def work(connection: Any, in_doubt: bool) -> list[Any]:  # noqa: ANN401, FBT001 - as Link calls it
            tries.append(in_doubt)
            if len(tries) == 1:
                proxy.refuse()
                proxy.cut()
            found: list[Any] = await (await connection.execute("SELECT 1")).fetchall()
            return found

        working = asyncio.create_task(link.repeat(work))
        await until(lambda: caplog.text.count(ATTEMPT_FAILED) > 1)
        await proxy.accept()
        assert await working == [(1,)]
        assert tries == [False, True]
        await link.close(within=1)


async def test_address_has_what_is_needed_and_not_given() -> None:
    made = conninfo_to_dict(Database("host=a,b connect_timeout=7").conninfo)
    assert made["host"] == "a,b"
    assert made["target_session_attrs"] == "read-write", "of several the primary"
    assert made["connect_timeout"] == "7"
