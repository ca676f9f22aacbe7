"""A run is closed, and old results are deleted, beside those who work and who add."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, LiteralString

import psycopg
import pytest

from async_refunds.journal.postgres import administration
from tests.support.fleets import Fleet, ids, worker

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

STATE = "SELECT state FROM async_refunds.runs"
WAITS = """SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'"""


def close(address: str, **settings: str) -> administration.Closed:
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    with psycopg.connect(address, autocommit=True, options=options) as connection:
        return administration.close(connection, "run")


async def beside(
    fleet: Fleet, first: psycopg.Connection, then: Callable[[], object]
) -> object:
    """Commit an open transaction once something waits for it, and return its result."""
    waiting = asyncio.create_task(asyncio.to_thread(then))
    while not (fleet.value(WAITS) or waiting.done()):  # noqa: ASYNC110 - of the server
        await asyncio.sleep(0.01)
    assert not waiting.done()
    first.commit()
    return await waiting


async def test_claim_that_waits_for_what_is_settled_gets_nothing(fleet: Fleet) -> None:
    """Its snapshot is of before. PostgreSQL 16.2 would give out the row as it was."""
    fleet.add(["re_1", "re_2"])
    async with worker(fleet.address) as one:
        await one.acquire()
        with psycopg.connect(fleet.address) as closing:
            closing.execute("SELECT FROM async_refunds.items FOR UPDATE")
            closing.execute(
                "UPDATE async_refunds.items SET settled = true, outcome = 'failed'"
            )
            claiming = asyncio.create_task(one.claim())
            while not fleet.value(WAITS):  # noqa: ASYNC110 - of the server
                await asyncio.sleep(0.01)
            closing.commit()
            assert ids(await claiming) == []


async def test_close_waits_for_those_who_add_and_settles_what_they_added(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1"])
    with psycopg.connect(fleet.address) as adding:
        adding.execute("SELECT async_refunds.enqueue('run', '{re_2}')")
        closed = await beside(fleet, adding, lambda: close(fleet.address))
    assert closed == administration.Closed(unsent=2, left=0, dead=0, paused=False)
    assert fleet.rows("SELECT DISTINCT outcome, settled FROM async_refunds.items") == [
        ("failed", True)
    ]
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="is closed"):
        fleet.add(["re_3"])


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_whoever_adds_with_a_snapshot_of_before_is_refused(
    fleet: Fleet, level: LiteralString
) -> None:
    fleet.add(["re_1"])
    with psycopg.connect(fleet.address) as adding:
        adding.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
        adding.execute("SELECT FROM async_refunds.runs")
        adding.execute("SELECT async_refunds.enqueue('run', '{re_2}')")
        adding.commit()
        adding.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
        adding.execute("SELECT FROM async_refunds.runs")
        assert not close(fleet.address).left
        with pytest.raises(psycopg.errors.SerializationFailure):
            adding.execute("SELECT async_refunds.enqueue('run', '{re_3}')")
    assert fleet.value("SELECT count(*) FROM async_refunds.items") == 2


async def test_close_sees_what_it_waited_for_at_any_level(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    level = {"default_transaction_isolation": r"repeatable\ read"}
    with psycopg.connect(fleet.address) as adding:
        adding.execute("SELECT async_refunds.enqueue('run', '{re_2}')")
        closed = await beside(fleet, adding, lambda: close(fleet.address, **level))
    assert closed == administration.Closed(unsent=2, left=0, dead=0, paused=False)
    assert fleet.value("SELECT bool_and(settled) FROM async_refunds.items")


async def test_whoever_adds_while_a_run_is_closed_is_refused(fleet: Fleet) -> None:
    fleet.add(["re_1"])

    def add() -> object:
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="is closed"):
            fleet_of_others.add(["re_2"])
        return "refused"

    fleet_of_others = Fleet(fleet.address)
    with psycopg.connect(fleet.address) as closing:
        assert not administration.close(closing, "run").left  # and no commit yet
        assert await beside(fleet, closing, add) == "refused"
    fleet_of_others.close()


async def test_close_gives_up_on_a_transaction_that_does_not_end(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(administration, "ADDED_WITHIN", 0.01)
    fleet.add(["re_1"])
    with psycopg.connect(fleet.address) as adding:
        adding.execute("SELECT async_refunds.enqueue('run', '{re_2}')")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            close(fleet.address)
    assert fleet.value(STATE) == "paused"
    assert close(fleet.address).unsent == 1, "the other one was told before"
    assert fleet.value(STATE) == "closed"


async def test_two_that_close_a_run_at_once_both_have_it_closed(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    with psycopg.connect(fleet.address) as closing:
        assert administration.close(closing, "run").unsent == 1
        other = await beside(fleet, closing, lambda: close(fleet.address))
    assert other == administration.Closed(unsent=0, left=0, dead=0, paused=False)
    assert fleet.value(STATE) == "closed"


async def test_what_is_opened_again_meanwhile_is_not_deleted(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    fleet.do(
        """UPDATE async_refunds.items SET settled = true, outcome = 'not_cancelable',
            known_at = now() - interval '2 days'"""
    )

    def prune() -> int:
        with psycopg.connect(fleet.address, autocommit=True) as connection:
            return administration.prune(connection, 1.0)

    with psycopg.connect(fleet.address) as opening:
        assert administration.retry(opening, "run", ["not_cancelable"]).opened == 1
        assert await beside(fleet, opening, prune) == 0
    assert fleet.value("SELECT settled FROM async_refunds.items") is False
