"""``sweep``: find the refunds that have waited too long, and cancel them as a batch."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from async_refunds.errors import JournalError, RefundsError
from async_refunds.results import CancelRequest

from . import money, options, plan, preview
from .exit_codes import DONE, NOT_ALL
from .lookup import REFUND_COLUMNS, show
from .output import Output, interruptible, print_error, refuse
from .progress import SearchProgress
from .refund_list import RefundList
from .result_writer import MAX_ROWS
from .spans import span_seconds
from .start_batch import open_journal, open_output, run_batch
from .tables import counted

if TYPE_CHECKING:
    from async_refunds.client import RefundsClient
    from async_refunds.models import Refund
    from async_refunds.protocol.requests import CreatedRange


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which refunds to cancel."""

    created: CreatedRange
    expires_by: float | None
    """Unix seconds."""
    currencies: frozenset[str]
    """Empty: all of them."""

    def matches(self, refund: Refund) -> bool:
        """Tell whether a refund is one of them."""
        if refund.status != "requires_action":
            return False
        # Also where a proxy or a cache in between passes over the query of the list.
        created = self.created
        if not created.get("gte", 0) <= refund.created < created.get("lt", math.inf):
            return False
        if self.currencies and refund.currency not in self.currencies:
            return False
        if self.expires_by is None:
            return True
        action = refund.next_action
        details = None if action is None else action.display_details
        return details is not None and details.expires_at <= self.expires_by


class Found(msgspec.Struct):
    """What a search has found so far."""

    progress: SearchProgress = msgspec.field(default_factory=SearchProgress)
    matches: preview.Preview = msgspec.field(default_factory=preview.Preview)
    """The refunds that match."""


async def search(
    refunds: RefundsClient,
    wanted: Filter,
    matches: RefundList,
    found: Found,
    output: Output,
    *,
    account: str | None,
    limit: int | None,
    show_rows: bool,
) -> None:
    """Go through the list of refunds, and collect those that match.

    Args:
        refunds: The client.
        wanted: Which refunds.
        matches: Where they are added.
        found: Counts them.
        output: Where progress is written, and rows if they are shown.
        account: The connected account of the client.
        limit: Stop at this many.
        show_rows: Write each match, on a terminal the first ones.

    Raises:
        RefundsError: A page could not be read.
        OutputLostError: A match could not be written.
    """
    progress = found.progress
    async with progress.shown(output):
        async for refund in refunds.list(created=wanted.created):
            progress.see(refund.created)
            if wanted.matches(refund):
                request = CancelRequest(refund.id, account)
                if not matches.add(request):
                    continue
                found.matches.add(request, refund)
                progress.matches = matches.count
                if show_rows and (not output.as_table or matches.count <= MAX_ROWS):
                    show(output, refund)
            if matches.count == limit:
                break


HELP = """Find refunds in requires_action that are old or expire soon; cancel them.

Reads the whole list of refunds, newest first, a hundred per request, since
Stripe cannot list by status. Then shows how many match, with their sum in each
currency, and asks before it cancels them.

A refund waits 45 days for the customer's bank details. If the bank returns the
money, the same refund waits again, so it may be older than that: the search
goes back 180 days. --since changes this.

Exit codes: 0 all are canceled, or none matches, 1 some are not, the answer was
no, or stdout broke (`| head`), 2 wrong usage, 3 the outcome of some is
unknown, 130 interrupted. With --dry-run: 0 searched to the end."""


class FilterOptions(options.OptionGroup, frozen=True, kw_only=True):
    """Which refunds are searched for."""

    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="SPAN", help="Those created longer ago than this: 14d, 36h, 2w."
        ),
    ] = None
    expiring_within: Annotated[
        str | None,
        typer.Option(
            metavar="SPAN", help="Those that expire within this time: 3d, 12h."
        ),
    ] = None
    since: Annotated[
        str, typer.Option(metavar="SPAN", help="How far back to search.")
    ] = "180d"
    currency: Annotated[
        str | None,
        typer.Option(metavar="CUR,...", help="Only these currencies: jpy,eur."),
    ] = None

    def filter(self) -> Filter:
        """Return which refunds the options mean, or refuse."""
        if (self.older_than is None) == (self.expiring_within is None):
            refuse("give --older-than or --expiring-within; nothing was sent")
        # One moment for all bounds, so that they do not move during the search.
        now = time.time()
        window = span_seconds("--since", self.since)
        created: CreatedRange = {"gte": max(0, int(now - window))}
        expires_by = None
        if self.older_than is not None:
            age = span_seconds("--older-than", self.older_than)
            if age >= window:
                refuse(
                    f"--older-than {self.older_than} is not within --since "
                    f"{self.since}; nothing was sent"
                )
            created["lt"] = max(0, int(now - age))
        if self.expiring_within is not None:
            expires_by = now + span_seconds("--expiring-within", self.expiring_within)
        currencies = frozenset[str]()
        if self.currency is not None:
            currencies = _currencies(self.currency)
        return Filter(created=created, expires_by=expires_by, currencies=currencies)


