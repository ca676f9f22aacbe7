"""Carry a batch through before a person's eyes, and account for every refund of it."""

from __future__ import annotations

import asyncio
import logging
import shlex
import signal
from collections import Counter
from contextlib import aclosing, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

import msgspec

from async_refunds.batch import Batch
from async_refunds.errors import JournalError
from async_refunds.results import CANCELED

from .ending import DONE, NOT_ALL, UNKNOWN, exit_code, resume_command, table
from .watch import Watch

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from async_refunds.client import RefundsClient
    from async_refunds.journal import SqliteJournal
    from async_refunds.results import CancelOutcome, CancelRequest, CancelResult

    from .ending import Outcomes
    from .options import Options
    from .output import Output

STOPPING = (
    "interrupted: nothing more is begun, what is under way comes to its end "
    "(interrupt again to report it as unknown)"
)
UNSENT = "interrupted, nothing was sent"

RESULT_COLUMNS = ("refund_id", "outcome", "idempotency_key", "error")

# As `cancel_many` has them.
_CONCURRENCY = 50
_PATIENCE = 120.0

FEW = 300
"""Rows that a terminal is given in a table; of more, only those that want attention."""


class Kept(msgspec.Struct, frozen=True):
    """The journal of a run."""

    journal: SqliteJournal
    path: str
    """As it was typed."""

    @property
    def resume(self) -> str:
        """What to type to go on."""
        return resume_command(self.path, self.journal.run)


