"""Connections to the database of a fleet, and how one that does not answer is ended."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeAlias

import psycopg
from psycopg import AsyncConnection, errors
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from async_refunds.errors import JournalError
from async_refunds.protocol.redaction import excerpt

from .outage import TRYING_AGAIN, Outage
from .schema import EXISTS_QUERY, VERSION_QUERY, require_version

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Mapping

Connection: TypeAlias = AsyncConnection[TupleRow]

TRANSIENT = (
    psycopg.OperationalError,  # lost, shutting down, out of something
    psycopg.InterfaceError,  # closed already
    errors.ReadOnlySqlTransaction,  # a standby: the primary is another one now
)
"""What passes, so that the same statement is repeated on another connection."""

_ENDED_BY_OTHERS = (errors.DeadlockDetected, errors.SerializationFailure)
"""After these the same statement is repeated on the same connection: the server is
there, and has undone it."""

LASTING = (
    errors.InsufficientPrivilege,
    errors.InvalidSchemaName,
    errors.UndefinedTable,
    errors.UndefinedColumn,
    errors.UndefinedFunction,
    errors.ReadOnlySqlTransaction,
)
"""What an operator has to mend. Who waits for another primary takes `TRANSIENT` first.
"""

# With what a server refuses a connection for good. libpq hands on no code of it, only
# the words; a server that speaks another language is waited for.
_REFUSAL = re.compile(
    r"""authentication\ failed\ for\ user
    | no\ password\ supplied
    | (?:database|role)\ ".*"\ does\ not\ exist
    | is\ not\ permitted\ to\ log\ in
    | permission\ denied\ for\ database
    | no\ pg_hba\.conf\ entry
    | does\ not\ support\ SSL,\ but
    | certificate\ verify\ failed""",
    re.VERBOSE,
)
_DEFAULTS = {
    "application_name": "async_refunds",
    "connect_timeout": "5",
    # Of several hosts the primary.
    "target_session_attrs": "read-write",
    # A network that carries nothing is noticed, which takes hours by default.
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    # Or a session in SQL_ASCII would have bytes for texts.
    "client_encoding": "utf8",
}
# What a database or a role may set for its sessions, and ours cannot have. Here and not
# at the start of the session, where PgBouncer refuses it.
_SETTINGS = {
    # As `_DEFAULTS`, on the side of the server: a client whose network is lost in the
    # middle of a statement does not keep its locks. Without effect on a Unix socket.
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    # A statement that has waited for another one sees what that has changed.
    "default_transaction_isolation": "read committed",
    # `PATIENCE` counts. A connection that is ended because nothing was to be done for a
    # while would be told as an outage.
    "statement_timeout": "0",
    "lock_timeout": "0",
    "transaction_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    # A rate that is not known is NULL in an array.
    "array_nulls": "on",
    # Or a time might be short of digits.
    "extra_float_digits": "1",
    # What is claimed is sent: a crash of the server must not forget it. Those that wait
    # for a standby too, or for less, keep that.
    "synchronous_commit": "on",
}
BACKEND_QUERY = "SELECT pg_backend_pid()"
# Only what differs and what the server knows.
_SET_UP = """SELECT set_config(name, value, false)
    FROM unnest(%s::text[], %s::text[]) AS ours (name, value)
    WHERE current_setting(name, true) <> value
        AND (name <> 'synchronous_commit' OR current_setting(name) = 'off')"""
PATIENCE = 30.0
"""Seconds after which a statement without an answer counts as lost."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 1.0  # seconds between attempts to reconnect

_CLOSED = "the connection to the database was closed"


def describe(error: Exception) -> str:
    """Return what a server or libpq says, on one line, without keys and addresses.

    libpq's texts have several lines, and a server's have the statement below.
    """
    text = str(error)
    if isinstance(error, psycopg.Error):
        text = error.diag.message_primary or text
    return excerpt(" ".join(text.split())) or type(error).__name__


def is_refusal(error: psycopg.Error) -> bool:
    """Tell whether a server refuses a connection, so that to wait would be in vain.

    Such as a wrong password, or the name of a database that is not there.
    """
    return _REFUSAL.search(str(error)) is not None


def is_pooled(connection: psycopg.BaseConnection[Any], row: tuple[int] | None) -> bool:
    """Tell by what `BACKEND_QUERY` finds whether a pooler (PgBouncer) is in between.

    It makes up the process whose statements a client may ask to cancel. Each
    transaction may be in another session then, and what was left in one, such as a
    prepared statement or a cursor, is found by others.
    """
    assert row is not None  # noqa: S101 - the query has one row
    return row[0] != connection.info.backend_pid


def _is_torn(given: Mapping[str, object]) -> bool:
    """Tell whether an address has part of a password where a host or a port belongs.

    An ``@`` or a ``:`` in a password ends it, and libpq shows what it could not reach.
    """
    host, port = str(given.get("host") or ""), str(given.get("port") or "")
    # A name that begins with it is an abstract socket.
    return "@" in host[1:] or not re.fullmatch(r"[0-9, ]*", port)


