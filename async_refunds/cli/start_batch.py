"""Start a batch: its journal, its output, and the question before real money moves."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from async_refunds.errors import JournalError
from async_refunds.journal import Run

from . import options, plan
from .batch_run import BatchRun
from .journals import BoundedJournal, OpenJournal
from .output import Output, interruptible, os_reason, refuse
from .summary import closed_run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack

    from .config import Connection
    from .options import (
        BatchOptions,
        ConnectionOptions,
        OutputOptions,
        SendOptions,
    )
    from .refund_list import RefundList


def run_batch(
    connection: Connection,
    requests: RefundList | None,
    batch: BatchOptions,
    output: Output,
    *,
    kept: OpenJournal | None,
    send: SendOptions,
    asked: bool = False,
    brief: bool = False,
    notes: Sequence[str] = (),
) -> int:
    """Cancel the refunds as a batch, with the journal if there is one.

    Args:
        connection: To the API.
        requests: What to cancel; None: what is open in the journal.
        batch: The options that were given. A journal fills in the others.
        output: Where everything is written.
        kept: The journal.
        send: How many are canceled, and whether someone is asked first.
        asked: Whether someone was asked, who then knows what the journal holds.
        brief: Show no summary if all are canceled.
        notes: Lines for the end of the summary.

    Returns:
        The exit code.
    """
    if kept is None:
        assert requests is not None  # noqa: S101 - without a journal there is a list
        if not asked:
            plan.ask(connection, requests, None, send)
        chosen = min(requests.count, send.limit or requests.count)
        run = BatchRun(
            *(output, batch, islice(requests, chosen)),
            total=requests.count,
            left_out=requests.count - chosen,
            brief=brief,
            notes=notes,
        )
        return _run(run, connection)
    batch = batch.or_else(journal_options(kept.path, kept.journal.run))
    try:
        if not asked:
            asked = plan.ask(connection, requests, kept, send)
        before = tally = kept.journal.tally()
        if requests is not None:
            added = kept.journal.load(requests)
            tally = kept.journal.tally()
            what = plan.before("it", before, requests.count, added)
        else:
            what = f"{tally.open:,} of {tally.total:,} refunds are open"
        kept.journal.limit = send.limit
    except JournalError as error:
        refuse(f"{error}; nothing was sent")
    if kept.journal.run_closed:
        output.say(f"{kept.path} is {closed_run(tally.open)}")
    elif before.total and not (asked and requests is not None):
        output.say(f"continuing {kept.path}, at {connection.base_url}: {what}")
    done = tally.total - tally.open
    run = BatchRun(
        *(output, batch),
        total=tally.total,
        done=done,
        left_out=max(0, tally.open - (send.limit or tally.open)),
        kept=kept,
        notes=notes,
    )
    return _run(run, connection)


def _run(run: BatchRun, connection: Connection) -> int:
    """Run a batch, and return the exit code; see there what an interrupt does."""
    with interruptible(lambda: run.incomplete, lambda: run.interrupted_code):
        return asyncio.run(run.run(connection))


def open_journal(
    stack: ExitStack,
    path: str | None,
    connection: Connection,
    batch: BatchOptions,
    given: ConnectionOptions,
) -> OpenJournal | None:
    """Begin a run in the journal that was given, or add to its run; or refuse."""
    if path is None:
        return None
    kept: dict[str, object] = msgspec.to_builtins(batch)
    if given.account is not None:
        kept["account"] = given.account
    if given.context is not None:
        kept["context"] = given.context
    return open_run(stack, path, Run(connection.base_url, connection.livemode, kept))


def open_run(stack: ExitStack, path: str, run: Run | None) -> OpenJournal:
    """Open a journal until the end of the stack, or refuse.

    Args:
        stack: Closes it.
        path: Of the file.
        run: What to begin or continue; None: the file must hold a run.
    """
    try:
        journal = stack.enter_context(BoundedJournal.open(path, run))
    except JournalError as error:
        refuse(f"{error}; nothing was sent")
    return OpenJournal(journal, path)


def journal_options(path: str, run: Run) -> BatchOptions:
    """Return the options that a journal keeps, or refuse."""
    try:
        return msgspec.convert(run.options, options.BatchOptions)
    except msgspec.ValidationError as error:
        refuse(
            f"{path} holds options that this release does not know ({error}); "
            "nothing was sent"
        )


def open_output(stack: ExitStack, written: OutputOptions) -> Output:
    """Open the output of a batch until the end of the stack, or refuse.

    Args:
        stack: Closes it.
        written: Where it is.
    """
    path = written.output
    try:
        output = Output(written, path=path, rescue=True)
    except OSError as error:
        refuse(f"--output {path!r}: {os_reason(error)}; nothing was sent")
    stack.callback(output.close)
    return output
