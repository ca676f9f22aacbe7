"""A run that is closing: only what was perhaps sent is asked for, with its own key."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, LiteralString
from uuid import uuid4

import psycopg
import pytest

from async_refunds.errors import JournalError
from async_refunds.journal import LeaseLostError, RunClosedError
from async_refunds.journal.postgres import Database, administration
from async_refunds.journal.postgres.runs import RunReader, run_progress, runs
from tests.support.fleets import (
    SCOPE,
    Fleet,
    Worker,
    begin_history,
    grow_old,
    ids,
    result,
    until,
    worker,
)

if TYPE_CHECKING:
    from async_refunds.journal import Claim

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

BEGUN: LiteralString = "UPDATE async_refunds.runs SET state = 'closing'"
STATE = "SELECT state FROM async_refunds.runs"
SENT = "UPDATE async_refunds.items SET maybe_sent = true, generation = 1"
WAITS = """SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'"""


def administer(address: str, change: Any, *given: Any, **options: Any) -> Any:  # noqa: ANN401 - those of `change`
    with psycopg.connect(address, autocommit=True) as connection:
        return change(connection, "run", *given, **options)


def close(fleet: Fleet) -> administration.Closed:
    closed = administer(fleet.address, administration.close)
    assert isinstance(closed, administration.Closed)
    return closed


def item(fleet: Fleet, columns: str) -> tuple[Any, ...]:
    (row,) = fleet.rows(f"SELECT {columns} FROM async_refunds.items")  # noqa: S608 - our own text
    return tuple(row)


async def claims_one(fleet: Fleet, one: Worker) -> Claim:
    """Have a worker claim the only refund of a run."""
    fleet.add(["re_1"])
    await one.acquire()
    (claim,) = await one.claim()
    return claim


# --------------------------------------------------------- what a worker has in hand


async def test_what_is_given_back_unsent_is_given_up(fleet: Fleet) -> None:
    """Nobody would claim it again: it would be open for ever."""
    async with worker(fleet.address) as one:
        claim = await claims_one(fleet, one)
        assert close(fleet) == administration.Closed(unsent=0, left=1, dead=0)
        await one.journal.give_back([claim])
    assert item(fleet, "settled, outcome, error, maybe_sent, claimed_by") == (
        *(True, "failed", "re_1 was not canceled: its run was closed", False),
        None,  # no result of whoever had it
    )
    assert close(fleet) == administration.Closed(unsent=0, left=0, dead=0)
    assert fleet.value(STATE) == "closed"


