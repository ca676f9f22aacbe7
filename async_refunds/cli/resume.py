"""``resume``: continue the run of a journal."""

from __future__ import annotations

from contextlib import ExitStack

import typer

from . import config, options
from .start_batch import open_output, open_run, run_batch

HELP = """Continue a run that was interrupted, or that left refunds open.

Refunds with a final outcome are skipped. Those that were in flight, or whose
outcome is unknown, are sent again with the same idempotency key; those that
failed, with a new one, until `async-refunds close` gives up on them. Address,
accounts and options are those of the journal, unless an option is given again.
The API key comes from STRIPE_API_KEY and must be of the same mode, live or test.

The output has the results of this time; `async-refunds report` shows all.

Exit codes: 0 all of the journal are canceled, or as many more as --max says, 1
some are not, the answer was no, or stdout broke (`| head`), 2 wrong usage, 3
the outcome of some is unknown, 130 interrupted with refunds left."""


@options.canceling
def resume(
    journal: options.JournalArgument,
    *,
    key: options.KeyOptions,
    send: options.SendOptions,
    base_url: options.RunAddress = None,
    written: options.OutputOptions,
    batch: options.BatchOptions,
) -> None:
    """Continue a run that was interrupted, or that left refunds open."""
    with ExitStack() as stack:
        kept = open_run(stack, journal, None)
        api = config.connect_to_run(
            journal, kept.journal.run, live=key.live, base_url=base_url
        )
        output = open_output(stack, written, journal)
        code = run_batch(api, None, batch, output, kept=kept, send=send)
    raise typer.Exit(code)
