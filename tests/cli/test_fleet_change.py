"""What a command of ``fleet`` says of its change when it does not come to its end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import psycopg
import pytest
from typer.testing import CliRunner

from async_refunds.cli.app import app
from async_refunds.cli.embedded_postgres import embedded_server
from async_refunds.cli.fleet import enqueue as enqueue_command
from async_refunds.emulator import Emulator
from async_refunds.journal.postgres import administration
from async_refunds.journal.postgres.schema import VERSION
from tests.support.fleet_commands import Fleet
from tests.support.fleets import FAR_TOO_LONG
from tests.support.postgres_server import PostgresServer
from tests.support.terminal import TEST_KEY, run, started

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from tests.support.terminal import Running

real = pytest.mark.asyncio(loop_factories=["real"])

HERE = "http://127.0.0.1:12111"
ENQUEUE = ("enqueue", "--run", "tonight", "re_2", "--base-url", HERE)
PERHAPS_ADDED = "perhaps all were added: the same command again adds nothing twice"

# A command, what is said of it when its commit is in doubt, and what is true then.
CHANGES: dict[tuple[str, ...], tuple[str, str]] = {
    ENQUEUE: (
        PERHAPS_ADDED,
        "SELECT count(*) = 2 FROM async_refunds.items",
    ),
    ("pause", "tonight"): (
        "perhaps tonight is paused: the same command again makes sure",
        "SELECT state = 'paused' FROM async_refunds.runs",
    ),
    ("resume", "tonight"): (
        "perhaps tonight is open: the same command again makes sure",
        "SELECT state = 'open' FROM async_refunds.runs",
    ),
    ("close", "tonight"): (
        "perhaps tonight is closing: the same command again goes on",
        "SELECT state = 'closing' FROM async_refunds.runs",
    ),
    ("retry", "tonight", "--outcome", "failed"): (
        "perhaps they are asked for: the same command again makes sure",
        "SELECT NOT settled FROM async_refunds.items",
    ),
    ("prune", "--older-than", "30d"): (
        "perhaps some are deleted: the same command again deletes the rest",
        "SELECT count(*) = 0 FROM async_refunds.items",
    ),
}
BEFORE = {
    "resume": "UPDATE async_refunds.runs SET state = 'paused'",
    "retry": "UPDATE async_refunds.items SET settled = true, outcome = 'failed'",
    "prune": "UPDATE async_refunds.items SET settled = true, known_at = now() - "
    "interval '31 d'",
}
EACH = pytest.mark.parametrize("command", CHANGES, ids=lambda words: words[0])


@pytest.fixture(scope="module")
def waiting_server() -> Generator[PostgresServer]:
    """A server whose commits wait for a standby, which never comes, if they ask."""
    with embedded_server(
        synchronous_standby_names="nobody", synchronous_commit="local"
    ) as address:
        yield PostgresServer(address)


@pytest.fixture
def fleet(waiting_server: PostgresServer) -> Generator[Fleet]:
    """Commands whose commits are done and do not end; the test's own do."""
    with waiting_server.database() as address:
        made = Fleet(address, synchronous_commit="on")
        add(made, "re_1")
        yield made


def add(fleet: Fleet, name: str) -> None:
    fleet.rows("SELECT async_refunds.ensure_run('tonight', %s, false)", HERE)
    fleet.rows("SELECT async_refunds.enqueue('tonight', ARRAY[%s])", name)


@asynccontextmanager
async def waiting(
    fleet: Fleet, *command: str, event: str = "SyncRep", key: str | None = None
) -> AsyncGenerator[tuple[Running, int]]:
    """Start a command, and give it and its session once that waits for something."""
    found: list[Any] = []
    async with started(
        "fleet", *command, key=key, environment=fleet.environment
    ) as running:
        async with asyncio.timeout(FAR_TOO_LONG):
            while not found:
                assert running.process.returncode is None
                await asyncio.sleep(0.01)
                found = fleet.rows(
                    "SELECT pid FROM pg_stat_activity WHERE wait_event = %s "
                    "AND datname = current_database()",
                    event,
                )
        yield running, found[0][0]


