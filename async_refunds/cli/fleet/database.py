"""Connect to the fleet's database, or refuse clearly and without its password."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import psycopg
import typer

from async_refunds.cli.exit_codes import NOT_ALL, USAGE_ERROR
from async_refunds.cli.options import OptionGroup
from async_refunds.cli.output import print_error, refuse
from async_refunds.errors import JournalError
from async_refunds.journal.postgres.connection import LASTING, Database, describe
from async_refunds.journal.postgres.schema import check_version

if TYPE_CHECKING:
    from collections.abc import Generator

    from .change import Change, Connection

_NO_ADDRESS = (
    "neither --database nor ASYNC_REFUNDS_DATABASE=postgresql://user@host/name is given"
)

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
    def address(self) -> Database:
        """The database, or the command is refused."""
        made = Database(self.database or "")
        try:
            _ = made.conninfo
        except JournalError:
            refuse(
                "--database, or ASYNC_REFUNDS_DATABASE, is no address of a PostgreSQL "
                "database: postgresql://user@host/name, or host=... dbname=...; @, :, "
                "/ and the like of a password are written as %40, %3A, %2F"
            )
        return made


@contextmanager
def connected(
    given: DatabaseOptions,
    *,
    checked: bool = True,
    change: Change | None = None,
    refused: int = USAGE_ERROR,
) -> Generator[Connection]:
    """Connect until the end of the block, each statement a transaction of its own.

    Ends the command if the database cannot be reached or refuses, or fails in the
    block.

    Args:
        given: Which database.
        checked: Refuse tables that this release cannot work with.
        change: What the block changes: a failure tells what is certain of it.
        refused: The exit code where the tables' functions refuse a value, such as the
            name of a closed run.
    """
    # psycopg logs a connection that ends badly, and without a handler that goes to
    # stderr. What is certain then, `Change` tells.
    logging.getLogger("psycopg").addHandler(logging.NullHandler())
    try:
        # A statement that is prepared would be left in a session of a pooler.
        connection = psycopg.connect(
            given.address.conninfo, autocommit=True, prepare_threshold=None
        )
    except psycopg.OperationalError as error:
        told = "" if given.database else f" ({_NO_ADDRESS})"
        refuse(f"cannot connect to the database: {describe(error)}{told}")
    try:
        with connection:
            if checked:
                check_version(connection)
            yield connection
    except JournalError as error:
        refuse(str(error))
    except LASTING as error:
        refuse(f"the database refuses: {describe(error)}")
    except psycopg.Error as error:
        ours = isinstance(error, psycopg.errors.InvalidParameterValue)
        said = describe(error) if ours else f"the database: {describe(error)}"
        told = "" if change is None else f"; {change.said}"
        print_error(f"{said}{told}")
        raise typer.Exit(refused if ours else NOT_ALL) from None