async def test_what_is_given_back_is_as_before_where_it_was_sent_before(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1"])
    fleet.do(SENT)
    fleet.do(BEGUN)
    async with worker(fleet.address) as one:
        await one.acquire()
        (claim,) = await one.claim()
        await one.journal.give_back([claim])
    assert item(fleet, "settled, outcome, error, maybe_sent, known_at") == (
        *(False, None, None, True, None),
    )


async def test_only_runs_that_are_closing_give_up(fleet: Fleet) -> None:
    for run in ("open", "closing"):
        fleet.add(["re_1", "re_2"], run=run)
    async with worker(fleet.address) as one:
        await one.acquire()
        claims = await one.claim()
        assert len(claims) == 4
        fleet.do("UPDATE async_refunds.runs SET state = name")
        await one.journal.give_back(
            [claim for claim in claims if claim.refund_id == "re_1"]
        )
        for claim in claims:
            if claim.refund_id == "re_2":
                await one.settle(claim, "failed")
    found = fleet.rows(
        """SELECT name, settled, count(*), bool_and(error LIKE '%%its run was closed')
            FROM async_refunds.items JOIN async_refunds.runs USING (run_id)
            GROUP BY 1, 2 ORDER BY 1"""
    )
    assert found == [("closing", True, 2, True), ("open", False, 2, None)]


@pytest.mark.parametrize("how", ["rekey", "give_back", "settle"])
async def test_worker_that_waited_for_a_lease_knows_that_the_run_is_closing(
    fleet: Fleet, how: str
) -> None:
    """Its statement, and so its snapshot, is of before."""
    async with worker(fleet.address) as one:
        claim = await claims_one(fleet, one)
        with psycopg.connect(fleet.address) as other:
            other.execute("SELECT FROM async_refunds.leases FOR NO KEY UPDATE")
            if how == "rekey":
                asking: asyncio.Task[Any] = asyncio.create_task(
                    one.journal.rekey(claim)
                )
            elif how == "give_back":
                asking = asyncio.create_task(one.journal.give_back([claim]))
            else:
                asking = asyncio.create_task(one.settle(claim, "failed"))
            await until(lambda: fleet.value(WAITS))
            fleet.do(BEGUN)
            other.commit()
        if how == "rekey":
            with pytest.raises(RunClosedError):
                await asking
            assert item(fleet, "generation, settled") == (1, False)
        else:
            await asking
            assert item(fleet, "settled, outcome") == (True, "failed")


async def test_close_waits_for_a_worker_that_gives_back_what_it_had_seen_as_sent(
    fleet: Fleet,
) -> None:
    """Its statement began before the run was closing: only `close` can give it up."""
    fleet.add(["re_1"])
    fleet.do(SENT)
    with psycopg.connect(fleet.address) as giving_back:
        giving_back.execute("SELECT FROM async_refunds.leases FOR SHARE")
        giving_back.execute("UPDATE async_refunds.items SET maybe_sent = false")
        closing = asyncio.create_task(asyncio.to_thread(close, fleet))
        await until(lambda: fleet.value(WAITS) or closing.done())
        assert not closing.done()
        giving_back.commit()
    assert await closing == administration.Closed(unsent=1, left=0, dead=0)


async def test_new_key_that_was_kept_is_not_given_out_if_its_answer_was_lost(
    fleet: Fleet,
) -> None:
    """Whoever asks again learns that the run is closing; nothing was sent with it."""
    async with worker(fleet.address) as one:
        claim = await claims_one(fleet, one)
        await one.journal.rekey(claim)
        fleet.do(BEGUN)
        with pytest.raises(RunClosedError):
            await one.journal.rekey(claim)
        await one.settle(claim, "failed")
    assert item(fleet, "settled, outcome, maybe_sent") == (True, "failed", False)


async def test_account_that_was_lost_comes_before_a_run_that_is_closing(
    fleet: Fleet,
) -> None:
    async with worker(fleet.address) as one:
        claim = await claims_one(fleet, one)
        fleet.do(BEGUN)
        fleet.do("UPDATE async_refunds.leases SET token = %s", str(uuid4()))
        with pytest.raises(LeaseLostError):
            await one.journal.rekey(claim)


async def test_new_key_is_refused_at_once_though_others_would_wait(
    fleet: Fleet,
) -> None:
    """A former holder may have a request under way: that is waited for otherwise."""
    async with worker(fleet.address) as one:
        claim = await claims_one(fleet, one)
        fleet.do("UPDATE async_refunds.leases SET no_new_key_until = now() + '1 h'")
        fleet.do(BEGUN)
        with pytest.raises(RunClosedError):
            await one.journal.rekey(claim)


async def test_what_is_handed_over_is_asked_for_by_the_next(fleet: Fleet) -> None:
    async with worker(fleet.address) as one, worker(fleet.address, "two") as two:
        claim = await claims_one(fleet, one)
        fleet.do(BEGUN)
        await one.journal.hand_over([(claim, result(claim, "unknown"))])
        await one.leases.release(None)
        assert await two.acquire() == {None}
        (again,) = await two.claim()
    assert again.idempotency_key == claim.idempotency_key


# ------------------------------------------------------------------ what is taken up


@pytest.mark.usefixtures("both_ways")
async def test_account_is_taken_for_what_was_perhaps_sent_alone(fleet: Fleet) -> None:
    fleet.add(["re_1", "re_2"], "acct_1")
    fleet.add(["re_1"], "acct_2")
    fleet.do(f"{SENT} WHERE account = 'acct_1' AND refund_id = 're_2'")
    fleet.do(BEGUN)
    async with worker(fleet.address) as one:
        assert await one.acquire() == {"acct_1"}
        assert ids(await one.claim("acct_1")) == ["re_2"]
        assert await one.leases.acquire(1, only=["acct_2"]) == []


async def test_what_a_failover_may_have_forgotten_is_asked_for(fleet: Fleet) -> None:
    """`close` leaves it, and no row says that it was sent."""
    fleet.add(["re_1"])
    begin_history(fleet)
    assert close(fleet) == administration.Closed(unsent=0, left=1, dead=0)
    async with worker(fleet.address) as one:
        assert await one.acquire_after_failover(fleet) == {None}
        grow_old(fleet, 1000.0)
        (claim,) = await one.claim()
        assert claim.maybe_sent
        await one.settle(claim)
    assert close(fleet) == administration.Closed(unsent=0, left=0, dead=0)


async def test_unknown_one_waits_before_it_is_asked_for_again(fleet: Fleet) -> None:
    async with worker(fleet.address) as one:
        claim = await claims_one(fleet, one)
        fleet.do(BEGUN)
        await one.settle(claim, "unknown")
        await one.leases.release(None)
        assert await one.acquire() == set()
        later = "SELECT retry_at > clock_timestamp() FROM async_refunds.leases"
        assert fleet.value(later)
        retried = administer(fleet.address, administration.retry, ["unknown"])
        assert retried == administration.Retried(0, 1, paused=False)
        assert await one.acquire() == {None}
        (again,) = await one.claim()
    assert again.idempotency_key == claim.idempotency_key


async def test_workers_are_told_of_a_paused_run_that_is_closing(fleet: Fleet) -> None:
    """They have something to ask for."""
    fleet.add(["re_1"])
    fleet.do(SENT)
    fleet.do("UPDATE async_refunds.runs SET state = 'paused'")
    with psycopg.connect(fleet.address, autocommit=True) as listening:
        listening.execute("LISTEN async_refunds")
        await asyncio.to_thread(close, fleet)
        told = [each.payload for each in listening.notifies(timeout=5, stop_after=1)]
    assert told == [SCOPE]


# ------------------------------------------------------------------- what people say


@pytest.mark.parametrize("outcomes", [["failed"], ["not_cancelable", "unknown"]])
async def test_nothing_that_needs_a_new_key_is_opened_again(
    fleet: Fleet, outcomes: list[str]
) -> None:
    fleet.add(["re_1", "re_2"])
    fleet.do(
        """UPDATE async_refunds.items SET maybe_sent = true,
            settled = refund_id = 're_1', outcome = 'not_cancelable'"""
    )
    fleet.do(BEGUN)
    with pytest.raises(JournalError) as refused:
        administer(fleet.address, administration.retry, outcomes)
    assert str(refused.value) == (
        "'run' is closing: only what is unknown or dead is asked for again, with the "
        "same key"
    )


async def test_dead_one_is_opened_again_with_its_key(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    fleet.do(SENT)
    fleet.do(
        "UPDATE async_refunds.items SET dead = true, outcome = 'not_cancelable', "
        "claims = 9"
    )
    fleet.do("UPDATE async_refunds.leases SET no_new_key_until = now() + '1 h'")
    assert close(fleet) == administration.Closed(unsent=0, left=1, dead=1)
    retried = administer(fleet.address, administration.retry, [], dead=True)
    assert retried == administration.Retried(1, 0, paused=False)
    async with worker(fleet.address) as one:
        await one.acquire()
        assert ids(await one.claim()) == ["re_1"]
    assert item(fleet, "generation, maybe_sent") == (1, True)


async def test_run_is_closed_by_itself_once_the_last_one_is_settled(
    fleet: Fleet,
) -> None:
    def shown() -> tuple[list[str], str, bool, str]:
        with psycopg.connect(fleet.address, autocommit=True) as connection:
            reader = RunReader(connection, Database(fleet.address), "run")
            there = [f"{each.name} {each.shown_state}" for each in runs(connection)]
            progress = run_progress(connection, "run").state
            return there, reader.state, reader.run_closed, progress

    async with worker(fleet.address) as one:
        claim = await claims_one(fleet, one)
        close(fleet)
        assert shown() == (["run closing"], "closing", True, "closing")
        await one.settle(claim)
    assert shown() == ([], "closed", True, "closing")
    with pytest.raises(JournalError, match="'run' is closed"):
        administer(fleet.address, administration.retry, ["unknown"])
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="no more refunds"):
        fleet.add(["re_2"])
    assert close(fleet) == administration.Closed(unsent=0, left=0, dead=0)
    assert shown() == ([], "closed", True, "closed")


async def test_what_a_worker_holds_of_it_is_in_flight(fleet: Fleet) -> None:
    async with worker(fleet.address) as one:
        await claims_one(fleet, one)
        fleet.do(BEGUN)
        with psycopg.connect(fleet.address, autocommit=True) as connection:
            reader = RunReader(connection, Database(fleet.address), "run")
            assert reader.in_use
            assert [each.in_flight for each in reader.records()] == [True]


async def test_what_an_older_worker_leaves_is_given_up_by_the_same_again(
    fleet: Fleet,
) -> None:
    """One of before neither settles it, nor does it take it again."""
    async with worker(fleet.address) as one:
        await claims_one(fleet, one)
        assert close(fleet).left == 1
        fleet.do(
            "UPDATE async_refunds.items SET outcome = 'failed', maybe_sent = false, "
            "claim_number = NULL, error = 're_1 failed', known_at = now()"
        )
        await one.leases.release(None)
        assert await one.acquire() == set()
    assert close(fleet) == administration.Closed(unsent=1, left=0, dead=0)
    assert item(fleet, "error") == ("re_1 failed; then its run was closed",)


async def test_role_that_cannot_tell_what_was_sent_leaves_that(fleet: Fleet) -> None:
    """Nor does a worker send it."""
    fleet.add(["re_1", "re_2"])
    fleet.do(f"{SENT} WHERE refund_id = 're_1'")
    fleet.do(
        "CREATE OR REPLACE FUNCTION async_refunds.timeline() RETURNS text "
        "LANGUAGE sql AS 'SELECT NULL::text'"
    )
    assert close(fleet) == administration.Closed(unsent=0, left=1, dead=0, untold=1)
    async with worker(fleet.address) as one:
        await one.acquire()
        claims = await one.claim()
        assert ids(claims) == ["re_1"]
        await one.settle(claims[0])
        assert await one.acquire() == set()
    assert fleet.value(STATE) == "closing"
