"""``fleet init`` on a database that does not tell its timeline."""

from __future__ import annotations

import psycopg
import pytest

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
