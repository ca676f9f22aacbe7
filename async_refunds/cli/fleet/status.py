"""``fleet status``: who works on what, and how it is going."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from async_refunds.cli.exit_codes import DONE
from async_refunds.cli.options import Format, with_options
from async_refunds.cli.output import Output, interruptible, refuse, width
from async_refunds.cli.tables import Table, aligned, counted, printable
from async_refunds.journal.postgres.reader import AccountStatus, account_statuses
from async_refunds.journal.postgres.runs import RunStatus, runs
from async_refunds.workers.channel import Listener

from .database import DatabaseOptions, connected
from .waiting import brief, span

if TYPE_CHECKING:
    from collections.abc import Sequence

    from async_refunds.workers.fair_share import Presence

    from .change import Connection

_MAX_ROWS = 40
"""Accounts of a table: a fleet may have thousands."""
_AT_ONCE = (
    "what waits is asked for at once after "
    "`async-refunds fleet retry RUN --outcome failed,unknown`; "
    "`async-refunds fleet close RUN` gives up what failed"
)
_MAY_BE_UNDER_WAY = "a killed worker's request may be under way"
# Home, and erase what is below (ECMA-48): the table is drawn over the last one.
_REDRAW = b"\x1b[H\x1b[J"
# What makes the scope of an account.
_SCOPE = ("tenant", "address", "mode")
_RUN_COLUMNS = ("run", "state", "refunds", "open", "to retry", "dead")
_COLUMNS = ("worker", "heard_of", "pace", "open", "oldest", "last_word")

HELP = """Show who works on which account, and what is open.

A run is open, paused, closing (only what was perhaps sent is asked for), or
done: all of its refunds are settled; a closed one is not shown. Of its open
refunds, those to retry failed or are unknown: workers ask for them again. An
account has the worker that holds it, the seconds since that was last heard of,
the requests a second that Stripe allows it as far as was found, or that --rate
allows the worker, the open refunds, the time since the oldest was added, and
the last word about one of them. Where there are several tenants, addresses or
modes, it says which. It takes a second, in which workers that have no account
tell their names. --watch shows it again until Ctrl-C.

Otherwise, and with --json: one object for each run, and then one for each
account. A monitoring system finds the accounts in the view async_refunds.metrics.

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
        if output.as_table:
            listener = Listener(db)
            listener.listen(Listener.EVERYBODY)
            if watch:
                _watch(output, db, listener, every)
            output.text(_lines(db, listener))
        else:
            for run in runs(db):
                output.record(_run_record(run))
            for account in _busy(db):
                output.record(_record(account))
    raise typer.Exit(DONE)


def _watch(
    output: Output, connection: Connection, listener: Listener, every: float
) -> None:
    try:
        while True:
            lines = _lines(connection, listener)
            output.raw(_REDRAW)
            output.text(lines)
            listener.listen(every)
    except KeyboardInterrupt:
        raise typer.Exit(DONE) from None


def _busy(connection: Connection) -> list[AccountStatus]:
    """Return the accounts that have something left, or that a worker holds."""
    return [
        each
        for each in account_statuses(connection)
        if each.open or each.dead or each.held
    ]


def _run_record(each: RunStatus) -> dict[str, object]:
    return {
        "run": each.name,
        "scope": each.scope,
        "state": each.shown_state,
        "refunds": each.refunds,
        "open": each.open,
        "to_retry": each.tried,
        "dead": each.dead,
    }


def _record(each: AccountStatus) -> dict[str, object]:
    fields = msgspec.structs.asdict(each)
    # Named as in all other output.
    return {"stripe_account": fields.pop("account"), **fields}


def _lines(connection: Connection, listener: Listener) -> list[str]:
    there, busy = _runs(runs(connection)), _busy(connection)
    accounts = _accounts(busy, width(sys.stdout))
    tables = [*there, *([""] if there and accounts else []), *accounts]
    return [
        *(tables or ["nothing to do: `async-refunds fleet enqueue` adds refunds"]),
        *_summary(busy, listener.workers()),
    ]


def _summary(accounts: Sequence[AccountStatus], there: Sequence[Presence]) -> list[str]:
    """Return what is open in all, and who works, waits for work, or is missing."""
    working = {each.owner for each in accounts if each.held and each.owner}
    idle = sorted({each.name for each in there if each.name} - working)
    workers = counted(len(working) + len(idle), "worker")
    if idle:
        workers += f", idle: {', '.join(map(printable, idle))}"
    if not accounts:
        return [workers] if idle else []
    total = sum(each.open for each in accounts)
    refunds = counted(total, "refund")
    summary = f"{refunds} open of {counted(len(accounts), 'account')}, {workers}"
    sooner = any(
        (_seconds_to_wait(each) or 0.0) > (each.new_keys_in or 0.0) for each in accounts
    )
    return [*([_AT_ONCE] if sooner else []), summary]


def _runs(there: Sequence[RunStatus]) -> list[str]:
    if not there:
        return []
    rows = [
        [
            printable(each.name),
            each.shown_state,
            f"{each.refunds:,}",
            f"{each.open:,}",
            f"{each.tried:,}",
            f"{each.dead:,}",
        ]
        for each in there
    ]
    return aligned([_RUN_COLUMNS, *rows])


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
    more = len(accounts) - len(rows)
    rest = [f"{counted(more, 'more account')}, --json has all"] if more else []
    return [*table.lines(rows, head=True), *rest]


def _row(each: AccountStatus) -> dict[str, str]:
    worker = each.owner if each.held and each.owner else "nobody"
    if (waits := _seconds_to_wait(each)) is not None:
        worker = f"waits {span(waits)}"
    word = brief(each.last_word or "")
    if waits is not None and waits == each.new_keys_in:
        word = f"{_MAY_BE_UNDER_WAY}; {word}"
    if each.dead:
        word = f"{counted(each.dead, 'refund')} dead; {word}".removesuffix("; ")
    values = (
        worker,
        f"{each.lease_age:.0f} s ago" if each.held else "",
        "" if each.rate is None else f"{each.rate:.1f}/s",
        f"{each.open:,}",
        "" if each.oldest is None else span(each.oldest),
        word,
    )
    return dict(zip(_COLUMNS, values, strict=True))


def _seconds_to_wait(each: AccountStatus) -> float | None:
    """Return until when nobody works on what is left of an account, if it waits."""
    if each.held:
        return None
    first = each.retries_in if each.waits is None else each.waits
    waits = [seconds for seconds in (first, each.new_keys_in) if seconds is not None]
    return max(waits, default=None)
