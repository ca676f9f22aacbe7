"""What a write, a claim or a new key must not touch: each condition of a statement."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql

from async_refunds.journal import Run
from async_refunds.journal.base import LeaseLostError
from async_refunds.journal.postgres import PostgresJournal
from async_refunds.journal.postgres.journal import MOST_CLAIMS
from async_refunds.journal.postgres.schema import migrate
from async_refunds.results import CancelResult
from tests.support.fleets import (
    URL,
    WAITING,
    begin_history,
    grow_old,
    ids,
    result,
    until,
    worker,
)

from .test_claims import attempt, forget_claims

if TYPE_CHECKING:
    from tests.support.fleets import Fleet, Worker

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

HOUR = 3600.0
AN_HOUR_AGO = """UPDATE async_refunds.items
    SET claimed_at = claimed_at - interval '1 h'"""
TABLES = ("meta", "timelines", "runs", "leases", "items")
NO_GRACE = "UPDATE async_refunds.leases SET no_new_key_until = '-infinity'"


def item(fleet: Fleet, columns: str, refund_id: str = "re_1") -> tuple[Any, ...]:
    """Return some columns of an item."""
    (row,) = fleet.rows(
        f"SELECT {columns} FROM async_refunds.items WHERE refund_id = %s",  # noqa: S608 - our own text
        refund_id,
    )
    return tuple(row)


def copy_out(fleet: Fleet, table: str) -> bytes:
    """Return the rows of a table as ``pg_dump`` has them."""
    with psycopg.connect(fleet.address) as connection:
        statement = sql.SQL("COPY async_refunds.{} TO STDOUT").format(
            sql.Identifier(table)
        )
        with connection.cursor().copy(statement) as rows:
            return b"".join(bytes(row) for row in rows)


async def hold_again(one: Worker) -> None:
    """Release the key's own account, and take it under another token."""
    await one.leases.release(None, retry_later=False)
    assert await one.acquire() == {None}


# ------------------------------------------------------------------- the lease's token


