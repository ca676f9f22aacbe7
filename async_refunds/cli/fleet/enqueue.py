"""``fleet enqueue``: add refunds to a run of the fleet."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from async_refunds.cli import options, plan, preview
from async_refunds.cli.cancel import collect
from async_refunds.cli.config import BASE_URL, mode_name
from async_refunds.cli.exit_codes import DONE
from async_refunds.cli.options import OptionGroup, canceling
from async_refunds.cli.output import Output, refuse
from async_refunds.cli.refund_list import RefundList
from async_refunds.cli.tables import counted
from async_refunds.errors import JournalError
from async_refunds.journal.postgres.contents import require_run, run_contents
from async_refunds.protocol import validation

from .change import Change
from .database import DatabaseOptions, connected

if TYPE_CHECKING:
    from .change import Connection

# Rows of one statement. All are in one transaction: workers see none or all.
_PAGE = 20_000
_ENSURE = """
SELECT async_refunds.ensure_run(%s, %s, %s, tenant => %s, priority => %s)
"""
_ENQUEUE = "SELECT async_refunds.enqueue(%s, %s, %s)"

PERHAPS_ADDED = "perhaps all were added: the same command again adds nothing twice"


class TenantOptions(OptionGroup, frozen=True, kw_only=True):
    """Whose refunds they are."""

    tenant: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Whose API key it needs, on a platform with the keys of several: only "
            "workers of this tenant take it.",
        ),
    ] = "default"

    def __post_init__(self) -> None:
        """Check the name.

        Raises:
            ValueError: It has spaces, or is empty.
        """
        if self.tenant != "".join(self.tenant.split()) or not self.tenant:
            raise ValueError("--tenant must be a name without spaces")


class TargetOptions(TenantOptions, frozen=True, kw_only=True):
    """Whose refunds they are, and where: which workers may take them."""

    live: Annotated[
        bool, typer.Option("--live", help="A run in live mode, which moves real money.")
    ] = False
    base_url: Annotated[str, typer.Option(metavar="URL", help="Where the API is.")] = (
        BASE_URL
    )

    def __post_init__(self) -> None:
        """Check each option.

        Raises:
            ValueError: A value that cannot be used.
        """
        TenantOptions.__post_init__(self)
        _origin(self.base_url, livemode=self.live)


RunOption = Annotated[
    str, typer.Option("--run", metavar="NAME", help="The run that they belong to.")
]


class Target(msgspec.Struct, frozen=True):
    """Where a run's refunds are canceled."""

    base_url: str
    livemode: bool
    tenant: str

    @property
    def mode(self) -> str:
        """``live`` or ``test``."""
        return mode_name(self.livemode)

    @property
    def scope(self) -> str:
        """As the tables have it."""
        return f"{self.tenant} {self.base_url} {self.mode}"


class Added(msgspec.Struct, frozen=True):
    """What became of the refunds that were given."""

    run: str
    added: int
    already_there: int


def _origin(base_url: str, *, livemode: bool) -> str:
    try:
        return validation.base_url(base_url, plain_http=not livemode)
    except ValueError as error:
        raise ValueError(str(error).replace("base_url", "--base-url")) from None


HELP = """Add refunds to a run; workers cancel them from then on.

The first time makes the run. What is in it already is not added again, so
repeating the command adds nothing. All are added or none. It needs no API key;
in live mode, it asks before it adds more than one.

From SQL, in your own transaction; the first statement makes the run, in live
mode (true), unless it is there, and the second may leave the accounts out:

\b
SELECT async_refunds.ensure_run('tonight', 'https://api.stripe.com', true);
SELECT async_refunds.enqueue('tonight', ARRAY['re_...'], ARRAY['acct_...']);

Exit codes: 0 they are in the run, 1 the answer was no, the database failed, or
stdout broke, 2 wrong usage, the run is closing or closed, no connection, or no
right, 130 interrupted. With 1 and 130 stderr says which: nothing was added,
perhaps all were, or how many were. With --dry-run: 0 the run would take them."""


