"""What workers tell each other, and what wakes them: PostgreSQL's notifications.

Nothing rests on them. A worker that hears nothing looks for work each second, and one
that is not heard leaves no account without a worker. Who watches a fleet may listen.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
import psycopg

from async_refunds import telemetry
from async_refunds.errors import JournalError
from async_refunds.journal.postgres.connection import (
    answering_within,
    describe,
    hang_up,
)

from .fair_share import FORGOTTEN, Presence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from async_refunds.journal.postgres.connection import Connection, Database

_WORK, _WORKERS = "async_refunds", "async_refunds_workers"
"""The channels: of new work, with its scope, and of the workers' presence."""
_INTERVAL = 0.7
"""Seconds between two words of a worker. A worker that misses three of them is gone."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 1.0  # seconds between attempts to reconnect
_PATIENCE = 5.0  # seconds for an answer


class Channel:
    """Listens to the others, and tells them what this worker has.

    Args:
        database: Where to.
        presences: Returns what this worker tells, for each of its scopes.
        on_work: Called with a scope in which there may be new work.
        on_presence: Called with what any worker tells, also this one.
    """

    def __init__(
        self,
        database: Database,
        *,
        presences: Callable[[], Iterable[Presence]],
        on_work: Callable[[str], object],
        on_presence: Callable[[Presence], object],
    ) -> None:
        self._database = database
        self._presences = presences
        self._on_work = on_work
        self._on_presence = on_presence
        self._connection: Connection | None = None
        self._closing = asyncio.Event()
        self._news = asyncio.Event()  # something to tell, or the end

    async def run(self) -> None:
        """Listen until `close` is called, whatever becomes of the database."""
        pause = _FIRST_PAUSE
        while not self._closing.is_set():
            try:
                self._connection = await self._database.connect()
                pause = _FIRST_PAUSE
                await self._listen(self._connection)
            except (psycopg.Error, JournalError) as error:
                telemetry.log(
                    logging.INFO, "notifications are off: %s", describe(error)
                )
            finally:
                if self._connection is not None:
                    await self._connection.close()
                    self._connection = None
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _listen(self, connection: Connection) -> None:
        with answering_within(_PATIENCE, connection):
            await connection.execute(f"LISTEN {_WORK}")
            await connection.execute(f"LISTEN {_WORKERS}")
        while not self._closing.is_set():
            self._news.clear()
            await self._tell(connection, self._presences())
            hearing = asyncio.create_task(self._hear_on(connection))
            with suppress(TimeoutError):
                async with asyncio.timeout(_INTERVAL):
                    await self._news.wait()
            # Nothing is asked of the server: its wait ends at once.
            hearing.cancel()
            with suppress(asyncio.CancelledError):
                await hearing
        leaving = [
            msgspec.structs.replace(each, leaving=True) for each in self._presences()
        ]
        await self._tell(connection, leaving)

    async def _tell(
        self, connection: Connection, presences: Iterable[Presence]
    ) -> None:
        words = [msgspec.json.encode(each).decode() for each in presences]
        with answering_within(_PATIENCE, connection):
            await connection.execute(
                "SELECT pg_notify(%s, word) FROM unnest(%s::text[]) AS given (word)",
                (_WORKERS, words),
            )

    async def _hear_on(self, connection: Connection) -> None:
        try:
            async for notify in connection.notifies():
                self._hear(notify.channel, notify.payload)
        finally:
            self._news.set()

    def _hear(self, channel: str, payload: str) -> None:
        if channel == _WORK:
            self._on_work(payload)
            return
        if (presence := _presence(payload)) is not None:
            self._on_presence(presence)

    def tell(self) -> None:
        """Tell the others now what this worker has."""
        self._news.set()

    def close(self, *, within: float) -> None:
        """Let `run` say good-bye and end, within so many seconds."""
        self._closing.set()
        self._news.set()
        asyncio.get_running_loop().call_later(within, self._hang_up)

    def _hang_up(self) -> None:
        if self._connection is not None:
            hang_up(self._connection)


def _presence(payload: str) -> Presence | None:
    """Return what a worker tells; ``None`` for what another release does."""
    with suppress(msgspec.DecodeError):
        return msgspec.json.decode(payload, type=Presence)
    return None


class Listener:
    """Hears which workers are there, for whoever only watches.

    Args:
        connection: To the database, in autocommit mode.

    Raises:
        psycopg.Error: From any method: the database fails.
    """

    EVERYBODY = 1.5 * _INTERVAL
    """Seconds within which each worker has told of itself."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._heard: dict[tuple[str, str], tuple[float, Presence]] = {}
        connection.execute(f"LISTEN {_WORKERS}".encode())

    def listen(self, seconds: float) -> None:
        """Hear the workers for so long."""
        for notify in self._connection.notifies(timeout=seconds):
            if (presence := _presence(notify.payload)) is not None:
                place = presence.scope, presence.worker
                self._heard[place] = time.monotonic(), presence
                if presence.leaving:
                    del self._heard[place]

    def workers(self) -> list[Presence]:
        """Return what those have told last that are there, one for each scope."""
        now = time.monotonic()
        return [
            presence
            for heard_at, presence in self._heard.values()
            if now - heard_at <= FORGOTTEN
        ]
