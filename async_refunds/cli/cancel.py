"""``cancel`` and ``resume``: from arguments and files to a batch."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from async_refunds.errors import JournalError
from async_refunds.journal import Run, SqliteJournal
from async_refunds.protocol import validation
from async_refunds.results import CancelRequest

from . import config, options
from .batch_run import BatchRun, OpenJournal
from .output import Output, os_reason, refuse, to_stderr
from .refund_lists import RefundList, UnreadableError, display_name, read_list

if TYPE_CHECKING:
    from collections.abc import Sequence

    from async_refunds.client import RefundsClient

    from .options import BatchOptions, ConnectionOptions, OutputOptions
    from .refund_lists import BadLine

# When bad lines stop the command, the first few show what is wrong with all of them.
_MAX_BAD_LINES = 10

CANCEL_HELP = """Cancel refunds in requires_action, and show what became of each.

Every id is checked before anything is sent. Each result has the outcome
(canceled, already_canceled, not_cancelable, failed, unknown) and the
idempotency key. After Ctrl-C no new refund is started, and those in flight are
waited for; a second Ctrl-C reports them as unknown.

Use --journal for many: after a kill at any moment, the run continues where it
was, with the same keys. It keeps the ids and the options, never the API key.

Exit codes: 0 all are canceled, 1 some are not, 2 wrong usage, 3 the outcome
of some is unknown: run the same command again, which cancels nothing twice,
130 interrupted with refunds left."""


@options.with_options
def cancel(
    refund_ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="REFUND", help=options.REFUND_HELP),
    ] = None,
    *,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Cancel the refunds in a file, or - for stdin: CSV with a column "
            "refund_id or id (and stripe_account), JSON lines with such keys, as list "
            "and report write them, or an id per line.",
        ),
    ] = None,
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="Leave out the wrong lines of FILE."),
    ] = False,
    journal: options.Journal = None,
    written: options.OutputOptions,
    connection: options.ConnectionOptions,
    batch: options.BatchOptions,
) -> None:
    """Cancel refunds, and show what became of each."""
    if not refund_ids and source is None:
        resume = f": to continue, `async-refunds resume {journal}`"
        hint = resume if journal else ""
        refuse(f"give refunds, or --from FILE{hint}; nothing was sent")
    refunds = config.client(live=connection.live, base_url=connection.base_url)
    with ExitStack() as stack:
        requests = stack.enter_context(RefundList(connection.account))
        notes = _collect(requests, refund_ids or [], source, skip_bad=skip_bad)
        kept = open_journal(stack, journal, refunds, batch, connection)
        output = open_output(stack, written, source, journal)
        code = run_batch(
            *(refunds, requests, batch, output, kept),
            brief=source is None and kept is None,
            notes=notes,
        )
    raise typer.Exit(code)


RESUME_HELP = """Continue a run that was interrupted, or that left refunds open.

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
    base_url: Annotated[
        str | None,
        typer.Option(help="Where the run is; needed for a live run outside Stripe."),
    ] = None,
    written: options.OutputOptions,
    batch: options.BatchOptions,
) -> None:
    """Continue a run that was interrupted, or that left refunds open."""
    with ExitStack() as stack:
        kept = _open(stack, journal, None)
        run = kept.journal.run
        refunds = config.client(live=key.live, base_url=run.base_url)
        if refunds.livemode != run.livemode:
            refuse(
                f"{journal!r} is a run in {_mode(run.livemode)} mode, and "
                f"STRIPE_API_KEY is a {_mode(refunds.livemode)} key; nothing was sent"
            )
        if base_url is not None and base_url.rstrip("/") != run.base_url:
            refuse(f"{journal!r} is a run at {run.base_url}; nothing was sent")
        if base_url is None and config.needs_address(run):
            refuse(
                f"{journal!r} is a live run at {run.base_url}: to send a live key "
                f"there, add --base-url {run.base_url}"
            )
        output = open_output(stack, written, journal)
        code = run_batch(refunds, None, batch, output, kept)
    raise typer.Exit(code)


