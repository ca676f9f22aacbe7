"""Who holds an account: one worker at a time, as long as it lives and renews."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from async_refunds.errors import JournalError
from async_refunds.journal.postgres import Database, Leases
from async_refunds.journal.postgres.leases import monotonic
from tests.support.fleets import SCOPE, WAITING, ids, until, worker

if TYPE_CHECKING:
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.asyncio(loop_factories=["real"])


async def test_account_is_held_by_one_worker(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    fleet.add(["re_1"], "acct_1")
    async with worker(fleet.address) as one, worker(fleet.address, "two") as two:
        assert await one.acquire() == {None, "acct_1"}
        assert await two.acquire() == set()
        assert one.leases.accounts == [None, "acct_1"]
        await one.leases.release("acct_1", rate=7.5)
        await one.leases.release("acct_1")  # nothing happens
        (lease,) = await two.leases.acquire(10)
        assert (lease.account, lease.rate, lease.takeovers) == ("acct_1", 7.5, 0)
        assert two.leases.rate("acct_1") == 7.5
        assert one.leases.rate("acct_1") is None


@pytest.mark.usefixtures("both_ways")
async def test_workers_that_take_a_few_at_a_time_share(fleet: Fleet) -> None:
    for number in range(9):
        fleet.add(["re_1"], f"acct_{number}")
    async with worker(fleet.address) as one, worker(fleet.address, "two") as two:
        taken = [await each.acquire(2) for each in (one, two, one, two, one)]
        assert [len(each) for each in taken] == [2, 2, 2, 2, 1]
        assert len({account for each in taken for account in each}) == 9


@pytest.mark.usefixtures("both_ways")
async def test_account_with_nothing_to_do_is_not_taken(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    fleet.add(["re_1"], "acct_1", run="paused")
    fleet.add(["re_1"], "acct_2")
    fleet.do("UPDATE async_refunds.runs SET state = 'paused' WHERE name = 'paused'")
    fleet.do("UPDATE async_refunds.items SET settled = true WHERE account = 'acct_2'")
    async with worker(fleet.address) as one:
        assert await one.acquire() == {None}
        fleet.do("UPDATE async_refunds.runs SET state = 'open'")
        assert await one.acquire() == {"acct_1"}


async def test_account_of_a_killed_worker_is_taken_over(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address) as one, worker(fleet.address, "two") as two:
        await one.acquire()
        one.leases.note_rate(None, 12.0)
        fleet.do("UPDATE async_refunds.leases SET renewed_at = '2020-01-01'")
        await one.leases.renew()
        heard_of = "SELECT lease_age_seconds FROM async_refunds.metrics"
        assert fleet.value(heard_of) < 60
        fleet.expire()
        (lease,) = await two.leases.acquire(10)
        assert (lease.takeovers, lease.rate) == (1, 12.0)
        await one.leases.renew()
        assert one.lost == [None]
        assert not one.leases.may_send(None)
        await one.leases.release(None)
        assert fleet.value("SELECT owner FROM async_refunds.leases") == "two"


async def test_rate_that_a_holder_was_told_is_shown_and_binds_no_other(
    fleet: Fleet,
) -> None:
    shown = "SELECT pace FROM async_refunds.metrics"
    fleet.add(["re_1"])
    async with worker(fleet.address) as one, worker(fleet.address, "two") as two:
        await one.acquire()
        one.leases.note_rate(None, 25.0)
        await one.leases.renew()
        one.leases.note_rate(None, 2.0, found=False)
        await one.leases.renew()
        assert fleet.value(shown) == 2.0
        await one.leases.release(None)
        assert fleet.value(shown) == 2.0
        (lease,) = await two.leases.acquire(10)
        assert lease.rate is None
        two.leases.note_rate(None, 12.0)
        await two.leases.release(None)
        assert fleet.value(shown) == 12.0


async def test_takeover_tells_of_whom_and_what_is_left(fleet: Fleet) -> None:
    fleet.add(["re_1", "re_2", "re_3"])
    fleet.add(["re_4"], run="paused")
    fleet.do("UPDATE async_refunds.runs SET state = 'paused' WHERE name = 'paused'")
    fleet.do("UPDATE async_refunds.items SET settled = true WHERE refund_id = 're_1'")
    async with worker(fleet.address) as one, worker(fleet.address, "two") as two:
        (first,) = await one.leases.acquire(10)
        assert (first.former, first.left) == (None, 0)
        fleet.expire()
        (second,) = await two.leases.acquire(10)
        assert (second.former, second.left) == ("one", 2)
        assert await two.leases.release_all({None: 0.0}) == {}
        (third,) = await two.leases.acquire(10)
        assert (third.former, third.left) == (None, 0)


async def test_release_tells_until_when_what_failed_waits(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    fleet.add(["re_2"], "acct_1")
    async with worker(fleet.address) as one:
        await one.acquire()
        (claim,) = await one.claim()
        await one.settle(claim, "failed")
        left = await one.leases.release_all({None: 0.0, "acct_1": 0.0})
        assert left.keys() == {None}
        assert 50 < left[None] <= 60


async def test_late_renewal_of_a_lease_that_nobody_took_lives_on(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address) as one, worker(fleet.address, "two") as two:
        await one.acquire()
        fleet.expire()
        one.clock.now += 1000
        assert not one.leases.may_send(None)
        await one.leases.renew()
        assert one.leases.may_send(None)
        assert one.lost == []
        assert await two.acquire() == set()


async def test_sends_stop_when_the_lease_ends_on_the_workers_own_clock(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address, ttl=30) as one:
        assert not one.leases.may_send(None)
        await one.acquire()
        one.clock.now += 29.9
        assert one.leases.may_send(None)
        one.clock.now += 0.2
        assert not one.leases.may_send(None)
        assert not one.leases.may_send("acct_1")
        await one.leases.release(None)
        one.clock.now -= 10
        assert not one.leases.may_send(None)


async def test_lease_counts_from_when_its_renewal_was_sent(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address, ttl=30) as one:
        await one.acquire()
        fleet.do("BEGIN")
        fleet.do("SELECT FROM async_refunds.leases FOR UPDATE")
        renewing = asyncio.create_task(one.leases.renew())
        await until(lambda: fleet.value(WAITING))
        one.clock.now += 20  # the database takes long
        fleet.do("COMMIT")
        await renewing
        one.clock.now += 9
        assert one.leases.may_send(None)
        one.clock.now += 2
        assert not one.leases.may_send(None)


async def test_what_is_not_held_is_neither_noted_nor_lost(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address) as one:
        (old,) = await one.leases.acquire(1)
        await one.leases.release(None)
        one.leases.note_rate(None, 5.0)
        await one.leases.acquire(1)
        one.leases.lose(old)
        assert one.lost == []
        await one.leases.renew()
        assert fleet.value("SELECT pace FROM async_refunds.leases") is None
        (held,) = [one.leases.get(account) for account in one.leases.accounts]
        assert held is not None
        one.leases.on_lost = None
        one.leases.lose(held)
        assert one.leases.accounts == []


async def test_clock_goes_on_while_the_machine_is_suspended_where_that_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if hasattr(time, "CLOCK_BOOTTIME"):
        clocks = {time.CLOCK_BOOTTIME: 2.5}
        monkeypatch.setattr(time, "clock_gettime", clocks.__getitem__)
        assert monotonic() == 2.5
    monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)
    assert abs(monotonic() - time.monotonic()) < 60


async def test_task_renews_until_it_is_closed(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    ends = "SELECT until FROM async_refunds.leases"
    async with Leases(Database(fleet.address), SCOPE, "one", ttl=0.3) as leases:
        await leases.start()  # it does already
        assert [lease.account for lease in await leases.acquire(1)] == [None]
        first = fleet.value(ends)
        await until(lambda: fleet.value(ends) != first)
        assert leases.may_send(None)
    assert fleet.value("SELECT token FROM async_refunds.leases") is None
    with pytest.raises(JournalError, match="was closed"):
        await leases.acquire(1)


@pytest.mark.usefixtures("both_ways")
async def test_account_whose_key_was_refused_waits(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address) as one:
        await one.acquire()
        await one.leases.release(None, not_before=60)
        assert await one.acquire() == set()
        fleet.do("UPDATE async_refunds.leases SET not_before = clock_timestamp()")
        assert await one.acquire() == {None}


@pytest.mark.usefixtures("both_ways")
async def test_what_was_left_open_waits_longer_each_time_and_new_items_do_not(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1"])
    waits = """SELECT round(extract(epoch FROM retry_at - clock_timestamp()) / 60)
        FROM async_refunds.leases WHERE account = ''"""
    async with worker(fleet.address) as one:
        found: list[int] = []
        for _ in range(6):
            assert await one.acquire() == {None}
            (claim,) = await one.claim()
            await one.settle(claim, "failed")
            await one.leases.release(None)
            assert await one.acquire() == set()
            found.append(int(fleet.value(waits)))
            fleet.do("UPDATE async_refunds.leases SET retry_at = clock_timestamp()")
        assert found == [1, 2, 4, 8, 15, 15]
        await one.acquire()
        await one.settle((await one.claim())[0], "failed")
        await one.leases.release(None)
        fleet.add(["re_2"])
        assert await one.acquire() == {None}
        (claim,) = await one.claim()
        assert claim.refund_id == "re_2"
        await one.settle(claim)
        await one.leases.release(None)
        assert int(fleet.value(waits)) == 15, "it goes on waiting"
        fleet.do("UPDATE async_refunds.leases SET retry_at = clock_timestamp()")
        await one.acquire()
        await one.settle((await one.claim())[0])
        await one.leases.release(None)
        assert (
            fleet.value("SELECT retries FROM async_refunds.leases WHERE account = ''")
            == 0
        )


async def test_item_that_ends_its_workers_is_isolated_and_then_dead(
    fleet: Fleet,
) -> None:
    fleet.add(f"re_{number}" for number in range(64))
    pages: list[int] = []
    for _ in range(9):  # each claims, and is killed at its first item
        async with worker(fleet.address) as one:
            await one.acquire()
            pages.append(len(await one.claim(limit=64)))
            fleet.do("UPDATE async_refunds.leases SET owner = 'killed'")
            one.leases.lose(one.leases.get(None))  # type: ignore[arg-type] # it has it
        fleet.expire()
    # The ninth finds the item dead, and takes the next one in its place.
    assert pages == [64, 64, 64, 16, 4, 1, 1, 1, 1]
    dead = "SELECT refund_id FROM async_refunds.items WHERE dead ORDER BY number"
    assert fleet.rows(dead) == [("re_0",)]
    async with worker(fleet.address) as one:
        await one.acquire()
        while claims := await one.claim(limit=64):
            assert len(claims) == 1
            for claim in claims:
                await one.settle(claim)
            await one.leases.release(None)
            await one.acquire()
            if one.leases.get(None) is None:
                break
    assert fleet.value("SELECT count(*) FROM async_refunds.items WHERE settled") == 63


async def test_number_of_takeovers_is_forgotten_with_what_was_suspicious(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1", "re_2"])
    async with worker(fleet.address) as one:
        await one.acquire()
        fleet.do("UPDATE async_refunds.leases SET takeovers = 3")
        fleet.do("UPDATE async_refunds.items SET claims = 3 WHERE number = 2")
        await one.leases.release(None)
        assert fleet.value("SELECT takeovers FROM async_refunds.leases") == 3
        await one.acquire()
        assert ids(await one.claim(limit=8)) == ["re_1", "re_2"]
        fleet.do("UPDATE async_refunds.leases SET takeovers = 3")
        fleet.do("UPDATE async_refunds.items SET claims = 0")
        await one.leases.release(None)
        assert fleet.value("SELECT takeovers FROM async_refunds.leases") == 0


async def test_lease_counts_from_when_it_was_asked_for(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address, ttl=30) as one:
        fleet.do("BEGIN")
        fleet.do("LOCK TABLE async_refunds.leases")
        acquiring = asyncio.create_task(one.acquire())
        await until(lambda: fleet.value(WAITING))
        one.clock.now += 20  # the database takes long
        fleet.do("COMMIT")
        assert await acquiring == {None}
        one.clock.now += 9
        assert one.leases.may_send(None)
        one.clock.now += 2
        assert not one.leases.may_send(None)


async def test_account_that_is_released_while_it_is_renewed_may_send_nothing(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address) as one:
        await one.acquire()
        fleet.do("BEGIN")
        fleet.do("SELECT FROM async_refunds.leases FOR UPDATE")
        renewing = asyncio.create_task(one.leases.renew())
        await until(lambda: fleet.value(WAITING))
        releasing = asyncio.create_task(one.leases.release(None))
        await asyncio.sleep(0)
        fleet.do("COMMIT")
        await asyncio.gather(renewing, releasing)
        assert not one.leases.may_send(None)
        assert one.lost == []


async def test_pace_of_an_earlier_holding_is_not_written_over_the_next_holders(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1"])
    pace = "SELECT pace FROM async_refunds.leases"
    async with worker(fleet.address) as one:
        for lose in (False, True):
            (lease,) = await one.leases.acquire(1)
            one.leases.note_rate(None, 5.0)
            if lose:
                one.leases.lose(lease)
                fleet.expire()
            else:
                await one.leases.release(None)
            fleet.do("UPDATE async_refunds.leases SET pace = 9")
            await one.acquire()
            await one.leases.renew()
            assert fleet.value(pace) == 9
            await one.leases.release(None)
            assert fleet.value(pace) == 9, "none was noted"


async def test_release_leaves_a_wait_that_goes_on_and_begins_none_without_a_result(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1"])
    waits = "SELECT retry_at, retries FROM async_refunds.leases"
    async with worker(fleet.address) as one:
        await one.acquire()
        await one.leases.release(None)  # re_1 was not even asked for
        assert fleet.value("SELECT retries FROM async_refunds.leases") == 0
        await one.acquire()
        await one.settle((await one.claim())[0], "failed")
        await one.leases.release(None)
        ((until_then, retries),) = fleet.rows(waits)
        assert retries == 1
        fleet.add(["re_2"])
        await one.acquire()
        await one.settle((await one.claim())[0])
        await one.leases.release(None)
        assert fleet.rows(waits) == [(until_then, 1)]


async def test_grace_of_a_takeover_outlives_a_clean_handover(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    grace = "SELECT no_new_key_until FROM async_refunds.leases"
    async with worker(fleet.address) as one, worker(fleet.address, "two") as two:
        await one.acquire()
        fleet.expire()
        await two.acquire()
        before = fleet.value(grace)
        await two.leases.release(None)
        async with worker(fleet.address, "three") as three:
            assert await three.acquire() == {None}
            assert fleet.value(grace) == before
            assert three.leases.takeovers == 0
        assert (one.leases.takeovers, two.leases.takeovers) == (0, 1)
        row = "SELECT takeovers FROM async_refunds.metrics"
        assert fleet.value(row) == 1


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("first", ["run", "other", "paused"])
async def test_accounts_with_work_in_several_runs_are_each_taken_once(
    fleet: Fleet, first: str
) -> None:
    """Whichever of the runs comes first, and whatever of them is paused or waits."""
    accounts = {"acct_1", "acct_2", "acct_3"}
    for run in ("run", "other", "paused"):
        fleet.add([], run=run)
    fleet.do(
        "UPDATE async_refunds.runs SET run_id = %s WHERE name = %s", "0" * 32, first
    )
    for run in ("run", "other", "paused"):
        for account in accounts:
            fleet.add(["re_1"], account, run=run)
    fleet.do("UPDATE async_refunds.runs SET state = 'paused' WHERE name = 'paused'")
    async with worker(fleet.address) as one:
        assert await one.acquire(3) == accounts
        for account in accounts:
            await one.leases.release(account, retry_later=False)
        # What is open in one of the runs has a result, and waits.
        fleet.do(
            """UPDATE async_refunds.items SET known_at = now() FROM async_refunds.runs r
                WHERE items.run_id = r.run_id AND r.name = 'run'"""
        )
        fleet.do("UPDATE async_refunds.leases SET retry_at = now() + interval '1 h'")
        assert await one.acquire(3) == accounts


@pytest.mark.usefixtures("both_ways")
async def test_all_accounts_are_found_though_each_worker_holds_some(
    fleet: Fleet,
) -> None:
    accounts = {f"acct_{number:02}" for number in range(30)}
    for account in accounts:
        fleet.add(["re_1"], account)
    fleet.do("UPDATE async_refunds.items SET settled = true WHERE account > 'acct_24'")
    async with worker(fleet.address) as one, worker(fleet.address, "two") as two:
        found = [await each.acquire(5) for each in (one, two) * 3]
    assert [len(each) for each in found] == [5, 5, 5, 5, 5, 0]
    assert set().union(*found) == {each for each in accounts if each <= "acct_24"}


async def test_account_that_another_has_by_now_is_not_released(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    fleet.add(["re_1"], "acct_1")
    async with worker(fleet.address) as one, worker(fleet.address, "two") as two:
        await one.acquire()
        fleet.do(
            "UPDATE async_refunds.leases SET until = '-infinity' WHERE account = ''"
        )
        await two.acquire()
        await one.leases.release_all({None: 60.0, "acct_1": 0.0})  # not noticed yet
        held = """SELECT owner, not_before > now() FROM async_refunds.leases
            ORDER BY account"""
        assert fleet.rows(held) == [("two", False), (None, False)]
        await two.leases.renew()
        assert two.lost == []


@pytest.mark.usefixtures("both_ways")
async def test_own_lease_that_has_ended_is_not_taken_again(fleet: Fleet) -> None:
    """It lives on under its token with the next renewal."""
    fleet.add(["re_1"])
    token = "SELECT token FROM async_refunds.leases WHERE account = ''"
    async with worker(fleet.address) as one:
        await one.acquire()
        before = fleet.value(token)
        fleet.expire()
        assert await one.acquire() == set()
        assert fleet.value(token) == before


@pytest.mark.usefixtures("both_ways")
async def test_account_of_two_runs_takes_the_place_of_no_other(fleet: Fleet) -> None:
    fleet.add([], run="first")
    fleet.do("UPDATE async_refunds.runs SET run_id = %s", "0" * 32)
    fleet.add(["re_1"], "acct_1", run="first")
    for account in ("acct_1", "acct_2"):
        fleet.add(["re_1"], account, run="second")
    async with worker(fleet.address) as one:
        assert await one.acquire(2) == {"acct_1", "acct_2"}


async def test_item_that_was_claimed_too_often_is_not_given_out(fleet: Fleet) -> None:
    fleet.add(["re_1", "re_2"])
    fleet.do("UPDATE async_refunds.items SET claims = 8 WHERE number = 1")
    async with worker(fleet.address) as one:
        await one.acquire()
        assert ids(await one.claim(limit=1)) == ["re_2"]
    dead = "SELECT refund_id FROM async_refunds.items WHERE dead"
    assert fleet.rows(dead) == [("re_1",)]