class Database:
    """Where a fleet's tables are.

    Args:
        conninfo: As libpq has it: an address, ``key=value`` pairs, or nothing, and then
            the variables ``PGHOST``, ``PGDATABASE``, ... count. It may hold a password,
            and is never shown.
    """

    def __init__(self, conninfo: str = "") -> None:
        self._conninfo = conninfo
        self.outage = Outage()
        """Tells when it is away, for all that use it."""

    def __repr__(self) -> str:
        return "<Database>"

    @property
    def conninfo(self) -> str:
        """The address, with our settings where it has none.

        Raises:
            JournalError: It is not what libpq understands, or only by mistake.
        """
        try:
            given = conninfo_to_dict(self._conninfo)
            if _is_torn(given):
                raise psycopg.ProgrammingError  # noqa: TRY301 - as libpq, of the same
            return make_conninfo("", **{**_DEFAULTS, **given})
        except psycopg.ProgrammingError:
            # Its text may have the password.
            raise JournalError(
                "the database's address cannot be understood: @, :, / and the like of "
                "a password are written as %40, %3A, %2F"
            ) from None

    async def connect(self, *, patience: float = PATIENCE) -> Connection:
        """Connect, each statement a transaction of its own.

        Args:
            patience: Seconds that the database has for an answer.

        Raises:
            JournalError: Its tables are not those of this release.
            psycopg.Error: It cannot be reached.
        """
        connection = await AsyncConnection.connect(self.conninfo, autocommit=True)
        try:
            with answering_within(patience, connection):
                cursor = await connection.execute(BACKEND_QUERY)
                if is_pooled(connection, await cursor.fetchone()):
                    # Another session may have another statement of the same name.
                    connection.prepare_threshold = None
                await connection.execute(
                    _SET_UP, (list(_SETTINGS), list(_SETTINGS.values()))
                )
                cursor = await connection.execute(EXISTS_QUERY)
                exists = (await cursor.fetchone()) == (True,)
                version = await connection.execute(VERSION_QUERY) if exists else None
                require_version(None if version is None else await version.fetchone())
        except BaseException:
            await connection.close()
            raise
        return connection


class Link:
    """A connection that is made again whenever it is lost, for one user at a time.

    Args:
        database: Where to.
        patience: Seconds after which a statement without an answer counts as lost.
    """

    def __init__(self, database: Database, *, patience: float = PATIENCE) -> None:
        self._database = database
        self._patience = patience
        self._connection: Connection | None = None
        self._made_after = 0  # so many outages
        self._connecting: asyncio.Task[Connection] | None = None
        self._closing = asyncio.Event()
        self._using = asyncio.Lock()

    async def repeat(
        self, work: Callable[[Connection, bool], Awaitable[list[TupleRow]]]
    ) -> list[TupleRow]:
        """Do some work until it is done, however long the database is away.

        Its second argument is whether an earlier attempt may have been committed. It is
        not cancelled with its caller: a cancelled wait of psycopg waits for the server.

        Raises:
            JournalError: The tables are of another release, or the link was closed.
            psycopg.Error: What does not pass: a mistake, or a lack of permission.
        """
        task = asyncio.ensure_future(self._repeat(work))
        task.add_done_callback(_note_error)
        return await asyncio.shield(task)

    async def _repeat(
        self, work: Callable[[Connection, bool], Awaitable[list[TupleRow]]]
    ) -> list[TupleRow]:
        in_doubt, pause, outage = False, _FIRST_PAUSE, self._database.outage
        async with self._using:
            try:
                while True:
                    if self._closing.is_set():
                        raise JournalError(_CLOSED)
                    sent = False
                    try:
                        connection = await self._connected()
                        sent = True
                        with answering_within(self._patience, connection):
                            rows = await work(connection, in_doubt)
                    except _ENDED_BY_OTHERS:
                        pass  # so it is no outage
                    except TRANSIENT as error:
                        in_doubt = in_doubt or sent
                        await self._drop()
                        # One that an outage has cut, which is over and was told of,
                        # is no other outage.
                        if not sent or self._made_after == outage.ended:
                            outage.away(self, TRYING_AGAIN, describe(error))
                    else:
                        outage.back(self)
                        return rows
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._closing.wait(), pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
            finally:
                outage.forget(self)

    async def _connected(self) -> Connection:
        if self._connection is None:
            connecting = self._connecting = asyncio.create_task(
                self._database.connect(patience=self._patience)
            )
            await asyncio.wait([connecting])
            self._connecting = None
            if connecting.cancelled():
                raise JournalError(_CLOSED)
            self._connection = connecting.result()
            self._made_after = self._database.outage.ended
            if self._closing.is_set():
                await self._drop()
                raise JournalError(_CLOSED)
        return self._connection

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()  # waits for nothing

    async def close(self, *, within: float) -> None:
        """Let what is under way end, for so many seconds, then close."""
        giving_up = asyncio.get_running_loop().call_later(within, self._give_up)
        try:
            async with self._using:
                self._closing.set()
                await self._drop()
        finally:
            giving_up.cancel()

    def _give_up(self) -> None:
        self._closing.set()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            hang_up(self._connection)


def _note_error(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # else asyncio logs it if the caller was cancelled


def hang_up(connection: psycopg.AsyncConnection[Any]) -> None:
    """End a connection at once: who waits on it gets an `OperationalError`.

    Cancelling the wait would send a request to cancel over a new connection, and wait
    for that.
    """
    with (
        suppress(OSError, psycopg.OperationalError),  # it is closed already
        socket.socket(fileno=os.dup(connection.fileno())) as end,
    ):
        end.shutdown(socket.SHUT_RDWR)


@contextmanager
def answering_within(seconds: float, connection: Connection) -> Generator[None]:
    """Hang up if a block takes longer."""
    timer = asyncio.get_running_loop().call_later(seconds, hang_up, connection)
    try:
        yield
    finally:
        timer.cancel()
