"""procrastinate beside a worker: it wakes, it ends, and nothing rests on it."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any, cast

import procrastinate
import pytest
from procrastinate.exceptions import ConnectorException

from async_refunds import RefundsClient
from async_refunds.workers import add_sweep, add_tasks, new_app, supervisor, sweep
from async_refunds.workers.app import QUEUE, WAKE, context_of
from tests.support.batches import KEY
from tests.support.scripted import answer, refund_json, scripted

if TYPE_CHECKING:
    from procrastinate import App

    from tests.workers.conftest import Fleet

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

A, B = "acct_A", "acct_B"
FAST = 2000.0
# Those of the clock may come at any moment.
WAKES = """SELECT count(*) FROM procrastinate_jobs
    WHERE task_name = 'async_refunds.wake'"""


@pytest.fixture
async def app(fleet: Fleet) -> App:
    """An app whose tables are there."""
    app = new_app(fleet.database)
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
    return app


async def run_jobs(app: App, **context: object) -> None:
    """Carry out the jobs that wait, then end."""
    async with app.open_async():
        await app.run_worker_async(
            wait=False,
            install_signal_handlers=False,
            listen_notify=False,
            additional_context=context,
        )


async def test_enqueue_asks_for_a_job_for_each_account_that_got_more(
    fleet: Fleet, app: App
) -> None:
    await fleet.seed(3, A)
    await fleet.seed(2, None)
    await fleet.seed(2, A)  # its job waits already
    rows = await fleet.ask(
        "SELECT queue_name, task_name, args FROM procrastinate_jobs ORDER BY id"
    )
    scope = f"default {fleet.base_url} test"
    assert rows == [
        (QUEUE, WAKE, {"scope": scope, "account": A}),
        (QUEUE, WAKE, {"scope": scope, "account": ""}),
    ]
    woken: list[str] = []
    await run_jobs(app, **context_of(woken.append))
    assert woken == [scope] * 2
    assert await fleet.value(f"{WAKES} AND status = 'succeeded'") == 2


async def test_job_in_a_process_without_our_worker_does_nothing(
    fleet: Fleet, app: App
) -> None:
    await fleet.seed(1, A)
    await run_jobs(app)
    assert await fleet.value(f"{WAKES} AND status = 'succeeded'") == 1


async def test_worker_runs_procrastinate_beside(fleet: Fleet, app: App) -> None:
    ids = await fleet.seed(5, A)
    async with fleet.worker(rate=FAST, app=app):
        await fleet.until_told(5)
        await fleet.until_found(f"SELECT ({WAKES}) = 0")
        ids += await fleet.seed(5, B)
        await fleet.until_told(10)
        await fleet.until_found(f"SELECT ({WAKES}) = 0")
    assert fleet.results.keys() == set(ids)
    assert await fleet.value("SELECT count(*) FROM procrastinate_workers") == 0


async def test_end_of_procrastinate_is_not_ours_and_it_begins_again(
    fleet: Fleet,
    app: App,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(supervisor, "_FIRST_PAUSE", 0.05)
    worker = "SELECT id FROM procrastinate_workers"
    await fleet.seed(2, A)
    async with fleet.worker(rate=FAST, app=app) as ours:
        await fleet.until_found(f"SELECT EXISTS ({worker})")
        await fleet.until_told(2)
        before = await fleet.value(worker)
        await fleet.ask(f"ALTER FUNCTION {_FETCH} RENAME TO away")
        await fleet.seed(2, B)
        await fleet.until_told(4)
        await fleet.until(lambda: "procrastinate's worker stopped" in caplog.text)
        await fleet.ask(f"ALTER FUNCTION away RENAME TO {_FETCH}")
        await fleet.until_found(f"SELECT EXISTS ({worker} WHERE id > {before})")
        await fleet.seed(2, A)
        await fleet.until_told(6)
        assert not ours.task.done()


_FETCH = "procrastinate_fetch_job_v2"


async def test_procrastinate_without_its_tables_is_tried_again_and_again(
    fleet: Fleet,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(supervisor, "_FIRST_PAUSE", 0.01)
    ids = await fleet.seed(3, A)
    async with fleet.worker(rate=FAST, app=new_app(fleet.database)):
        await fleet.until_told(3)
        await fleet.until(
            lambda: caplog.text.count("procrastinate's worker stopped") >= 3
        )
    assert fleet.results.keys() == set(ids)


async def test_procrastinate_that_just_ends_begins_again(
    fleet: Fleet,
    app: App,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As it does when one of its side tasks fails. One that lasted is back at once."""
    monkeypatch.setattr(supervisor, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(supervisor, "_LASTING", -1.0)
    runs = 0

    async def end_at_once(**options: object) -> None:
        nonlocal runs
        del options
        runs += 1

    monkeypatch.setattr(app, "run_worker_async", end_at_once)
    supervising = supervisor.Supervisor(app, lambda _: None)
    running = asyncio.create_task(supervising.run())
    await fleet.until(lambda: runs >= 4)
    await supervisor.end(running)
    assert supervising.restarts >= 3
    assert "(it ended); it begins again in 0.0 s" in caplog.text
    assert "in 0.1 s" not in caplog.text


async def test_supervisor_that_is_ended_begins_nothing_again(
    fleet: Fleet,
    app: App,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also if procrastinate fails as it ends, and its error hides the cancellation."""
    runs = 0

    async def fail_at_the_end(**options: object) -> None:
        nonlocal runs
        del options
        runs += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ConnectorException from None

    monkeypatch.setattr(app, "run_worker_async", fail_at_the_end)
    running = asyncio.create_task(supervisor.Supervisor(app, lambda _: None).run())
    await fleet.until(lambda: runs)
    await supervisor.end(running)
    assert running.cancelled()
    assert "begins again" not in caplog.text


_HANGS = 60.0


async def test_supervisor_ends_while_the_database_is_away(
    fleet: Fleet, app: App
) -> None:
    del app
    async with fleet.network() as (network, address):
        running = asyncio.create_task(
            supervisor.Supervisor(new_app(address), lambda _: None).run()
        )
        await fleet.until_found("SELECT EXISTS (SELECT FROM procrastinate_workers)")
        network.refuse()
        network.cut()
        async with asyncio.timeout(_HANGS):
            await supervisor.end(running)
            await asyncio.wait([running])
        assert running.cancelled()


async def test_jobs_of_workers_that_were_killed_are_removed(
    fleet: Fleet, app: App
) -> None:
    await fleet.seed(1, A)
    await fleet.seed(1, B)
    await fleet.ask(
        "INSERT INTO procrastinate_workers (last_heartbeat) "
        "VALUES (now() - interval '1 hour'), (now())"
    )
    await fleet.ask(
        "UPDATE procrastinate_jobs SET status = 'doing', worker_id = id, "
        "abort_requested = false"
    )
    async with app.open_async():
        await app.configure_task("async_refunds.tidy").defer_async(timestamp=0)
    await run_jobs(app)
    rows = await fleet.ask(
        "SELECT args->>'account' FROM procrastinate_jobs WHERE status = 'doing'"
    )
    assert rows == [(B,)]


async def test_users_own_app_gets_the_tasks(fleet: Fleet) -> None:
    app = procrastinate.App(
        connector=procrastinate.PsycopgConnector(conninfo=fleet.database)
    )
    add_tasks(app)
    assert WAKE in cast("Any", app).tasks


async def test_nightly_sweep_is_begun_by_cron(fleet: Fleet, app: App) -> None:
    swept: list[int] = []

    async def sweep_all(timestamp: int) -> None:
        swept.append(timestamp)

    add_sweep(app, sweep_all, cron="* * * * *")
    registry: Any = app.periodic_registry
    (periodic,) = [
        each
        for each in registry.periodic_tasks.values()
        if each.task.name == "async_refunds.sweep"
    ]
    assert periodic.cron == "* * * * *"
    async with app.open_async():
        await periodic.task.defer_async(timestamp=17)
    await run_jobs(app)
    assert 17 in swept
    # Not of all: at the full minute another one is deferred meanwhile.
    assert await fleet.value(
        "SELECT status = 'succeeded' FROM procrastinate_jobs "
        "WHERE args->>'timestamp' = '17'"
    )


async def test_sweep_enqueues_what_waits_for_long(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("async_refunds.workers.nightly._CHUNK", 2)
    stripe, now = fleet.stripe, int(time.time())
    day = 86_400
    old = [
        stripe.add_refund(created=now - 40 * day, account=account)
        for account in (None, A, None)
    ]
    stripe.add_refund(created=now - 40 * day, status="succeeded")
    others = [stripe.add_refund(created=now - age * day) for age in (5, 300)]
    async with RefundsClient(lambda: KEY, base_url=fleet.base_url) as refunds:
        options: dict[str, Any] = {"run": "nightly", "accounts": (None, A)}
        assert await sweep(fleet.database, refunds, **options) == 3
        assert await sweep(fleet.database, refunds, **options) == 0
        everything: dict[str, Any] = {**options, "newer_than": 1e12, "older_than": 0}
        assert await sweep(fleet.database, refunds, **everything) == 2
    rows = await fleet.ask("SELECT refund_id, account FROM async_refunds.items")
    found = zip([*old, *others], ("", A, "", "", ""), strict=True)
    assert sorted(rows) == sorted(found)
    assert not await fleet.value(
        "SELECT livemode FROM async_refunds.runs WHERE name = 'nightly'"
    )


async def test_sweep_looks_itself_at_when_a_refund_was_created(fleet: Fleet) -> None:
    """A cache or a proxy in between may pass over the bounds in the query."""
    now, day = int(time.time()), 86_400
    listed = [
        json.loads(
            refund_json("requires_action", created=now - age * day, id=f"re_{age}")
        )
        for age in (1, 40, 181)
    ]
    page = answer(body=json.dumps({"data": listed, "has_more": False}).encode())
    async with scripted(reads=[page]) as server, server.client() as refunds:
        assert await sweep(fleet.database, refunds, run="nightly") == 1
    rows = await fleet.ask("SELECT refund_id FROM async_refunds.items")
    assert rows == [("re_40",)]