# -------------------------------------------------------------- a commit without an end


@real
@EACH
async def test_ctrl_c_in_a_commit_says_that_it_is_in_doubt(
    fleet: Fleet, command: tuple[str, ...]
) -> None:
    said, is_true = CHANGES[command]
    fleet.rows(BEFORE.get(command[0], "SELECT 1"))
    async with waiting(fleet, *command) as (running, _):
        running.process.send_signal(signal.SIGINT)
        ended = await running.ended()
    assert ended.err == f"async-refunds: interrupted: {said}\n"
    assert (ended.code, ended.out) == (130, "")
    assert fleet.rows(is_true) == [(True,)]


@real
@EACH
async def test_connection_that_is_lost_in_a_commit_leaves_it_in_doubt(
    fleet: Fleet, command: tuple[str, ...]
) -> None:
    said, is_true = CHANGES[command]
    fleet.rows(BEFORE.get(command[0], "SELECT 1"))
    async with waiting(fleet, *command) as (running, session):
        fleet.rows("SELECT pg_terminate_backend(%s)", session)
        ended = await running.ended()
    assert ended.err.startswith("async-refunds: the database: ")
    assert ended.err.endswith(f"; {said}\n")
    assert len(ended.err.splitlines()) == 1
    assert (ended.code, ended.out) == (1, "")
    assert fleet.rows(is_true) == [(True,)]


@real
async def test_ctrl_c_while_tables_are_made_leaves_it_in_doubt(
    waiting_server: PostgresServer,
) -> None:
    with waiting_server.database(migrated=False) as address:
        fleet = Fleet(address, synchronous_commit="on")
        async with waiting(fleet, "init") as (running, _):
            running.process.send_signal(signal.SIGINT)
            ended = await running.ended()
        again = await fleet("init")
    assert ended.code == 130
    assert ended.err == (
        "async-refunds: interrupted: perhaps the tables are made: the same command "
        "again makes them, or finds them\n"
    )
    assert (again.code, again.err) == (
        0,
        f"nothing to do: the tables have version {VERSION}\n",
    )


@real
async def test_ctrl_c_while_a_sweep_is_committed_leaves_it_in_doubt(
    fleet: Fleet,
) -> None:
    emulator = Emulator()
    found = emulator.add_refund(created=int(time.time()) - 20 * 86_400)
    async with emulator.serve() as base_url:
        fleet.rows("UPDATE async_refunds.runs SET base_url = %s", base_url)
        which = ("--run", "tonight", "--older-than", "14d", "--yes")
        async with waiting(
            *(fleet, "sweep", *which, "--base-url", base_url), key=TEST_KEY
        ) as (running, _):
            running.process.send_signal(signal.SIGINT)
            ended = await running.ended()
    assert ended.err.endswith(f"async-refunds: interrupted: {PERHAPS_ADDED}\n")
    assert (ended.code, ended.out) == (130, "")
    there = "SELECT refund_id FROM async_refunds.items ORDER BY number"
    assert fleet.rows(there) == [("re_1",), (found,)]


# ----------------------------------------------------------- before a commit, and after


@pytest.fixture
def plain(postgres_database: str) -> Fleet:
    """Commands whose commits end."""
    return Fleet(postgres_database)


@real
@pytest.mark.parametrize("how", ["Ctrl-C", "connection lost"])
async def test_before_the_commit_nothing_was_added(
    plain: Fleet, postgres_database: str, how: str
) -> None:
    add(plain, "re_1")
    with psycopg.connect(postgres_database) as other:
        # Not committed: whoever adds the same refund waits to see what becomes of it.
        other.execute("SELECT async_refunds.enqueue('tonight', ARRAY['re_2'])")
        async with waiting(plain, *ENQUEUE, event="transactionid") as waits:
            running, session = waits
            if how == "Ctrl-C":
                running.process.send_signal(signal.SIGINT)
            else:
                plain.rows("SELECT pg_terminate_backend(%s)", session)
            ended = await running.ended()
        other.rollback()
    assert ended.err.endswith(": nothing was added\n") == (how == "Ctrl-C")
    assert ended.err.endswith("; nothing was added\n") == (how != "Ctrl-C")
    assert len(ended.err.splitlines()) == 1
    assert ended.code == (130 if how == "Ctrl-C" else 1)
    assert plain.rows("SELECT refund_id FROM async_refunds.items") == [("re_1",)]


