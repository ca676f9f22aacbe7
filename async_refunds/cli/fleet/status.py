"""``fleet status``: who works on what, and how it is going."""

from __future__ import annotations

import re
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from async_refunds.cli.exit_codes import DONE
from async_refunds.cli.options import Format, with_options
from async_refunds.cli.output import Output, interruptible, refuse, width
from async_refunds.cli.tables import Table, aligned, counted, printable
from async_refunds.journal.postgres.reader import AccountStatus, FleetReader
from async_refunds.journal.postgres.runs import RunStatus, runs

from .database import DatabaseOptions, connected

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .database import Connection

_MAX_ROWS = 40
"""Accounts of a table: a fleet may have thousands."""
# Home, and erase what is below (ECMA-48): the table is drawn over the last one.
_REDRAW = b"\x1b[H\x1b[J"
# What makes the scope of an account.
_SCOPE = ("tenant", "address", "mode")
_COLUMNS = ("worker", "heard_of", "pace", "open", "oldest", "last_word")
# An account has many refunds, and what is not said of each was not canceled.
_SUBJECT = re.compile(r"^(?:re|pyr)_\w+ (?:was not canceled: )?")

HELP = """Show who works on which account, and what is open.

An account has the worker that holds it, the seconds since that was last heard
of, the requests a second that Stripe allows it as far as was found, the open
refunds, the time since the oldest was added, and the last word about one of
them. Where there are several tenants, addresses or modes, it says which.
--watch shows it again until Ctrl-C.

Otherwise, and with --json: one object for each account. The view
async_refunds.metrics has the same for a monitoring system.

Exit codes: 0 shown, 1 the database failed, or stdout broke (`| head`), 2 wrong
usage, no connection, or no right, 130 interrupted; --watch ends so with 0."""


@with_options
def status(
    *,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again and again, until Ctrl-C.")
    ] = False,
    every: Annotated[
        float,
        typer.Option(
            "--every", metavar="SECONDS", min=0.1, help="How often, with --watch."
        ),
    ] = 2.0,
    database: DatabaseOptions,
    form: Format,
) -> None:
    """Show who works on which account, and what is open."""
    output = Output(form)
    if watch and not output.as_table:
        refuse("--watch draws on a terminal; repeat the command for JSON")
    with interruptible(lambda: "nothing was changed"), connected(database) as db:
        reader = FleetReader(database.address)
        if watch:
            _watch(output, db, reader, every)
        elif output.as_table:
            output.text(_lines(db, reader))
        else:
            for account in _busy(reader):
                output.record(_record(account))
    raise typer.Exit(DONE)


def _watch(
    output: Output, connection: Connection, reader: FleetReader, every: float
) -> None:
    try:
        while True:
            lines = _lines(connection, reader)
            output.raw(_REDRAW)
            output.text(lines)
            time.sleep(every)
    except KeyboardInterrupt:
        raise typer.Exit(DONE) from None


def _busy(reader: FleetReader) -> list[AccountStatus]:
    """Return the accounts that have something left, or that a worker holds."""
    return [each for each in reader.status() if each.open or each.dead or each.held]


def _record(each: AccountStatus) -> dict[str, object]:
    fields = msgspec.structs.asdict(each)
    # Named as in all other output.
    return {"stripe_account": fields.pop("account"), **fields}


def _lines(connection: Connection, reader: FleetReader) -> list[str]:
    columns = width(sys.stdout)
    there, accounts = _runs(runs(connection)), _accounts(_busy(reader), columns)
    lines = [*there, *([""] if there and accounts else []), *accounts]
    return lines or ["nothing to do: `async-refunds fleet enqueue` adds refunds"]


def _runs(there: Sequence[RunStatus]) -> list[str]:
    if not there:
        return []
    rows = [
        [
            printable(each.name),
            each.state,
            f"{each.refunds:,}",
            f"{each.refunds - each.settled - each.dead:,}",
            f"{each.dead:,}",
        ]
        for each in there
    ]
    return aligned([["run", "state", "refunds", "open", "dead"], *rows])


def _accounts(accounts: Sequence[AccountStatus], columns: int) -> list[str]:
    if not accounts:
        return []
    # Whose an account is, where it could be of several.
    scopes = [
        dict(zip(_SCOPE, each.scope.split(" "), strict=True)) for each in accounts
    ]
    several = [name for name in _SCOPE if len({each[name] for each in scopes}) > 1]
    rows = [
        {"account": each.account or "own", **scope, **_row(each)}
        for each, scope in zip(accounts[:_MAX_ROWS], scopes, strict=False)
    ]
    table = Table(["account", *several, *_COLUMNS], columns)
    workers = {each.owner for each in accounts if each.held}
    total = sum(each.open for each in accounts)
    more = len(accounts) - len(rows)
    rest = f"; {counted(more, 'more account')}, --json has all" if more else ""
    summary = (
        f"{counted(total, 'refund')} open of {counted(len(accounts), 'account')}, "
        f"{counted(len(workers), 'worker')}{rest}"
    )
    return [*table.lines(rows, head=True), summary]


def _row(each: AccountStatus) -> dict[str, str]:
    worker = each.owner if each.held and each.owner else "nobody"
    waits = each.waits if each.waits is not None else each.retries_in
    if waits is not None and not each.held:
        worker = f"waits {_span(waits)}"
    word = _SUBJECT.sub("", each.last_word or "")
    if each.dead:
        word = f"{counted(each.dead, 'refund')} dead; {word}".removesuffix("; ")
    values = (
        worker,
        f"{each.lease_age:.0f} s ago" if each.held else "",
        "" if each.rate is None else f"{each.rate:.1f}/s",
        f"{each.open:,}",
        "" if each.oldest is None else _span(each.oldest),
        word,
    )
    return dict(zip(_COLUMNS, values, strict=True))


def _span(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
