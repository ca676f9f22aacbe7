"""``fleet init``: the tables of the fleet."""

from __future__ import annotations

from typing import Annotated

import typer

from async_refunds.cli.exit_codes import DONE, NOT_ALL
from async_refunds.cli.options import Format, Quiet, with_options
from async_refunds.cli.output import Output, print_error
from async_refunds.errors import JournalError
from async_refunds.journal.postgres.schema import (
    HISTORY_QUERY,
    VERSION,
    check_version,
    history_warning,
    migrate,
)

from .change import Change
from .database import DatabaseOptions, connected

HELP = """Make the tables of the fleet, or bring them up to this release.

They stand in a schema of their own, async_refunds, beside your tables. Run it
with every upgrade, before the workers: it changes nothing if all is as it
should be, and refuses the tables of a newer release. The user needs the right
to create a schema; workers need less: the README, part "More than one machine",
has the GRANTs for them, and for a service that enqueues.

Exit codes: 0 the tables are those of this release, 1 the database failed, or
--check found others or none, 2 wrong usage, no connection, no right, or a newer
release's tables."""


@with_options
def init(
    *,
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; only say what is there.")
    ] = False,
    database: DatabaseOptions,
    quiet: Quiet = False,
) -> None:
    """Make the tables of the fleet, or bring them up to this release."""
    output = Output(Format(quiet=quiet))
    change = Change(
        "nothing was changed",
        "perhaps the tables are made: the same command again makes them, or finds them",
    )
    with (
        change.told(),
        connected(database, checked=False, change=change) as connection,
    ):
        if check:
            try:
                check_version(connection)
            except JournalError as error:
                print_error(str(error))
                raise typer.Exit(NOT_ALL) from None
            output.say(f"the tables of async_refunds have version {VERSION}")
        else:
            with change.transaction(connection):
                found = migrate(connection)
            change.done(_said(found))
            output.say(change.said)
        warning = history_warning(connection.execute(HISTORY_QUERY).fetchone())
        if warning is not None:
            output.warn(warning)
        raise typer.Exit(DONE)


def _said(found: int) -> str:
    if found == VERSION:
        return f"nothing to do: the tables have version {VERSION}"
    if found:
        return (
            f"brought the tables of async_refunds from version {found} to {VERSION}: "
            "start its workers again"
        )
    return f"made the tables of async_refunds, version {VERSION}"
