"""Run a batch in front of a person, and account for every refund of it."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, aclosing, contextmanager
from itertools import chain
from typing import TYPE_CHECKING

from async_refunds.batch import Batch
from async_refunds.errors import (
    APIConnectionError,
    AuthenticationError,
    JournalError,
)
from async_refunds.results import CancelRequest, CancelResult

from .batch_figures import BatchFigures
from .exit_codes import DONE, INTERRUPTED, NOT_ALL, UNKNOWN
from .options import CONCURRENCY, PATIENCE
from .progress import BatchProgress, shown
from .result_writer import ResultWriter, result_record
from .stop_signals import on_stop
from .summary import NOT_BEGUN, exit_code
from .tables import counted

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence

    from .config import Connection
    from .journals import OpenJournal
    from .options import BatchOptions
    from .output import Output

STOPPING = (
    "interrupted: no new refund is started, those in flight are waited for "
    "(interrupt again to report them as unknown)"
)
NOT_SENT = "interrupted, nothing was sent"


def why_unreached(error: APIConnectionError, refund_id: str, service: str) -> str:
    """Return one line about all refunds, from the error of one."""
    cause = str(error).removeprefix(f"{refund_id} was not canceled: ")
    if cause.startswith(service):  # of a refund that was given up without a request
        return cause
    return f"{service} could not be reached: {cause}"


class BatchRun:
    """One batch: results to stdout, progress and summary to stderr.

    After the first SIGINT or SIGTERM no new refund is started, and those in flight are
    waited for. After the second one they are reported as unknown.

    Args:
        output: Where everything is written.
        options: How fast and how long the batch works.
        requests: What to cancel; empty if the journal has it.
        total: The number of refunds.
        done: The number of them that were settled before.
        left_out: The number of them that --max leaves out.
        kept: The journal, if there is one.
        brief: Show no summary if all are canceled.
        notes: Lines for the end of the summary.
    """

    def __init__(
        self,
        output: Output,
        options: BatchOptions,
        requests: Iterable[CancelRequest] = (),
        *,
        total: int,
        done: int = 0,
        left_out: int = 0,
        kept: OpenJournal | None = None,
        brief: bool = False,
        notes: Sequence[str] = (),
    ) -> None:
        self._output = output
        self._options = options
        self._total = total
        self._done = done
        self._left_out = left_out
        # What --max left out is not to be canceled by a command that is only repeated.
        self._limit = total - done - left_out if left_out else None
        self._kept = kept
        output.kept_by = None if kept is None else kept.report
        self._writer = ResultWriter(output, total=total, report=output.kept_by)
        self._brief = brief
        self._notes = notes
        # Those that the batch took and has not reported.
        self._pending: dict[tuple[str | None, str], None] = {}
        self._requests = self._noting(requests)
        self._figures = BatchFigures()
        self._left = False
        self._service = ""
        self._answered = False
        self._unreached = self._refused = ""
        self._interrupted = False
        self._begun = self._ended = False

    @property
    def incomplete(self) -> str:
        """What a run has to say that Ctrl-C ended before or after its batch."""
        if self._ended:
            return "every result is written"
        return "nothing was sent"

    @property
    def interrupted_code(self) -> int:
        """The exit code then: an unknown outcome comes before the interrupt."""
        return UNKNOWN if self._figures.outcomes["unknown"] else INTERRUPTED

    async def run(self, connection: Connection) -> int:
        """Cancel the refunds, write each result, and return the exit code."""
        broken: JournalError | None = None
        with ExitStack() as signals:
            try:
                await self._cancel(connection, signals)
                self._account_for_rest()
            except JournalError as error:
                broken = error
            finally:
                self._writer.end()
                self._ended = self._begun
        code = self._exit_code()
        if broken is not None:
            self._output.error(str(broken))
            assert self._kept is not None  # noqa: S101 - only a journal breaks
            code = max(self._figures.read_broken(self._kept), NOT_ALL)
        self._summarize(broken=broken is not None)
        return max(code, int(self._output.lost or bool(self._figures.lost)))

    async def _cancel(self, connection: Connection, signals: ExitStack) -> None:
        """Cancel the refunds and write each result.

        At its end all connections are closed: where a process may have few files open,
        one of theirs is needed to read the journal.
        """
        options, kept = self._options, self._kept
        self._service = connection.base_url
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with connection.client(self._output) as refunds:
            batch = Batch(
                refunds,
                self._requests if kept is None else (),
                concurrency=options.concurrency or CONCURRENCY,
                rate=options.rate,
                journal=None if kept is None else kept.journal,
                patience=options.patience or PATIENCE,
                timeout=options.timeout,
            )
            signals.enter_context(self._interruptible(batch))
            self._begun = True
            try:
                await self._write_results(batch)
            finally:
                self._figures.sent = batch.progress().requests
                self._figures.seconds = loop.time() - began

    def _exit_code(self) -> int:
        """Return what the outcomes are as an exit code.

        What --max left out was not asked for. Of the refunds of a journal that were,
        each must have a result; and an unknown outcome of whichever comes first.
        """
        code = exit_code(self._figures.outcomes)
        if self._left_out and code != UNKNOWN:
            this_time = self._figures.this_time
            code = exit_code(this_time)
            asked = self._total - self._done - self._left_out
            if this_time.total() < asked:
                code = NOT_ALL
        if code == NOT_ALL and self._interrupted and self._left:
            return INTERRUPTED
        return code

    def _noting(self, requests: Iterable[CancelRequest]) -> Iterator[CancelRequest]:
        for request in requests:
            self._pending[request.stripe_account, request.refund_id] = None
            yield request

    async def _write_results(self, batch: Batch) -> None:
        progress = BatchProgress(
            batch.progress,
            total=self._total - self._left_out,
            done=self._done,
            clock=asyncio.get_running_loop().time,
        )
        async with (
            shown(self._output, progress.line),
            aclosing(batch.results()) as results,
        ):
            async for result in results:
                self._pending.pop((result.stripe_account, result.refund_id), None)
                self._note_cause(result)
                self._figures.add(result)
                self._write(result.outcome, result_record(result), sent=True)

    def _note_cause(self, result: CancelResult) -> None:
        """Note what keeps all refunds from being canceled: to say it once."""
        error, attempts = result.error, result.attempts
        self._answered |= any(attempt.status is not None for attempt in attempts)
        if not self._unreached and isinstance(error, APIConnectionError):
            self._unreached = why_unreached(error, result.refund_id, self._service)
        if isinstance(error, AuthenticationError):
            why = str(error).removeprefix(f"{result.refund_id} was not canceled: ")
            self._refused = f"the API key was refused: {why}"

    def _write(self, outcome: str, record: dict[str, object], *, sent: bool) -> None:
        self._figures.outcomes[outcome] += 1
        self._writer.write(outcome, record, sent=sent)

    def _account_for_rest(self) -> None:
        """Count what the journal holds, or report what was never started."""
        if self._kept is not None:
            self._figures.read_journal(self._kept)
            self._left = self._figures.open > 0
            if self._figures.lost:
                self._output.error(self._figures.lost)
            return
        pending = [CancelRequest(each, account) for account, each in self._pending]
        for request in chain(pending, self._requests):
            result = CancelResult(
                refund_id=request.refund_id,
                stripe_account=request.stripe_account,
                outcome="failed",
            )
            self._left = True
            shown = {**result_record(result), "error": NOT_SENT}
            if self._output.as_table:
                shown["outcome"] = NOT_BEGUN  # a program reads one of `CancelOutcome`
            self._write(NOT_BEGUN, shown, sent=False)

    def _summarize(self, *, broken: bool) -> None:
        say = self._output.say
        if not (self._brief and exit_code(self._figures.outcomes) == DONE):
            if self._unreached and not self._answered:
                say(self._unreached)
            if self._refused:
                say(self._refused)
            for line in self._figures.summary(
                self._total, self._kept, self._limit, broken=broken
            ):
                say(line)
            if listed := self._writer.what_is_listed():
                say(listed)
        if self._left_out:
            say(f"--max left out {counted(self._left_out, 'refund')}")
        for note in self._notes:
            say(note)

    @contextmanager
    def _interruptible(self, batch: Batch) -> Generator[None]:
        """Handle the signals until every known result is written."""

        def interrupt() -> None:
            if self._interrupted:
                batch.interrupt()
                return
            self._interrupted = True
            batch.stop()
            self._output.say(STOPPING)

        with on_stop(interrupt, hangup=True):
            yield
