"""``cancel`` and ``resume``: from words and files to a batch."""

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

from . import connect, options
from .ids import Ids, UnreadableError, name, read
from .output import Output
from .run import Job, Kept

if TYPE_CHECKING:
    from async_refunds.client import RefundsClient

    from .ids import Bad
    from .options import Options

# Of the lines that are of no use, how many are shown when nothing is sent because of
# them: the first tell what is wrong with all.
_BAD_SHOWN = 10


def cancel(
    refund_ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="REFUND", help="re_... or pyr_..."),
    ] = None,
    *,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Cancel those in a file, or - for stdin: CSV with a column refund_id "
            "or id (and stripe_account), JSON lines with such keys, as list and report "
            "write them, or an id a line.",
        ),
    ] = None,
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="Leave out the lines of FILE that are wrong."),
    ] = False,
    journal: options.JournalFile = None,
    output: options.OutputFile = None,
    live: options.Live = False,
    base_url: options.BaseUrl = connect.BASE_URL,
    account: options.Account = None,
    rate: options.Rate = None,
    concurrency: options.Concurrency = None,
    timeout: options.Timeout = None,
    patience: options.Patience = None,
    as_json: options.Json = False,
) -> None:
    """Cancel refunds that wait in requires_action, and say what became of each.

    Every id is checked before anything is sent. Each line has the outcome
    (canceled, already_canceled, not_cancelable, failed, unknown) and the
    idempotency key. Ctrl-C lets what is under way come to its end and starts
    nothing more; a second Ctrl-C reports what is under way as unknown.

    Give many a --journal: killed at any moment, the run goes on where it was,
    with the same keys. It keeps the ids and the options, never the API key.

    Exit codes: 0 all are canceled, 1 some are not, 2 a wrong call, 3 the outcome
    of some is unknown: run the same command again, which cancels nothing twice.
    """
    chosen = options.checked(
        options.Options(
            rate=rate,
            concurrency=concurrency,
            timeout=timeout,
            patience=patience,
            account=account,
        )
    )
    if not refund_ids and source is None:
        hint = f": to go on, `async-refunds resume {journal}`" if journal else ""
        connect.refuse(f"give refunds, or --from FILE{hint}; nothing was sent")
    refunds = connect.client(live=live, base_url=base_url, account=None)
    with ExitStack() as stack:
        ids = stack.enter_context(Ids())
        gather(ids, refund_ids or [], source, skip=skip_bad)
        kept = None if journal is None else begun(stack, journal, refunds, chosen)
        into = written(stack, output, source, journal, as_json=as_json)
        code = carry_out(
            refunds, ids, chosen, into, kept, brief=source is None and kept is None
        )
    raise typer.Exit(code)


def resume(
    journal: Annotated[
        str, typer.Argument(metavar="JOURNAL", help="The file given to --journal.")
    ],
    *,
    live: options.Live = False,
    base_url: Annotated[
        str | None,
        typer.Option(help="Where the run is; to be given for a live one elsewhere."),
    ] = None,
    rate: options.Rate = None,
    concurrency: options.Concurrency = None,
    timeout: options.Timeout = None,
    patience: options.Patience = None,
    output: options.OutputFile = None,
    as_json: options.Json = False,
) -> None:
    """Go on with a run that was interrupted, or that left refunds open.

    What is settled is skipped. What was under way, or is unknown, is asked again
    with the same key; what failed for a reason that passes, with a fresh one. The
    address, the accounts and the options are those of the journal, unless an
    option is given again; the API key comes from STRIPE_API_KEY as ever, and has
    to be of the journal's mode.

    Results are those of this run; the whole is in `async-refunds report`.

    Exit codes: 0 all of the journal are canceled, 1 some are not, 2 a wrong call,
    3 the outcome of some is unknown.
    """
    given = options.checked(
        options.Options(
            rate=rate, concurrency=concurrency, timeout=timeout, patience=patience
        )
    )
    with ExitStack() as stack:
        kept = opened(stack, journal, None)
        run = kept.journal.run
        refunds = connect.client(live=live, base_url=run.base_url, account=None)
        if refunds.livemode != run.livemode:
            connect.refuse(
                f"{journal!r} is a run in {_mode(run.livemode)} mode, and "
                f"STRIPE_API_KEY is a {_mode(refunds.livemode)} key; nothing was sent"
            )
        if base_url is not None and base_url.rstrip("/") != run.base_url:
            connect.refuse(f"{journal!r} is a run at {run.base_url}; nothing was sent")
        if base_url is None and connect.is_elsewhere(run):
            connect.refuse(
                f"{journal!r} is a live run at {run.base_url}: to send a live key "
                f"there, add --base-url {run.base_url}"
            )
        into = written(stack, output, None, journal, as_json=as_json)
        code = carry_out(refunds, None, given, into, kept)
    raise typer.Exit(code)


