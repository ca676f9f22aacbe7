"""The commands of ``fleet`` on a real PostgreSQL, as an operator types them."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from async_refunds.emulator import Emulator
from async_refunds.journal.keys import derive_key
from async_refunds.journal.postgres.schema import VERSION
from tests.journal import postgres
from tests.support.fleet_commands import Fleet, on_terminal
from tests.support.terminal import (
    LIVE_KEY,
    Screen,
    emulator_of,
    held,
    run,
    run_each,
    started,
)

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

HERE = "http://127.0.0.1:12111"


@pytest.fixture
def fleet(postgres_database: str) -> Fleet:
    return Fleet(postgres_database)


def items(fleet: Fleet) -> list[tuple[str, str]]:
    return fleet.rows(
        "SELECT refund_id, account FROM async_refunds.items ORDER BY number"
    )


# -------------------------------------------------------------------------------- init


async def test_tables_are_made_once_and_checked(postgres_empty_database: str) -> None:
    fleet = Fleet(postgres_empty_database)
    missing = await fleet("init", "--check")
    assert missing.code == 1
    assert "run `async-refunds fleet init`" in missing.err
    assert (await fleet("pause", "tonight")).code == 2
    made = await fleet("init")
    assert (made.code, made.err) == (
        0,
        f"made the tables of async_refunds, version {VERSION}\n",
    )
    again, checked, quiet = await fleet.each(
        ("init",), ("init", "--check"), ("init", "-q")
    )
    assert (again.code, again.err) == (
        0,
        f"nothing to do: the tables have version {VERSION}\n",
    )
    assert (checked.code, checked.err) == (
        *(0, f"the tables of async_refunds have version {VERSION}\n"),
    )
    assert (quiet.code, quiet.err) == (0, "")
    fleet.rows(
        "UPDATE async_refunds.meta SET schema_version = 9, min_worker_version = 9"
    )
    newer, refused, found = await fleet.each(
        ("init",), ("enqueue", "re_1", "--run", "tonight"), ("init", "--check")
    )
    assert (newer.code, refused.code, found.code) == (2, 2, 1)
    assert "go on with a newer release" in newer.err


async def test_tables_of_an_older_release_are_brought_up(
    postgres_empty_database: str,
) -> None:
    fleet = Fleet(postgres_empty_database)
    older = Path(postgres.__path__[0]) / "version_1.sql"
    with psycopg.connect(postgres_empty_database) as connection:
        connection.execute(older.read_bytes())
    checked, refused = await fleet.each(("init", "--check"), ("pause", "tonight"))
    for told in (checked.err, refused.err):
        assert (
            f"have version 1, and this release needs version {VERSION}: run `async-"
            in told
        )
    assert (checked.code, refused.code) == (1, 2)
    brought = await fleet("init")
    assert brought.code == 0
    assert brought.err == (
        f"brought the tables of async_refunds from version 1 to {VERSION}: "
        "start its workers again\n"
    )
    assert (await fleet("init", "--check")).code == 0


SECRET = "hunter2"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (f"postgres//u:{SECRET}@h/d", "is no address of a PostgreSQL database"),
        (f"postgresql://u:{SECRET}@h/d?foo={SECRET}", "is no address"),
        (
            f"postgresql://u:{SECRET}@127.0.0.1:1/d",
            "cannot connect to the database: connection",
        ),
    ],
)
async def test_database_that_is_not_there_is_told_without_its_password(
    address: str, said: str
) -> None:
    ended = await run("fleet", "init", environment={"ASYNC_REFUNDS_DATABASE": address})
    given = await run("fleet", "init", "--database", address)
    for each in (ended, given):
        assert (each.code, each.out) == (2, "")
        assert said in each.err
        assert SECRET not in each.err
        assert len(each.err.splitlines()) == 1


async def test_help_names_each_command(fleet: Fleet) -> None:
    ended = await fleet("--help")
    assert (ended.code, ended.err) == (0, "")
    for command in ("init", "enqueue", "worker", "status", "report", "prune"):
        assert f"\n  {command} " in ended.out


async def test_what_the_database_refuses_is_told_on_one_line(
    postgres_empty_database: str,
) -> None:
    fleet = Fleet(postgres_empty_database)
    fleet.rows("CREATE SCHEMA async_refunds")
    fleet.rows("CREATE TABLE async_refunds.runs (mine text)")
    ended = await fleet("init")
    assert ended.code == 1
    assert ended.err.startswith('async-refunds: the database: relation "runs" already')
    assert len(ended.err.splitlines()) == 1


async def test_missing_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "psycopg.py").write_text("raise ModuleNotFoundError(name='psycopg')\n")
    ended = await run(
        *("fleet", "init"),
        python=("-m", "async_refunds"),
        environment={"PYTHONPATH": str(tmp_path)},
    )
    assert ended.code == 2
    assert ended.err == (
        "async-refunds: fleet needs psycopg, which the extra `postgres` installs: "
        f"{sys.executable} -m pip install 'psycopg[binary]' procrastinate\n"
    )
    (tmp_path / "psycopg.py").write_text("raise ModuleNotFoundError(name='other')\n")
    broken = await run(
        *("fleet", "init"),
        python=("-m", "async_refunds"),
        environment={"PYTHONPATH": str(tmp_path)},
    )
    assert "ModuleNotFoundError" in broken.err


# ----------------------------------------------------------------------------- enqueue


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", "--run must have a name"),
        (f"run-{LIVE_KEY}", "--run has an API key in it, which belongs in "),
    ],
    ids=["empty", "key"],
)
async def test_name_of_a_run_is_checked_before_anything_is_kept(
    fleet: Fleet, name: str, told: str
) -> None:
    ended = await fleet("enqueue", "--run", name, "re_1", "--base-url", HERE)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"async-refunds: {told}")
    assert LIVE_KEY not in ended.err
    assert fleet.rows("SELECT name FROM async_refunds.runs") == []


async def test_refunds_are_added_once(fleet: Fleet, tmp_path: Path) -> None:
    source = tmp_path / "ids.csv"
    source.write_text("refund_id,stripe_account\nre_2,acct_2\nre_3,\nre_3,\n")
    command = ("enqueue", "--run", "tonight", "--base-url", f"{HERE}/")
    first = await fleet(*command, "re_1", "--account", "acct_1")
    assert (first.code, first.err) == (0, "1 refund added to tonight\n")
    assert first.lines == [{"run": "tonight", "added": 1, "already_there": 0}]
    more = await fleet(*command, "--from", str(source), "--account", "acct_1")
    assert more.err.splitlines() == [
        "2 refunds added to tonight",
        "3 refunds given, 1 of them given before; each is canceled once",
    ]
    again = await fleet(*command, "re_4", "--from", str(source), "--account", "acct_1")
    assert (
        again.err.splitlines()[0] == "1 refund added to tonight; 2 were in it already"
    )
    assert items(fleet) == [
        *(("re_1", "acct_1"), ("re_2", "acct_2")),
        *(("re_3", "acct_1"), ("re_4", "acct_1")),
    ]
    run_row = "SELECT base_url, livemode, tenant, priority FROM async_refunds.runs"
    assert fleet.rows(run_row) == [(HERE, False, "default", 0)]


async def test_enqueue_refuses_before_it_adds(fleet: Fleet) -> None:
    url = ("--base-url", HERE)
    await fleet("enqueue", "--run", "tonight", "re_1", *url)
    none, account, tenant, http, other, bad = await fleet.each(
        ("enqueue", "--run", "tonight"),
        ("enqueue", "--run", "tonight", "re_2", *url, "--account", "1"),
        ("enqueue", "--run", "tonight", "re_2", *url, "--tenant", "a b"),
        ("enqueue", "--run", "x", "re_2", "--live", "--base-url", "http://example.com"),
        ("enqueue", "--run", "tonight", "re_2", *url, "--tenant", "shop2"),
        ("enqueue", "--run", "tonight", "re_2", "ch_3", *url),
    )
    assert (
        none.err == "async-refunds: give refunds, or --from FILE; nothing was added\n"
    )
    assert "--account must be" in account.err
    assert "--tenant must be a name without spaces" in tenant.err
    assert "--base-url must be https" in http.err
    assert other.err.startswith("async-refunds: the run 'tonight' is on 'default ")
    assert other.err.endswith(": give another name; nothing was added\n")
    assert bad.err.endswith("; nothing was added\n")
    codes = [each.code for each in (none, account, tenant, http, other, bad)]
    assert codes == [2] * 6
    assert items(fleet) == [("re_1", "")]


async def test_dry_run_says_what_would_be_added_and_adds_nothing(
    fleet: Fleet, tmp_path: Path
) -> None:
    source = tmp_path / "ids.csv"
    source.write_text("refund_id,stripe_account\nre_1,acct_2\nre_2,\nre_2,\nre_3,\n")
    command = ("enqueue", "--run", "tonight", "--base-url", HERE)
    dry = (*command, "--from", str(source), "--dry-run")
    kept = "SELECT xmin::text, r FROM async_refunds.runs r"
    first = await fleet(*dry)
    assert (first.code, items(fleet), fleet.rows(kept)) == (0, [], [])
    assert first.lines == [{"run": "tonight", "to_add": 3, "already_there": 0}]
    adds = "nothing was added: the same command without --dry-run adds them"
    twice = "4 refunds given, 1 of them given before; each is canceled once"
    assert first.err.splitlines() == [
        f"test mode, {HERE}",
        "tonight is not there yet: it is made with 3 refunds",
        *(adds, twice),
    ]
    await fleet(*command, "re_1", "re_2", "re_9")
    know(fleet, "re_9", "settled = true, outcome = 'canceled'")
    fleet.rows("UPDATE async_refunds.runs SET state = 'paused'")
    before = items(fleet), fleet.rows(kept)
    fleet.environment["ASYNC_REFUNDS_DRY_RUN"] = "1"
    some, all_of_them = await fleet.each(dry[:-1], (*command, "re_2"))
    assert some.lines == [{"run": "tonight", "to_add": 2, "already_there": 1}]
    assert some.err.splitlines()[1:] == [
        "tonight holds 3 refunds already, 2 of them open; 2 of the 3 given are added",
        "tonight is paused: workers begin nothing of it",
        *(adds, twice),
    ]
    assert all_of_them.err.endswith("\nnothing was added\n")
    assert (items(fleet), fleet.rows(kept)) == before


async def test_dry_run_refuses_what_the_command_would(fleet: Fleet) -> None:
    command = ("enqueue", "--run", "tonight", "--base-url", HERE)
    await fleet(*command, "re_1")
    bad, other, *live = await fleet.each(
        (*command, "re_2", "ch_3", "--dry-run"),
        (*command, "re_2", "--tenant", "shop2", "--dry-run"),
        ("enqueue", "--run", "live", "re_1", "re_2", "--live", "--dry-run"),
    )
    assert (bad.code, other.code) == (2, 2)
    assert "'ch_3'" in bad.err
    assert bad.err.endswith("; nothing was added\n")
    assert other.err == (
        f"async-refunds: the run 'tonight' is on 'default {HERE} test', and this one "
        f"is on 'shop2 {HERE} test': give another name; nothing was added\n"
    )
    assert live[0].code == 0, "nobody is asked: nothing happens"
    for state, told in (
        ("closing", "closing, and takes no more refunds"),
        ("closed", "closed"),
    ):
        fleet.rows("UPDATE async_refunds.runs SET state = %s", state)
        refused = await fleet(*command, "re_2", "--dry-run")
        assert refused.code == 2
        assert refused.err == (
            f"async-refunds: the run 'tonight' is {told}; nothing was added\n"
        )


async def test_bad_lines_of_a_list_are_skipped_if_that_is_wanted(
    fleet: Fleet, tmp_path: Path
) -> None:
    source = tmp_path / "ids.txt"
    source.write_text("re_1\nnone\nre_2\n")
    which = ("--run", "tonight", "--from", str(source), "--priority", "-3")
    command = ("enqueue", *which, "--base-url", HERE)
    refused, dry = await fleet.each(command, (*command, "--skip-bad", "--dry-run"))
    assert refused.code == 2
    assert "nothing was added: fix it, or leave it out with --skip-bad" in refused.err
    assert dry.lines == [{"run": "tonight", "to_add": 2, "already_there": 0}]
    added = await fleet(*command, "--skip-bad")
    assert added.code == 0
    for told in (dry, added):
        assert told.err.endswith(f"\n1 line of {source} was skipped\n")
    assert [name for name, _ in items(fleet)] == ["re_1", "re_2"]
    assert fleet.rows("SELECT priority FROM async_refunds.runs") == [(-3,)]


async def test_enqueue_tells_a_person_in_words_only(fleet: Fleet) -> None:
    command = ("enqueue", "--run", "tonight", "re_1", "--base-url", HERE)
    for more in ((), ("--dry-run",)):
        assert await on_terminal(fleet, *command, *more) == ""
    assert items(fleet) == [("re_1", "")]


@pytest.mark.parametrize("command", ["enqueue", "sweep"])
async def test_run_that_takes_none_is_refused_before_a_question_and_a_search(
    fleet: Fleet, command: str
) -> None:
    emulator = Emulator()
    long_ago = int(time.time() - 20 * 86_400)
    ids = [emulator.add_refund(livemode=True, created=long_ago) for _ in range(2)]
    which = ids if command == "enqueue" else ["--older-than", "14d"]
    screen = Screen()
    async with emulator.serve() as base_url:
        fleet.rows("SELECT async_refunds.ensure_run('tonight', %s, true)", base_url)
        fleet.rows("UPDATE async_refunds.runs SET state = 'closed'")
        async with started(
            *("fleet", command, "--run", "tonight", *which, "--live"),
            *("--base-url", base_url),
            key=LIVE_KEY,
            environment=fleet.environment,
            stdin=screen.terminal,
            stderr=screen.terminal,
        ) as running:
            screen.types("n\n")
            ended, shown = await screen.shows(running)
    assert "the run 'tonight' is closed; nothing was added" in shown
    assert "[y/N]" not in shown
    assert ended.code == 2
    assert not emulator.requests


async def test_run_that_is_closed_during_a_search_is_told_after_it(
    fleet: Fleet,
) -> None:
    emulator = Emulator()
    emulator.add_refund(created=int(time.time() - 20 * 86_400))
    async with held(
        *(emulator, 1, "fleet", "sweep", "--run", "tonight", "--older-than", "14d"),
        "--yes",
        environment=fleet.environment,
    ) as (gate, running):
        url = gate.base_url
        fleet.rows("SELECT async_refunds.ensure_run('tonight', %s, false)", url)
        assert (await fleet("close", "tonight")).code == 0
        gate.open()
        ended = await running.ended()
    assert ended.code == 1, "not 2, which says that nothing was sent"
    assert ended.err.endswith(
        "\nasync-refunds: the run 'tonight' is closed; nothing was added\n"
    )


async def test_live_refunds_are_asked_about(fleet: Fleet) -> None:
    which = ("--live", "--account", "acct_1")
    command = ("enqueue", "--run", "live", "re_1", "re_2", *which)
    one = await fleet("enqueue", "--run", "one", "re_1", "--live")
    assert (one.code, one.err) == (0, "1 refund added to one\n")
    refused = await fleet(*command)
    assert refused.code == 2
    assert refused.err == (
        "async-refunds: there is no terminal to ask on: add --yes; nothing was added\n"
    )
    for answer, code in (("n\n", 1), ("y\n", 0)):
        screen = Screen()
        async with started(
            *("fleet", *command),
            key=None,
            environment=fleet.environment,
            stdin=screen.terminal,
            stdout=screen.terminal,
            stderr=screen.terminal,
        ) as running:
            showing = screen.reading()
            await screen.asks("[y/N]")
            screen.types(answer)
            ended = await running.ended()
            shown = await showing
        assert ended.code == code
        assert "live mode, https://api.stripe.com" in shown
        assert "Cancel these 2 refunds of acct_1? Real money moves." in shown
        assert len(items(fleet)) == 1 + (2 if code == 0 else 0)
    assert (await fleet(*command, "--yes")).err.startswith("0 refunds added to live")


# -------------------------------------------------------------- pause, retry, and prune


async def test_run_is_paused_and_resumed(fleet: Fleet) -> None:
    await fleet("enqueue", "--run", "tonight", "re_1", "--base-url", HERE)
    state = "SELECT state FROM async_refunds.runs"
    paused = await fleet("pause", "tonight")
    assert (paused.code, paused.err) == (0, "tonight is paused\n")
    assert fleet.rows(state) == [("paused",)]
    resumed = await fleet("resume", "tonight")
    assert (resumed.code, resumed.err) == (0, "tonight is open\n")
    assert fleet.rows(state) == [("open",)]
    fleet.rows("UPDATE async_refunds.runs SET state = 'closed'")
    none, closed, retried = await fleet.each(
        ("pause", "tomorrow"),
        ("resume", "tonight"),
        ("retry", "tomorrow", "--outcome", "failed"),
    )
    assert (none.code, closed.code, retried.code) == (2, 2, 2)
    assert none.err == "async-refunds: there is no run 'tomorrow'\n"
    assert closed.err == "async-refunds: 'tonight' is closed\n"
    assert retried.err == none.err


async def test_run_that_was_a_mistake_is_closed(fleet: Fleet) -> None:
    ids = ("re_1", "re_2", "re_3", "re_4")
    await fleet("enqueue", "--run", "tonight", *ids, "--base-url", HERE)
    know(fleet, "re_1", "settled = true, outcome = 'canceled', maybe_sent = true")
    know(fleet, "re_2", "maybe_sent = true, claims = 1")
    know(fleet, "re_3", "outcome = 'failed', error = 're_3 failed', attempts = 1")
    begun = await fleet("close", "tonight")
    assert begun.code == 1
    assert begun.err == (
        "tonight is closing; 2 refunds given up: not canceled, nor asked for any more; "
        "1 refund perhaps sent: a worker asks again, with the same key, and then it is "
        "closed\n"
    )
    assert fleet.rows("SELECT state FROM async_refunds.runs") == [("closing",)]
    know(fleet, "re_2", "settled = true, outcome = 'not_cancelable', maybe_sent = true")
    closed = await fleet("close", "tonight")
    assert closed.code == 0
    assert closed.err == "tonight is closed; nothing was left to give up\n"
    report, added, retried, again, none = await fleet.each(
        ("report", "tonight"),
        ("enqueue", "--run", "tonight", "re_5", "--base-url", HERE),
        ("retry", "tonight", "--outcome", "failed"),
        ("close", "tonight"),
        ("close", "tomorrow"),
    )
    assert [(line["outcome"], line["error"]) for line in report.lines] == [
        *(("canceled", None), ("not_cancelable", None)),
        ("failed", "re_3 failed; then its run was closed"),
        ("failed", "re_4 was not canceled: its run was closed"),
    ]
    assert added.err == (
        "async-refunds: the run 'tonight' is closed; nothing was added\n"
    )
    assert retried.err == "async-refunds: 'tonight' is closed\n"
    assert (added.code, retried.code, again.code, none.code) == (2, 2, 0, 2)
    shown = await on_terminal(fleet, "report", "tonight")
    assert "not canceled: the run is closed, another one may have them" in shown
    assert "tonight" not in await on_terminal(fleet, "status")


async def test_close_says_who_asks_for_what_nobody_asks_for(fleet: Fleet) -> None:
    await fleet("enqueue", "--run", "tonight", "re_1", "--base-url", HERE)
    know(fleet, "re_1", "maybe_sent = true, claims = 8, dead = true")
    dead = await fleet("close", "tonight")
    assert dead.err == (
        "tonight is closing; nothing was left to give up; 1 refund perhaps sent: after "
        "`async-refunds fleet retry tonight --outcome dead` a worker asks again, with "
        "the same key, and then it is closed\n"
    )
    assert dead.code == 1
    opened = await fleet("retry", "tonight", "--outcome", "dead,unknown")
    assert opened.err == "1 refund of tonight is asked for at once\n"
    assert "sent: a worker asks again" in (await fleet("close", "tonight")).err


async def test_close_says_that_somebody_adds_without_an_end(fleet: Fleet) -> None:
    await fleet("enqueue", "--run", "tonight", "re_1", "--base-url", HERE)
    with psycopg.connect(fleet.environment["ASYNC_REFUNDS_DATABASE"]) as adding:
        adding.execute("SELECT async_refunds.enqueue('tonight', '{re_2}')")
        closed = await fleet("close", "tonight")
    assert closed.code == 1
    assert closed.err == (
        "async-refunds: somebody adds refunds to tonight in a transaction that does "
        "not end: tonight is closing, at least 1 refund not asked for any more: the "
        "same command again goes on\n"
    )


async def test_claim_that_a_failover_lost_was_perhaps_sent(fleet: Fleet) -> None:
    await fleet("enqueue", "--run", "tonight", "re_1", "--base-url", HERE)
    # The database is in a history that no worker has noted yet.
    fleet.rows("UPDATE async_refunds.timelines SET timeline = 'before'")
    closed = await fleet("close", "tonight")
    assert closed.code == 1
    assert (
        "tonight is closing; nothing was left to give up; 1 refund perhaps sent"
        in closed.err
    )
    assert fleet.rows("SELECT settled FROM async_refunds.items") == [(False,)]


async def test_role_that_may_not_tell_the_history_takes_nothing_for_unsent(
    fleet: Fleet,
) -> None:
    await fleet("enqueue", "--run", "tonight", "re_1", "--base-url", HERE)
    fleet.rows(
        "CREATE OR REPLACE FUNCTION async_refunds.timeline() RETURNS text "
        "LANGUAGE sql AS 'SELECT NULL::text'"
    )
    closed = await fleet("close", "tonight")
    assert closed.code == 1
    assert closed.err == (
        "tonight is closing; nothing was left to give up; 1 refund of which this role "
        "cannot tell whether they were sent: nobody asks, and `async-refunds fleet "
        "init --check` says how a role can tell, that then closes it\n"
    )
    fleet.rows("DELETE FROM async_refunds.timelines")  # nobody may tell it
    assert (await fleet("close", "tonight")).code == 0


async def test_what_was_not_canceled_is_opened_again(fleet: Fleet) -> None:
    ids = ("re_1", "re_2", "re_3", "re_4", "re_5")
    await fleet("enqueue", "--run", "tonight", *ids, "--base-url", HERE)
    await fleet("enqueue", "--run", "other", "re_1", "--base-url", HERE)
    for name, outcome in zip(ids[:3], ("canceled", "failed", "unknown"), strict=True):
        fleet.rows(
            "UPDATE async_refunds.items SET settled = true, outcome = %s "
            "WHERE refund_id = %s",
            *(outcome, name),
        )
    spoil = "UPDATE async_refunds.items SET dead = true, claims = 8"
    fleet.rows(f"{spoil} WHERE refund_id = 're_4'")
    wait = "UPDATE async_refunds.leases SET not_before = 'infinity', takeovers = 3"
    fleet.rows(wait)
    unknown = await fleet("retry", "tonight", "--outcome", "canceld")
    assert unknown.code == 2
    assert "known are dead, failed, not_cancelable, unknown" in unknown.err
    none = await fleet("retry", "tonight", "--outcome", "not_cancelable")
    assert (none.code, none.err) == (
        0,
        "no refund of tonight is not_cancelable: none is asked for\n",
    )
    lease = "SELECT not_before = 'infinity', takeovers FROM async_refunds.leases"
    assert fleet.rows(lease) == [(True, 3)]
    after_a_kill = "no_new_key_until = now() + interval '100 s'"
    fleet.rows(f"UPDATE async_refunds.leases SET {after_a_kill}")  # noqa: S608 - our own text
    later = await fleet("retry", "tonight", "--outcome", "failed")
    assert re.fullmatch(
        r"\d refunds? of tonight (is|are) asked for, the last in \d+ s: till then a "
        r"request of a worker that was killed may be under way\n",
        later.err,
    )
    fleet.rows(
        "UPDATE async_refunds.leases SET no_new_key_until = now(), takeovers = 3, "
        "not_before = 'infinity'"
    )
    some = await fleet("retry", "tonight", "--outcome", "failed, dead")
    assert some.err == "2 refunds of tonight are asked for at once\n"
    assert fleet.rows(lease) == [(False, 0)]
    left = fleet.rows(
        "SELECT refund_id, settled, dead, claims FROM async_refunds.items "
        "JOIN async_refunds.runs USING (run_id) WHERE name = 'tonight' ORDER BY number"
    )
    assert left == [
        *(("re_1", True, False, 0), ("re_2", False, False, 0)),
        *(("re_3", True, False, 0), ("re_4", False, False, 0)),
        ("re_5", False, False, 0),
    ]


async def test_old_results_are_pruned_and_nothing_else(fleet: Fleet) -> None:
    ids = ("re_1", "re_2", "re_3")
    await fleet("enqueue", "--run", "tonight", *ids, "--base-url", HERE)
    known = (
        "UPDATE async_refunds.items SET known_at = now() - make_interval(days => %s)"
    )
    fleet.rows(f"{known}, settled = true WHERE refund_id = 're_1'", 31)
    fleet.rows(f"{known}, settled = true WHERE refund_id = 're_2'", 29)
    fleet.rows(f"{known} WHERE refund_id = 're_3'", 99)
    young = await fleet("prune", "--older-than", "23h")
    assert young.code == 2
    assert "a day at least: Stripe still knows the keys" in young.err
    ended = await fleet("prune", "--older-than", "30d")
    assert (ended.code, ended.err) == (0, "1 result deleted\n")
    assert [name for name, _ in items(fleet)] == ["re_2", "re_3"]
    assert (await fleet("prune", "--older-than", "4w")).err == "1 result deleted\n"
    assert (await fleet("prune", "--older-than", "4w")).err == "0 results deleted\n"


# ------------------------------------------------------------------ status, and report


_SET = "UPDATE async_refunds.items SET"


def know(fleet: Fleet, name: str, values: str) -> None:
    fleet.rows(f"{_SET} {values} WHERE refund_id = %s", name)


async def a_run(fleet: Fleet) -> None:
    """Enqueue six refunds, and let five of them be as workers leave them."""
    ids = [f"re_{number}" for number in range(1, 7)]
    await fleet("enqueue", "--run", "tonight", *ids, "--base-url", HERE)
    times = "claimed_at = added_at, known_at = added_at + interval '90 s'"
    done = f"attempts = 2, seconds = 0.5, {times}"
    money = "amount = 1050, currency = 'eur', generation = 1"
    settled = f"{done}, {money}, settled = true"
    know(fleet, "re_1", f"{settled}, outcome = 'canceled', idempotency_key = 'k1'")
    know(
        fleet, "re_2", f"{settled}, outcome = 'not_cancelable', error = 'it is pending'"
    )
    know(fleet, "re_3", f"{done}, outcome = 'failed', error = 'no permission'")
    know(fleet, "re_4", "generation = 2, claims = 1, maybe_sent = true")
    know(fleet, "re_5", "dead = true, claims = 9")


async def test_report_of_a_run(fleet: Fleet, tmp_path: Path) -> None:
    await a_run(fleet)
    page = tmp_path / "page.html"
    command = ("report", "tonight")
    lines, csv, html, both, none = await fleet.each(
        command,
        (*command, "--csv"),
        (*command, "--html", str(page)),
        (*command, "--csv", "--json"),
        ("report", "tomorrow"),
    )
    assert (lines.code, csv.code, html.code, both.code, none.code) == (3, 3, 3, 2, 2)
    assert none.err == "async-refunds: there is no run 'tomorrow'\n"
    records = {each["refund_id"]: each for each in lines.lines}
    outcomes = {name: each["outcome"] for name, each in records.items()}
    assert outcomes == {
        "re_1": "canceled",
        "re_2": "not_cancelable",
        "re_3": "failed",
        "re_4": "unknown",
        "re_5": None,
        "re_6": None,
    }
    assert records["re_1"]["idempotency_key"] == "k1"
    ((seed,),) = fleet.rows("SELECT seed FROM async_refunds.runs")
    assert records["re_4"]["idempotency_key"] == derive_key(seed, None, "re_4", 2)
    assert records["re_5"]["error"].startswith("dead: 8 workers in turn")
    assert csv.out.count("\n") == 7
    told = page.read_text()
    assert "<code>async-refunds fleet retry tonight --outcome failed</code>" in told
    shown = await on_terminal(fleet, *command)
    assert "`async-refunds fleet retry tonight --outcome failed`" in shown
    assert "\n6 requests in 0:01:30" in shown
    fleet.rows("UPDATE async_refunds.items SET uncounted = true WHERE number = 1")
    assert "\nat least 6 requests in 0:01:30" in await on_terminal(fleet, *command)
    await fleet(*command, "--html", str(page), "--force")
    assert "At least 6 requests in 0:01:30." in page.read_text()
    assert "eur        1        10.50" in shown


def hold(fleet: Fleet, *, seconds: float) -> None:
    fleet.rows(
        "UPDATE async_refunds.leases SET token = gen_random_uuid(), owner = 'w1', "
        "renewed_at = now(), pace = 12.5, until = now() + make_interval(secs => %s)",
        seconds,
    )


async def test_status_shows_accounts_and_workers(fleet: Fleet) -> None:
    empty = await on_terminal(fleet, "status")
    assert empty.startswith("nothing to do: ")
    await a_run(fleet)
    await fleet("enqueue", "--run", "x", "re_9", "--account", "acct_9")
    hold(fleet, seconds=60)
    fleet.rows(
        "UPDATE async_refunds.leases SET token = NULL, not_before = now() + interval "
        "'50 s' WHERE account = 'acct_9'"
    )
    run, later, first, second = (await fleet("status")).lines
    assert (run["run"], run["state"], later["run"]) == ("tonight", "open", "x")
    counts = [run[name] for name in ("refunds", "open", "to_retry", "dead")]
    assert counts == [6, 3, 1, 1]
    assert (first["stripe_account"], first["owner"], first["open"]) == (None, "w1", 3)
    assert (first["dead"], first["rate"], first["waits"]) == (1, 12.5, None)
    assert first["last_word"] == "no permission"
    assert (second["stripe_account"], second["held"]) == ("acct_9", False)
    assert 40 < second["waits"] <= 50
    shown = (await on_terminal(fleet, "status")).splitlines()
    assert shown[0].split() == [
        *("run", "state", "refunds", "open", "to", "retry", "dead")
    ]
    assert shown[1].split() == ["tonight", "open", "6", "3", "1", "1"]
    assert "1 refund dead; no permission" in shown[5]
    assert shown[4].split()[:3] == ["account", "address", "worker"]
    assert shown[6].split()[:3] == ["acct_9", "https://api.stripe.com", "waits"]
    assert shown[-1] == "4 refunds open of 2 accounts, 1 worker"


async def test_status_tells_whose_an_account_is_and_why_it_is_open(
    fleet: Fleet,
) -> None:
    why = "you have no permission for this account; ask its owner for the right key"
    await fleet("enqueue", "--run", "tonight", "re_1", "--base-url", HERE)
    await fleet(
        *("enqueue", "--run", "real", "re_2", "--base-url", HERE),
        *("--live", "--tenant", "shop"),
    )
    know(fleet, "re_1", f"known_at = now(), error = 're_1 was not canceled: {why}'")
    lost = "may or may not be canceled: it was cut"
    know(fleet, "re_2", f"known_at = now(), error = 're_2 {lost}'")
    shown = (await on_terminal(fleet, "status")).splitlines()
    head, *both = shown[4:7]
    assert head.split()[:4] == ["account", "tenant", "mode", "worker"]
    rows = {tuple(each.split()[:3]): each for each in both}
    assert rows[("own", "default", "test")].endswith(f"  {why}")
    assert rows[("own", "shop", "live")].endswith(f"  {lost}")
    narrow = await on_terminal(fleet, "status", columns=80)
    assert all(len(each) <= 80 for each in narrow.splitlines())
    assert why in " ".join(narrow.split()), "it is not cut"
    accounts = (await fleet("status")).lines[2:]
    assert all(each["last_word"].startswith("re_") for each in accounts)


async def test_status_is_watched_until_ctrl_c(fleet: Fleet) -> None:
    await a_run(fleet)
    refused = await fleet("status", "--watch")
    assert refused.code == 2
    assert "--watch draws on a terminal" in refused.err
    screen = Screen()
    async with started(
        *("fleet", "status", "--watch", "--every", "0.1"),
        key=None,
        environment=fleet.environment,
        stdout=screen.terminal,
    ) as running:
        showing = screen.reading()
        await screen.asks("3 refunds open")
        know(fleet, "re_6", "settled = true")
        await screen.asks("2 refunds open")
        running.process.send_signal(signal.SIGINT)
        ended = await running.ended()
        shown = await showing
    assert ended.code == 0
    assert shown.count("\x1b[H\x1b[J") >= 2


# ------------------------------------------------------------------------------- sweep


async def test_old_refunds_are_found_and_added(fleet: Fleet) -> None:
    emulator = Emulator()
    now, day = time.time(), 86_400
    old = [
        emulator.add_refund(created=int(now - age * day), account="acct_1")
        for age in (20, 30)
    ]
    emulator.add_refund(created=int(now - 3 * day), account="acct_1")
    async with emulator.serve() as base_url:
        command = ("fleet", "sweep", "--run", "old", "--older-than", "14d")
        to = ("--base-url", f"{base_url}/", "--account", "acct_1", "--yes")
        how: Any = {"environment": fleet.environment}
        dry, none, asked, spaced = await run_each(
            (*command, *to[:-1], "--dry-run"),
            (*command, *to, "--currency", "gbp"),
            (*command, *to[:-1]),
            (*command, *to, "--tenant", ""),
            **how,
        )
        assert (dry.code, none.code, asked.code, spaced.code) == (0, 0, 2, 2)
        assert fleet.rows("SELECT name FROM async_refunds.runs") == []
        assert {each["id"] for each in dry.lines} == {*old}
        ended = await run(*command, *to, "--max", "1", **how)
        again = await run(*command, *to, **how)
        screen = Screen()
        async with started(
            *(*command, *to[:-1]),
            environment=fleet.environment,
            stdin=screen.terminal,
            stderr=screen.terminal,
        ) as running:
            showing = screen.reading()
            await screen.asks("[y/N]")
            screen.types("n\n")
            refused = await running.ended()
            await showing
    assert refused.code == 1
    assert ended.lines == [{"run": "old", "added": 1, "already_there": 0}]
    assert again.lines == [{"run": "old", "added": 1, "already_there": 1}]
    assert {*items(fleet)} == {(each, "acct_1") for each in old}
    assert fleet.rows("SELECT base_url FROM async_refunds.runs WHERE name = 'old'") == [
        (base_url,)
    ]
    assert not emulator.books.cancel_requests


# ------------------------------------------------------------------------------ worker


async def test_worker_cancels_what_is_enqueued_until_it_is_ended(fleet: Fleet) -> None:
    emulator, ids = emulator_of(30)
    async with emulator.serve() as base_url:
        to = ("--base-url", base_url)
        async with started(
            "fleet", "worker", *to, environment=fleet.environment
        ) as worker:
            await worker.says("working at http://127.0.0.1:.* in test mode")
            await fleet("enqueue", "--run", "tonight", *ids, *to)
            await until(fleet, "SELECT bool_and(settled) FROM async_refunds.items")
            worker.process.send_signal(signal.SIGTERM)
            ended = await worker.ended()
    assert ended.code == 0
    assert ended.err.splitlines()[-1] == "ended with 30 results: 30 canceled"
    assert emulator.books.cancellations == dict.fromkeys(ids, 1)
    assert (await fleet("report", "tonight")).code == 0
    held = "SELECT count(*) FROM async_refunds.leases WHERE token IS NOT NULL"
    assert fleet.rows(held) == [(0,)]


async def test_worker_tells_that_it_counts_a_refund_again(fleet: Fleet) -> None:
    """And ``wait`` ends meanwhile, though the refund is asked for again for ever."""
    emulator, ids = emulator_of(1)
    async with emulator.serve() as base_url:
        to = ("--base-url", base_url)
        await fleet("enqueue", "--run", "tonight", "re_missing", *ids, *to)
        async with started(
            "fleet", "worker", *to, environment=fleet.environment
        ) as worker:
            for _ in range(2):
                waited = await fleet("wait", "tonight")
                assert waited.code == 1
                assert "1 refund of tonight is asked for again, " in waited.err
                assert "  re_missing: No such refund: 're_missing'\n" in waited.err
                retried = await fleet("retry", "tonight", "--outcome", "failed")
                assert retried.err == "1 refund of tonight is asked for at once\n"
            await fleet("wait", "tonight")
            worker.process.send_signal(signal.SIGTERM)
            ended = await worker.ended()
    assert ended.err.splitlines()[-1] == (
        "ended with 4 results: 3 failed, 1 canceled; a refund that was asked for again "
        "counts each time"
    )


async def until(fleet: Fleet, query: str) -> None:
    """Wait until a query finds what is true."""
    async with asyncio.timeout(30):
        while fleet.rows(query) != [(True,)]:  # noqa: ASYNC110 - of the database
            await asyncio.sleep(0.05)


async def test_worker_tells_of_a_refused_key_and_a_second_signal_ends_it_at_once(
    fleet: Fleet,
) -> None:
    emulator, ids = emulator_of(3)
    emulator.faults.load("stall=1")
    async with emulator.serve() as base_url:
        to = ("--base-url", base_url)
        await fleet("enqueue", "--run", "tonight", *ids, *to)
        async with started(
            *("fleet", "worker", *to, "--name", "night"),
            environment=fleet.environment,
        ) as worker:
            await until(fleet, "SELECT bool_or(maybe_sent) FROM async_refunds.items")
            ((owner,),) = fleet.rows("SELECT owner FROM async_refunds.leases")
            worker.process.send_signal(signal.SIGTERM)
            await worker.says("stopping: .* what is under way has three seconds to end")
            worker.process.send_signal(signal.SIGINT)
            ended = await worker.ended()
    assert owner == "night"
    assert ended.code == 0
    assert "ended at once; other workers go on with what was under way" in ended.err


async def test_worker_waits_for_the_database_and_refuses_the_wrong_one(
    fleet: Fleet, postgres_empty_database: str
) -> None:
    to = ("fleet", "worker", "--base-url", HERE)
    empty, *leases = await run_each(
        (*to, "--database", postgres_empty_database),
        (*to, "--lease", "0"),
        (*to, "--lease", "0.99"),
        environment=fleet.environment,
    )
    assert [empty.code, *(lease.code for lease in leases)] == [2, 2, 2]
    assert "run `async-refunds fleet init`" in empty.err
    assert "--lease must be above 0 seconds, not 0.0" in leases[0].err
    assert "--lease must be at least 1 second" in leases[1].err
    away = {"ASYNC_REFUNDS_DATABASE": "postgresql://127.0.0.1:1/nobody"}
    async with started(*to, "--verbose", environment=away) as worker:
        await worker.says("waiting for the database: ")
        await worker.sleeps()
        worker.process.send_signal(signal.SIGTERM)
        ended = await worker.ended()
    assert ended.code == 0
    assert ended.err.splitlines()[-1] == "ended with 0 results"
    assert ended.err.count("waiting for the database") == 1
