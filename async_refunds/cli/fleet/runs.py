"""``fleet pause``, ``resume``, ``close``, ``retry``, ``prune``: runs, by hand."""

from __future__ import annotations

import shlex
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import psycopg
import typer

from async_refunds.cli import options
from async_refunds.cli.exit_codes import DONE, NOT_ALL
from async_refunds.cli.options import Format, Quiet, canceling, with_options
from async_refunds.cli.output import Output, interruptible, print_error, refuse
from async_refunds.cli.report import ReportForm, write_report
from async_refunds.cli.report_data import RunReport
from async_refunds.cli.spans import span_seconds
from async_refunds.cli.summary import CLOSED, exit_code, given_up, next_steps, or_close
from async_refunds.cli.tables import counted
from async_refunds.errors import JournalError
from async_refunds.journal.postgres import administration
from async_refunds.journal.postgres.runs import RunReader

from .change import Change
from .database import DatabaseOptions, RunArgument, connected
from .waiting import fleet_command

if TYPE_CHECKING:
    from async_refunds.cli.summary import Outcomes, Steps

DEAD = "dead"
OUTCOMES = ("failed", "not_cancelable", "unknown", DEAD)

REPORT_HELP = """Show what became of each refund of a run, also while it is going on.

As `async-refunds report` does for a journal: on a terminal the count of each
outcome, what to do about it, what came back, and the refunds that need
attention; otherwise every refund.

A refund that a worker has in hand is in flight. One that was perhaps sent, and
that nobody has in hand, is unknown: also in a paused run.

Exit codes: 0 all are canceled, 1 some are not, the run has none (pruned?),
stdout broke (`| head`), or the database failed, 2 no such run, no
connection, or no right, 3 the outcome of some is unknown, 130 interrupted."""

PAUSE_HELP = """Let the workers begin nothing more of a run.

What they have in hand is finished: of each account about as many as it sends in
a second. Other runs go on. `fleet resume` goes on with it.

Exit codes: 0 it is paused, 1 the database failed, 2 no such run, no
connection, or no right, 130 interrupted. With 1 and 130 stderr says whether it
is paused: perhaps, if the database did not answer any more."""

RESUME_HELP = """Let the workers go on with a paused run.

Exit codes: 0 it is open, 1 the database failed, 2 no such run, no
connection, or no right, 130 interrupted. With 1 and 130 stderr says whether it
is open: perhaps, if the database did not answer any more."""

CLOSE_HELP = """Send nothing more of a run for good, such as one made by mistake.

What was never sent is told as failed: not canceled. What was perhaps sent goes on
to be asked for by workers, with the same keys and never with a new one: after a
day it is only read. That includes what workers have in hand when it begins, of
each account about as many as it sends in a second, and they may cancel it still.
Until all of it has an end, the run is closing; then it is closed by itself. It
takes no more refunds, and is not opened again. `fleet status` does not show it
once it is closed; `fleet report` does.

Exit codes: 0 it is closed, 1 it is closing, or the database failed, 2 no such
run, no connection, or no right, 130 interrupted. With 1 and 130 stderr says what
is certain, and the same command goes on."""

RETRY_HELP = """Ask again at once for refunds that were not canceled.

--outcome says which: failed (canceled nothing, for a reason that was fixed
since), not_cancelable (its state forbade it, and may have changed: a bank that
returns the money makes it wait again), unknown (asked for again at once, with
the same key), dead (eight workers in turn ended while they had it: look into
their logs first). Nothing is canceled twice. A run that is closing has only
unknown and dead ones to ask for.

Workers ask for those that failed, or are unknown, by themselves too, but later.

Exit codes: 0 workers ask for them, also if there are none, 1 the database
failed, 2 wrong usage, no such run, no connection, or no right, 130 interrupted.
With 1 and 130 stderr says whether they do: perhaps, if the database did not
answer."""

PRUNE_HELP = """Delete results that are older than some time, of all runs.

Open refunds stay, and so does what became known within the last day: Stripe
still knows its keys. Write what you want to keep with `fleet report` first.

Exit codes: 0 they are deleted, 1 the database failed, 2 wrong usage, no
connection, or no right, 130 interrupted. With 1 and 130 stderr says how many
were at least."""