def carry_out(
    refunds: RefundsClient,
    ids: Ids | None,
    chosen: Options,
    output: Output,
    kept: Kept | None,
    *,
    brief: bool = False,
) -> int:
    """Cancel them as a batch, through the journal if there is one.

    Returns:
        The exit code.
    """
    if ids is not None:
        # Of this call, and not of the journal, whose own refunds name their accounts.
        ids.account = chosen.account
    if kept is not None:
        chosen = chosen.or_else(of_journal(kept))
    if kept is None:
        assert ids is not None  # noqa: S101 - a run without a journal has its ids
        job = Job(output, chosen, ids, total=ids.count, brief=brief)
        return asyncio.run(job.run(refunds))
    try:
        before = kept.journal.tally().total
        if ids is not None:
            kept.journal.load(ids)
        tally = kept.journal.tally()
    except JournalError as error:
        connect.refuse(f"{error}; nothing was sent")
    if before:
        output.say(
            f"going on with {kept.path}, at {refunds.base_url}: {tally.open:,} of "
            f"{tally.total:,} refunds are open"
            + (f", {tally.total - before:,} of them new" if ids is not None else "")
        )
    done = tally.total - tally.open
    job = Job(output, chosen, total=tally.total, done=done, kept=kept)
    return asyncio.run(job.run(refunds))


def gather(ids: Ids, refund_ids: list[str], source: str | None, *, skip: bool) -> None:
    """Check every id and set it aside, or refuse."""
    try:
        for each in dict.fromkeys(refund_ids):
            ids.add(CancelRequest(validation.refund_id(each)))
    except ValueError as error:
        connect.refuse(f"{error}; nothing was sent")
    if source is None:
        return
    bad = 0

    def tell(line: Bad) -> None:
        nonlocal bad
        bad += 1
        if skip or bad <= _BAD_SHOWN:
            number, reason = line
            connect.tell(f"{name(source)}:{number}: {reason}")

    try:
        read(source, ids, tell)
    except UnreadableError as error:
        connect.refuse(f"{name(source)} {error}; nothing was sent")
    if bad and not skip:
        connect.refuse(
            f"{_lines(bad)} of {name(source)} {'is' if bad == 1 else 'are'} wrong; "
            "nothing was sent: mend them, or leave them out with --skip-bad"
        )
    if bad:
        connect.tell(f"async-refunds: {_lines(bad)} of {name(source)} skipped")
    if not ids.count:
        connect.refuse(f"{name(source)} holds no ids; nothing was sent")


def begun(stack: ExitStack, path: str, refunds: RefundsClient, chosen: Options) -> Kept:
    """Open a journal to begin a run, or to add to one of the same kind; or refuse."""
    remembered: dict[str, object] = msgspec.to_builtins(chosen)
    return opened(stack, path, Run(refunds.base_url, refunds.livemode, remembered))


def opened(stack: ExitStack, path: str, run: Run | None) -> Kept:
    """Open a journal until the end of the stack, or refuse."""
    try:
        journal = stack.enter_context(SqliteJournal.open(path, run))
    except JournalError as error:
        connect.refuse(f"{error}; nothing was sent")
    return Kept(journal, path)


def of_journal(kept: Kept) -> Options:
    """Return the options that a journal remembers, or refuse."""
    try:
        return msgspec.convert(kept.journal.run.options, options.Options)
    except msgspec.ValidationError as error:
        connect.refuse(
            f"{kept.path} holds options that this release does not know ({error}); "
            "nothing was sent"
        )


def written(
    stack: ExitStack,
    into: str | None,
    source: str | None,
    journal: str | None,
    *,
    as_json: bool,
) -> Output:
    """Open the output until the end of the stack, or refuse."""
    for other in (source, journal):
        if into is not None and other is not None and _same(into, other):
            connect.refuse(
                f"--output {into!r} is the file of another option; nothing was sent"
            )
    try:
        output = Output(as_json=as_json, into=into)
    except OSError as error:
        connect.refuse(f"--output {into!r}: {error.strerror}; nothing was sent")
    stack.callback(output.close)
    return output


def _same(one: str, other: str) -> bool:
    return Path(one).resolve() == Path(other).resolve()


def _mode(live: bool) -> str:  # noqa: FBT001 - the mode itself
    return "live" if live else "test"


def _lines(count: int) -> str:
    return "1 line" if count == 1 else f"{count:,} lines"
