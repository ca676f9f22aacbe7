"""Workers of a fleet on a real database, in this process."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from async_refunds import JournalError, RefundsClient, RetryPolicy
from async_refunds.batch.execution import Execution
from async_refunds.emulator import Limits
from async_refunds.journal.postgres import PostgresJournal
from async_refunds.journal.postgres.connection import Database, Link
from async_refunds.journal.postgres.leases import Leases
from async_refunds.workers import held_accounts, scope_worker, work
from async_refunds.workers.channel import Channel
from async_refunds.workers.fair_share import FairShare
from async_refunds.workers.scope_worker import ScopeWorker
from tests.support.batches import KEY, asked
from tests.support.fleets import FAR_TOO_LONG, WAITING
from tests.support.scripted import CANCELED, RE, refusal, scripted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from async_refunds import CancelResult
    from async_refunds.journal.postgres.connection import Connection
    from tests.workers.conftest import Fleet

# The database is invisible to the loop whose time jumps.
pytestmark = pytest.mark.asyncio(loop_factories=["real"])

A, B, C, D = "acct_A", "acct_B", "acct_C", "acct_D"
FAST = 2000.0
TTL = 0.6


def keys(fleet: Fleet, ids: list[str]) -> list[set[str | None]]:
    return [set(asked(fleet.stripe, each)) for each in ids]


def scope(fleet: Fleet) -> str:
    """Return the scope of its run."""
    return f"default {fleet.base_url} test"


def watch(monkeypatch: pytest.MonkeyPatch, owner: type, *names: str) -> Counter[str]:
    """Return how many calls of these methods are under way, from now on."""
    under_way: Counter[str] = Counter()

    def watched(name: str, method: Callable[..., Awaitable[Any]]) -> Any:  # noqa: ANN401 - as the method
        async def call(*args: Any, **options: Any) -> Any:  # noqa: ANN401 - those of the method
            under_way[name] += 1
            try:
                return await method(*args, **options)
            finally:
                under_way[name] -= 1

        return call

    for name in names:
        monkeypatch.setattr(owner, name, watched(name, getattr(owner, name)))
    return under_way


async def test_worker_cancels_what_is_there_and_what_comes(fleet: Fleet) -> None:
    ids = await fleet.seed(20, A) + await fleet.seed(20, None)
    async with fleet.worker(rate=FAST):
        await fleet.until_told(40)
        ids += await fleet.seed(10, B)
        await fleet.until_told(50)
        # What is enqueued once more, or is there in another run, adds nothing.
        await fleet.enqueue(ids[:1], A)
    assert fleet.results.keys() == set(ids)
    assert {each.outcome for each in fleet.results.values()} == {"canceled"}
    assert fleet.stripe.books.requests["cancel"] == 50
    assert await fleet.value("SELECT bool_and(settled) FROM async_refunds.items")
    assert await fleet.owners() == {}


async def test_more_of_an_account_soon_after_goes_on_with_its_lease(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_accounts, "_LINGER", 600.0)
    token = "SELECT token FROM async_refunds.leases WHERE account = 'acct_A'"
    await fleet.seed(2, A)
    async with fleet.worker(rate=FAST):
        await fleet.until_told(2)
        before = await fleet.value(token)
        await fleet.seed(2, A)
        await fleet.until_told(4)
        assert await fleet.value(token) == before
        monkeypatch.setattr(held_accounts, "_LINGER", 0.1)
        await fleet.until_found(f"SELECT ({token}) IS NULL")


async def test_idle_account_goes_also_while_others_get_work_all_the_time(
    fleet: Fleet,
) -> None:
    """Each time it is asked for more, and has none; that keeps it no longer."""
    await fleet.seed(1, A)
    async with fleet.worker(rate=FAST, ttl=600.0):
        await fleet.until_told(1)
        async with asyncio.timeout(FAR_TOO_LONG):
            while await fleet.value("SELECT count(token) FROM async_refunds.leases"):
                await fleet.ask("SELECT pg_notify('async_refunds', %s)", scope(fleet))


async def _hear_nothing(channel: Channel) -> None:
    await channel._closing.wait()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - as `run` does


@pytest.mark.parametrize("notified", [True, False])
async def test_more_of_an_account_does_not_wait_for_what_it_has_under_way(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, *, notified: bool
) -> None:
    """Also where no notifications come."""
    if notified:
        monkeypatch.setattr(held_accounts, "_LINGER", 600.0)
    else:
        monkeypatch.setattr(Channel, "run", _hear_nothing)
    fleet.stripe.faults.script("stall")
    (stalled,) = await fleet.seed(1, A)
    async with fleet.worker(rate=FAST):
        await fleet.until(lambda: fleet.stripe.requests)
        ids = await fleet.seed(3, A)
        await fleet.until_told(3)
        assert fleet.results.keys() == set(ids)
        assert len(asked(fleet.stripe, stalled)) == 1, "it is still under way"


async def test_worker_begins_at_the_pace_of_the_last_holder_and_leaves_its_own(
    fleet: Fleet,
) -> None:
    fleet.stripe.limits = Limits(endpoint_rate=8.0)
    await fleet.seed(30, A)
    await fleet.ask("UPDATE async_refunds.leases SET pace = 8")
    async with fleet.worker():
        await fleet.until_told(9)
        await asyncio.sleep(0)
        assert len(fleet.stripe.requests) <= 11, "at 20 a second there would be more"
    assert fleet.stripe.books.rate_limited.total() <= 1
    assert await fleet.value("SELECT pace FROM async_refunds.leases") == pytest.approx(
        8.0, rel=0.05
    )


async def test_workers_share_the_accounts_also_one_that_comes_later(
    fleet: Fleet,
) -> None:
    accounts = [f"acct_{n}" for n in range(8)]
    ids = [each for name in accounts for each in await fleet.seed(25, name)]
    async with fleet.worker("early", rate=10.0) as early:
        await fleet.until_told(20)
        assert set((await fleet.owners()).values()) == {"early"}
        async with fleet.worker("late", rate=10.0) as late:
            await fleet.until(lambda: len(late.results) > 4)
            owners = list((await fleet.owners()).values())
            assert 2 <= owners.count("late") <= 6
            await fleet.until_told(len(ids))
    assert fleet.results.keys() == set(ids)
    assert early.results
    assert max(fleet.stripe.books.cancellations.values()) == 1
    assert all(len(each) == 1 for each in keys(fleet, ids))
    assert fleet.stripe.books.requests["cancel"] == len(ids), "none asked for twice"


async def test_accounts_of_a_worker_that_ends_go_to_the_others_at_once(
    fleet: Fleet,
) -> None:
    ids = await fleet.seed(100, A)
    async with fleet.worker("leaving", rate=50.0, ttl=600.0) as leaving:
        await fleet.until_told(5)
        async with fleet.worker("staying", rate=FAST, ttl=600.0) as staying:
            await fleet.until_found(_BOTH_LISTEN)
            assert not staying.results
            await leaving.end()
            told = len(leaving.results)
            await fleet.until_told(100)
    assert len(staying.results) == 100 - told
    assert fleet.results.keys() == set(ids)
    assert fleet.stripe.books.requests["cancel"] == 100


async def test_account_that_is_handed_over_is_given_back_as_soon_as_it_has_ended(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with the next look for work: another worker waits for it."""
    monkeypatch.setattr(scope_worker, "_INTERVAL", 600.0)
    held = "SELECT count(token) FROM async_refunds.leases"
    for name in (A, B):
        await fleet.seed(100, name)
    async with fleet.worker(rate=5.0, ttl=600.0):
        await fleet.until(lambda: len(fleet.stripe.requests) >= 4)
        assert await fleet.value(held) == 2
        other = {"scope": scope(fleet), "worker": "other", "held": 0, "hungry": True}
        word = msgspec.json.encode(other).decode()
        await fleet.ask("SELECT pg_notify('async_refunds_workers', %s)", word)
        await fleet.until_found(f"SELECT ({held}) = 1")


