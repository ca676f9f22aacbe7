"""A run is closed, and old results are deleted, beside those who work and who add."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, LiteralString

import psycopg
import pytest
from psycopg import IsolationLevel

from async_refunds.errors import JournalError
from async_refunds.journal.postgres import administration
from tests.support.fleets import FAR_TOO_LONG, Fleet, defaults, ids, worker

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

STATE = "SELECT state FROM async_refunds.runs"
WAITS = """SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'"""


def close(address: str, **settings: str) -> administration.Closed:
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    with psycopg.connect(address, autocommit=True, options=options) as connection:
        return administration.close(connection, "run")


@contextmanager
def begun(address: str) -> Generator[psycopg.Connection]:
    """Give a connection in a transaction."""
    with psycopg.connect(address) as connection:
        connection.execute("SELECT")
        yield connection


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
    assert closed == administration.Closed(unsent=2, left=0, dead=0)
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
    assert closed == administration.Closed(unsent=2, left=0, dead=0)
    assert fleet.value("SELECT bool_and(settled) FROM async_refunds.items")


async def test_whoever_adds_while_a_run_is_closed_is_refused(fleet: Fleet) -> None:
    fleet.add(["re_1"])

    def add() -> object:
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="is closed"):
            fleet_of_others.add(["re_2"])
        return "refused"

    fleet_of_others = Fleet(fleet.address)
    with begun(fleet.address) as closing:
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
    assert fleet.value(STATE) == "closing"
    assert close(fleet.address).unsent == 1, "the other one was told before"
    assert fleet.value(STATE) == "closed"


