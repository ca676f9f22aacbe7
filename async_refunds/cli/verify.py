"""``verify``: read again what a run reported, and say what differs."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import typer

from async_refunds.errors import (
    AuthenticationError,
    JournalError,
    RefundNotFoundError,
    RefundsError,
)
from async_refunds.journal import JournalReader
from async_refunds.results import CANCELED, CancelRequest

from . import config, options
from .exit_codes import DONE, NOT_ALL
from .output import Output, interruptible, print_error, refuse
from .paced_reads import PacedReads
from .tables import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_refunds.journal import Record
    from async_refunds.models import Refund

COLUMNS = ("refund_id", "outcome", "status", "error")

HELP = """Read the refunds of a run again, and show what is not as reported.

Reads every refund that has an outcome, within Stripe's limit for reads, and
changes nothing. It shows those that were reported as canceled and are not, or
the other way round, and the status of those whose outcome is unknown.

Exit codes: 0 all are as reported, 1 some are not, some could not be read, or
stdout broke (`| head`), 2 wrong usage, 130 interrupted."""


@options.with_options
def verify(
    journal: options.JournalArgument,
    *,
    key: options.KeyOptions,
    base_url: options.RunAddress = None,
    reads: options.ReadOptions,
    form: options.Format,
) -> None:
    """Read again the refunds that a run reported, and show what differs."""
    try:
        reader = JournalReader(journal)
        counts = reader.tally().outcomes
    except JournalError as error:
        refuse(str(error))
    connection = config.connect_to_run(
        journal, reader.run, live=key.live, base_url=base_url
    )
    verifying = _Verification(Output(form), reader)
    total = counts.total() - counts[None]

    async def run() -> None:
        async with connection.client(verifying.output) as refunds:
            await PacedReads(reads, verifying.compare).run(
                refunds, verifying.requests(), total=total, output=verifying.output
            )

    def so_far() -> str:
        return f"{verifying.done:,} of {counted(total, 'refund')} compared"

    with interruptible(so_far):
        try:
            asyncio.run(run())
        except (AuthenticationError, JournalError) as error:
            print_error(f"{error}; {so_far()}")
            raise typer.Exit(NOT_ALL) from None
        finally:
            verifying.conclude()
    raise typer.Exit(DONE if verifying.good else NOT_ALL)


class _Verification:
    """Compares what a journal holds with what is so now."""

    def __init__(self, output: Output, reader: JournalReader) -> None:
        self.output = output
        self._reader = reader
        # Of the reads in flight, by what names a refund.
        self._records: dict[CancelRequest, Record] = {}
        self._counts: Counter[str] = Counter()

    def requests(self) -> Iterator[CancelRequest]:
        """Yield the refunds that have an outcome."""
        for record in self._reader.records():
            if record.outcome is not None:
                request = CancelRequest(record.refund_id, record.stripe_account)
                self._records[request] = record
                yield request

    def compare(self, request: CancelRequest, found: Refund | RefundsError) -> None:
        """Compare a refund with its record, and write it if it differs."""
        record = self._records.pop(request)
        status = None if isinstance(found, RefundsError) else found.status
        if isinstance(found, RefundNotFoundError) and record.outcome == "failed":
            verdict, error = "as reported", ""
        elif isinstance(found, RefundsError):
            verdict, error = "not read", str(found)
        elif record.outcome == "unknown":
            verdict, error = "unknown", f"the outcome was unknown; it is {status} now"
        elif (status == "canceled") == (record.outcome in CANCELED):
            verdict, error = "as reported", ""
        else:
            verdict = "different"
            error = f"it was reported as {record.outcome}, and is {status} now"
        self._counts[verdict] += 1
        if error:
            self.output.record(
                {
                    "refund_id": request.refund_id,
                    "stripe_account": request.stripe_account,
                    "outcome": record.outcome,
                    "status": status,
                    "error": error,
                }
            )

    @property
    def done(self) -> int:
        """The number of refunds that were compared, or could not be read."""
        return self._counts.total()

    @property
    def good(self) -> bool:
        """Whether all could be read, and none differs."""
        return not (self._counts["different"] or self._counts["not read"])

    def conclude(self) -> None:
        """Write what differs as a table, and how many do."""
        self.output.table(COLUMNS)
        for verdict in ("as reported", "different", "unknown", "not read"):
            if self._counts[verdict]:
                self.output.say(f"{self._counts[verdict]:,} {verdict}")