def keep_all(*_: object) -> int:
    return 0


async def test_account_goes_to_the_others_while_a_call_for_another_one_lasts(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At SIGTERM, a call that Stripe does not answer holds up its own account only."""
    monkeypatch.setattr(scope_worker, "_END_OF_CALLS", 600.0)
    monkeypatch.setattr(scope_worker, "_END_OF_JOURNAL", 600.0)
    monkeypatch.setattr(FairShare, "hand_over", keep_all)
    fleet.stripe.faults.script("stall")
    (stalled,) = await fleet.seed(1, A)
    async with fleet.worker("leaving", rate=50.0, ttl=600.0) as leaving:
        await fleet.until(lambda: asked(fleet.stripe, stalled))
        ids = await fleet.seed(100, B)
        await fleet.until_told(5)
        async with fleet.worker("staying", rate=FAST, ttl=600.0) as staying:
            await fleet.until_found(_BOTH_LISTEN)
            leaving.stop.set()
            await fleet.until_told(len(ids))
            assert staying.results
            assert (await fleet.owners())[A] == "leaving"
            assert not leaving.task.done()
            gc.collect()
            found = [each for each in gc.get_objects() if isinstance(each, Execution)]
            for each in found:
                if each.works_on(A):
                    each.interrupt()  # or it would go on for as long as the call
    assert fleet.stripe.books.requests["cancel"] == 101
    assert all(len(each) == 1 for each in keys(fleet, ids))


_BOTH_LISTEN = """SELECT count(*) = 2 FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'async_refunds'
        AND query LIKE '%pg_notify%'"""


async def test_account_that_was_taken_while_the_worker_was_told_to_stop_goes_back(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it begins: its next holder need not wait for any call."""
    monkeypatch.setattr(scope_worker, "_END_OF_CALLS", 600.0)
    monkeypatch.setattr(scope_worker, "_END_OF_JOURNAL", 600.0)
    stopped = asyncio.Event()
    stop = ScopeWorker.stop

    def note(self: ScopeWorker) -> None:
        stop(self)
        stopped.set()

    monkeypatch.setattr(ScopeWorker, "stop", note)
    await fleet.seed(5, A)
    async with (
        await psycopg.AsyncConnection.connect(fleet.database) as locking,
        fleet.worker(rate=FAST, ttl=600.0) as worker,
    ):
        await locking.execute("LOCK TABLE async_refunds.leases IN SHARE MODE")
        await fleet.until_found(f"SELECT ({WAITING}) > 0")
        worker.stop.set()
        await stopped.wait()
        await locking.rollback()
        await worker.task
    assert not fleet.stripe.requests
    taken = "SELECT acquired_at IS NOT NULL, token FROM async_refunds.leases"
    assert await fleet.ask(taken) == [(True, None)]


_ATTEMPTS = "SELECT sum(attempts) FROM async_refunds.items"


async def test_call_between_two_attempts_is_left_to_the_next_worker_at_the_end(
    fleet: Fleet,
) -> None:
    """It does not wait out its sleep, and the next one asks at once."""
    fleet.stripe.faults.storm(1.0, names=["503"])
    ids = await fleet.seed(5, A)
    slow = RetryPolicy(initial_delay=6000.0, max_delay=6000.0, deadline=50_000.0)
    async with RefundsClient(KEY, base_url=fleet.base_url, retry=slow) as refunds:
        async with fleet.hosted(refunds, "leaving", patience=50_000.0) as leaving:
            await fleet.until(lambda: all(asked(fleet.stripe, each) for each in ids))
            await leaving.end()
        assert not leaving.results
        assert await fleet.owners() == {}
        assert await fleet.value(_ATTEMPTS) == len(fleet.stripe.requests) > 0
        fleet.stripe.faults.clear()
        async with fleet.worker("next", rate=FAST):
            await fleet.until_told(5)
    assert {each.outcome for each in fleet.results.values()} == {"canceled"}
    assert all(len(each) == 1 for each in keys(fleet, ids))
    assert await fleet.value(_ATTEMPTS) == len(fleet.stripe.requests)


async def test_pace_is_kept_as_soon_as_it_is_found(fleet: Fleet) -> None:
    """Who takes over from a worker that is killed does not search again."""
    fleet.stripe.limits = Limits(endpoint_rate=8.0)
    await fleet.seed(200, A)
    async with fleet.worker(ttl=600.0):  # renewed each 200 seconds
        await fleet.until_found(
            "SELECT count(*) = 1 FROM async_refunds.leases "
            "WHERE token IS NOT NULL AND pace < 15"
        )


async def test_worker_that_is_cut_off_loses_its_accounts_and_sends_nothing(
    fleet: Fleet,
) -> None:
    ids = await fleet.seed(150, A)
    async with (
        fleet.network() as (network, address),
        fleet.worker("cut off", database=address, rate=100.0, ttl=TTL) as cut_off,
    ):
        await fleet.until_told(10)
        network.hold()
        async with fleet.worker("other", rate=100.0, ttl=TTL) as other:
            await fleet.until(lambda: other.results)
            told = len(cut_off.results)
            await fleet.until_told(told + 50)
            assert len(cut_off.results) == told
            network.release()
            await fleet.until_told(150)
            # It goes on with what comes.
            await other.end()
            more = await fleet.seed(5, A)
            await fleet.until_told(155)
            assert len(cut_off.results) >= told + 5
    assert fleet.results.keys() == {*ids, *more}
    assert max(fleet.stripe.books.cancellations.values()) == 1
    assert all(len(each) == 1 for each in keys(fleet, ids))


async def test_database_that_is_away_ends_no_worker_and_loses_no_lease(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    held: set[Leases] = set()
    connections = 0
    may_send, connect = Leases.may_send, Database.connect

    def note(self: Leases, account: str | None) -> bool:
        held.add(self)
        return may_send(self, account)

    async def count(self: Database, **options: Any) -> Connection:  # noqa: ANN401 - those of the method
        nonlocal connections
        connections += 1
        return await connect(self, **options)

    monkeypatch.setattr(Leases, "may_send", note)
    monkeypatch.setattr(Database, "connect", count)
    ids = await fleet.seed(100, A)
    async with (
        fleet.network() as (network, address),
        fleet.worker(database=address, rate=100.0, ttl=TTL) as worker,
    ):
        await fleet.until_told(10)
        token = await fleet.value("SELECT token FROM async_refunds.leases")
        network.refuse()
        network.cut()
        (leases,) = held
        await fleet.until(lambda: not may_send(leases, A))
        tried = connections
        await fleet.until(lambda: connections > tried)  # what was permitted has arrived
        sent = len(fleet.stripe.requests)
        await fleet.until(lambda: connections > tried + 5)
        assert len(fleet.stripe.requests) == sent, "nothing once the lease has ended"
        assert not worker.task.done()
        await network.accept()
        await fleet.until_told(100)
        assert await fleet.value("SELECT token FROM async_refunds.leases") == token
    assert fleet.results.keys() == set(ids)
    assert fleet.stripe.books.requests["cancel"] == 100
    assert "away" in caplog.text


async def test_worker_ends_in_time_while_the_database_is_away(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is known and not kept is in the log, and is asked for again."""
    monkeypatch.setattr(scope_worker, "_END_OF_CALLS", 0.1)
    monkeypatch.setattr(scope_worker, "_END_OF_JOURNAL", 0.2)
    monkeypatch.setattr(scope_worker, "_CLOSES_WITHIN", 0.1)
    looks = watch(monkeypatch, ScopeWorker, "_sweep")
    ids = await fleet.seed(100, A)
    async with (
        fleet.network() as (network, address),
        fleet.worker(database=address, rate=50.0, ttl=TTL) as worker,
    ):
        await fleet.until_told(5)
        network.refuse()
        network.cut()
        await fleet.until(
            lambda: looks["_sweep"] and len(fleet.stripe.requests) > len(fleet.results)
        )
        await worker.end()
    told = fleet.results.keys()
    unknown = {each for each in ids if asked(fleet.stripe, each)} - told
    assert unknown
    assert all(each in caplog.text for each in unknown)
    async with fleet.worker("next", rate=FAST, ttl=TTL):
        await fleet.until_told(100)
    assert all(len(each) <= 1 for each in keys(fleet, ids))
    assert max(fleet.stripe.books.cancellations.values()) == 1


async def test_call_that_does_not_end_is_left_to_the_next_worker_at_the_end(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is broken off, and the next one asks at once."""
    monkeypatch.setattr(scope_worker, "_END_OF_CALLS", 0.1)
    fleet.stripe.faults.script("stall")
    (stalled,) = await fleet.seed(1, A)
    async with fleet.worker() as worker:
        await fleet.until(lambda: asked(fleet.stripe, stalled))
        await worker.end()
    assert not worker.results
    assert await fleet.owners() == {}
    async with fleet.worker("next", rate=FAST):
        await fleet.until_told(1)
    assert fleet.results[stalled].outcome == "canceled"
    assert len(asked(fleet.stripe, stalled)) == 2
    assert len(set(asked(fleet.stripe, stalled))) == 1


async def test_account_whose_key_is_refused_waits_and_says_so(
    postgres_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    from tests.workers.conftest import Fleet  # noqa: PLC0415

    async with scripted(refusal(401)) as server:
        fleet = Fleet(postgres_database, None, server.url)  # type: ignore[arg-type]
        await fleet.ask("SELECT async_refunds.create_run('run', %s, false)", server.url)
        await fleet.enqueue([f"re_{n}" for n in range(200)], A)
        async with fleet.worker(rate=FAST):
            await fleet.until_found(_REFUSED)
            sent = len(server.received)
            server.cancels[:] = [CANCELED]
            await fleet.enqueue([RE], B)
            await fleet.until(lambda: RE in fleet.results)
            assert fleet.results[RE].outcome == "canceled"
            assert len(server.received) == sent + 1
    assert sent < 30
    assert "acct_A: its key was refused (HTTP status 401)" in caplog.text
    assert (
        "nothing is sent for it with that key for 60 s, or until "
        "`async-refunds fleet retry`" in caplog.text
    )
    assert "is asked for again" not in caplog.text, "that is said already"
    assert not any(record.levelno >= logging.ERROR for record in caplog.records)


async def test_worker_with_another_key_takes_at_once_what_one_was_refused(
    fleet: Fleet,
) -> None:
    """As while a key is rotated; and the one that was refused stays away."""
    ids = await fleet.seed(200, A)
    fleet.stripe.expire_key("sk_test_old")
    async with (
        RefundsClient("sk_test_old", base_url=fleet.base_url) as old,
        fleet.hosted(old, "old", rate=FAST),
    ):
        await fleet.until_found(_REFUSED)
        sent = len(fleet.stripe.requests)
        async with fleet.worker("new", rate=FAST):
            await fleet.until_found(_ALL_TRIED)
            await fleet.until_found(_GIVEN_BACK)
            assert await fleet.value(_REFUSED), "for the one with the old key"
            more = await fleet.seed(1, A)
            await fleet.until(lambda: more[0] in fleet.results)
    assert fleet.results[more[0]].outcome == "canceled"
    canceled = fleet.stripe.books.cancellations
    assert len(canceled) >= len(ids) - sent
    assert max(canceled.values()) == 1


async def test_refused_key_that_may_change_holds_up_everybody(fleet: Fleet) -> None:
    """Nobody knows which one it was."""
    await fleet.seed(20, A)
    fleet.stripe.expire_key("sk_test_old")
    async with (
        RefundsClient(lambda: "sk_test_old", base_url=fleet.base_url) as old,
        fleet.hosted(old, "old", rate=FAST),
    ):
        await fleet.until_found(_REFUSED)
    async with fleet.worker("new", rate=FAST):
        ids = await fleet.seed(1, B)
        await fleet.until(lambda: ids[0] in fleet.results)
        assert await fleet.value(_REFUSED)


_GIVEN_BACK = "SELECT owner IS NULL FROM async_refunds.leases WHERE account = 'acct_A'"
_ALL_TRIED = "SELECT bool_and(known_at IS NOT NULL) FROM async_refunds.items"
_REFUSED = """SELECT not_before > clock_timestamp() + interval '50 s'
    FROM async_refunds.leases WHERE account = 'acct_A'"""


async def test_each_tenant_has_its_own_client(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    """One that comes later, and one for which this worker has no key."""
    async with RefundsClient(KEY, base_url=fleet.base_url) as ours:
        known = {"ours": ours, "elsewhere": RefundsClient(KEY)}
        for tenant in ("ours", "theirs", "elsewhere"):
            await fleet.ask(_RUN_OF, tenant, fleet.base_url, tenant)
        ids = fleet.stripe.seed_refunds(10)
        await fleet.enqueue(ids[:5], None, "ours")
        await fleet.enqueue(ids[5:], None, "theirs")
        async with fleet.hosted(known.get, rate=FAST):
            await fleet.until_told(5)
            await fleet.ask(_RUN_OF, "later", fleet.base_url, "later")
            known["later"] = ours
            more = await fleet.enqueue(fleet.stripe.seed_refunds(2), None, "later")
            await fleet.until_told(7)
    assert fleet.results.keys() == {*ids[:5], *more}
    assert "no key for theirs " in caplog.text
    assert "no key for elsewhere " in caplog.text


_RUN_OF = "SELECT async_refunds.create_run(%s, %s, false, %s)"


async def test_mistakes_are_told_at_the_start(
    fleet: Fleet, postgres_empty_database: str
) -> None:
    async with RefundsClient(KEY, base_url=fleet.base_url) as refunds:
        with pytest.raises(JournalError, match="no tables"):
            await work(postgres_empty_database, refunds)
        with pytest.raises(TypeError, match="RefundsClient"):
            await work(fleet.database, "sk_test_4eC39HqLyjWDarjtT1zdp7dc")  # type: ignore[arg-type]
        wrong: list[dict[str, Any]] = [{"concurrency": 0}, {"ttl": 0.0}]
        wrong.append({"timeout": -1.0})
        for options in wrong:
            with pytest.raises(ValueError, match="must be"):
                await work(fleet.database, refunds, **options)


async def test_worker_ends_when_its_tables_are_replaced_by_newer_ones(
    fleet: Fleet,
) -> None:
    await fleet.seed(500, A)
    async with RefundsClient(KEY, base_url=fleet.base_url) as refunds:
        working = asyncio.create_task(work(fleet.database, refunds, rate=50.0, ttl=TTL))
        await fleet.until_found(
            "SELECT count(*) > 3 FROM async_refunds.items WHERE settled"
        )
        await fleet.ask(
            "UPDATE async_refunds.meta SET schema_version = 99, min_worker_version = 99"
        )
        await fleet.ask(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'async_refunds' AND datname = current_database()"
        )
        with pytest.raises(JournalError, match="newer release"):
            await working


async def test_closed_client_ends_the_worker(fleet: Fleet) -> None:
    await fleet.seed(5, A)
    refunds = RefundsClient(KEY, base_url=fleet.base_url)
    await refunds.close()
    with pytest.raises(RuntimeError, match="closed"):
        await work(fleet.database, refunds)
    assert await fleet.owners() == {}


async def test_closed_session_ends_the_worker(fleet: Fleet) -> None:
    """It holds no account that another worker could work on."""
    await fleet.seed(50, A)
    async with aiohttp.ClientSession() as session:
        refunds = RefundsClient(KEY, session=session, base_url=fleet.base_url)
        closing: list[asyncio.Task[None]] = []

        def on_result(_: CancelResult) -> None:
            closing.append(asyncio.create_task(session.close()))

        with pytest.raises(RuntimeError, match="session given"):
            await work(fleet.database, refunds, rate=20.0, on_result=on_result)
    assert closing
    assert await fleet.owners() == {}


def _cancel_current_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


@pytest.mark.parametrize("in_results", [True, False])
async def test_worker_of_which_a_task_is_cancelled_does_not_end_as_if_it_was_told_to(
    fleet: Fleet, *, in_results: bool
) -> None:
    """Its process would end well, with work left."""
    await fleet.seed(50, A)

    def on_result(_: CancelResult) -> None:
        _cancel_current_task()

    async with RefundsClient(KEY, base_url=fleet.base_url) as refunds:

        def client_of(_: str) -> RefundsClient:
            _cancel_current_task()
            return refunds

        given = refunds if in_results else client_of
        with pytest.raises(RuntimeError, match="was cancelled from outside"):
            await work(fleet.database, given, rate=20.0, on_result=on_result)
    assert await fleet.value("SELECT NOT bool_and(settled) FROM async_refunds.items")
    assert await fleet.owners() == {}


async def test_worker_ends_in_time_while_the_network_is_silent(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_END_OF_CALLS", "_END_OF_JOURNAL", "_CLOSES_WITHIN"):
        monkeypatch.setattr(scope_worker, name, 0.1)
    monkeypatch.setattr("async_refunds.workers.worker._GOOD_BYE", 0.1)
    # Whatever the end would wait for, it would wait for an hour.
    endless = functools.partial(Link, patience=3600.0)
    for module in ("journal", "leases"):
        monkeypatch.setattr(f"async_refunds.journal.postgres.{module}.Link", endless)
    looks = watch(monkeypatch, ScopeWorker, "_sweep")
    renewals = watch(monkeypatch, Leases, "renew")
    writes = watch(monkeypatch, PostgresJournal, "settle")
    await fleet.seed(100, A)
    async with (
        fleet.network() as (network, address),
        fleet.worker(
            database=make_conninfo(address, connect_timeout=3600), rate=50.0, ttl=TTL
        ) as worker,
    ):
        await fleet.until_told(5)
        network.hold()
        await fleet.until(
            lambda: looks["_sweep"] and renewals["renew"] and writes["settle"]
        )
        async with asyncio.timeout(FAR_TOO_LONG):
            await worker.end()


async def test_lease_that_is_lost_while_it_is_handed_over(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed_over: list[int] = []
    hand_over = FairShare.hand_over

    def note(self: FairShare, held: int, leaving: int, now: float) -> int:
        count = hand_over(self, held, leaving, now)
        handed_over.extend([count] if count else [])
        return count

    monkeypatch.setattr(FairShare, "hand_over", note)
    fleet.stripe.latency = 0.5
    ids = [each for name in (A, B, C, D) for each in await fleet.seed(8, name)]
    async with fleet.worker("early", ttl=TTL, rate=5.0) as early:
        await fleet.until(lambda: len(fleet.stripe.requests) >= 4)
        async with fleet.worker("late", ttl=TTL, rate=5.0) as late:
            await fleet.until(lambda: handed_over)
            await fleet.ask(
                "UPDATE async_refunds.leases SET token = gen_random_uuid(), "
                "until = '-infinity' WHERE token IS NOT NULL"
            )
            await fleet.until_told(len(ids))
    assert early.results
    assert late.results
    assert handed_over[0] == 2
    assert fleet.results.keys() == set(ids)
    assert {each.outcome for each in fleet.results.values()} == {"canceled"}
    assert all(len(each) == 1 for each in keys(fleet, ids))


async def test_account_waits_a_little_while_stripe_cannot_be_reached(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    ids = await fleet.seed(50, A)
    fleet.stripe.faults.storm(1.0, names=["reset_before"])
    async with fleet.worker(patience=0.2, rate=FAST):
        await fleet.until_found(
            "SELECT not_before > clock_timestamp() + interval '10 s' "
            "FROM async_refunds.leases"
        )
        fleet.stripe.faults.clear()
        await fleet.ask(
            "UPDATE async_refunds.leases SET not_before = '-infinity', "
            "retry_at = '-infinity'"
        )
        told = len(fleet.workers[0].results)
        assert told < 50, "what was not tried is not failed"
        await fleet.until_found("SELECT bool_and(settled) FROM async_refunds.items")
    assert "nothing is sent for it for 15 s" in caplog.text
    assert len(fleet.stripe.books.cancellations) == 50
    assert len(ids) == 50


async def test_leases_that_cannot_be_taken_end_the_worker(fleet: Fleet) -> None:
    async with RefundsClient(KEY, base_url=fleet.base_url) as refunds:
        working = asyncio.create_task(work(fleet.database, refunds))
        await fleet.until_found(_LISTENING)
        await fleet.ask("ALTER TABLE async_refunds.leases RENAME TO gone")
        with pytest.raises(JournalError, match="leases could not be taken"):
            await working


async def test_runs_that_cannot_be_read_end_the_worker(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("async_refunds.workers.worker._INTERVAL", 0.05)
    asked = asyncio.Event()

    def client_of(tenant: str) -> None:
        del tenant
        asked.set()

    await fleet.seed(1, A)
    working = asyncio.create_task(work(fleet.database, client_of))
    await asked.wait()
    await fleet.ask("ALTER TABLE async_refunds.runs RENAME TO gone")
    with pytest.raises(JournalError, match="runs could not be read: relation"):
        await working


async def test_tenants_are_found_also_after_the_database_was_away(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("async_refunds.workers.worker._INTERVAL", 0.05)
    heard: list[str] = []

    class Heard(Channel):
        def __init__(
            self,
            *given: Any,  # noqa: ANN401 - as the channel has them
            on_work: Callable[[str], object],
            **more: Any,  # noqa: ANN401
        ) -> None:
            def note(scope: str) -> None:
                on_work(scope)
                heard.append(scope)

            super().__init__(*given, on_work=note, **more)

    monkeypatch.setattr("async_refunds.workers.worker.Channel", Heard)
    async with (
        RefundsClient(KEY, base_url=fleet.base_url) as refunds,
        fleet.network() as (network, address),
        fleet.hosted({"late": refunds}.get, database=address, timeout=20.0),
    ):
        # Of another tenant, for which there is no key: nobody is woken.
        await fleet.seed(1, A)
        await fleet.until(lambda: "no key for default" in caplog.text)
        await fleet.until_found(_LISTENING)
        heard.clear()
        await fleet.seed(1, A)
        await fleet.until(lambda: heard)
        network.refuse()
        network.cut()
        await fleet.until(lambda: "the database is away" in caplog.text)
        await network.accept()
        await fleet.ask(_RUN_OF, "late", fleet.base_url, "late")
        ids = await fleet.enqueue(fleet.stripe.seed_refunds(2), None, "late")
        await fleet.until_told(2)
    assert fleet.results.keys() == set(ids)


_LISTENING = """SELECT EXISTS (SELECT FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'async_refunds'
        AND query LIKE '%pg_notify%')"""


async def test_words_of_others_that_are_not_understood_are_ignored(
    fleet: Fleet,
) -> None:
    """Such as those of a newer release, or of a scope of which this one has no key."""
    ids = await fleet.seed(2, A)
    async with fleet.worker():
        await fleet.until_told(2)
        for payload in ("", "{", '{"scope": 1}', _OTHER):
            await fleet.ask("SELECT pg_notify('async_refunds_workers', %s)", payload)
        ids += await fleet.seed(2, B)
        await fleet.until_told(4)
    assert fleet.results.keys() == set(ids)


_OTHER = '{"scope": "x y z", "worker": "w", "held": 1, "hungry": true, "new": 1}'


async def test_worker_whose_own_lease_has_ended_does_not_take_it_from_itself(
    fleet: Fleet,
) -> None:
    """As after a database that stood still: the token is still its own."""
    ids = await fleet.seed(120, A)
    async with fleet.worker(rate=60.0, ttl=600.0):
        await fleet.until_told(10)
        token = "SELECT token FROM async_refunds.leases"
        before = await fleet.value(token)
        await fleet.ask("UPDATE async_refunds.leases SET until = '-infinity'")
        await fleet.until_told(len(ids))
        assert await fleet.value(token) == before
    assert all(len(each) == 1 for each in keys(fleet, ids))


async def test_account_that_is_held_and_not_worked_on_is_opened_again(
    fleet: Fleet,
) -> None:
    """As when it was lost, won again, and only then a result of before was refused."""
    ids = await fleet.seed(60, A)
    async with fleet.worker(rate=60.0, ttl=600.0):
        await fleet.until_told(5)
        gc.collect()
        found = [each for each in gc.get_objects() if isinstance(each, Execution)]
        (batch,) = [each for each in found if each.works_on(A)]  # not an earlier test's
        batch.drop_account(A)
        await fleet.until_told(len(ids))
    assert all(len(each) == 1 for each in keys(fleet, ids))


async def test_worker_asks_for_what_is_left_of_a_run_that_is_closing(
    fleet: Fleet,
) -> None:
    """With its key; once that is a day old it reads only, and sends no new one."""
    fresh, old, unsent = await fleet.seed(3, A)
    sent = """UPDATE async_refunds.items SET maybe_sent = true, generation = 1,
        claimed_at = now() - make_interval(hours => %s) WHERE refund_id = %s"""
    for hours, refund_id in ((1, fresh), (25, old)):
        await fleet.ask(f"{sent} RETURNING 1", hours, refund_id)
    await fleet.ask("UPDATE async_refunds.runs SET state = 'closing' RETURNING 1")
    async with (
        RefundsClient(KEY, base_url=fleet.base_url) as refunds,
        fleet.hosted({"default": refunds}.get, rate=FAST),  # tenants with work
    ):
        await fleet.until_told(2)
    outcomes = {each: result.outcome for each, result in fleet.results.items()}
    assert outcomes == {fresh: "canceled", old: "failed"}
    assert (asked(fleet.stripe, old), asked(fleet.stripe, unsent)) == ([], [])
    open_ = "SELECT refund_id FROM async_refunds.items WHERE NOT settled"
    assert await fleet.ask(open_) == [(unsent,)]
