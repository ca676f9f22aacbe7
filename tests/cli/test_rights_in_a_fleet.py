"""The commands of ``fleet`` as a database role that has few rights, or none."""

from __future__ import annotations

import asyncio
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.terminal import emulator_of, run, run_each, started

if TYPE_CHECKING:
    from collections.abc import Generator

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

README = (Path(__file__).parents[2] / "README.md").read_text()
GRANTS = re.findall(r"^GRANT .*;$", README, re.MULTILINE)
NOWHERE = ("--base-url", "http://127.0.0.1:1")
FAR_TOO_LONG = 30.0  # seconds


class Database:
    """A database, and roles of its server that have the rights a test grants them."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        name = str(conninfo_to_dict(owner)["dbname"])
        self.roles = {each: f"{name}_{each}" for each in ("worker", "service")}

    def does(self, *statements: str) -> None:
        """Carry out statements as the owner."""
        with psycopg.connect(self._owner, autocommit=True) as connection:
            for each in statements:
                text = re.sub(
                    r"\b(worker|service)\b", lambda found: self.roles[found[0]], each
                )
                connection.execute(text.encode())

    def rows(self, query: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self._owner, autocommit=True) as connection:
            return connection.execute(query.encode()).fetchall()

    def environment(self, role: str) -> dict[str, str]:
        address = make_conninfo(self._owner, user=self.roles[role])
        return {"ASYNC_REFUNDS_DATABASE": address}


@pytest.fixture
def database(postgres_database: str) -> Generator[Database]:
    made = Database(postgres_database)
    made.does("CREATE ROLE worker LOGIN", "CREATE ROLE service LOGIN")
    yield made
    made.does("DROP OWNED BY worker, service", "DROP ROLE worker, service")


USAGE, READ, UPDATE, *MORE = GRANTS
ENQUEUED = """DO $$ BEGIN
    PERFORM async_refunds.ensure_run('tonight', 'http://127.0.0.1:1', false);
    PERFORM async_refunds.enqueue('tonight', ARRAY['re_1']);
END $$"""


@pytest.mark.parametrize(
    ("granted", "what"),
    [
        ((), "permission denied for schema async_refunds"),
        ((USAGE,), "permission denied for table meta"),
        ((USAGE, READ, *MORE), "GRANT UPDATE ON async_refunds.leases TO worker; "),
        ((USAGE, READ, UPDATE), "GRANT INSERT ON async_refunds.timelines TO worker; "),
    ],
)
async def test_worker_that_lacks_a_right_ends_with_one_line(
    database: Database, granted: tuple[str, ...], what: str
) -> None:
    database.does(ENQUEUED, *granted)
    async with asyncio.timeout(FAR_TOO_LONG):  # or it would work on
        ended = await run(
            "fleet", "worker", *NOWHERE, environment=database.environment("worker")
        )
    assert ended.code == 2
    *results, said = ended.err.splitlines()
    assert not results, "it does not say that it works"
    assert said.startswith("async-refunds: the database refuses")
    assert what in said.replace(database.roles["worker"], "worker")


async def test_command_that_lacks_a_right_ends_with_one_line(
    database: Database,
) -> None:
    database.does(ENQUEUED, USAGE, READ)
    ended = await run_each(
        ("fleet", "enqueue", "--run", "tonight", "re_2", *NOWHERE),
        ("fleet", "pause", "tonight"),
        ("fleet", "resume", "tonight"),
        ("fleet", "retry", "tonight", "--outcome", "failed"),
        ("fleet", "prune", "--older-than", "90d"),
        key=None,
        environment=database.environment("service"),
    )
    for each in ended:
        assert (each.code, each.out) == (2, "")
        (said,) = each.err.splitlines()
        assert said.startswith("async-refunds: the database refuses: permission denied")


async def test_tables_cannot_be_made_without_the_right_to(database: Database) -> None:
    database.does("DROP SCHEMA async_refunds CASCADE")
    ended = await run(
        "fleet", "init", key=None, environment=database.environment("worker")
    )
    assert ended.code == 2
    (said,) = ended.err.splitlines()
    assert "refuses: permission denied for database" in said


@pytest.mark.parametrize("left_out", [None, *GRANTS])
async def test_rights_that_the_readme_names_are_needed_and_enough(
    database: Database, left_out: str | None
) -> None:
    database.does(*(each for each in GRANTS if each != left_out))
    # As in a new history: the first worker notes it.
    database.does("DELETE FROM async_refunds.timelines")
    emulator, ids = emulator_of(1)
    async with emulator.serve() as base_url:
        to = ("--base-url", base_url)
        enqueued = await run(
            *("fleet", "enqueue", "--run", "tonight", *ids, *to),
            key=None,
            environment=database.environment("service"),
        )
        if enqueued.code:
            assert left_out is not None
            assert enqueued.code == 2
            return
        async with (
            asyncio.timeout(FAR_TOO_LONG),
            started(
                *("fleet", "worker", *to), environment=database.environment("worker")
            ) as worker,
        ):
            if left_out is None:
                settled = "SELECT bool_and(settled) FROM async_refunds.items"
                while database.rows(settled) != [(True,)]:  # noqa: ASYNC110 - of the database
                    await asyncio.sleep(0.05)
                worker.process.send_signal(signal.SIGTERM)
            ended = await worker.ended()
    assert ended.code == (0 if left_out is None else 2)
    canceled = {} if left_out else dict.fromkeys(ids, 1)
    assert emulator.books.cancellations == canceled
