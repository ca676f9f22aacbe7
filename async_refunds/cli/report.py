"""``report``: what a journal knows, while its run goes on or after."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Annotated

import typer

from async_refunds.errors import JournalError
from async_refunds.journal import JournalReader
from async_refunds.results import CANCELED

from . import connect, options
from .ending import exit_code, resume_command, table
from .output import Output, OutputLostError, plain
from .run import FEW, RESULT_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_refunds.journal import Record, Tally

COLUMNS = (
    *("refund_id", "stripe_account", "outcome", "status", "idempotency_key"),
    *("attempts", "request_id", "error", "settled"),
)

# What a spreadsheet takes for a formula, which may call out and run programs
# (https://owasp.org/www-community/attacks/CSV_Injection).
_FORMULA = ("=", "+", "-", "@")


def report(
    journal: Annotated[
        str, typer.Argument(metavar="JOURNAL", help="The file given to --journal.")
    ],
    *,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Each refund as a line of CSV, with a header.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Show what became of each refund of a run, also while the run goes on.

    On a terminal: how many came to which outcome, what to do about each, and the
    refunds that want attention. Otherwise, and with --json or --csv: every refund
    with its outcome, key, number of requests, request id and error. One that was
    never asked has no outcome; what is under way, or was at a kill, is unknown.
    Nothing is sent, nothing is changed, no key is needed.

    Exit codes: 0 all are canceled, 1 some are not, 2 no such journal, 3 the
    outcome of some is unknown.
    """
    if as_csv and as_json:
        connect.refuse("--csv or --json, not both")
    output = Output(as_json=as_json or as_csv)
    try:
        reader = JournalReader(journal)
        tally = reader.tally()
        _write(output, reader, as_csv=as_csv, summary=_summary(reader, tally, journal))
    except JournalError as error:
        connect.refuse(str(error))
    except OutputLostError as error:
        if not error.unread:  # as with `| head`: whoever read has enough
            output.say(f"async-refunds: {error}")
        raise typer.Exit(1) from None
    raise typer.Exit(exit_code(tally.outcomes))


def row(record: Record) -> dict[str, object]:
    """Return what is told of a refund: the keys of `cancel`, and whether it is over."""
    return {name: getattr(record, name) for name in COLUMNS}


def _summary(reader: JournalReader, tally: Tally, journal: str) -> list[str]:
    return table(tally.outcomes, resume_command(journal, reader.run))


def _write(
    output: Output, reader: JournalReader, *, as_csv: bool, summary: list[str]
) -> None:
    if output.as_table:
        output.text(summary)
        _show(output, reader)
    elif as_csv:
        for line in _csv(reader.records()):
            output.raw(line)
    else:
        for record in reader.records():
            output.record(row(record))


def _show(output: Output, reader: JournalReader) -> None:
    """Show the refunds that want attention, as many as one can look at."""
    shown = 0
    for record in reader.records():
        if record.outcome is None or record.outcome in CANCELED:
            continue
        if shown == FEW:
            output.say(f"the first {FEW} that want attention; --json has all")
            break
        shown += 1
        output.record(row(record))
    output.table(RESULT_COLUMNS)


def _csv(records: Iterator[Record]) -> Iterator[bytes]:
    line = io.StringIO(newline="")
    writer = csv.writer(line)
    writer.writerow(COLUMNS)
    for record in records:
        writer.writerow(map(_cell, row(record).values()))
        yield line.getvalue().encode()
        line.seek(0)
        line.truncate()


def _cell(value: object) -> str:
    if value is None:
        return ""
    text = plain(str(value))  # a line of the file stays one line
    return f"'{text}" if text.startswith(_FORMULA) else text
