"""``fleet status``: what is done, what waits, who is idle, and a failing database."""

from __future__ import annotations

import signal
from contextlib import closing

import psycopg
import pytest

from tests.support.fleet_commands import Fleet, on_terminal
from tests.support.terminal import Screen, started

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

HERE = "http://127.0.0.1:12111"


@pytest.fixture
def fleet(postgres_database: str) -> Fleet:
    return Fleet(postgres_database)


async def add(fleet: Fleet, *names: str, run: str = "tonight") -> None:
    ended = await fleet("enqueue", "--run", run, *names, "--base-url", HERE)
    assert ended.code == 0


async def states(fleet: Fleet) -> dict[str, str]:
    """Return the state of each run, as it is shown."""
    shown = (await on_terminal(fleet, "status")).splitlines()
    assert shown[0].split()[:2] == ["run", "state"]
    rows = shown[1 : shown.index("") if "" in shown else len(shown)]
    return {name: state for name, state, *_ in (row.split() for row in rows)}


async def test_run_is_done_when_all_of_it_is_settled(fleet: Fleet) -> None:
    await add(fleet, "re_1", "re_2")
    await add(fleet, "re_3", run="later")
    fleet.rows("SELECT async_refunds.ensure_run('empty', %s, false)", HERE)
    assert (await fleet("pause", "later")).code == 0
    there = {"tonight": "open", "later": "paused", "empty": "open"}
    assert await states(fleet) == there
    # What nobody asks for any more is an operator's to see to.
    fleet.rows(
        "UPDATE async_refunds.items SET dead = refund_id = 're_2', settled = "
        "refund_id <> 're_2'"
    )
    assert await states(fleet) == {**there, "later": "done"}
    fleet.rows("UPDATE async_refunds.items SET settled = true, dead = false")
    assert await states(fleet) == {**there, "later": "done", "tonight": "done"}
    await add(fleet, "re_4")
    assert (await states(fleet))["tonight"] == "open"


async def test_what_waits_names_the_command_that_asks_at_once(fleet: Fleet) -> None:
    await add(fleet, "re_1")
    command = "`async-refunds fleet retry RUN --outcome failed,unknown`"
    assert command not in await on_terminal(fleet, "status")
    fleet.rows(
        "UPDATE async_refunds.leases SET retry_at = now() + interval '5 minutes'"
    )
    shown = await on_terminal(fleet, "status")
    assert "waits 0:0" in shown
    assert command in shown


async def test_wait_for_a_worker_that_was_killed_is_shown(fleet: Fleet) -> None:
    """What failed gets no new key while one of its requests may be under way."""
    await add(fleet, "re_1", "re_2")
    fleet.rows(
        "UPDATE async_refunds.items SET known_at = now(), outcome = 'failed', "
        "error = 're_1 was not canceled: No such refund'"
    )
    fleet.rows(
        "UPDATE async_refunds.leases SET no_new_key_until = now() + interval '90 s', "
        "retry_at = now() + interval '5 minutes'"
    )
    at_once = "is asked for at once"
    assert at_once in await on_terminal(fleet, "status")
    told = await fleet("retry", "tonight", "--outcome", "failed")
    assert "asked for, the last in " in told.err
    shown = await on_terminal(fleet, "status")
    assert "waits 0:01:" in shown
    assert "a killed worker's request may be under way" in shown
    assert at_once not in shown, "that was done, and has no effect"
    _, account = (await fleet("status")).lines
    assert 0 < account["new_keys_in"] <= 90
    waited = await fleet("wait", "tonight", "--timeout", "0.1")
    assert "a request of a worker that was killed may be under way" in waited.err
    # Another one needs no new key, and a worker takes the account for it.
    fleet.rows(
        "UPDATE async_refunds.items SET known_at = NULL WHERE refund_id = 're_2'"
    )
    assert "waits" not in await on_terminal(fleet, "status")
    _, account = (await fleet("status")).lines
    assert account["new_keys_in"] is None
    waited = await fleet("wait", "tonight", "--timeout", "0.1")
    assert "nothing of tonight is asked for now" not in waited.err


async def test_idle_workers_are_named(fleet: Fleet) -> None:
    names = ["--name", "spare"], ["--name", "other"]
    command = ("fleet", "worker", "--base-url", HERE)
    environment = fleet.environment
    async with (
        started(*command, *names[0], environment=environment) as one,
        started(*command, *names[1], environment=environment) as two,
    ):
        for each in (one, two):
            await each.says("working at")
        screen = Screen()
        async with started(
            *("fleet", "status", "--watch", "--every", "0.1"),
            key=None,
            environment=environment,
            stdout=screen.terminal,
        ) as watching:
            showing = screen.reading()
            await screen.asks("2 workers, idle: other, spare")
            # What another release tells is passed over.
            fleet.rows("SELECT pg_notify('async_refunds_workers', 'hello')")
            two.process.send_signal(signal.SIGTERM)
            assert (await two.ended()).code == 0
            await screen.asks("1 worker, idle: spare")
            watching.process.send_signal(signal.SIGINT)
            assert (await watching.ended()).code == 0
            await showing
        await add(fleet, "re_1")
        # One that holds an account is not idle.
        fleet.rows("UPDATE async_refunds.runs SET state = 'paused'")
        fleet.rows(
            "UPDATE async_refunds.leases SET token = gen_random_uuid(), "
            "owner = 'spare', until = now() + interval '1 minute', renewed_at = now()"
        )
        shown = (await on_terminal(fleet, "status")).splitlines()
        assert shown[-1] == "1 refund open of 1 account, 1 worker"
        one.process.send_signal(signal.SIGTERM)
        assert (await one.ended()).code == 0


async def test_database_that_fails_while_it_is_read_is_no_wrong_usage(
    postgres_database: str,
) -> None:
    fleet = Fleet(postgres_database, lock_timeout="50ms")
    await add(fleet, "re_1")
    with (
        closing(psycopg.connect(postgres_database)) as owner,
        owner.transaction(),
    ):
        owner.execute("LOCK TABLE async_refunds.items")
        failed = await fleet("status")
        assert (failed.code, failed.out) == (1, "")
        assert failed.err.startswith("async-refunds: the database: canceling statement")
        screen = Screen()
        async with started(
            *("fleet", "status"),
            key=None,
            environment=fleet.environment,
            stdout=screen.terminal,
        ) as running:
            ended, _ = await screen.shows(running)
        assert ended.code == 1
    fleet.rows("ALTER VIEW async_refunds.metrics RENAME TO gone")
    refused = await fleet("status")
    assert refused.code == 2
    assert "the database refuses: " in refused.err


async def test_worker_for_live_runs_refuses_a_test_key(fleet: Fleet) -> None:
    async with started(
        "fleet", "worker", "--live", environment=fleet.environment
    ) as worker:
        ended = await worker.ended()
    assert ended.code == 2
    assert ended.err == (
        "async-refunds: --live is for runs in live mode, and STRIPE_API_KEY is a test "
        "key: it can cancel nothing of them\n"
    )
