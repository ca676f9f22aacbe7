"""``report``: what a journal holds, during its run or after."""

from __future__ import annotations

import csv
import io
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from async_refunds.errors import JournalError
from async_refunds.journal import JournalReader
from async_refunds.results import CANCELED

from . import options
from .money import in_major_units
from .options import OptionGroup
from .output import Output, interruptible, os_reason, refuse
from .report_data import RunReader, RunReport
from .report_html import html_page
from .result_writer import MAX_ROWS, RESULT_COLUMNS
from .summary import (
    close_command,
    closed_run,
    exit_code,
    next_steps,
    outcome_table,
    resume_command,
)
from .tables import printable, utc

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_refunds.journal import Record

STDOUT = "-"

COLUMNS = (
    *("refund_id", "stripe_account", "outcome", "status", "amount", "currency"),
    *("created", "charge", "payment_intent", "failure_balance_transaction"),
    *("idempotency_key", "attempts", "request_id", "error", "settled", "seconds"),
    "known_at",
)

# Without a zone in the cell, which would make it text to a spreadsheet.
_TIMES = ("created", "known_at")

# A spreadsheet takes what begins like this for a formula, which can start programs
# (https://owasp.org/www-community/attacks/CSV_Injection). In some languages also in
# full width, and after a semicolon, which separates cells there.
_FORMULA = re.compile("(^|;)(?=\\s*[-=+@\uff0d\uff1d\uff0b\uff20])")

HELP = """Show what became of each refund of a run, also while it is going on.

On a terminal: the count of each outcome, what to do about it, what came back in
each currency, and the refunds that need attention. What had been canceled
before is a sum of its own. Otherwise, and with --json or --csv: every refund
with its outcome, key, amount, times, number of requests, request id and error.
--html writes a page for a browser or a printer.

Amounts in JSON are in the smallest unit, as Stripe has them (105600 for 1,056.00
EUR); elsewhere they are as people write them. A refund that was not sent yet
has no outcome. One that is in flight, or was when the process was killed, is
unknown. Only the journal is read: nothing is sent, no API key is needed.

Exit codes: 0 all are canceled, 1 some are not, or stdout broke (`| head`), 2 no
such journal, 3 the outcome of some is unknown, 130 interrupted."""


class ReportForm(OptionGroup, frozen=True, kw_only=True):
    """How a report is written."""

    as_csv: Annotated[
        bool, typer.Option("--csv", help="Each refund as a line of CSV, for Excel too.")
    ] = False
    page: Annotated[
        str | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write a page for a browser; - for stdout.",
        ),
    ] = None
    force: Annotated[
        bool, typer.Option("--force", help="Replace FILE if there is one.")
    ] = False
    as_json: options.AsJson = False
    quiet: options.Quiet = False

    def __post_init__(self) -> None:
        """Check that one form is asked for.

        Raises:
            ValueError: Several are.
        """
        if self.as_csv + self.as_json + (self.page is not None) > 1:
            raise ValueError("give one of --csv, --json and --html, not several")


@options.with_options
def report(journal: options.JournalArgument, *, form: ReportForm) -> None:
    """Show what became of each refund of a run."""
    with interruptible(lambda: "the report is not complete; the journal is as it was"):
        try:
            reader = JournalReader(journal)
            run = RunReport(
                journal,
                reader,
                resume=resume_command(journal, reader.run),
                steps=partial(
                    next_steps, close=close_command(journal), closed=reader.run_closed
                ),
            )
            write_report(run, reader, form)
        except JournalError as error:
            refuse(str(error))
    raise typer.Exit(exit_code(run.outcomes))


def write_report(run: RunReport, reader: RunReader, form: ReportForm) -> None:
    """Write a report as the user wants it.

    Raises:
        OutputLostError: It could not be written to its end.
    """
    as_json = form.as_json or form.as_csv
    output = Output(options.Format(as_json=as_json, quiet=form.quiet))
    if form.page == STDOUT:
        for part in html_page(run, reader.records()):
            output.raw(part.encode(errors="backslashreplace"))
    elif form.page is not None:
        _write_page(form.page, run, reader, force=form.force)
        output.say(f"written to {form.page}")
    elif output.as_table:
        _show(output, run, reader)
    elif form.as_csv:
        for line in _csv_lines(reader.records()):
            output.raw(line)
    else:
        for record in reader.records():
            output.record(_row(record))


def _row(record: Record) -> dict[str, object]:
    return {name: getattr(record, name) for name in COLUMNS}


def _show(output: Output, run: RunReport, reader: RunReader) -> None:
    """Show the summary, and the refunds that need attention up to a table's limit."""
    if run.going_on:
        output.say(f"{run.name} is in use: its run is going on")
    if run.closed:
        output.say(f"{run.name} is {closed_run(run.outcomes['unknown'])}")
    output.text(outcome_table(run.outcomes, run.steps))
    output.text(run.sums.tables())
    if run.requests:
        output.text([run.effort])
    shown = 0
    for record in reader.records():
        good = record.outcome is None or record.outcome in CANCELED
        if good or run.is_in_flight(record):
            continue
        if shown == MAX_ROWS:
            output.say(f"the first {MAX_ROWS} that need attention; --json has all")
            break
        shown += 1
        output.record(_row(record))
    output.table(RESULT_COLUMNS)


def _write_page(path: str, run: RunReport, reader: RunReader, *, force: bool) -> None:
    """Write the page, or refuse; what could not be written to its end is removed."""
    page = Path(path)
    try:
        with page.open(
            "w" if force else "x", encoding="utf-8", errors="backslashreplace"
        ) as file:
            try:
                file.writelines(html_page(run, reader.records()))
            except BaseException:
                if page.is_file():  # not a device
                    page.unlink()
                raise
    except FileExistsError:
        refuse(f"--html {path!r} is there already: add --force to replace it")
    except OSError as error:
        refuse(f"--html {path!r}: {os_reason(error)}")


def _csv_lines(records: Iterator[Record]) -> Iterator[bytes]:
    # Excel takes a file without a byte order mark for one in the local encoding.
    line = io.StringIO("\ufeff", newline="")
    line.seek(1)
    writer = csv.writer(line)
    writer.writerow(f"{name}_utc" if name in _TIMES else name for name in COLUMNS)
    for record in records:
        row = _row(record)
        writer.writerow([_cell(row, name) for name in COLUMNS])
        yield line.getvalue().encode()
        line.seek(0)
        line.truncate()


def _cell(row: dict[str, object], name: str) -> str:
    """Return a value as a spreadsheet reads it."""
    value = row[name]
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "amount" and isinstance(value, int):
        # A thousands separator would make text of it.
        return in_major_units(value, str(row["currency"])).replace(",", "")
    if name in _TIMES and isinstance(value, (int, float)):
        return utc(value, "%Y-%m-%d %H:%M:%S")
    if isinstance(value, float):
        return f"{value:.3f}"
    text = printable(str(value))  # a line of the file stays one line
    return _FORMULA.sub(r"\1'", text)
