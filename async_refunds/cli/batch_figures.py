"""What a batch came to, and what its journal holds of that at the end."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from async_refunds.errors import JournalError
from async_refunds.journal import JournalReader

from .exit_codes import UNKNOWN
from .report_data import CanceledSums, effort
from .summary import exit_code, next_steps, outcome_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_refunds.results import CancelResult

    from .journals import OpenJournal
    from .summary import Outcomes

_TOO_MANY = 429


class BatchFigures:
    """What one run of a batch came to; with a journal, in the end all of its runs."""

    def __init__(self) -> None:
        self.outcomes: Outcomes = Counter()
        """How many refunds came to which outcome."""
        self.this_time: Outcomes = self.outcomes
        """The same of this run alone."""
        self.sent = 0
        """Requests."""
        self.seconds = 0.0
        """For which it was at work."""
        self.open = 0
        """Refunds that the journal has no result of yet."""
        self.lost = ""
        """Why the file of the journal does not have what was written to it, if so."""
        self._sums = CanceledSums()
        self._rate_limited = 0
        self._uncounted = False
        self._in_doubt = False

    def add(self, result: CancelResult) -> None:
        """Count the money and the requests of a result."""
        self._rate_limited += sum(
            attempt.status == _TOO_MANY for attempt in result.attempts
        )
        if result.refund is not None:
            self._sums.add(result.outcome, result.refund.amount, result.refund.currency)

    # ---------------------------------------------------------------- the journal

    def read_journal(self, kept: OpenJournal) -> None:
        """Count what the journal holds.

        Raises:
            JournalError: It cannot tell.
        """
        tally = kept.journal.tally()
        self.outcomes = Counter[str | None](tally.outcomes)
        self.open = tally.open
        self.sent = tally.requests or self.sent
        self._rate_limited = tally.rate_limited
        self.seconds = tally.seconds or self.seconds
        self._uncounted = tally.uncounted
        self._read_sums(kept)

    def read_broken(self, kept: OpenJournal) -> int:
        """Count what a journal holds that took no more; return the exit code.

        It is read anew. A refund is in it as claimed, and so unknown, before anything
        is sent: also one whose call was broken off.
        """
        try:
            tally = _read_anew(kept).tally()
        except JournalError:
            self._in_doubt = True
            return UNKNOWN
        self.outcomes = Counter[str | None](tally.outcomes)
        self.open = tally.open
        return exit_code(self.outcomes)

    def _read_sums(self, kept: OpenJournal) -> None:
        """Sum up what a journal holds, and see that it does hold it."""
        sums = CanceledSums()
        try:
            for record in _read_anew(kept).records():
                sums.add(record.outcome, record.amount, record.currency)
        except JournalError as error:
            self.lost = (
                f"at the end of the run {error}. The results are right, the sums are "
                "those of this run"
            )
        else:
            self._sums = sums

    # ---------------------------------------------------------------- the summary

    def summary(
        self, total: int, kept: OpenJournal | None, limit: int | None, *, broken: bool
    ) -> Iterator[str]:
        """Yield the lines of the summary.

        Args:
            total: The number of refunds.
            kept: The journal, if there is one.
            limit: How many refunds the next run is to take, if not all.
            broken: Whether the journal took no more.
        """
        if limit is not None and not broken and self.open <= limit:
            limit = None  # it would take all
        resume = None if kept is None else kept.resume(limit)
        closed = kept is not None and kept.journal.run_closed
        held = self.outcomes.total() - self.outcomes[None]
        if kept is not None and not broken and self.this_time.total() < held:
            yield f"this time: {_told(self.this_time)}; in all {kept.path} holds:"
        if self.outcomes:
            steps = next_steps(self.outcomes, resume, closed=closed)
            yield from outcome_table(self.outcomes, steps)
            yield from self._sums.tables()
        if self.sent:
            figures = self.sent, self._rate_limited, self.seconds
            yield effort(*figures, uncounted=self._uncounted)
        if kept is not None:
            yield from self._what_is_open(total, kept, limit)

    def _what_is_open(
        self, total: int, kept: OpenJournal, limit: int | None
    ) -> Iterator[str]:
        resume = kept.resume(limit)
        if self._in_doubt:
            yield f"what was in flight is unknown: `{resume}` asks with the same keys"
        elif self.open:
            how = f"`{resume}` continues with them"
            if limit is not None:
                how = f"`{resume}` takes the next {limit:,}, `{kept.resume()}` all"
            if self.open == self.outcomes["failed"]:
                how += f", `{kept.close}` gives up on them"
            yield f"{self.open:,} of {total:,} are open: {how}"


def _read_anew(kept: OpenJournal) -> JournalReader:
    """Read the file of a journal.

    Raises:
        JournalError: It cannot be read, or another file is in its place by now, such as
            an older copy.
    """
    reader = JournalReader(kept.path)
    if not reader.has_commit(kept.journal.last_commit):
        raise JournalError(
            f"the journal {kept.path!r} is not as this run has written it: another "
            "file was put in its place meanwhile"
        )
    return reader


def _told(outcomes: Outcomes) -> str:
    counts = [f"{count:,} {name}" for name, count in outcomes.most_common()]
    return ", ".join(counts) or "no result"
