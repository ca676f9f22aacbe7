"""What the commands of ``fleet`` say of a database that is not as it should be."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.support.terminal import run

pytestmark = pytest.mark.asyncio(loop_factories=["real"])


@pytest.mark.parametrize("command", [("init",), ("init", "--check", "-q")])
async def test_hidden_timeline_is_told(
    postgres_database: str, command: tuple[str, ...]
) -> None:
    with psycopg.connect(postgres_database, autocommit=True) as connection:
        connection.execute(
            """CREATE OR REPLACE FUNCTION async_refunds.timeline() RETURNS text
                LANGUAGE sql AS 'SELECT NULL::text'"""
        )
    ended = await run(
        "fleet",
        *command,
        key=None,
        environment={"ASYNC_REFUNDS_DATABASE": postgres_database},
    )
    assert ended.code == 0
    assert "hides its timeline, so no failover" in ended.err
    assert ended.err.count("\n") == (1 if "-q" in command else 2)


async def test_worker_does_not_wait_for_a_database_that_refuses_it(
    postgres_database: str,
) -> None:
    missing = make_conninfo(postgres_database, dbname="test_missing")
    ended = await run(
        "fleet", "worker", environment={"ASYNC_REFUNDS_DATABASE": missing}
    )
    assert ended.code == 2
    assert 'database "test_missing" does not exist' in ended.err
    assert "waiting" not in ended.err


async def test_missing_address_is_told_with_how_to_give_one() -> None:
    nobody = {"PGHOST": "127.0.0.1", "PGPORT": "1"}
    told = "(neither --database nor ASYNC_REFUNDS_DATABASE=postgresql://user@host/name"
    ended = await run("fleet", "status", environment=nobody)
    assert ended.code == 2
    assert told in ended.err
    given = await run(
        "fleet",
        "status",
        environment={"ASYNC_REFUNDS_DATABASE": "host=127.0.0.1 port=1"},
    )
    assert given.code == 2
    assert "cannot connect to the database: connection failed" in given.err
    assert "neither" not in given.err
