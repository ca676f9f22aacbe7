"""``cancel``: from arguments and files to a batch."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import count
from typing import TYPE_CHECKING, Annotated

import typer

from async_refunds.protocol import validation
from async_refunds.results import CancelRequest

from . import options, preview
from .dry_run import show_preview
from .list_files import STDIN, UnreadableError, display_name, read_list
from .output import Output, refuse, to_stderr
from .plan import must_ask
from .refund_list import RefundList
from .start_batch import open_journal, open_output, run_batch
from .tables import counted

if TYPE_CHECKING:
    from .list_files import BadLine

# When bad lines stop the command, the first few show what is wrong with all of them.
_MAX_BAD_LINES = 10

HELP = """Cancel refunds in requires_action, and show what became of each.

Checks every id before it sends anything. --dry-run reads the refunds and shows
what would happen. With a live key, it asks before it cancels more than one.

Each result has the outcome (canceled, already_canceled, not_cancelable,
failed, unknown) and the idempotency key. After Ctrl-C it starts no new refund
and waits for those in flight; a second Ctrl-C reports them as unknown, and the
exit code is then 3.

Use --journal for many: after a kill at any moment, the run continues where it
was, with the same keys. It keeps the ids and the options, never the API key.
Without it, repeat the command after a kill: what it had canceled by then is
already_canceled.

Exit codes: 0 all are canceled, or as many as --max says, 1 some are not, the
answer was no, or stdout broke (`| head`), 2 wrong usage, 3 the outcome of some
is unknown: run the same command again, which cancels nothing twice, 130
interrupted with refunds left.
With --dry-run: 0 all were read, whether or not they can be canceled, 1 some
were not found or could not be read, or the key was refused."""


@options.canceling
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
            help="The refunds to cancel, - for stdin: CSV with a column refund_id or "
            "id (and stripe_account), an id per line, or JSON as Stripe, list and "
            "report write it.",
        ),
    ] = None,
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="Skip lines of FILE that are not refunds."),
    ] = False,
    dry_run: options.DryRun = False,
    send: options.SendOptions,
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
    api = options.connect(connection, account=False)
    with ExitStack() as stack:
        requests = stack.enter_context(RefundList(connection.account))
        notes = collect(requests, refund_ids or [], source, skip_bad=skip_bad)
        if dry_run:
            code = show_preview(
                *(api, requests, batch, Output(written)),
                given=requests.count,
                limit=send.limit,
                repeatable=source != STDIN,
                notes=notes,
            )
            raise typer.Exit(code)
        total = min(requests.count, send.limit or requests.count)
        if must_ask(api, total, send):
            preview.require_terminal()  # before there is a journal
        kept = open_journal(stack, journal, api, batch, connection)
        output = open_output(stack, written)
        code = run_batch(
            *(api, requests, batch, output),
            kept=kept,
            send=send,
            brief=source is None and kept is None,
            notes=notes,
        )
    raise typer.Exit(code)


def collect(
    requests: RefundList,
    refund_ids: list[str],
    source: str | None,
    *,
    skip_bad: bool,
    undone: str = "nothing was sent",
) -> list[str]:
    """Add every refund that was given, or refuse.

    Args:
        requests: Where they are added.
        refund_ids: Those of the command line.
        source: The file of the others.
        skip_bad: Leave out its lines that are none.
        undone: What a refusal says besides.

    Returns:
        What the summary says about lines that are not in the list.
    """
    try:
        for each in refund_ids:
            requests.add(CancelRequest(validation.refund_id(each)))
    except ValueError as error:
        refuse(f"{error}; {undone}")
    if source is None:
        return _duplicates(requests)
    name, numbers = display_name(source), count(1)

    def on_bad_line(line: BadLine) -> None:
        if skip_bad or next(numbers) <= _MAX_BAD_LINES:
            number, reason = line
            to_stderr(f"{name}:{number}: {reason}")

    try:
        bad = read_list(source, requests, on_bad_line)
    except UnreadableError as error:
        refuse(f"{name} {error}; {undone}")
    lines = counted(bad, "line")
    if bad and not skip_bad:
        are, them = ("is", "it") if bad == 1 else ("are", "them")
        refuse(
            f"{lines} of {name} {are} wrong; {undone}: fix {them}, or leave "
            f"{them} out with --skip-bad"
        )
    if not requests.count:
        refuse(f"{name} has no refund ids in it; {undone}")
    skipped = f"{lines} of {name} {'was' if bad == 1 else 'were'} skipped"
    return [*([skipped] if bad else []), *_duplicates(requests)]


def _duplicates(requests: RefundList) -> list[str]:
    again = requests.duplicates
    if not again:
        return []
    given = counted(requests.count + again, "refund")
    return [f"{given} given, {again:,} of them given before; each is canceled once"]