@with_options
def report(run: RunArgument, *, form: ReportForm, database: DatabaseOptions) -> None:
    """Show what became of each refund of a run."""
    with (
        interruptible(lambda: "the report is not complete; nothing was changed"),
        connected(database) as connection,
    ):
        reader = RunReader(connection, database.address, run)
        again = shlex.join(["async-refunds", "fleet", "retry", run])
        try:
            told = RunReport(
                run, reader, resume=again, steps=partial(fleet_steps, reader)
            )
            write_report(told, reader, form)
        except JournalError as error:  # the run was there a moment ago
            print_error(str(error))
            raise typer.Exit(NOT_ALL) from None
        if not told.outcomes:
            print_error(f"{run} has no refunds: none was added, or all were pruned")
            raise typer.Exit(NOT_ALL)
    raise typer.Exit(exit_code(told.outcomes))


def fleet_steps(reader: RunReader, outcomes: Outcomes, retry: str) -> Steps:
    """Return what to do about each outcome, in the order of a table.

    Args:
        reader: Tells the state of the run, and how many refunds are dead.
        outcomes: The counts.
        retry: The command that opens refunds again.
    """
    asks, waits = _worker_steps(reader)
    dead, again = reader.dead, f"`{retry} --outcome {DEAD}`"
    failed = f"read the error, fix its cause, then `{retry} --outcome failed`"
    failed += or_close(outcomes, fleet_command("close", reader.name))
    not_cancelable = (
        f"nothing can be; if its state changes, `{retry} --outcome not_cancelable`"
    )
    steps = next_steps(outcomes, None)
    if reader.run_closed:
        failed, not_cancelable = CLOSED, steps["not_cancelable"]
    if dead["unknown"] == outcomes["unknown"] > 0:
        asks = f"dead until {again}"
    elif dead["unknown"]:
        asks += f"; {dead['unknown']:,} dead until {again}"
    if dead[None]:
        waits += f"; {dead[None]:,} dead until {again}"
    return {
        **steps,
        "not_cancelable": not_cancelable,
        "failed": f"not canceled: {failed}",
        "unknown": f"maybe canceled: {asks}; nothing is canceled twice",
        None: waits,
    }


def _worker_steps(reader: RunReader) -> tuple[str, str]:
    """Return what workers do about unknown refunds, and about open ones."""
    if reader.state == "paused":
        resume = fleet_command("resume", reader.name)
        return (
            f"paused, a worker asks again after {resume}",
            f"paused: nothing until {resume}",
        )
    if reader.state == "closed":
        return "the run is closed, no worker asks", "nothing: the run is closed"
    if reader.state == "closing":
        close = fleet_command("close", reader.name)
        return "a worker asks again, with the same key", f"not canceled: {close}"
    return (
        "a worker asks again",
        "nothing yet: workers take it in turn (`async-refunds fleet status`)",
    )


@with_options
def pause(run: RunArgument, *, database: DatabaseOptions, quiet: Quiet = False) -> None:
    """Let the workers begin nothing more of a run."""
    _set_state(run, "paused", database, quiet=quiet)


@canceling
def resume(
    run: RunArgument, *, database: DatabaseOptions, quiet: Quiet = False
) -> None:
    """Let the workers go on with a paused run."""
    _set_state(run, "open", database, quiet=quiet)


def _set_state(
    run: str,
    state: Literal["open", "paused"],
    database: DatabaseOptions,
    *,
    quiet: bool,
) -> None:
    change = Change(
        "nothing was changed",
        f"perhaps {run} is {state}: the same command again makes sure",
    )
    with change.told(), connected(database, change=change) as connection:
        with change.transaction(connection):
            administration.set_state(connection, run, state)
        change.done(f"{run} is {state}")
        Output(Format(quiet=quiet)).say(change.said)
        raise typer.Exit(DONE)


