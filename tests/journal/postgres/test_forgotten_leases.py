"""A failover may forget who holds an account. That one goes by it until it ends."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from async_refunds.journal.base import Run
from async_refunds.journal.postgres import PostgresJournal, run_accounts
from tests.support.fleets import (
    URL,
    Clock,
    begin_history,
    grow_old,
    ids,
    until,
    worker,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from async_refunds.journal.postgres import Lease
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.asyncio(loop_factories=["real"])
TTL = 30.0
OWNERS = "SELECT owner FROM async_refunds.leases ORDER BY account"


def forget_leases(fleet: Fleet) -> None:
    """Leave what a failover does that has lost all that was done to leases."""
    fleet.do(
        """UPDATE async_refunds.leases SET
            token = NULL, owner = NULL, until = '-infinity', timeline = NULL"""
    )


async def test_account_that_was_perhaps_held_is_taken_when_that_has_ended(
    fleet: Fleet,
) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address) as frozen, worker(fleet.address, "two") as two:
        await frozen.acquire()
        begin_history(fleet)
        forget_leases(fleet)
        fleet.add(["re_1"], "acct_1")  # or it was there before, and is forgotten
        assert await two.acquire() == set(), "it notes the history"
        grow_old(fleet, TTL - 5)
        assert frozen.leases.may_send(None)
        assert await two.acquire() == set()
        assert await two.leases.acquire(2, only=[None, "acct_1"]) == []
        grow_old(fleet, 5)
        frozen.clock.now += TTL
        assert not frozen.leases.may_send(None)
        assert await two.acquire() == {None, "acct_1"}


async def test_batch_waits_for_what_was_perhaps_held(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address) as frozen:
        await frozen.acquire()
        begin_history(fleet)
        forget_leases(fleet)
        run = Run(URL, livemode=False)
        async with await PostgresJournal.open(fleet.address, run, name="run") as batch:
            claiming = asyncio.create_task(batch.claim({None: 1}))
            noted = "SELECT count(*) FROM async_refunds.timelines"
            await until(lambda: fleet.value(noted) == 2)
            assert not claiming.done()
            assert fleet.rows(OWNERS) == [(None,)]
            grow_old(fleet, TTL)
            assert ids((await claiming)[None]) == ["re_1"]


async def test_batch_waits_as_long_if_the_failover_comes_while_it_waits(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.add(["re_1"])
    clock = Clock()
    monkeypatch.setattr(run_accounts, "time", SimpleNamespace(monotonic=clock))
    run = Run(URL, livemode=False)
    async with (
        worker(fleet.address) as one,
        await PostgresJournal.open(fleet.address, run, name="run", ttl=TTL) as batch,
    ):
        await one.acquire()
        acquire, looks = batch.leases.acquire, 0

        async def counted(limit: int, *, only: Iterable[str | None]) -> list[Lease]:
            nonlocal looks
            looks += 1
            return await acquire(limit, only=only)

        async def look_twice() -> None:
            before = looks
            await until(lambda: looks >= before + 2 or claiming.done())

        monkeypatch.setattr(batch.leases, "acquire", counted)
        claiming = asyncio.create_task(batch.claim({None: 1}))
        await look_twice()
        clock.now += TTL
        begin_history(fleet)
        forget_leases(fleet)
        await look_twice()
        clock.now += TTL
        await look_twice()
        assert not claiming.done()
        grow_old(fleet, TTL)
        assert ids((await claiming)[None]) == ["re_1"]


async def test_what_is_held_in_this_history_is_known(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address) as one, worker(fleet.address, "two") as two:
        await one.acquire()
        begin_history(fleet)
        await one.leases.renew()
        assert one.leases.may_send(None)
        await one.leases.release(None)
        assert await two.acquire() == {None}


async def test_lease_that_had_ended_at_a_failover_is_not_good_and_not_lost(
    fleet: Fleet,
) -> None:
    """Somebody may have taken it, which is forgotten."""
    fleet.add(["re_1"])
    async with worker(fleet.address) as one, worker(fleet.address, "two") as two:
        await one.acquire()
        one.clock.now += TTL
        fleet.expire()
        await two.acquire()
        begin_history(fleet)
        # As it was before the second one took it.
        fleet.do(
            "UPDATE async_refunds.leases SET token = %s, owner = 'one'",
            one.leases.get(None).token,  # type: ignore[union-attr] # it has it
        )
        fleet.expire()
        await one.leases.renew()
        await one.leases.renew()
        assert one.lost == []
        assert one.leases.accounts == [None]
        assert two.leases.may_send(None)
        assert not one.leases.may_send(None)
        await two.leases.renew()
        assert two.lost == [None]
        assert not two.leases.may_send(None)
        grow_old(fleet, TTL)
        await one.leases.renew()
        assert one.leases.may_send(None)
        assert one.lost == []


async def test_lease_that_goes_on_over_a_failover_is_good(fleet: Fleet) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address) as one:
        await one.acquire()
        begin_history(fleet)
        one.clock.now += TTL
        await one.leases.renew()
        assert one.leases.may_send(None)
        fleet.expire()
        one.clock.now += TTL
        await one.leases.renew()
        assert one.leases.may_send(None), "nobody took it in this history"
