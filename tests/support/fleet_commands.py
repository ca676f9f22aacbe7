"""The commands of ``fleet`` on a database of a test's own."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from tests.support.terminal import Ended, Screen, run, run_each, started


class Fleet:
    """A database, and the commands on it.

    Args:
        address: Of the database.
        settings: Of the connections of the commands.
    """

    def __init__(self, address: str, **settings: str) -> None:
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        given = make_conninfo(address, options=options) if options else address
        self.environment = {"ASYNC_REFUNDS_DATABASE": given}
        self._address = address

    def __call__(self, *arguments: str) -> Any:  # noqa: ANN401 - an awaitable of Ended
        return run("fleet", *arguments, key=None, environment=self.environment)

    async def each(self, *commands: tuple[str, ...]) -> list[Ended]:
        return await run_each(
            *(("fleet", *command) for command in commands),
            key=None,
            environment=self.environment,
        )

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self._address, autocommit=True) as connection:
            cursor = connection.execute(query.encode(), values)
            return cursor.fetchall() if cursor.description else []


async def on_terminal(fleet: Fleet, *arguments: str, columns: int = 200) -> str:
    screen = Screen(columns)
    async with started(
        *("fleet", *arguments),
        key=None,
        environment=fleet.environment,
        stdout=screen.terminal,
    ) as running:
        _, shown = await screen.shows(running)
    return shown