@with_options
def close(run: RunArgument, *, database: DatabaseOptions, quiet: Quiet = False) -> None:
    """Send nothing more of a run, for good."""
    again = "the same command again goes on"
    change = Change("nothing was changed", "")

    def note(unsent: int) -> None:
        settled = f"{counted(unsent, 'refund')} not asked for any more"
        change.done(f"{run} is closing, at least {settled}: {again}")

    with change.told(), connected(database, change=change) as connection:
        change.done(f"perhaps {run} is closing: {again}")
        try:
            closed = administration.close(connection, run, on_page=note)
        except psycopg.errors.LockNotAvailable:
            print_error(
                f"somebody adds refunds to {run} in a transaction that does not end: "
                f"{change.said}"
            )
            raise typer.Exit(NOT_ALL) from None
        change.done(_closed(run, closed))
        Output(Format(quiet=quiet)).say(change.said)
        raise typer.Exit(NOT_ALL if closed.left or closed.untold else DONE)


def _closed(run: str, closed: administration.Closed) -> str:
    said = given_up(closed.unsent)
    if not (closed.left or closed.untold):
        return f"{run} is closed; {said}"
    said = f"{run} is closing; {said}"
    if closed.left:
        retry = fleet_command("retry", run, "--outcome", DEAD)
        who = f"after {retry} a worker" if closed.dead else "a worker"
        said += (
            f"; {counted(closed.left, 'refund')} perhaps sent: {who} asks again, with "
            "the same key"
        )
        said += "" if closed.untold else ", and then it is closed"
    if closed.untold:
        said += (
            f"; {counted(closed.untold, 'refund')} of which this role cannot tell "
            "whether they were sent: nobody asks, and `async-refunds fleet init "
            "--check` says how a role can tell, that then closes it"
        )
    return said


@canceling
def retry(
    run: RunArgument,
    *,
    outcome: Annotated[
        str,
        typer.Option(metavar="NAME,...", help=f"Which: {', '.join(OUTCOMES)}."),
    ],
    database: DatabaseOptions,
    quiet: Quiet = False,
) -> None:
    """Ask at once, again, for refunds that were not canceled."""
    names = {each.strip() for each in outcome.split(",")}
    for name in names:
        options.known("--outcome", name, OUTCOMES)
    change = Change(
        "nothing was changed",
        "perhaps they are asked for: the same command again makes sure",
    )
    with change.told(), connected(database, change=change) as connection:
        with change.transaction(connection):
            found = administration.retry(
                connection, run, names - {DEAD}, dead=DEAD in names
            )
        change.done(_retried(run, sorted(names), found))
        Output(Format(quiet=quiet)).say(change.said)
        raise typer.Exit(DONE)


def _retried(run: str, outcomes: list[str], found: administration.Retried) -> str:
    count = found.opened + found.open_already
    if not count:
        return f"no refund of {run} is {' or '.join(outcomes)}: none is asked for"
    are = f"{counted(count, 'refund')} of {run} {'is' if count == 1 else 'are'}"
    if not found.paused and found.seconds:
        return (
            f"{are} asked for, the last in {found.seconds:,.0f} s: till then a request "
            "of a worker that was killed may be under way"
        )
    if not found.paused:
        return f"{are} asked for at once"
    return f"{are} asked for after {fleet_command('resume', run)}: it is paused"


@with_options
def prune(
    *,
    older_than: Annotated[
        str,
        typer.Option(metavar="SPAN", help="Those known for longer than this: 90d."),
    ],
    database: DatabaseOptions,
    quiet: Quiet = False,
) -> None:
    """Delete results that are older than some time, of all runs."""
    seconds = span_seconds("--older-than", older_than)
    if seconds < administration.KEY_SECONDS:
        refuse("--older-than must be a day at least: Stripe still knows the keys")
    rest = "the same command again deletes the rest"
    # Each page is a transaction of its own.
    change = Change("nothing was deleted", "")

    def note(deleted: int) -> None:
        change.done(f"at least {counted(deleted, 'result')} deleted: {rest}")

    with change.told(), connected(database, change=change) as connection:
        change.done(f"perhaps some are deleted: {rest}")
        deleted = administration.prune(connection, seconds, on_page=note)
        change.done(f"{counted(deleted, 'result')} deleted")
        Output(Format(quiet=quiet)).say(change.said)
        raise typer.Exit(DONE)
