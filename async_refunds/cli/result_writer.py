"""Write each result of a batch: all as JSON, some thousands as a short table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from async_refunds.results import CANCELED

if TYPE_CHECKING:
    from async_refunds.results import CancelResult

    from .output import Output

RESULT_COLUMNS = ("refund_id", "outcome", "idempotency_key", "error")

MAX_ROWS = 300
"""A table on a terminal has at most this many rows."""


class ResultWriter:
    """Writes results, of which a long table lists only what needs attention.

    Args:
        output: Where they are written.
        total: The number of refunds.
        report: The command that shows what the journal holds, if there is one.
    """

    def __init__(self, output: Output, *, total: int, report: str | None) -> None:
        self._output = output
        self._total = total
        self._report = report
        self._listed = self._unlisted = 0

    def write(self, outcome: str, record: dict[str, object], *, sent: bool) -> None:
        """Write a result.

        Args:
            outcome: What became of the refund.
            record: As `result_record` returns it.
            sent: Whether anything may have been sent for it.
        """
        if not self._output.as_table or self._total <= MAX_ROWS:
            self._output.record(record)
        elif outcome not in CANCELED:
            self._listed += 1
            # The journal has what was sent; without one, every such result is shown.
            if self._listed <= MAX_ROWS or (self._report is None and sent):
                self._output.row(record, RESULT_COLUMNS)
            else:
                self._unlisted += 1

    def end(self) -> None:
        """Write the table, if the results are one."""
        self._output.table(RESULT_COLUMNS)

    def what_is_listed(self) -> str:
        """Return what a table left out, and who has it; nothing if it has all."""
        if not self._listed:
            return ""
        where = "--output or --journal keeps them all"
        if self._report is not None:
            where = f"`{self._report}` has all"
        more = f", all but {self._unlisted:,} of them" if self._unlisted else ""
        return f"listed are only refunds that need attention{more}; {where}"


def result_record(result: CancelResult) -> dict[str, object]:
    """Return a result as the JSON output has it."""
    return {
        "refund_id": result.refund_id,
        "stripe_account": result.stripe_account,
        "outcome": result.outcome,
        "status": None if result.refund is None else result.refund.status,
        "idempotency_key": result.idempotency_key,
        "attempts": result.requests,
        "request_id": result.request_id,
        "error": None if result.error is None else str(result.error),
    }
