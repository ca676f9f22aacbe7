"""Connect to the fleet's database, or refuse clearly and without its password."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, TypeAlias

import psycopg
import typer
from psycopg import conninfo

from async_refunds.errors import JournalError
from async_refunds.journal.postgres.schema import check_version

from .exit_codes import NOT_ALL
from .options import OptionGroup
from .output import print_error, refuse

if TYPE_CHECKING:
    from collections.abc import Generator

Database: TypeAlias = "psycopg.Connection[tuple[object, ...]]"

# Seconds. libpq would wait for minutes where a firewall drops what is sent.
_CONNECT_TIMEOUT = 10

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="The name given to enqueue --run.")
]


class DatabaseOptions(OptionGroup, frozen=True, kw_only=True):
    """Which database the fleet's tables are in."""

    database: Annotated[
        str | None,
        typer.Option(
            metavar="DSN",
            help="The database: postgresql://user@host/name, or as libpq has it. A "
            "password belongs in ASYNC_REFUNDS_DATABASE or in ~/.pgpass: every "
            "process list shows an option. [default: PGHOST, PGDATABASE, ...]",
        ),
    ] = None

    @property
    def address(self) -> str:
        """The address for libpq, with a limit to how long it takes to connect.

        Refuses one that cannot be read. What libpq says of it has the password.
        """
        try:
            parts = conninfo.conninfo_to_dict(self.database or "")
        except psycopg.Error:
            refuse(
                "--database, or ASYNC_REFUNDS_DATABASE, is no address of a PostgreSQL "
                "database: postgresql://user@host/name, or host=... dbname=..."
            )
        parts.setdefault("connect_timeout", _CONNECT_TIMEOUT)
        parts.setdefault("application_name", "async-refunds")
        return conninfo.make_conninfo("", **parts)


@contextmanager
def connected(given: DatabaseOptions, *, checked: bool = True) -> Generator[Database]:
    """Connect until the end of the block, each statement a transaction of its own.

    Ends the command if the database cannot be reached, or fails in the block.

    Args:
        given: Which database.
        checked: Refuse tables that this release cannot work with.
    """
    try:
        connection = psycopg.connect(given.address, autocommit=True)
    except psycopg.OperationalError as error:
        refuse(f"the database cannot be reached: {_line(error)}")
    try:
        with connection:
            if checked:
                check_version(connection)
            yield connection
    except JournalError as error:
        refuse(str(error))
    except psycopg.Error as error:
        print_error(f"the database: {_line(error)}")
        raise typer.Exit(NOT_ALL) from None


def _line(error: psycopg.Error) -> str:
    """Return what the server or libpq says, on one line."""
    text = error.diag.message_primary or str(error)
    return " ".join(text.split())
