"""``resume``: continue the run of a journal."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import chain
from typing import TYPE_CHECKING

import typer

from async_refunds.errors import JournalError
from async_refunds.journal import JournalReader
from async_refunds.results import CancelRequest

from . import config, options
from .dry_run import show_preview
from .exit_codes import DONE
from .output import Output, refuse
from .start_batch import journal_options, open_output, open_run, run_batch
from .summary import closed_run
from .tables import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .config import Connection
    from .options import BatchOptions

HELP = """Continue a run that was interrupted, or that left refunds open.

Refunds with a final outcome are skipped. Those that were in flight, or whose
outcome is unknown, are sent again with the same idempotency key; those that
failed, with a new one, until `async-refunds close` gives up on them. Address,
accounts and options are those of the journal, unless an option is given again.
The API key comes from STRIPE_API_KEY and must be of the same mode, live or test.

The output has the results of this time; `async-refunds report` shows all.

Exit codes: 0 all of the journal are canceled, or as many more as --max says, 1
some are not, the answer was no, or stdout broke (`| head`), 2 wrong usage, 3
the outcome of some is unknown, 130 interrupted with refunds left.
With --dry-run nothing is sent but reads, and the journal stays as it is: 0 all
that are open were read, 1 some were not found or could not be read."""


@options.canceling
def resume(
    journal: options.JournalArgument,
    *,
    dry_run: options.DryRun = False,
    key: options.KeyOptions,
    send: options.SendOptions,
    base_url: options.RunAddress = None,
    written: options.OutputOptions,
    batch: options.BatchOptions,
) -> None:
    """Continue a run that was interrupted, or that left refunds open."""
    if dry_run:
        try:
            reader = JournalReader(journal)
            api = config.connect_to_run(
                journal, reader.run, live=key.live, base_url=base_url
            )
            batch = batch.or_else(journal_options(journal, reader.run))
            code = _preview(
                *(journal, reader, api, batch, Output(written)), limit=send.limit
            )
        except JournalError as error:
            refuse(f"{error}; nothing was sent")
        raise typer.Exit(code)
    with ExitStack() as stack:
        kept = open_run(stack, journal, None)
        api = config.connect_to_run(
            journal, kept.journal.run, live=key.live, base_url=base_url
        )
        output = open_output(stack, written)
        code = run_batch(api, None, batch, output, kept=kept, send=send)
    raise typer.Exit(code)


def _preview(
    journal: str,
    reader: JournalReader,
    api: Connection,
    batch: BatchOptions,
    output: Output,
    *,
    limit: int | None,
) -> int:
    """Show what would become of what is open, and return the exit code."""
    tally, unsure = reader.tally(), reader.tally().outcomes["unknown"]
    if reader.in_use:
        output.say(f"{journal} is in use: its run is going on")
    if reader.run_closed:
        output.say(f"{journal} is {closed_run(unsure)}")
    sent = f", {unsure:,} of them perhaps sent" if unsure else ""
    output.say(
        f"{journal}, at {api.base_url}: {tally.open:,} of "
        f"{counted(tally.total, 'refund')} are open{sent}"
    )
    if not tally.open:
        return DONE
    # What failed comes last, as when they are canceled.
    perhaps_sent: set[CancelRequest] = set()
    open_ = chain(
        _open(reader, perhaps_sent, failed=False),
        _open(reader, perhaps_sent, failed=True),
    )
    return show_preview(
        *(api, open_, batch, output),
        given=tally.open,
        limit=limit,
        perhaps_sent=perhaps_sent,
    )


def _open(
    reader: JournalReader, perhaps_sent: set[CancelRequest], *, failed: bool
) -> Iterator[CancelRequest]:
    """Yield what is open, and note what was perhaps sent before."""
    for record in reader.records():
        has_failed = record.outcome == "failed" and record.attempts > 0
        if not record.settled and has_failed == failed:
            request = CancelRequest(record.refund_id, record.stripe_account)
            if record.outcome == "unknown":
                perhaps_sent.add(request)
            yield request