def run_batch(
    refunds: RefundsClient,
    requests: RefundList | None,
    batch: BatchOptions,
    output: Output,
    kept: OpenJournal | None,
    *,
    brief: bool = False,
    notes: Sequence[str] = (),
) -> int:
    """Cancel the refunds as a batch, with the journal if there is one.

    Args:
        refunds: The client, which this closes.
        requests: What to cancel; None: what is open in the journal.
        batch: The options that were given. A journal fills in the others.
        output: Where everything is written.
        kept: The journal.
        brief: Show no summary if all are canceled.
        notes: Lines for the end of the summary.

    Returns:
        The exit code.
    """
    if kept is None:
        assert requests is not None  # noqa: S101 - without a journal there is a list
        run = BatchRun(
            *(output, batch, requests),
            total=requests.count,
            brief=brief,
            notes=notes,
        )
        return asyncio.run(run.run(refunds))
    batch = batch.or_else(_journal_options(kept))
    try:
        before = kept.journal.tally().total
        if requests is not None:
            kept.journal.load(requests)
        tally = kept.journal.tally()
    except JournalError as error:
        refuse(f"{error}; nothing was sent")
    if before:
        new = f", {tally.total - before:,} of them new" if requests is not None else ""
        output.say(
            f"continuing {kept.path}, at {refunds.base_url}: {tally.open:,} of "
            f"{tally.total:,} refunds are open{new}"
        )
    done = tally.total - tally.open
    run = BatchRun(output, batch, total=tally.total, done=done, kept=kept, notes=notes)
    return asyncio.run(run.run(refunds))


def _collect(
    requests: RefundList, refund_ids: list[str], source: str | None, *, skip_bad: bool
) -> list[str]:
    """Add every refund that was given, or refuse.

    Returns:
        What the summary says about lines that are not in the list.
    """
    try:
        for each in refund_ids:
            requests.add(CancelRequest(validation.refund_id(each)))
    except ValueError as error:
        refuse(f"{error}; nothing was sent")
    if source is None:
        return _duplicates(requests)
    name, bad = display_name(source), 0

    def on_bad_line(line: BadLine) -> None:
        nonlocal bad
        bad += 1
        if skip_bad or bad <= _MAX_BAD_LINES:
            number, reason = line
            to_stderr(f"{name}:{number}: {reason}")

    try:
        read_list(source, requests, on_bad_line)
    except UnreadableError as error:
        refuse(f"{name} {error}; nothing was sent")
    lines = "1 line" if bad == 1 else f"{bad:,} lines"
    if bad and not skip_bad:
        refuse(
            f"{lines} of {name} {'is' if bad == 1 else 'are'} wrong; nothing was sent: "
            "fix them, or leave them out with --skip-bad"
        )
    if not requests.count:
        refuse(f"{name} holds no ids; nothing was sent")
    skipped = f"{lines} of {name} {'was' if bad == 1 else 'were'} skipped"
    return [*([skipped] if bad else []), *_duplicates(requests)]


def _duplicates(requests: RefundList) -> list[str]:
    count = requests.duplicates
    if not count:
        return []
    lines = "1 line names" if count == 1 else f"{count:,} lines name"
    return [f"{lines} a refund that was given before; each is canceled once"]


def open_journal(
    stack: ExitStack,
    path: str | None,
    refunds: RefundsClient,
    batch: BatchOptions,
    connection: ConnectionOptions,
) -> OpenJournal | None:
    """Begin a run in the journal that was given, or add to its run; or refuse."""
    if path is None:
        return None
    given: dict[str, object] = msgspec.to_builtins(batch)
    if connection.account is not None:
        given["account"] = connection.account
    return _open(stack, path, Run(refunds.base_url, refunds.livemode, given))


def _open(stack: ExitStack, path: str, run: Run | None) -> OpenJournal:
    try:
        journal = stack.enter_context(SqliteJournal.open(path, run))
    except JournalError as error:
        refuse(f"{error}; nothing was sent")
    return OpenJournal(journal, path)


def _journal_options(kept: OpenJournal) -> BatchOptions:
    try:
        return msgspec.convert(kept.journal.run.options, options.BatchOptions)
    except msgspec.ValidationError as error:
        refuse(
            f"{kept.path} holds options that this release does not know ({error}); "
            "nothing was sent"
        )


def open_output(
    stack: ExitStack, written: OutputOptions, *others: str | None
) -> Output:
    """Open the output of a batch until the end of the stack, or refuse.

    Args:
        stack: Closes it.
        written: Where it is.
        others: The files of other options, which it must not be.
    """
    path = written.output
    if path and Path(path).resolve() in {
        Path(each).resolve() for each in others if each
    }:
        refuse(f"--output {path!r} is the file of another option; nothing was sent")
    try:
        output = Output(as_json=written.as_json, path=path, rescue=True)
    except OSError as error:
        refuse(f"--output {path!r}: {os_reason(error)}; nothing was sent")
    stack.callback(output.close)
    return output


def _mode(live: bool) -> str:  # noqa: FBT001 - the mode itself
    return "live" if live else "test"
