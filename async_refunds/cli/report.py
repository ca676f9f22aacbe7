"""``report``: what a journal holds, during its run or after."""

from __future__ import annotations

import csv
import io
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from async_refunds.errors import JournalError
from async_refunds.journal import JournalReader
from async_refunds.results import CANCELED

from . import options
from .batch_run import MAX_ROWS, RESULT_COLUMNS
from .output import Output, refuse
from .summary import IN_FLIGHT, exit_code, outcome_table, resume_command
from .tables import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_refunds.journal import Record

    from .summary import Outcomes

COLUMNS = (
    *("refund_id", "stripe_account", "outcome", "status", "idempotency_key"),
    *("attempts", "request_id", "error", "settled"),
)

# A spreadsheet takes what begins like this for a formula, which can start programs
# (https://owasp.org/www-community/attacks/CSV_Injection).
_FORMULA = ("=", "+", "-", "@")

HELP = """Show what became of each refund of a run, also while it is going on.

On a terminal: the count of each outcome, what to do about it, and the refunds
that need attention. Otherwise, and with --json or --csv: every refund with its
outcome, key, number of requests, request id and error. One that was never sent
has no outcome; one in flight, or in flight at a kill, is unknown.
Nothing is sent, nothing is changed, no API key is needed.

Exit codes: 0 all are canceled, 1 some are not, 2 no such journal, 3 the
outcome of some is unknown."""


@options.with_options
def report(
    journal: Annotated[
        str, typer.Argument(metavar="JOURNAL", help="The file given to --journal.")
    ],
    *,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Each refund as a line of CSV, with a header.")
    ] = False,
    form: options.Format,
) -> None:
    """Show what became of each refund of a run."""
    if as_csv and form.as_json:
        refuse("--csv or --json, not both")
    output = Output(msgspec.structs.replace(form, as_json=form.as_json or as_csv))
    try:
        reader = JournalReader(journal)
        outcomes: Outcomes = Counter(reader.tally().outcomes)
        going_on = reader.in_use
        if output.as_table:
            if going_on:
                _count_in_flight(outcomes, reader)
                output.say(f"{journal} is in use: its run is going on")
            output.text(outcome_table(outcomes, resume_command(journal, reader.run)))
            _show_rows(output, reader, going_on=going_on)
        elif as_csv:
            for line in _csv_lines(reader.records()):
                output.raw(line)
        else:
            for record in reader.records():
                output.record(_row(record))
    except JournalError as error:
        refuse(str(error))
    raise typer.Exit(exit_code(outcomes))


def _row(record: Record) -> dict[str, object]:
    return {name: getattr(record, name) for name in COLUMNS}


def _is_in_flight(record: Record) -> bool:
    """Tell whether a record was sent, or is about to be, and has no result yet."""
    return record.outcome == "unknown" and record.seconds is None


def _count_in_flight(outcomes: Outcomes, reader: JournalReader) -> None:
    """Count as in flight what a running process has sent, in place of unknown."""
    count = sum(map(_is_in_flight, reader.records()))
    outcomes["unknown"] -= count
    outcomes[IN_FLIGHT] += count


def _show_rows(output: Output, reader: JournalReader, *, going_on: bool) -> None:
    """Show the refunds that need attention, up to the limit of a table."""
    shown = 0
    for record in reader.records():
        if record.outcome is None or record.outcome in CANCELED:
            continue
        if going_on and _is_in_flight(record):
            continue
        if shown == MAX_ROWS:
            output.say(f"the first {MAX_ROWS} that need attention; --json has all")
            break
        shown += 1
        output.record(_row(record))
    output.table(RESULT_COLUMNS)


def _csv_lines(records: Iterator[Record]) -> Iterator[bytes]:
    line = io.StringIO(newline="")
    writer = csv.writer(line)
    writer.writerow(COLUMNS)
    for record in records:
        writer.writerow(map(_cell, _row(record).values()))
        yield line.getvalue().encode()
        line.seek(0)
        line.truncate()


def _cell(value: object) -> str:
    if value is None:
        return ""
    text = printable(str(value))  # a line of the file stays one line
    return f"'{text}" if text.startswith(_FORMULA) else text
