"""What is given out, in which order, and when it may be given out again."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from async_refunds.errors import JournalError
from async_refunds.journal import Run
from async_refunds.journal.base import LeaseLostError
from async_refunds.journal.keys import derive_key
from async_refunds.journal.postgres import PostgresJournal, administration, run_accounts
from async_refunds.models import Attempt
from async_refunds.results import CancelRequest
from tests.support.fleets import (
    SCOPE,
    URL,
    WAITING,
    begin_history,
    ids,
    result,
    until,
    worker,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from async_refunds.journal.postgres import Lease
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

RUN = Run(URL, livemode=False)


def forget_claims(fleet: Fleet) -> None:
    """Leave what a failover does that has lost all claims."""
    fleet.do(
        """UPDATE async_refunds.items SET maybe_sent = false, generation = 0,
            claimed_by = NULL, claim_number = NULL, claimed_at = NULL,
            timeline = NULL, claims = 0, credentials = NULL"""
    )


async def test_items_of_all_open_runs_come_by_priority_then_number(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1", "re_2"], run="first")
    fleet.add(["re_3", "re_4"], run="urgent", priority=-1)
    fleet.add(["re_5"], run="second")
    fleet.add(["re_6"], run="paused")
    fleet.do("UPDATE async_refunds.runs SET state = 'paused' WHERE name = 'paused'")
    async with worker(fleet.address) as one:
        await one.acquire()
        assert ids(await one.claim(limit=3)) == ["re_3", "re_4", "re_1"]
        fleet.add(["re_7"], run="urgent")
        assert ids(await one.claim(limit=2)) == ["re_7", "re_2"]
        fleet.do("UPDATE async_refunds.runs SET state = 'open'")
        assert ids(await one.claim()) == ["re_5", "re_6"]
        assert await one.claim() == []


async def test_items_committed_late_are_not_passed_over(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    with psycopg.connect(fleet.address) as slow:
        slow.execute("SELECT async_refunds.enqueue('run', '{re_2,re_3}')")
        fleet.add(["re_4"])
        async with worker(fleet.address) as one:
            await one.acquire()
            assert ids(await one.claim()) == ["re_1", "re_4"]
            slow.commit()
            fleet.add(["re_5"])
            assert ids(await one.claim(limit=1)) == ["re_5"]
            assert ids(await one.claim(limit=9)) == ["re_2", "re_3"]


async def test_several_accounts_are_served_by_one_statement(fleet: Fleet) -> None:
    for account in ("", "acct_1", "acct_2"):
        fleet.add(["re_1", "re_2", "re_3"], account)
    async with worker(fleet.address) as one:
        await one.acquire()
        await one.journal.claim({None: 1})  # reads the run, too
        before = one.journal.transactions
        found = await one.journal.claim(
            {None: 9, "acct_1": 1, "acct_2": 2, "acct_3": 1}
        )
        assert one.journal.transactions == before + 1
        assert {account: len(claims) for account, claims in found.items()} == {
            None: 2,
            "acct_1": 1,
            "acct_2": 2,
        }


async def test_key_is_derived_from_the_run_so_that_a_lost_one_is_the_same(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1"], "acct_1")
    seed = fleet.value("SELECT seed FROM async_refunds.runs")
    async with worker(fleet.address) as one:
        await one.acquire()
        (claim,) = await one.claim("acct_1")
        assert claim.idempotency_key == derive_key(seed, "acct_1", "re_1", 1)
        new = await one.journal.rekey(claim)
        assert new.idempotency_key == derive_key(seed, "acct_1", "re_1", 2)
        (record,) = one.journal.records()
        assert record.idempotency_key == new.idempotency_key
        await one.settle(new)
        (record,) = one.journal.records()
        assert record.idempotency_key == new.idempotency_key
        assert abs(time.time() - claim.key_created_at) < 60


async def test_next_holder_has_the_same_keys_and_is_told_that_they_may_be_sent(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1", "re_2"])
    async with worker(fleet.address) as one, worker(fleet.address, "two") as two:
        await one.acquire()
        first = await one.claim(limit=1)
        fleet.expire()
        await two.acquire()
        again, fresh = await two.claim()
        assert again.idempotency_key == first[0].idempotency_key
        assert again.key_created_at == pytest.approx(first[0].key_created_at, abs=0.5)
        assert (again.maybe_sent, fresh.maybe_sent) == (True, False)
        assert again.key_unused_until < first[0].key_unused_until


async def test_former_holder_writes_nothing(fleet: Fleet) -> None:
    fleet.add(["re_1", "re_2"])
    fleet.add(["re_1"], "acct_1")
    async with worker(fleet.address) as one, worker(fleet.address, "two") as two:
        await one.acquire()
        stolen, other = await one.claim()
        (kept,) = await one.claim("acct_1")
        fleet.do(
            "UPDATE async_refunds.leases SET until = '-infinity' WHERE account = ''"
        )
        await two.acquire()
        with pytest.raises(LeaseLostError) as caught:
            await one.journal.settle([(stolen, result(stolen)), (kept, result(kept))])
        assert caught.value.accounts == {None}
        assert one.lost == [None]
        assert not one.leases.may_send(None)
        assert fleet.rows(
            "SELECT account, settled FROM async_refunds.items ORDER BY number"
        ) == [("", False), ("", False), ("acct_1", True)]
        for write in (
            one.journal.rekey(stolen),
            one.journal.give_back([other]),
            one.settle(other),
        ):
            with pytest.raises(LeaseLostError):
                await write
        assert await one.journal.claim({None: 1, "acct_1": 1}) == {"acct_1": []}
        await two.settle((await two.claim())[0])
        assert one.journal.tally().open == 1


async def test_claim_finds_out_that_an_account_was_taken_over(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    fleet.add(["re_1"], "acct_1")
    async with worker(fleet.address) as one, worker(fleet.address, "two") as two:
        await one.acquire()
        fleet.do(
            "UPDATE async_refunds.leases SET until = '-infinity' WHERE account = ''"
        )
        await two.acquire()
        found = await one.journal.claim({None: 1, "acct_1": 1})
        assert list(found) == ["acct_1"]
        assert one.lost == [None]


async def test_takeover_waits_for_a_write_under_way(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address) as one, worker(fleet.address, "two") as two:
        await one.acquire()
        (claim,) = await one.claim()
        fleet.expire()
        with psycopg.connect(fleet.address) as reader:
            # The item is locked: the write has its lease, and waits.
            reader.execute("SELECT FROM async_refunds.items FOR UPDATE")
            settling = asyncio.create_task(one.settle(claim))
            await until(lambda: fleet.value(WAITING))
            assert await two.acquire() == set()
        await settling
        fleet.add(["re_2"])
        assert await two.acquire() == {None}
        assert ids(await two.claim()) == ["re_2"]


async def test_failed_items_come_last_and_only_to_the_next_holder(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1", "re_2", "re_3"])
    attempts = (attempt(),)
    async with worker(fleet.address) as one:
        await one.acquire()
        first, _, _ = await one.claim()
        await one.journal.settle([(first, result(first, "failed", attempts))])
        assert await one.claim() == []
        await one.leases.release(None, retry_later=False)
        await one.acquire()
        again = await one.claim()
        assert ids(again) == ["re_2", "re_3", "re_1"]
        assert [claim.maybe_sent for claim in again] == [True, True, False]
        assert again[2].idempotency_key != first.idempotency_key


def attempt(status: int = 429) -> Attempt:
    path = "/v1/refunds/re_1/cancel"
    return Attempt(1, "POST", path, status, None, "req_1", seconds=0.1, slept=0.0)


async def test_no_new_key_while_the_former_holder_may_have_a_request_under_way(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1", "re_2"])
    async with worker(fleet.address) as one, worker(fleet.address, "two") as two:
        await one.acquire()
        failed, _ = await one.claim()
        await one.journal.settle([(failed, result(failed, "failed", (attempt(),)))])
        fleet.expire()
        await two.acquire()
        (claim,) = await two.claim()
        assert claim.refund_id == "re_2", "re_1 would get another key"
        rekeying = asyncio.create_task(two.journal.rekey(claim))
        await asyncio.wait([rekeying], timeout=0.05)
        seconds = fleet.value(
            """SELECT extract(epoch FROM no_new_key_until - clock_timestamp())::float8
                FROM async_refunds.leases"""
        )
        assert 120 < seconds <= 130, "a lease and a deadline"
        assert not rekeying.done()
        rekeying.cancel()
        fleet.do(
            """UPDATE async_refunds.leases
                SET no_new_key_until = clock_timestamp() + interval '0.05 s'"""
        )
        new = await two.journal.rekey(claim)
        assert new.idempotency_key != claim.idempotency_key
        assert ids(await two.claim()) == ["re_1"]


async def test_clean_handover_makes_new_keys_at_once(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address) as one, worker(fleet.address, "two") as two:
        await one.acquire()
        (claim,) = await one.claim()
        await one.journal.settle([(claim, result(claim, "failed", (attempt(),)))])
        await one.leases.release(None, retry_later=False)
        await two.acquire()
        assert ids(await two.claim()) == ["re_1"]


async def test_after_a_failover_all_that_is_open_counts_as_maybe_sent(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1", "re_2"])
    begin_history(fleet)
    async with worker(fleet.address) as one:
        await one.acquire_after_failover(fleet)
        fleet.add(["re_3"])
        claims = await one.claim()
        assert [claim.maybe_sent for claim in claims] == [True, True, False]
        seed = fleet.value("SELECT seed FROM async_refunds.runs")
        assert claims[0].idempotency_key == derive_key(seed, None, "re_1", 1)
        await one.journal.give_back(claims)
        await one.leases.release(None)
        await one.acquire()
        again = await one.claim()
        assert [claim.maybe_sent for claim in again] == [True, True, False]


async def test_failover_under_a_holder_is_seen_before_anybody_noted_it(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1", "re_2"])
    async with worker(fleet.address) as one:
        await one.acquire()
        (first,) = await one.claim(limit=1)
        begin_history(fleet)
        forget_claims(fleet)
        (second,) = await one.claim()
        assert second.refund_id == "re_2", "re_1 is under way"
        assert second.maybe_sent
        await one.settle(first)
        key = "SELECT idempotency_key FROM async_refunds.items WHERE settled"
        assert fleet.value(key) == first.idempotency_key


async def test_age_of_a_key_counts_from_the_claim_that_a_failover_may_have_forgotten(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address) as one:
        await one.acquire()
        await one.claim()
        begin_history(fleet)
        fleet.do("UPDATE async_refunds.items SET claimed_at = now() - interval '22 h'")
        await one.leases.release(None)
        await one.acquire_after_failover(fleet)
        (again,) = await one.claim()
        assert again.maybe_sent
        assert one.journal.now() - again.key_created_at < 60


async def test_result_of_a_claim_that_a_failover_forgot_says_that_it_was_sent(
    fleet: Fleet,
) -> None:
    """Or the next holder takes it for never sent, and ends it with another key."""
    fleet.add(["re_1"])
    async with worker(fleet.address) as one:
        await one.acquire()
        (claim,) = await one.claim()
        begin_history(fleet)
        forget_claims(fleet)
        await one.leases.renew()
        await one.settle(claim, "unknown")
        assert fleet.value("SELECT claimed_at IS NOT NULL FROM async_refunds.items")
        await one.leases.release(None, retry_later=False)
        await one.acquire()
        (again,) = await one.claim()
        assert again.maybe_sent
        assert again.idempotency_key == claim.idempotency_key
        await one.journal.give_back([again])
        assert fleet.value("SELECT maybe_sent FROM async_refunds.items")


async def test_after_a_failover_no_new_key_for_a_while(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address) as one:
        await one.acquire()
        (claim,) = await one.claim()
        await one.journal.settle([(claim, result(claim, "failed", (attempt(),)))])
        await one.leases.release(None, retry_later=False)
        await one.acquire()
        begin_history(fleet)
        await one.leases.renew()
        assert await one.claim() == []
        fleet.do("UPDATE async_refunds.timelines SET seen_at = '2020-01-01'")
        (again,) = await one.claim()
        assert again.maybe_sent, "a lost commit may have asked with the next key"
        assert again.idempotency_key != claim.idempotency_key


async def test_after_a_failover_nobody_knows_with_which_credentials_it_was_claimed(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1", "re_2"])
    async with worker(fleet.address) as one:
        one.journal.begin("a")
        await one.acquire()
        (first,) = await one.claim(limit=1)
        assert first.same_credentials
        await one.leases.release(None)
        begin_history(fleet)
        await one.acquire_after_failover(fleet)
        found = await one.claim()
        assert [claim.maybe_sent for claim in found] == [True, True]
        assert not any(claim.same_credentials for claim in found)
        await one.leases.release(None)
        await one.acquire()
        assert not any(claim.same_credentials for claim in await one.claim())


async def test_account_of_which_nothing_can_be_claimed_yet_is_not_taken(
    fleet: Fleet,
) -> None:
    """Who gave it back would let all that is open of it wait for a minute more."""
    fleet.add(["re_1"])
    async with worker(fleet.address) as one:
        await one.acquire()
        (claim,) = await one.claim()
        failed = result(claim, "failed", (attempt(),))
        await one.journal.settle([(claim, failed)])
        await one.leases.release(None, retry_later=False)
        fleet.do(
            "UPDATE async_refunds.leases SET no_new_key_until = now() + interval '90 s'"
        )
        with psycopg.connect(fleet.address, autocommit=True) as connection:
            retried = administration.retry(connection, "run", ["failed"])
        assert (retried.opened, retried.open_already) == (0, 1)
        assert 80 < retried.seconds <= 90
        assert await one.acquire() == set()
        fleet.do("UPDATE async_refunds.leases SET no_new_key_until = now()")
        assert await one.acquire() == {None}
        assert ids(await one.claim()) == ["re_1"]


async def test_account_of_which_a_failover_lets_nothing_be_claimed_yet_is_not_taken(
    fleet: Fleet,
) -> None:
    """Else it would be taken in vain, again and again, and nobody be any wiser."""
    fleet.add(["re_1"])
    async with worker(fleet.address, ttl=30.0, deadline=100.0) as one:
        await one.acquire()
        (claim,) = await one.claim()
        await one.journal.settle([(claim, result(claim, "failed", (attempt(),)))])
        await one.leases.release(None, retry_later=False)
        begin_history(fleet)
        assert await one.acquire() == set(), "it is noted by this"
        for seconds, taken in ((100, set[None]()), (131, {None})):
            fleet.do(
                """UPDATE async_refunds.timelines
                    SET seen_at = now() - make_interval(secs => %s)""",
                seconds,
            )
            assert await one.acquire() == taken
        assert ids(await one.claim()) == ["re_1"]


async def test_account_with_something_that_needs_no_new_key_is_taken_after_a_failover(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1", "re_2"])
    async with worker(fleet.address) as one:
        await one.acquire()
        first, second = await one.claim()
        await one.journal.settle([(first, result(first, "failed", (attempt(),)))])
        await one.settle(second, "unknown")
        await one.leases.release(None, retry_later=False)
        begin_history(fleet)
        assert await one.acquire_after_failover(fleet) == {None}
        assert ids(await one.claim()) == ["re_2"]


async def test_claim_of_a_worker_of_before_may_have_had_others(fleet: Fleet) -> None:
    """It goes on until it connects again, and does not note with which it sends."""
    fleet.add(["re_1"])
    async with worker(fleet.address) as one:
        one.journal.begin("a")
        await one.acquire()
        await one.claim()
        await one.leases.release(None)
        noted = fleet.value("SELECT credentials FROM async_refunds.items")
        await one.acquire()
        await one.claim()
        await one.leases.release(None)
        fleet.do("UPDATE async_refunds.items SET credentials = %s", noted)
        await one.acquire()
        (claim,) = await one.claim()
        assert claim.maybe_sent
        assert not claim.same_credentials


async def test_new_key_has_the_credentials_of_its_own(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    for credentials, same in (("a", True), ("b", False), ("b", True)):
        async with worker(fleet.address) as one:
            one.journal.begin(credentials)
            await one.acquire()
            (claim,) = await one.claim()
            assert claim.same_credentials is same
            if not same:
                await one.journal.rekey(claim)


async def test_database_that_does_not_tell_its_history_is_worked_with(
    fleet: Fleet,
) -> None:
    fleet.do(
        """CREATE OR REPLACE FUNCTION async_refunds.timeline() RETURNS text
            LANGUAGE sql AS 'SELECT NULL::text'"""
    )
    fleet.add(["re_1"])
    async with worker(fleet.address) as one:
        await one.acquire()
        (claim,) = await one.claim()
        assert not claim.maybe_sent
        assert await one.journal.rekey(claim)


async def test_item_that_is_gone_gets_no_key(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address) as one:
        await one.acquire()
        (claim,) = await one.claim()
        fleet.do("DELETE FROM async_refunds.items")
        with pytest.raises(LeaseLostError):
            await one.journal.rekey(claim)
        assert one.lost == [None]


async def test_results_are_kept_with_what_the_last_answer_said(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address) as one:
        await one.acquire()
        (claim,) = await one.claim()
        error = ValueError("a\0b")
        known = result(claim, "unknown", (attempt(429), attempt(500)))
        known = type(known)(
            refund_id=known.refund_id,
            stripe_account=None,
            outcome="unknown",
            error=error,
            idempotency_key=claim.idempotency_key,
            attempts=known.attempts,
            settled=False,
            seconds=1.5,
        )
        await one.journal.settle([(claim, known)])
        (record,) = one.journal.records()
        assert record.error == "a\ufffdb"
        assert (record.attempts, record.request_id, record.seconds) == (2, "req_1", 1.5)
        tally = one.journal.tally()
        assert (tally.open, tally.requests, tally.rate_limited) == (1, 2, 1)
        assert tally.seconds >= 0


async def test_worker_adds_nothing_and_has_no_run(fleet: Fleet) -> None:
    async with worker(fleet.address) as one:
        assert one.journal.run is None
        with pytest.raises(JournalError, match=r"with PostgresJournal\.open$"):
            await one.journal.add([CancelRequest("re_1")])
        assert await one.journal.accounts() == []
        fleet.add(["re_1"])
        await one.acquire()
        assert await one.journal.accounts() == [None]


async def test_memory_does_not_grow_with_the_accounts_that_came_and_went(
    fleet: Fleet,
) -> None:
    for number in range(150):
        fleet.add(["re_1"], f"acct_{number}")
    async with worker(fleet.address) as one:
        for _ in range(15):
            accounts = await one.acquire()
            found = await one.journal.claim(dict.fromkeys(accounts, 1))
            claims = [claim for each in found.values() for claim in each]
            await one.journal.settle([(claim, result(claim)) for claim in claims])
            for account in accounts:
                await one.leases.release(account)
        fleet.add(["re_2"], "acct_0")
        await one.acquire()
        await one.journal.claim({None: 1, "acct_0": 1})
        await one.journal.settle([])
        await one.journal.claim({None: 1})
        assert len(one.journal._given_out) <= 120  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - what it keeps


async def test_run_of_a_newer_derivation_is_refused(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    fleet.do("UPDATE async_refunds.runs SET derivation = 2")
    async with worker(fleet.address) as one:
        await one.acquire()
        with pytest.raises(JournalError, match="rule 2, and this release knows"):
            await one.claim()


# ------------------------------------------------------------- one process alone


async def test_run_alone_says_who_has_the_lease(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_accounts, "_OVER", 0.0)  # it would wait for seconds
    fleet.add(["re_1"])
    fleet.add(["re_2"], run="other")
    async with (
        worker(fleet.address, "host 1") as one,
        await PostgresJournal.open(fleet.address, RUN, name="run", ttl=0.01) as alone,
    ):
        await one.acquire()
        with pytest.raises(JournalError, match="host 1 works on the key's own account"):
            await alone.claim({None: 5})
        fleet.expire()
        found = await alone.claim({None: 5})
        assert ids(found[None]) == ["re_1"], "the other run's is left alone"
        assert alone.tally().total == 1
        await alone.close()
    assert fleet.value("SELECT token FROM async_refunds.leases") is None


async def test_run_alone_waits_for_the_end_of_a_lease(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_accounts, "_OVER", 3600.0)
    fleet.add(["re_1"])
    async with (
        worker(fleet.address, "host 1") as one,
        await PostgresJournal.open(fleet.address, RUN, name="run") as alone,
    ):
        looks: list[list[Lease]] = []
        acquire = alone.leases.acquire

        async def noted(limit: int, *, only: Iterable[str | None]) -> list[Lease]:
            looks.append(await acquire(limit, only=only))
            return looks[-1]

        monkeypatch.setattr(alone.leases, "acquire", noted)
        assert await one.acquire() == {None}
        claiming = asyncio.create_task(alone.claim({None: 5}))
        await until(lambda: len(looks) > 1)
        assert looks == [[]] * len(looks)
        assert not claiming.done()
        fleet.expire()
        assert ids((await claiming)[None]) == ["re_1"]


async def test_run_alone_has_what_is_freed_between_its_two_questions(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has it any more, and it was not free a moment ago."""
    fleet.add(["re_1"])
    async with (
        worker(fleet.address, "host 1") as one,
        await PostgresJournal.open(fleet.address, RUN, name="run") as alone,
    ):
        acquire = alone.leases.acquire

        async def freed(limit: int, *, only: Iterable[str | None]) -> list[Lease]:
            found = await acquire(limit, only=only)
            fleet.expire()
            return found

        monkeypatch.setattr(alone.leases, "acquire", freed)
        assert await one.acquire() == {None}
        assert ids((await alone.claim({None: 5}))[None]) == ["re_1"]


async def test_run_alone_is_on_its_target(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    with pytest.raises(JournalError, match="give another name"):
        await PostgresJournal.open(fleet.address, Run(URL, livemode=True), name="run")
    run = Run(URL, livemode=False, options={"a": 1})
    async with await PostgresJournal.open(fleet.address, run, name="new") as alone:
        assert alone.run == run
        await alone.add([])
    with pytest.raises(JournalError, match="closed"):
        await alone.add([CancelRequest("re_1")])
    assert fleet.value("SELECT scope FROM async_refunds.runs LIMIT 1") == SCOPE
