"""``resume``: continue the run of a journal."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

import typer

from . import config, options
from .output import refuse
from .start_batch import open_output, open_run, run_batch

HELP = """Continue a run that was interrupted, or that left refunds open.

What is settled is skipped. What was in flight, or is unknown, is sent again
with the same key; what failed for a temporary reason, with a new key. The
address, the accounts and the options are those of the journal, unless an
option is given again; the API key comes from STRIPE_API_KEY as always, and
must be of the journal's mode.

The output has the results of this run; `async-refunds report` shows all.

Exit codes: 0 all of the journal are canceled, 1 some are not, 2 wrong usage,
3 the outcome of some is unknown, 130 interrupted with refunds left."""


@options.with_options
def resume(
    journal: Annotated[
        str, typer.Argument(metavar="JOURNAL", help="The file given to --journal.")
    ],
    *,
    key: options.KeyOptions,
    send: options.SendOptions,
    base_url: Annotated[
        str | None,
        typer.Option(help="Where the run is; needed for a live run outside Stripe."),
    ] = None,
    written: options.OutputOptions,
    batch: options.BatchOptions,
) -> None:
    """Continue a run that was interrupted, or that left refunds open."""
    with ExitStack() as stack:
        kept = open_run(stack, journal, None)
        run = kept.journal.run
        context = run.options.get("context")
        api = config.Connection(
            live=key.live,
            base_url=run.base_url,
            context=None if context is None else str(context),
        )
        if api.livemode != run.livemode:
            refuse(
                f"{journal!r} is a run in {_mode(run.livemode)} mode, and "
                f"STRIPE_API_KEY is a {_mode(api.livemode)} key; nothing was sent"
            )
        if base_url is not None and base_url.rstrip("/") != run.base_url:
            refuse(f"{journal!r} is a run at {run.base_url}; nothing was sent")
        if base_url is None and config.needs_address(run):
            refuse(
                f"{journal!r} is a live run at {run.base_url}: to send a live key "
                f"there, add --base-url {run.base_url}"
            )
        output = open_output(stack, written, journal)
        code = run_batch(api, None, batch, output, kept=kept, send=send)
    raise typer.Exit(code)


def _mode(live: bool) -> str:  # noqa: FBT001 - the mode itself
    return "live" if live else "test"