@options.canceling
def sweep(
    *,
    which: FilterOptions,
    dry_run: options.DryRun = False,
    send: options.SendOptions,
    journal: options.Journal = None,
    written: options.OutputOptions,
    connection: options.ConnectionOptions,
    batch: options.BatchOptions,
) -> None:
    """Cancel the refunds in requires_action that are old, or about to expire."""
    wanted = which.filter()
    if not (send.yes or dry_run):
        preview.require_terminal()
    with ExitStack() as stack:
        matches = stack.enter_context(RefundList(connection.account))
        output = Output(written) if dry_run else open_output(stack, written)
        api = options.connect(connection, account=False)
        kept = None
        if journal is not None and not dry_run and Path(journal).exists():
            # What it refuses is said before the search, which may take minutes.
            kept = open_journal(stack, journal, api, batch, connection)
        find(
            *(wanted, matches, output),
            connection=connection,
            limit=send.limit,
            show_rows=dry_run,
        )
        if dry_run and matches.count:
            output.say(f"nothing was canceled; to cancel them: {preview.act_command()}")
        if dry_run or not matches.count:
            raise typer.Exit(DONE)
        if kept is None:
            kept = open_journal(stack, journal, api, batch, connection)
        try:
            asked = plan.ask(api, matches, kept, send, found=True)
        except JournalError as error:
            refuse(f"{error}; nothing was sent")
        code = run_batch(
            *(api, matches, batch, output), kept=kept, send=send, asked=asked
        )
    raise typer.Exit(code)


def find(
    wanted: Filter,
    matches: RefundList,
    output: Output,
    *,
    connection: options.ConnectionOptions,
    limit: int | None,
    show_rows: bool,
) -> None:
    """Search, show what was found, and end the command if the search fails.

    Args:
        wanted: Which refunds.
        matches: Where they are added.
        output: Where everything is written.
        connection: To the API, and of which account.
        limit: Stop at this many.
        show_rows: Write each match, on a terminal the first ones.
    """
    found = Found()

    async def run() -> None:
        async with options.connect(connection).client(output) as refunds:
            await search(
                *(refunds, wanted, matches, found, output),
                account=connection.account,
                limit=limit,
                show_rows=show_rows,
            )

    try:
        with interruptible(
            lambda: f"{found.progress.incomplete}; nothing was canceled"
        ):
            asyncio.run(run())
    except RefundsError as error:
        print_error(f"{error}; nothing was canceled")
        raise typer.Exit(NOT_ALL) from None
    _show_found(output, found, limit)


def _currencies(text: str) -> frozenset[str]:
    names = [each.strip().lower() for each in text.split(",")]
    for each in names:
        options.known("--currency", each, money.CURRENCIES)
    return frozenset(names)


def _show_found(output: Output, found: Found, limit: int | None) -> None:
    output.table(REFUND_COLUMNS)
    matches, seen = found.matches.cancelable, found.progress.seen
    if output.as_table and matches > MAX_ROWS:
        output.say(f"the first {MAX_ROWS}; --json has all")
    if not matches:
        output.say(f"0 of {counted(seen, 'refund')} match; nothing to cancel")
        return
    if matches == limit:
        output.say(
            f"--max ended the search after {counted(seen, 'refund')}; "
            f"{matches:,} match:"
        )
    else:
        output.say(f"{matches:,} of {counted(seen, 'refund')} match:")
    for line in preview.sum_lines(found.matches.counts, found.matches.sums):
        output.say(line)