@canceling
def enqueue(
    refund_ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="REFUND", help=options.REFUND_HELP),
    ] = None,
    *,
    run: RunOption,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="The refunds, - for stdin, as `cancel --from` takes them.",
        ),
    ] = None,
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="Skip lines of FILE that are not refunds."),
    ] = False,
    account: Annotated[
        str | None,
        typer.Option(
            metavar="ACCT", help="The connected account of those that name none."
        ),
    ] = None,
    priority: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Of a new run: workers take the smallest number of an account first.",
        ),
    ] = 0,
    yes: Annotated[bool, typer.Option("--yes", help="Add without asking.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be added; add nothing.")
    ] = False,
    target: TargetOptions,
    database: DatabaseOptions,
    form: options.Format,
) -> None:
    """Add refunds to a run; workers cancel them from then on."""
    if not refund_ids and source is None:
        refuse("give refunds, or --from FILE; nothing was added")
    try:
        validation.run_name(run)
        if account is not None:
            validation.account_id(account)
    except ValueError as error:
        told = str(error).replace("stripe_account", "--account")
        refuse(told.replace("run ", "--run ", 1) if told.startswith("run ") else told)
    change = Change("nothing was added", PERHAPS_ADDED)
    with ExitStack() as stack:
        stack.enter_context(change.told())
        requests = stack.enter_context(RefundList(account))
        notes = collect(
            *(requests, refund_ids or [], source),
            skip_bad=skip_bad,
            undone="nothing was added",
        )
        origin = _origin(target.base_url, livemode=target.live)
        where = Target(origin, target.live, target.tenant)
        asks = where.livemode and requests.count > 1 and not (yes or dry_run)
        if asks:
            preview.require_terminal(dry_run=False)
        connection = stack.enter_context(connected(database, change=change))
        if dry_run:
            _show_plan(Output(form), connection, run, where, requests)
            for note in notes:
                Output(form).say(note)
            raise typer.Exit(DONE)
        require_open(connection, run, where)
        if asks:
            preview.ask(
                *(where, requests.count, 0), accounts=requests.accounts(), sums=()
            )
        added = add(connection, run, where, priority, requests, change=change)
        tell(Output(form), added, change, notes)
        raise typer.Exit(DONE)


def add(
    connection: Connection,
    run: str,
    target: Target,
    priority: int,
    requests: RefundList,
    *,
    change: Change,
) -> Added:
    """Add refunds in one transaction, and return how many were added.

    Args:
        connection: To the database.
        run: Its name; it is made at the first time.
        target: Where they are canceled.
        priority: Of a run that is made.
        requests: The refunds.
        change: Notes how far that has come.
    """
    added, rows = 0, iter(requests)
    with change.transaction(connection):
        connection.execute(
            _ENSURE,
            (run, target.base_url, target.livemode, target.tenant, priority),
        )
        while page := list(islice(rows, _PAGE)):
            ids = [each.refund_id for each in page]
            accounts = [each.stripe_account or "" for each in page]
            cursor = connection.execute(_ENQUEUE, (run, ids, accounts))
            row = cursor.fetchone()
            assert row is not None  # noqa: S101 - a function returns one row
            added += int(str(row[0]))
    there = requests.count - added
    more = f"; {there:,} were in it already" if there else ""
    change.done(f"{counted(added, 'refund')} added to {run}{more}")
    return Added(run, added, there)


def require_open(connection: Connection, run: str, target: Target) -> None:
    """Refuse a run that takes no refunds, before a question or a search."""
    try:
        require_run(connection, run, target.scope)
    except JournalError as error:
        refuse(f"{error}; nothing was added")


def _show_plan(
    output: Output,
    connection: Connection,
    run: str,
    target: Target,
    requests: RefundList,
) -> None:
    """Show what adding refunds would do, or refuse; nothing is changed."""
    try:
        held = run_contents(connection, run, target.scope, requests)
    except JournalError as error:
        refuse(f"{error}; nothing was added")
    given = requests.count
    added = given - held.there
    if not output.as_table:
        output.record({"run": run, "to_add": added, "already_there": held.there})
    output.say(f"{target.mode} mode, {target.base_url}")
    if held.state is None:
        output.say(
            f"{run} is not there yet: it is made with {counted(given, 'refund')}"
        )
    else:
        output.say(plan.before(run, held, given, added))
    if held.state == "paused":
        output.say(f"{run} is paused: workers begin nothing of it")
    rest = ": the same command without --dry-run adds them" if added else ""
    output.say(f"nothing was added{rest}")


def tell(output: Output, added: Added, change: Change, notes: list[str]) -> None:
    """Say how many refunds were added, of those that were given."""
    if not output.as_table:
        output.record(msgspec.structs.asdict(added))
    output.say(change.said)
    for note in notes:
        output.say(note)