# Ctrl-C may come in the midst of its own code; then it logs that it cannot roll back.
WARNED = """
import logging, sys
from async_refunds.cli.fleet.database import DatabaseOptions, connected

logging.getLogger("psycopg").warning("shown before")
with connected(DatabaseOptions(database=sys.argv[1])):
    logging.getLogger("psycopg").warning("error ignored in rollback")
"""


@real
async def test_what_psycopg_logs_is_no_line_of_a_command(
    postgres_database: str,
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WARNED, postgres_database),
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    assert (process.returncode, said) == (0, b"shown before\n")


@real
async def test_commit_that_the_server_refuses_has_added_nothing(plain: Fleet) -> None:
    plain.rows("""CREATE FUNCTION async_refunds.refuse() RETURNS trigger
        LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not today'; END $$""")
    plain.rows("""CREATE CONSTRAINT TRIGGER refused AFTER INSERT ON async_refunds.items
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
        EXECUTE FUNCTION async_refunds.refuse()""")
    ended = await plain(*ENQUEUE)
    assert ended.err == ("async-refunds: the database: not today; nothing was added\n")
    assert ended.code == 1
    assert plain.rows("SELECT refund_id FROM async_refunds.items") == []


@pytest.fixture
def full() -> Generator[int]:
    """A disk with no space left."""
    with Path("/dev/full").open("wb") as file:
        yield file.fileno()


@pytest.fixture
def unread() -> Generator[int]:
    """A pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@real
@pytest.mark.parametrize(
    ("stdout", "reason"),
    [("full", "No space left on device"), ("unread", "Broken pipe")],
)
async def test_stdout_that_breaks_after_the_commit_takes_nothing_back(
    plain: Fleet, request: pytest.FixtureRequest, stdout: str, reason: str
) -> None:
    ended = await run(
        *("fleet", *ENQUEUE, "--quiet"),
        key=None,
        environment=plain.environment,
        stdout=request.getfixturevalue(stdout),
    )
    assert ended.err == (
        f"async-refunds: stdout broke ({reason}): 1 refund added to tonight\n"
    )
    assert ended.code == 1
    assert plain.rows("SELECT refund_id FROM async_refunds.items") == [("re_2",)]


def test_ctrl_c_after_the_commit_says_what_was_added(
    plain: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(enqueue_command, "tell", interrupt)
    ended = CliRunner().invoke(app, ["fleet", *ENQUEUE], env=plain.environment)
    assert ended.exit_code == 130
    assert ended.stderr == "async-refunds: interrupted: 1 refund added to tonight\n"
    assert plain.rows("SELECT refund_id FROM async_refunds.items") == [("re_2",)]


def test_prune_that_fails_says_how_much_is_deleted(
    plain: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(administration, "_PAGE", 1)
    add(plain, "re_1")
    add(plain, "re_2")
    plain.rows(BEFORE["prune"])
    plain.rows("""CREATE FUNCTION async_refunds.refuse() RETURNS trigger
        LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not this one'; END $$""")
    plain.rows("""CREATE TRIGGER refused BEFORE DELETE ON async_refunds.items
        FOR EACH ROW WHEN (OLD.refund_id = 're_2')
        EXECUTE FUNCTION async_refunds.refuse()""")
    command = ["fleet", "prune", "--older-than", "30d"]
    ended = CliRunner().invoke(app, command, env=plain.environment)
    assert ended.stderr == (
        "async-refunds: the database: not this one; at least 1 result deleted: the "
        "same command again deletes the rest\n"
    )
    assert ended.exit_code == 1
    assert plain.rows("SELECT refund_id FROM async_refunds.items") == [("re_2",)]
