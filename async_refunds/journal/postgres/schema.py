"""The tables of a fleet, and whether a database has those of this release."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from async_refunds.errors import JournalError

from .transactions import read_committed

if TYPE_CHECKING:
    from psycopg import Connection

VERSION = 5
"""Of the tables and functions. Each change of them raises it."""
_OLDEST_WORKER = 3
"""The oldest version whose workers can go on with these tables: those before do not
note with which credentials they send."""
VERSION_QUERY = """SELECT schema_version, min_worker_version FROM async_refunds.meta"""
EXISTS_QUERY = "SELECT to_regclass('async_refunds.meta') IS NOT NULL"
HISTORY_QUERY = """SELECT async_refunds.timeline() IS NOT NULL,
    quote_ident(current_user),
    ARRAY(SELECT name FROM unnest(ARRAY['pg_control_system()',
            'pg_current_wal_lsn()', 'pg_walfile_name(pg_lsn)']) AS needed (name)
        WHERE NOT has_function_privilege(to_regprocedure(name), 'EXECUTE'))"""
# What a worker does with each table, and the grants that it lacks for that. Some may be
# of columns.
RIGHTS_QUERY = """SELECT string_agg(
        format('GRANT %s ON async_refunds.%s TO %I', needed, name, current_user), '; ')
    FROM (VALUES ('SELECT', 'runs'), ('SELECT', 'leases'), ('UPDATE', 'leases'),
        ('SELECT', 'items'), ('UPDATE', 'items'), ('SELECT', 'timelines'),
        ('INSERT', 'timelines'), ('SELECT', 'item_numbers')) AS given (needed, name)
    WHERE NOT has_any_column_privilege('async_refunds.' || name, needed)"""
# SQL_ASCII keeps whatever it gets. A result that cannot be kept would end each worker
# that has its refund.
_ENCODINGS = ("UTF8", "SQL_ASCII")
# Any number, the same for every `migrate`: two at once take turns.
_LOCK = "SELECT pg_advisory_xact_lock(6371642371)"
_INIT = "run `async-refunds fleet init`"
_SET_VERSION = """INSERT INTO async_refunds.meta (schema_version, min_worker_version)
    VALUES (%s, %s) ON CONFLICT (only_row) DO UPDATE
    SET (schema_version, min_worker_version)
        = (excluded.schema_version, excluded.min_worker_version)"""


def migrate(connection: Connection[Any]) -> int:
    """Bring a database to the tables of this release. May be called again.

    All or nothing happens, in a transaction of its own.

    Returns:
        The version that its tables had; 0 if there were none, and `VERSION` if nothing
        was changed.

    Raises:
        JournalError: Its tables are those of a newer release, or its encoding lacks
            letters.
        psycopg.Error: They cannot be made, or changed.
    """
    with read_committed(connection):
        connection.execute(_LOCK)
        ((exists,),) = connection.execute(EXISTS_QUERY).fetchall()
        found = 0
        if exists:
            row = connection.execute(VERSION_QUERY).fetchone()
            found = require_version(row, oldest=1, newest=VERSION)
        if not found:
            _require_any_letter(connection)
        if found < VERSION:
            _upgrade(connection, found)
        return found


def _require_any_letter(connection: Connection[Any]) -> None:
    encoding = connection.info.parameter_status("server_encoding")
    if encoding not in _ENCODINGS:
        raise JournalError(
            f"the database has the encoding {encoding}, in which not every error text "
            "could be kept: CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
        )


def _upgrade(connection: Connection[Any], found: int) -> None:
    # A database may set off, where a backslash in a text stands for something else.
    connection.execute("SET LOCAL standard_conforming_strings = on")
    upgrades = [f"upgrade_{number}" for number in range(found + 1, VERSION + 1)]
    for name in [*(upgrades if found else ["tables"]), "functions"]:
        statements = Path(__file__).with_name(f"{name}.sql")
        connection.execute(statements.read_bytes())
    connection.execute(_SET_VERSION, [VERSION, _OLDEST_WORKER])
    connection.execute("SELECT async_refunds.note_timeline()")


def check_version(connection: Connection[Any]) -> None:
    """Refuse a database whose tables this release cannot work with.

    Raises:
        JournalError: It has none, or those of a newer release.
        psycopg.Error: They cannot be read.
    """
    ((exists,),) = connection.execute(EXISTS_QUERY).fetchall()
    require_version(connection.execute(VERSION_QUERY).fetchone() if exists else None)


def history_warning(row: tuple[Any, ...] | None) -> str | None:
    """Return what is to be said of what `HISTORY_QUERY` finds; ``None`` if it is well.

    A database that hides its history is worked with, but a failover of it is not seen.
    """
    assert row is not None  # noqa: S101 - the query has one row
    is_told, role, missing = row
    if is_told:
        return None
    remedy = (
        f"let it: GRANT EXECUTE ON FUNCTION {', '.join(missing)} TO {role}"
        if missing
        else "this server does not tell it to anybody"
    )
    return (
        "the database hides its timeline, so no failover and no restored backup is "
        "noticed: refunds that were asked for in commits which that has lost count as "
        "never asked for. They are asked for with the same keys, but may be reported "
        f"already_canceled after a day, or get a new key too early; {remedy}"
    )


def require_rights(row: tuple[str | None] | None) -> None:
    """Refuse a role by what `RIGHTS_QUERY` finds.

    Raises:
        JournalError: It may not do what a worker does.
    """
    assert row is not None  # noqa: S101 - the query has one row
    (grants,) = row
    if grants is not None:
        raise JournalError(f"the database refuses what a worker does; let it: {grants}")


def require_version(
    row: tuple[int, int] | None, *, oldest: int = VERSION, newest: int | None = None
) -> int:
    """Refuse tables by what `VERSION_QUERY` finds; ``None`` where there are none.

    Args:
        row: The version of the tables, and the oldest worker that may use them.
        oldest: The oldest version of the tables that will do.
        newest: The newest version of the tables that will do; without it their own word
            counts.

    Returns:
        The version of the tables.

    Raises:
        JournalError: They will not do.
    """
    if row is None:
        raise JournalError(f"the database has no tables of async_refunds: {_INIT}")
    version, least = row
    if version < oldest:
        raise JournalError(
            f"the tables of async_refunds have version {version}, and this release "
            f"needs version {VERSION}: {_INIT}"
        )
    if least > VERSION or (newest is not None and version > newest):
        raise JournalError(
            f"the tables of async_refunds have version {version}, and this release "
            f"knows versions up to {VERSION}: go on with a newer release"
        )
    return version