async def test_result_under_an_older_lease_of_the_same_worker_is_refused(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1", "re_2"])
    async with worker(fleet.address) as one:
        await one.acquire()
        old, _ = await one.claim()
        await hold_again(one)
        _, new = await one.claim()
        with pytest.raises(LeaseLostError):
            await one.journal.settle([(old, result(old)), (new, result(new))])
        assert item(fleet, "settled") == (False,)
        assert item(fleet, "settled", "re_2") == (True,)
        assert one.lost == [], "the lease that it holds now is another one"
        assert one.leases.may_send(None)
        with pytest.raises(LeaseLostError):
            await one.journal.give_back([old])
        assert one.journal.fenced == 2


async def test_unsent_claim_of_an_older_lease_does_not_go_back_with_a_newer_one(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1", "re_2"])
    async with worker(fleet.address) as one:
        await one.acquire()
        old, _ = await one.claim()
        await hold_again(one)
        await one.claim(limit=1)
        (new,) = await one.claim(limit=1)
        # Numbered as a claim of the newer lease is.
        fleet.do(
            "UPDATE async_refunds.items SET claim_number = %s WHERE number = 1",
            old.claim_number,  # type: ignore[attr-defined]
        )
        with pytest.raises(LeaseLostError):
            await one.journal.give_back([old, new])
        assert item(fleet, "claims") == (2,)


@pytest.mark.parametrize("how", ["claim", "rekey", "give_back"])
async def test_takeover_waits_for_what_is_under_way(fleet: Fleet, how: str) -> None:
    fleet.add(["re_1", "re_2"])
    async with worker(fleet.address) as one, worker(fleet.address, "two") as two:
        await one.acquire()
        (claim,) = await one.claim(limit=1)
        fleet.expire()
        with psycopg.connect(fleet.address) as other:
            # The items are locked: the statement has its lease, and waits.
            other.execute("SELECT FROM async_refunds.items FOR UPDATE")
            if how == "claim":
                asking: asyncio.Task[Any] = asyncio.create_task(one.claim(limit=1))
            elif how == "rekey":
                asking = asyncio.create_task(one.journal.rekey(claim))
            else:
                asking = asyncio.create_task(one.journal.give_back([claim]))
            await until(lambda: fleet.value(WAITING))
            assert await two.acquire() == set()
        await asking
        assert await two.acquire() == {None}


# ------------------------------------------------------------------------ the scope


async def test_same_account_in_another_scope_is_another_account(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    fleet.do("SELECT async_refunds.create_run('theirs', %s, false, 'them')", URL)
    fleet.do("SELECT async_refunds.enqueue('theirs', '{re_1,re_2}')")
    theirs = f"them {URL} test"
    untouched = """SELECT l::text FROM async_refunds.leases l
        WHERE scope LIKE 'them %%'"""
    before = fleet.rows(untouched)
    async with (
        worker(fleet.address) as one,
        worker(fleet.address, "two", scope=theirs) as two,
    ):
        assert await one.acquire() == {None}
        one.leases.note_rate(None, 5.0)
        await one.leases.renew()
        assert fleet.rows(untouched) == before
        (claim,) = await one.claim()
        await one.settle(claim)
        await one.leases.release(None)
        assert fleet.rows(untouched) == before
        assert await one.acquire() == set(), "only the others have something to do"
        assert await two.acquire() == {None}
        assert ids(await two.claim()) == ["re_1", "re_2"]
        assert (
            fleet.value("SELECT count(*) FROM async_refunds.items WHERE settled") == 1
        )


# ------------------------------------------------------------------------- results


async def test_result_of_an_item_that_is_settled_already_is_not_kept(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address) as one:
        await one.acquire()
        (claim,) = await one.claim()
        fleet.do(
            """UPDATE async_refunds.items SET settled = true, outcome = 'canceled',
                maybe_sent = false"""
        )
        await one.settle(claim, "not_cancelable")
        assert item(fleet, "settled, outcome") == (True, "canceled")
        await one.journal.give_back([claim])
        assert item(fleet, "claims, claim_number IS NULL") == (1, False)
        with pytest.raises(LeaseLostError):
            await one.journal.rekey(claim)
        assert item(fleet, "generation") == (1,)


async def test_result_is_of_one_run_only(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    fleet.add(["re_1"], run="other")
    async with worker(fleet.address) as one:
        await one.acquire()
        first, second = await one.claim()
        await one.settle(first)
        settled = "SELECT settled FROM async_refunds.items ORDER BY number"
        assert fleet.rows(settled) == [(True,), (False,)]
        await one.journal.give_back([second])
        claimed = "SELECT claims FROM async_refunds.items ORDER BY number"
        assert fleet.rows(claimed) == [(0,), (0,)]


async def test_results_in_turn_add_up_and_leave_what_they_do_not_say(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address) as one:
        await one.acquire()
        (claim,) = await one.claim()
        failed = CancelResult(
            refund_id="re_1",
            stripe_account=None,
            outcome="failed",
            error=ValueError("no answer"),
            idempotency_key=claim.idempotency_key,
            attempts=(attempt(429), attempt(503)),
            settled=False,
        )
        await one.journal.settle([(claim, failed)])
        assert item(fleet, "error, claims, maybe_sent") == ("no answer", 0, False)
        fleet.do(
            """UPDATE async_refunds.items SET amount = 5, currency = 'jpy',
                created = 7, status = 'requires_action', charge = 'ch_1',
                payment_intent = 'pi_1', failure_balance_transaction = 'txn_1'"""
        )
        await hold_again(one)
        (claim,) = await one.claim()
        await one.journal.settle([(claim, result(claim, "canceled", (attempt(429),)))])
        kept = "amount, currency, created, status, charge, payment_intent"
        assert item(fleet, f"{kept}, failure_balance_transaction, request_id") == (
            *(5, "jpy", 7, "requires_action", "ch_1", "pi_1"),
            *("txn_1", "req_1"),
        )
        assert item(fleet, "error, outcome, attempts, rate_limited") == (
            *(None, "canceled"),
            *(3, 2),
        )
        # A result without a request leaves the last request's id.
        fleet.do("UPDATE async_refunds.items SET settled = false, claimed_by = NULL")
        (claim,) = await one.claim()
        await one.settle(claim)
        assert item(fleet, "request_id") == ("req_1",)


async def test_what_is_handed_over_is_claimed_at_once_and_its_requests_count(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address) as one, worker(fleet.address, "two") as two:
        await one.acquire()
        (claim,) = await one.claim()
        left = [(claim, result(claim, "unknown", (attempt(429), attempt(503))))]
        await one.journal.hand_over(left)
        await one.journal.hand_over(left)  # as where the first commit is in doubt
        assert item(fleet, "attempts, rate_limited, request_id") == (2, 1, "req_1")
        assert item(fleet, "maybe_sent, claims, known_at") == (True, 0, None)
        assert not await one.claim()
        assert not await one.leases.release_all({None: 0.0}), "nothing waits"
        await two.acquire()
        (again,) = await two.claim()
        assert again.maybe_sent
        assert again.idempotency_key == claim.idempotency_key
        assert again.key_created_at == claim.key_created_at
        await two.journal.settle([(again, result(again, "canceled", (attempt(200),)))])
        assert item(fleet, "outcome, attempts, rate_limited") == ("canceled", 3, 1)


async def test_what_was_lost_is_not_handed_over(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    fleet.add(["re_2"], "acct_1")
    async with worker(fleet.address) as one, worker(fleet.address, "two") as two:
        await one.acquire()
        (mine,), (lost,) = await one.claim(), await one.claim("acct_1")
        fleet.do(
            "UPDATE async_refunds.leases SET until = '-infinity' WHERE account <> ''"
        )
        await two.acquire()
        (theirs,) = await two.claim("acct_1")
        with pytest.raises(LeaseLostError) as raised:
            await one.journal.hand_over(
                [(each, result(each, "unknown", (attempt(),))) for each in (mine, lost)]
            )
        assert raised.value.accounts == {"acct_1"}
        counted = "SELECT attempts FROM async_refunds.items ORDER BY refund_id"
        assert fleet.rows(counted) == [(1,), (0,)]
        await two.settle(theirs)


async def test_requests_that_nobody_has_told_of_are_known_to_be_missing(
    fleet: Fleet,
) -> None:
    """Of those that are under way, of a worker that was killed, or broke them off."""
    fleet.add(["re_1", "re_2"])
    async with worker(fleet.address) as one, worker(fleet.address, "two") as two:
        await one.acquire()
        assert not one.journal.tally().uncounted, "nothing was sent"
        first, second = await one.claim()
        assert one.journal.tally().uncounted
        for claim in (first, second):
            await one.journal.settle([(claim, result(claim, "unknown", (attempt(),)))])
        assert not one.journal.tally().uncounted
        await hold_again(one)
        first, second = await one.claim()
        await one.journal.give_back([second])
        await one.settle(first)
        assert not one.journal.tally().uncounted
        await hold_again(one)
        (second,) = await one.claim()
        fleet.expire()  # it is killed
        assert one.journal.tally().uncounted
        await two.acquire()
        (second,) = await two.claim()
        await two.journal.settle([(second, result(second, "canceled", (attempt(),)))])
        assert item(fleet, "settled, attempts", "re_2") == (True, 2)
        assert two.journal.tally().uncounted


async def test_request_that_was_broken_off_is_known_to_be_missing(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address) as one:
        await one.acquire()
        (claim,) = await one.claim()
        await one.journal.hand_over([(claim, result(claim, "unknown"))])
        await hold_again(one)
        (claim,) = await one.claim()
        await one.journal.settle([(claim, result(claim, "canceled", (attempt(),)))])
        assert one.journal.tally().uncounted


async def test_item_that_many_holders_hand_over_is_not_dead(fleet: Fleet) -> None:
    """None of them was ended by it."""
    fleet.add(["re_1"])
    async with worker(fleet.address) as one:
        for _ in range(2 * MOST_CLAIMS):
            await one.acquire()
            (claim,) = await one.claim()
            await one.journal.hand_over([(claim, result(claim, "unknown"))])
            await one.leases.release(None)
    assert item(fleet, "dead, claims") == (False, 0)


async def test_result_of_a_forgotten_claim_is_as_if_it_had_been_kept(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address) as one:
        await one.acquire()
        (claim,) = await one.claim()
        forget_claims(fleet)
        await one.journal.settle([(claim, result(claim, "failed", (attempt(),)))])
        assert item(fleet, "generation, idempotency_key") == (1, claim.idempotency_key)
        assert await one.claim() == [], "not again by this holder"


async def test_late_result_does_not_take_a_newer_key_back(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address) as one:
        await one.acquire()
        (claim,) = await one.claim()
        await one.journal.rekey(claim)
        await one.settle(claim, "unknown")
        assert item(fleet, "generation") == (2,)


# ---------------------------------------------------------------------------- claims


async def test_age_of_a_key_is_that_of_its_first_claim(fleet: Fleet) -> None:
    """Also if it was claimed and given back meanwhile."""
    fleet.add(["re_1"])
    async with worker(fleet.address) as one, worker(fleet.address, "two") as two:
        await one.acquire()
        await one.claim()
        fleet.do(AN_HOUR_AGO)
        fleet.expire()
        for _ in range(2):
            await two.acquire()
            (claim,) = await two.claim()
            assert claim.maybe_sent
            assert time.time() - claim.key_created_at == pytest.approx(HOUR, abs=60)
            await two.journal.give_back([claim])
            await two.leases.release(None)


async def test_key_of_an_item_that_a_failover_forgot_may_be_as_old_as_that(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1", "re_2"])
    begin_history(fleet)
    fleet.do(
        """UPDATE async_refunds.items SET added_at = now() - CASE number
            WHEN 1 THEN interval '3 h' ELSE interval '1 h' END"""
    )
    async with worker(fleet.address) as one:
        await one.acquire()
        grow_old(fleet, 2 * HOUR)
        await one.acquire()
        ages = [time.time() - claim.key_created_at for claim in await one.claim()]
        assert ages == [
            pytest.approx(2 * HOUR, abs=60),
            pytest.approx(1 * HOUR, abs=60),
        ]


async def test_what_was_claimed_since_the_failover_is_not_forgotten(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1"])
    begin_history(fleet)
    async with worker(fleet.address) as one:
        await one.acquire_after_failover(fleet)
        grow_old(fleet, HOUR)
        (claim,) = await one.claim()
        assert claim.maybe_sent
        await one.journal.settle([(claim, result(claim, "failed", (attempt(),)))])
        await hold_again(one)
        (claim,) = await one.claim()
        assert not claim.maybe_sent, "its next key was never asked with"


@pytest.mark.parametrize("how", ["acquire", "renew"])
async def test_new_history_is_noted_by_whoever_sees_it_first(
    fleet: Fleet, how: str
) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address) as one:
        if how == "acquire":
            begin_history(fleet)
            await one.acquire()
        else:
            await one.acquire()
            begin_history(fleet)
            await one.leases.renew()
        noted = """SELECT timeline = async_refunds.timeline(), last_number
            FROM async_refunds.timelines WHERE timeline <> 'before'"""
        assert fleet.rows(noted) == [(True, 1)]


async def test_history_is_named_by_system_timeline_and_table(fleet: Fleet) -> None:
    named = """SELECT system_identifier || '/'
            || lpad(upper(to_hex(timeline_id)), 8, '0')
            || '/' || 'async_refunds.items'::regclass::oid
        FROM pg_control_system(), pg_control_checkpoint()"""
    assert fleet.value("SELECT async_refunds.timeline()") == fleet.value(named)


async def test_dump_that_is_restored_on_its_server_begins_a_history(
    fleet: Fleet,
) -> None:
    """The server's timeline goes on there, and what was claimed since is forgotten."""
    fleet.add(["re_1"])
    dump = {name: copy_out(fleet, name) for name in TABLES}
    async with worker(fleet.address) as one:
        await one.acquire()
        (lost,) = await one.claim()
    fleet.do("DROP SCHEMA async_refunds CASCADE")
    with psycopg.connect(fleet.address) as connection:
        migrate(connection)
        connection.execute("DELETE FROM async_refunds.meta")
        connection.execute("DELETE FROM async_refunds.timelines")
        for name, rows in dump.items():
            statement = sql.SQL("COPY async_refunds.{} FROM STDIN").format(
                sql.Identifier(name)
            )
            with connection.cursor().copy(statement) as copying:
                copying.write(rows)
        connection.execute("SELECT nextval('async_refunds.item_numbers')")
    async with worker(fleet.address, "two") as two:
        await two.acquire_after_failover(fleet)
        (claim,) = await two.claim()
        assert claim.idempotency_key == lost.idempotency_key
        assert claim.maybe_sent


async def test_times_are_of_the_database_though_this_clock_is_wrong(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + 5 * HOUR)
    fleet.add(["re_1"])
    async with worker(fleet.address) as one:
        await one.acquire()
        (claim,) = await one.claim()
        assert abs(right() - claim.key_created_at) < 60
        assert abs(right() - claim.key_unused_until) < 60
        new = await one.journal.rekey(claim)
        assert abs(right() - new.key_created_at) < 60
        assert abs(right() - one.journal.now()) < 60


async def test_nothing_is_claimed_of_a_run_that_is_paused_or_closed(
    fleet: Fleet,
) -> None:
    for run in ("open", "paused", "closed"):
        fleet.add([f"re_{run}"], run=run)
    fleet.do("UPDATE async_refunds.runs SET state = name")
    async with worker(fleet.address) as one:
        await one.acquire()
        assert ids(await one.claim()) == ["re_open"]
        fleet.do("UPDATE async_refunds.runs SET state = 'open' WHERE name = 'paused'")
        assert ids(await one.claim()) == ["re_paused"]


async def test_next_holder_begins_at_the_first_item_again(fleet: Fleet) -> None:
    fleet.add(["re_1", "re_2"])
    async with worker(fleet.address) as one:
        await one.acquire()
        await one.journal.give_back(await one.claim())
        await hold_again(one)
        fleet.add(["re_3"])
        assert ids(await one.claim()) == ["re_1", "re_2", "re_3"]


# -------------------------------------------------------------------------- new keys


async def test_new_key_is_refused_where_somebody_has_a_later_one(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address) as one:
        await one.acquire()
        (claim,) = await one.claim()
        for later in (2, 5):
            fleet.do("UPDATE async_refunds.items SET generation = %s", later)
            with pytest.raises(LeaseLostError):
                await one.journal.rekey(claim)
            assert item(fleet, "generation") == (later,)
            await one.acquire()


async def test_new_key_of_a_claim_that_a_failover_forgot(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address) as one:
        await one.acquire()
        (claim,) = await one.claim()
        forget_claims(fleet)
        new = await one.journal.rekey(claim)
        assert new.idempotency_key != claim.idempotency_key
        kept = "generation, maybe_sent, claimed_by::text, timeline"
        assert item(fleet, kept) == (
            *(2, True),
            new.token,  # type: ignore[attr-defined]
            fleet.value("SELECT async_refunds.timeline()"),
        )


async def test_no_new_key_for_a_while_after_a_failover_under_the_holder(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address) as one:
        await one.acquire()
        (claim,) = await one.claim()
        await one.leases.renew()
        begin_history(fleet)
        await one.leases.renew()
        rekeying = asyncio.create_task(one.journal.rekey(claim))
        asked = """SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND query LIKE '%%AS wait%%'
                AND query NOT LIKE '%%pg_stat_activity%%' AND state = 'idle'"""
        await until(lambda: fleet.value(asked))
        assert item(fleet, "generation") == (1,)
        assert not rekeying.done()
        rekeying.cancel()
        fleet.do("UPDATE async_refunds.timelines SET seen_at = '2020-01-01'")
        assert await one.journal.rekey(claim)


async def test_key_that_was_not_used_is_fresh_to_the_next(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address) as one, worker(fleet.address, "two") as two:
        await one.acquire()
        await one.claim()
        fleet.expire()
        await two.acquire()
        fleet.do(NO_GRACE)
        (claim,) = await two.claim()
        assert claim.maybe_sent
        fleet.do(AN_HOUR_AGO)
        new = await two.journal.rekey(claim)
        assert time.time() - new.key_created_at < 60, "not as old as the one before"
        await two.journal.give_back([claim])  # the older claim of it: nothing happens
        assert item(fleet, "maybe_sent, claims") == (True, 2)
        await two.journal.give_back([new])
        await two.leases.release(None)
        await two.acquire()
        (again,) = await two.claim()
        assert again.idempotency_key == new.idempotency_key
        assert not again.maybe_sent


# ----------------------------------------------------------------- one process alone


async def test_run_alone_takes_the_accounts_that_it_asks_for(fleet: Fleet) -> None:
    """Those also where they were to wait, and no others."""
    fleet.add(["re_1"], "acct_1")
    fleet.add(["re_2"], "acct_2")
    async with worker(fleet.address) as one:
        await one.acquire()
        (claim,) = await one.claim("acct_2")
        await one.settle(claim, "failed")
        await one.leases.release_all({"acct_1": 0.0, "acct_2": 60.0})
    run = Run(URL, livemode=False)
    async with await PostgresJournal.open(fleet.address, run, name="run") as alone:
        alone.begin()
        assert ids((await alone.claim({"acct_2": 5}))["acct_2"]) == ["re_2"]
        held = "SELECT account FROM async_refunds.leases WHERE token IS NOT NULL"
        assert fleet.rows(held) == [("acct_2",)]
        waits = """SELECT not_before, retry_at FROM async_refunds.leases
            WHERE account = 'acct_2' AND (not_before > now() OR retry_at > now())"""
        assert fleet.rows(waits) == []
        alone.end()
        # A second batch claims again what the first one had.
        alone.begin()
        assert ids((await alone.claim({"acct_2": 5}))["acct_2"]) == ["re_2"]