async def test_two_that_close_a_run_at_once_both_have_it_closed(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    with begun(fleet.address) as closing:
        assert administration.close(closing, "run").unsent == 1
        other = await beside(fleet, closing, lambda: close(fleet.address))
    assert other == administration.Closed(unsent=0, left=0, dead=0)
    assert fleet.value(STATE) == "closed"


async def test_close_leaves_no_connection_as_it_was_not(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    fleet.do("UPDATE async_refunds.items SET maybe_sent = true")
    with psycopg.connect(fleet.address, autocommit=True) as connection:
        connection.isolation_level = IsolationLevel.SERIALIZABLE
        assert administration.close(connection, "run").left == 1
        assert connection.isolation_level == IsolationLevel.SERIALIZABLE
    assert fleet.value(STATE) == "closing"


async def test_two_that_close_at_once_both_leave_it_closing(fleet: Fleet) -> None:
    """One comes to its end after the first word of the other one."""
    fleet.add(["re_1", "re_2"])
    fleet.do("UPDATE async_refunds.items SET maybe_sent = (refund_id = 're_2')")
    begun_to_close, may_end, ended = (threading.Event() for _ in range(3))

    def first() -> None:
        def wait(_: int) -> None:
            begun_to_close.set()
            may_end.wait(FAR_TOO_LONG)

        with psycopg.connect(fleet.address, autocommit=True) as connection:
            administration.close(connection, "run", on_page=wait)
        ended.set()

    class Late(psycopg.Connection[Any]):
        said = 0

        def execute(self, *args: Any, **options: Any) -> psycopg.Cursor[Any]:  # noqa: ANN401 - as psycopg has it
            self.said += 1
            if self.said == 2:
                may_end.set()
                ended.wait(FAR_TOO_LONG)
            return super().execute(*args, **options)

    closing = asyncio.create_task(asyncio.to_thread(first))
    await asyncio.to_thread(begun_to_close.wait, FAR_TOO_LONG)
    with Late.connect(fleet.address, autocommit=True) as late:
        other = await asyncio.to_thread(administration.close, late, "run")
    await closing
    assert other == administration.Closed(unsent=0, left=1, dead=0)
    assert fleet.value(STATE) == "closing"


@pytest.mark.parametrize("state", ["open", "paused"])
async def test_run_that_is_being_closed_is_neither_opened_nor_paused(
    state: Literal["open", "paused"], fleet: Fleet
) -> None:
    """From the first moment, and also by somebody who says so meanwhile."""
    fleet.add(["re_1", "re_2"])
    fleet.do("UPDATE async_refunds.items SET maybe_sent = (refund_id = 're_2')")
    said: list[str] = []

    def say(_: int) -> None:
        with (
            psycopg.connect(fleet.address, autocommit=True) as connection,
            pytest.raises(JournalError) as refused,
        ):
            administration.set_state(connection, "run", state)
        said.append(str(refused.value))

    with psycopg.connect(fleet.address, autocommit=True) as connection:
        closed = administration.close(connection, "run", on_page=say)
    assert closed == administration.Closed(unsent=1, left=1, dead=0)
    assert said == ["'run' is closing: only what was perhaps sent is asked for"]
    assert fleet.value(STATE) == "closing"
    # Once all of it is settled, that is as good as closed.
    fleet.do("UPDATE async_refunds.items SET settled = true")
    say(1)
    assert said[1:] == ["'run' is closed"]


async def test_close_that_another_one_is_at_waits_for_it(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than for those that add: it says of nobody that he adds."""
    monkeypatch.setattr(administration, "ADDED_WITHIN", 0.001)
    fleet.add(["re_1"])
    fleet.do("UPDATE async_refunds.runs SET state = 'paused'")
    fleet.do("UPDATE async_refunds.items SET maybe_sent = true")
    with begun(fleet.address) as closing:
        administration.close(closing, "run")
        other = await beside(fleet, closing, lambda: close(fleet.address))
    assert other == administration.Closed(unsent=0, left=1, dead=0)


async def test_nothing_is_opened_again_in_a_run_that_is_being_closed(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1"])
    fleet.do("UPDATE async_refunds.items SET settled = true, outcome = 'failed'")

    def retry() -> object:
        with psycopg.connect(fleet.address, autocommit=True) as connection:
            return administration.retry(connection, "run", ["failed"])

    with begun(fleet.address) as opening:
        assert administration.retry(opening, "run", ["failed"]).opened == 1
        closed = await beside(fleet, opening, lambda: close(fleet.address))
    assert closed == administration.Closed(unsent=1, left=0, dead=0)
    fleet.do("UPDATE async_refunds.runs SET state = 'open'")
    with begun(fleet.address) as closing:
        administration.close(closing, "run")
        with pytest.raises(JournalError, match="'run' is closed"):
            await beside(fleet, closing, retry)
    assert fleet.value("SELECT settled FROM async_refunds.items")


# ------------------------------------------------------ those who wait for each other


def retry(address: str) -> administration.Retried:
    with psycopg.connect(address, autocommit=True) as connection:
        return administration.retry(connection, "run", ["failed"])


@pytest.mark.parametrize("command", [close, retry])
async def test_leases_are_locked_in_the_order_of_their_accounts(
    command: Callable[[str], object], fleet: Fleet
) -> None:
    """As workers do. In another order each might wait for the other."""
    for account in ("acct_b", "acct_a"):
        fleet.add(["re_1"], account)
    fleet.do("UPDATE async_refunds.items SET outcome = 'failed'")
    with (
        # Or an index happens to have it.
        defaults(fleet.address, enable_indexscan="off", enable_bitmapscan="off"),
        psycopg.connect(fleet.address) as working,
    ):
        lock = "SELECT FROM async_refunds.leases WHERE account = %s FOR SHARE NOWAIT"
        working.execute(lock, ["acct_a"])
        waiting = asyncio.create_task(asyncio.to_thread(command, fleet.address))
        while not (fleet.value(WAITS) or waiting.done()):  # noqa: ASYNC110 - of the server
            await asyncio.sleep(0.01)
        assert not waiting.done()
        working.execute(lock, ["acct_b"])
        if command is close:  # what a worker may write is locked after that
            working.execute("SELECT FROM async_refunds.items FOR UPDATE NOWAIT")
        working.commit()
        await waiting


async def test_retry_beside_another_one_waits_for_it(fleet: Fleet) -> None:
    """Each would open the same refunds, in any order."""
    fleet.add(["re_1"])
    fleet.do("UPDATE async_refunds.items SET settled = true, outcome = 'failed'")
    with begun(fleet.address) as first:
        assert administration.retry(first, "run", ["failed"]).opened == 1
        retried = await beside(fleet, first, lambda: retry(fleet.address))
    assert retried == administration.Retried(0, 1, paused=False)


@pytest.mark.parametrize(
    ("row", "waits"),
    [
        ("outcome = 'not_cancelable', maybe_sent = true, settled = true", True),
        ("outcome = 'failed', settled = true", True),
        ("outcome = 'unknown', maybe_sent = true, settled = true", False),
        ("maybe_sent = true, dead = true", False),
        ("outcome = 'not_cancelable', maybe_sent = true, dead = true", True),
    ],
)
async def test_retry_says_how_long_what_needs_a_new_key_waits(
    row: str, fleet: Fleet, *, waits: bool
) -> None:
    fleet.add(["re_1"])
    fleet.do(f"UPDATE async_refunds.items SET {row}")  # noqa: S608 - our own text
    later = "UPDATE async_refunds.leases SET no_new_key_until = now() + interval '1 h'"
    fleet.do(later)
    outcomes = ["failed", "not_cancelable", "unknown"]
    with psycopg.connect(fleet.address, autocommit=True) as connection:
        retried = administration.retry(connection, "run", outcomes, dead=True)
    assert retried.opened == 1
    assert bool(retried.seconds) is waits
    async with worker(fleet.address) as one:
        await one.acquire()
        claims = (await one.journal.claim({None: 1})).get(None, [])
        assert ids(claims) == ([] if waits else ["re_1"])


def old(fleet: Fleet, *ids: str) -> None:
    """Have results of long ago."""
    fleet.add(ids)
    fleet.do(
        """UPDATE async_refunds.items SET settled = true, outcome = 'not_cancelable',
            known_at = now() - interval '2 days'"""
    )


async def test_what_is_opened_again_meanwhile_is_not_deleted(fleet: Fleet) -> None:
    old(fleet, "re_1")
    # Whoever waits for another one's lock may wait in a circle.
    with (
        begun(fleet.address) as opening,
        psycopg.connect(
            fleet.address, autocommit=True, options="-c lock_timeout=1"
        ) as pruning,
    ):
        assert administration.retry(opening, "run", ["not_cancelable"]).opened == 1
        assert administration.prune(pruning, 1.0) == 0
        opening.commit()
        assert administration.prune(pruning, 1.0) == 0
    assert fleet.value("SELECT settled FROM async_refunds.items") is False


async def test_what_is_deleted_meanwhile_is_not_said_to_be_asked_for(
    fleet: Fleet,
) -> None:
    old(fleet, "re_1", "re_2")
    fleet.do("UPDATE async_refunds.items SET settled = false WHERE refund_id = 're_2'")

    def retry() -> administration.Retried:
        with psycopg.connect(fleet.address, autocommit=True) as connection:
            return administration.retry(connection, "run", ["not_cancelable"])

    with begun(fleet.address) as pruning:
        assert administration.prune(pruning, 1.0) == 1
        retried = await beside(fleet, pruning, retry)
    assert retried == administration.Retried(0, 1, paused=False)


async def test_retry_in_a_circle_with_a_claim_is_repeated(fleet: Fleet) -> None:
    """The claim began before what it waits for was closed, and then opened again."""
    fleet.add(["re_1", "re_2"])
    fleet.add(["re_3"], "acct_2")
    async with worker(fleet.address) as one:
        await one.acquire()
        with begun(fleet.address) as closing, begun(fleet.address) as other:
            closing.execute(_SETTLED)
            closing.execute(_LEASE_OF, [""])
            claiming = asyncio.create_task(one.journal.claim({None: 5, "acct_2": 5}))
            await waiting_are(fleet, 1)
            other.execute(_LEASE_OF, ["acct_2"])
            closing.commit()
            retrying = asyncio.create_task(asyncio.to_thread(retry, fleet.address))
            await waiting_are(fleet, 2)
            other.commit()
        async with asyncio.timeout(FAR_TOO_LONG):
            retried, claims = await retrying, await claiming
    assert retried.opened + retried.open_already == 2
    assert ids(claims["acct_2"]) == ["re_3"]


_SETTLED = """UPDATE async_refunds.items SET settled = true, outcome = 'failed',
    known_at = clock_timestamp() WHERE account = ''"""
_LEASE_OF = "SELECT FROM async_refunds.leases WHERE account = %s FOR NO KEY UPDATE"


async def waiting_are(fleet: Fleet, count: int) -> None:
    while fleet.value(WAITS) < count:  # noqa: ASYNC110 - of the server
        await asyncio.sleep(0.01)


async def test_close_waits_for_workers_whatever_a_database_sets(fleet: Fleet) -> None:
    """It told that somebody adds refunds, or gave up where a page took long."""
    fleet.add(["re_1"])
    short = {"lock_timeout": "50ms", "statement_timeout": "50ms"}
    with defaults(fleet.address, **short), begun(fleet.address) as other:
        other.execute("SET LOCAL statement_timeout = 0")
        other.execute(_LEASE_OF, [""])
        closing = asyncio.create_task(asyncio.to_thread(close, fleet.address))
        while not fleet.value(f"{WAITS} AND now() - query_start > interval '100 ms'"):
            assert not closing.done()
            await asyncio.sleep(0.01)
        other.commit()
        assert (await closing).unsent == 1