class Job:
    """One batch: its results to stdout, how far it is and how it ended to stderr.

    The first SIGINT or SIGTERM lets what is under way come to its end and starts
    nothing more; the second one stops waiting, and reports as unknown what was sent.

    Args:
        output: Where everything goes.
        options: How to go about it.
        ids: What to cancel; nothing if the journal has it.
        total: How many refunds there are.
        done: How many of them were settled before.
        kept: The journal, if there is one.
        brief: Say nothing at the end if all are canceled.
    """

    def __init__(
        self,
        output: Output,
        options: Options,
        ids: Iterable[CancelRequest] = (),
        *,
        total: int,
        done: int = 0,
        kept: Kept | None = None,
        brief: bool = False,
    ) -> None:
        self._output = output
        self._options = options
        self._total = total
        self._done = done
        self._kept = kept
        self._brief = brief
        # Those that the batch has taken and not told of, and then those it has not.
        self._taken: dict[tuple[str | None, str], None] = {}
        self._ids = self._taking(ids)
        self._outcomes: Outcomes = Counter()
        self._open = 0
        self._listed = self._unlisted = 0
        self._interrupted = False

    async def run(self, refunds: RefundsClient) -> int:
        """Cancel them all, or report what kept one from it; return the exit code."""
        options, kept = self._options, self._kept
        async with refunds:
            batch = Batch(
                refunds,
                self._ids if kept is None else (),
                concurrency=options.concurrency or _CONCURRENCY,
                rate=options.rate,
                journal=None if kept is None else kept.journal,
                patience=options.patience or _PATIENCE,
                timeout=options.timeout,
            )
            broke: JournalError | None = None
            with self._interruptible(batch), _log_below_errors():
                try:
                    await self._tell_all(batch)
                    self._account_for_rest()
                except JournalError as error:
                    broke = error
                finally:
                    self._output.table(RESULT_COLUMNS)
        code = exit_code(self._outcomes)
        if broke is not None:
            self._output.say(f"async-refunds: {broke}")
            # With a request sent, some refund's outcome may be in no journal.
            sent = batch.progress().requests > 0
            code = UNKNOWN if sent else max(code, NOT_ALL)
        self._conclude(broke=broke is not None)
        return max(code, int(self._output.lost))

    def _taking(self, ids: Iterable[CancelRequest]) -> Iterator[CancelRequest]:
        for request in ids:
            self._taken[request.stripe_account, request.refund_id] = None
            yield request

    async def _tell_all(self, batch: Batch) -> None:
        clock = asyncio.get_running_loop().time
        watch = Watch(
            self._output,
            batch.progress,
            total=self._total,
            done=self._done,
            clock=clock,
        )
        async with watch.shown(), aclosing(batch.results()) as results:
            async for result in results:
                self._taken.pop((result.stripe_account, result.refund_id), None)
                self._tell(result.outcome, record(result), watch)

    def _tell(
        self,
        outcome: CancelOutcome,
        told: dict[str, object],
        watch: Watch | None = None,
    ) -> None:
        self._outcomes[outcome] += 1
        if not self._output.as_table or self._total <= FEW:
            self._output.keep(told)
        elif outcome not in CANCELED:
            self._listed += 1
            # What was sent is in the journal; without one, it may not go unsaid.
            if self._listed <= FEW or (self._kept is None and watch is not None):
                with nullcontext() if watch is None else watch.aside():
                    self._output.row(told, RESULT_COLUMNS)
            else:
                self._unlisted += 1

    def _account_for_rest(self) -> None:
        """Count what is in the journal, or tell of those that were never begun."""
        if self._kept is not None:
            tally = self._kept.journal.tally()
            self._outcomes = tally.outcomes
            self._open = tally.open
            return
        left = list(self._taken)
        for account, refund_id in left:
            self._tell("failed", unsent(refund_id, account))
        for request in self._ids:
            told = unsent(request.refund_id, request.stripe_account)
            self._tell("failed", told)

    def _conclude(self, *, broke: bool) -> None:
        kept, say = self._kept, self._output.say
        if self._brief and exit_code(self._outcomes) == DONE:
            return
        resume = None if kept is None else kept.resume
        if self._outcomes:
            for line in table(self._outcomes, resume):
                say(line)
        if broke:
            say(f"what was under way is unknown: `{resume}` asks with the same keys")
        elif self._open:
            say(f"{self._open:,} of {self._total:,} are open: `{resume}` asks for them")
        if self._output.as_table and self._total > FEW:
            where = "--output or --journal keeps them all"
            if kept is not None:
                report = shlex.join(["async-refunds", "report", kept.path])
                where = f"`{report}` has all"
            more = f", all but {self._unlisted:,} of them" if self._unlisted else ""
            say(f"listed are only refunds that want attention{more}; {where}")

    @contextmanager
    def _interruptible(self, batch: Batch) -> Generator[None]:
        """Take the signals, until all that is known has been told."""

        def interrupt() -> None:
            if self._interrupted:
                batch.interrupt()
                return
            self._interrupted = True
            batch.stop()
            self._output.say(STOPPING)

        loop = asyncio.get_running_loop()
        signals = [signal.SIGINT, signal.SIGTERM]
        # A terminal that is closed; under nohup it is ignored, and stays so.
        hangup = getattr(signal, "SIGHUP", None)  # Windows has none
        if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
            signals.append(hangup)
        for number in signals:
            with suppress(NotImplementedError):  # Windows has none
                loop.add_signal_handler(number, interrupt)
        try:
            yield
        finally:
            for number in signals:
                with suppress(NotImplementedError):
                    loop.remove_signal_handler(number)


@contextmanager
def _log_below_errors() -> Generator[None]:
    """Keep errors out of the log: what the batch logs as one it raises too."""
    logger = logging.getLogger("async_refunds")

    def below(logged: logging.LogRecord) -> bool:
        return logged.levelno < logging.ERROR

    logger.addFilter(below)
    try:
        yield
    finally:
        logger.removeFilter(below)


def record(result: CancelResult) -> dict[str, object]:
    """Return what is told of a result, as JSON has it."""
    return {
        "refund_id": result.refund_id,
        "stripe_account": result.stripe_account,
        "outcome": result.outcome,
        "status": None if result.refund is None else result.refund.status,
        "idempotency_key": result.idempotency_key,
        "attempts": len(result.attempts),
        "request_id": result.request_id,
        "error": None if result.error is None else str(result.error),
    }


def unsent(refund_id: str, account: str | None) -> dict[str, object]:
    """Return what is told of a refund that was never begun."""
    return {
        "refund_id": refund_id,
        "stripe_account": account,
        "outcome": "failed",
        "status": None,
        "idempotency_key": None,
        "attempts": 0,
        "request_id": None,
        "error": UNSENT,
    }
