"""``fleet sweep``: find the refunds that have waited too long; add them to a run."""

from __future__ import annotations

from contextlib import ExitStack

import typer

from async_refunds.cli import options, preview
from async_refunds.cli.exit_codes import DONE, NOT_ALL
from async_refunds.cli.options import canceling
from async_refunds.cli.output import Output
from async_refunds.cli.refund_list import RefundList
from async_refunds.cli.sweep import FilterOptions, find

from .change import Change
from .database import DatabaseOptions, connected
from .enqueue import (
    PERHAPS_ADDED,
    RunOption,
    Target,
    TenantOptions,
    add,
    require_open,
    tell,
)

HELP = """Find refunds in requires_action that are old or expire soon; enqueue them.

As `async-refunds sweep` searches, with the API key of STRIPE_API_KEY; the
workers cancel what it adds. Run it every night: what is in the run already is
not added again.

Exit codes: 0 they are in the run, or none matches, 1 the search or the database
failed, the run was closed meanwhile, stdout broke, or the answer was no, 2 wrong
usage, the run is closing or closed, no connection, or no right, 130 interrupted.
With 1 and 130 stderr says which: nothing was added, perhaps all were, or how many
were. With --dry-run: 0 searched to the end."""


@canceling
def sweep(
    *,
    run: RunOption,
    which: FilterOptions,
    dry_run: options.DryRun = False,
    send: options.SendOptions,
    tenant: TenantOptions,
    connection: options.ConnectionOptions,
    database: DatabaseOptions,
    form: options.Format,
) -> None:
    """Add the refunds in requires_action that are old, or about to expire."""
    wanted = which.filter()
    if not (send.yes or dry_run):
        preview.require_terminal()
    output = Output(form)
    change = Change("nothing was added", PERHAPS_ADDED)
    with ExitStack() as stack:
        if not dry_run:  # which adds nothing anyway
            stack.enter_context(change.told())
        matches = stack.enter_context(RefundList(connection.account))
        api = options.connect(connection, account=False)
        target = Target(api.base_url, api.livemode, tenant.tenant)
        # Before the search: it may take minutes.
        db = None
        if not dry_run:
            # What it refuses comes after the search, which has sent something.
            db = stack.enter_context(
                connected(database, change=change, refused=NOT_ALL)
            )
            require_open(db, run, target)
        find(
            *(wanted, matches, output),
            connection=connection,
            limit=send.limit,
            show_rows=dry_run,
        )
        if db is None or not matches.count:
            raise typer.Exit(DONE)
        if not send.yes:
            preview.ask(api, matches.count, 0, accounts=matches.accounts(), sums=())
        added = add(db, run, target, 0, matches, change=change)
        tell(output, added, change, [])
        raise typer.Exit(DONE)
