"""What is told of a database that is away, however long and for however many."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest

from async_refunds.journal.postgres import Database
from async_refunds.journal.postgres.connection import Link
from async_refunds.journal.postgres.outage import TRYING_AGAIN, WAITING, Outage
from tests.support.fleets import Clock, until

from .test_outages import ATTEMPT_FAILED, proxied

if TYPE_CHECKING:
    from async_refunds.journal.postgres.connection import Connection
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.asyncio(loop_factories=["real"])


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what an operator has read since, and forget it."""
    found = [
        each.getMessage() for each in caplog.records if each.name == "async_refunds"
    ]
    caplog.clear()
    return found


async def test_outage_is_told_at_its_start_each_minute_and_at_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    outage = Outage(clock)
    for _ in range(121):
        outage.away("leases", TRYING_AGAIN, "refused")
        clock.now += 0.5
        outage.away("journal", TRYING_AGAIN, "refused")
        clock.now += 0.5
    away = "the database is away, trying again: refused"
    assert told(caplog) == [away] * 3
    outage.away("journal", TRYING_AGAIN, "starting up")
    assert told(caplog) == [], "the same outage, however it shows itself"
    clock.now += 60
    outage.away("journal", TRYING_AGAIN, "starting up")
    assert told(caplog) == ["the database is away, trying again: starting up"]
    outage.back("leases")
    assert told(caplog) == [], "not for all"
    clock.now += 4
    outage.back("journal")
    assert told(caplog) == ["the database is back after 185 s"]
    outage.back("journal")
    assert told(caplog) == [], "nobody was told that it is away"
    clock.now += 1
    outage.away("journal", WAITING, "refused")
    clock.now += 1.25
    outage.back("journal")
    assert told(caplog) == [
        "waiting for the database: refused",
        "the database is back after 1.2 s",
    ]


async def test_who_leaves_during_an_outage_does_not_say_that_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outage = Outage(Clock())
    outage.away("leases", TRYING_AGAIN, "refused")
    outage.away("journal", TRYING_AGAIN, "refused")
    outage.forget("leases")
    assert len(told(caplog)) == 1
    outage.back("journal")
    assert told(caplog) == ["the database is back after 0.0 s"]
    outage.away("journal", TRYING_AGAIN, "refused")
    outage.forget("journal")
    outage.away("leases", TRYING_AGAIN, "refused")
    assert len(told(caplog)) == 2, "another outage"


async def one(connection: Any, in_doubt: bool) -> list[Any]:  # noqa: ANN401, FBT001 - as Link calls it
    del in_doubt
    found: list[Any] = await (await connection.execute("SELECT 1")).fetchall()
    return found


async def test_links_of_one_database_tell_of_one_outage(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "psycopg")  # each attempt
    async with proxied(fleet) as (proxy, address):
        database = Database(address)
        links = [Link(database) for _ in range(3)]
        for each in links:
            await each.repeat(one)
        proxy.refuse()
        proxy.cut()
        working = [asyncio.create_task(each.repeat(one)) for each in links[:2]]
        await until(lambda: caplog.text.count(ATTEMPT_FAILED) > 5)
        await proxy.accept()
        await asyncio.gather(*working)
        away, back = told(caplog)
        assert away.startswith("the database is away")
        assert back.startswith("the database is back after ")
        await links[2].repeat(one)
        assert told(caplog) == [], "its connection was cut in the outage that is over"
        proxy.refuse()
        proxy.cut()
        again = asyncio.create_task(links[2].repeat(one))
        await until(lambda: "trying again" in caplog.text)
        await proxy.accept()
        await again
        assert told(caplog)[-1].startswith("the database is back after ")
        for each in links:
            await each.close(within=1)


@pytest.mark.parametrize("code", ["40P01", "40001"])
async def test_transaction_that_others_end_is_repeated_and_no_outage(
    code: str, fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as by a deadlock: the database is there, and nothing is committed."""
    fleet.do("CREATE SEQUENCE async_refunds.tries")
    link = Link(Database(fleet.address))
    tries: list[tuple[int, bool]] = []

    async def work(connection: Connection, in_doubt: bool) -> list[Any]:  # noqa: FBT001 - as Link calls it
        tries.append((connection.info.backend_pid, in_doubt))
        cursor = await connection.execute(
            f"""DO $$ BEGIN
                IF nextval('async_refunds.tries') <= 2 THEN
                    RAISE EXCEPTION 'deadlock' USING ERRCODE = '{code}';
                END IF;
            END $$""".encode()
        )
        assert cursor.statusmessage == "DO"
        return [(1,)]

    assert await link.repeat(work) == [(1,)]
    assert tries == [(tries[0][0], False)] * 3
    assert told(caplog) == []
    await link.close(within=1)
