"""The main job, on the emulator: cancel everything in a storm, then check the books."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import deque
from contextlib import aclosing
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import msgspec

from async_refunds.batch import Batch
from async_refunds.client import RefundsClient
from async_refunds.emulator import Emulator, ReceivedRequest
from async_refunds.journal import JournalReader, Run, SqliteJournal
from async_refunds.results import CANCELED, CancelRequest
from async_refunds.retry import RetryPolicy

from .watch import Watch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_refunds.models import Attempt

    from .output import Output

# Many at once, each with short waits: a demonstration of what goes wrong in a week
# should not last one. The stalls last as long as an attempt may.
CONCURRENCY = 25
RATE = 2000.0
POLICY = RetryPolicy(deadline=10.0, initial_delay=0.05, max_delay=0.4)
ATTEMPT_TIMEOUT = 1.0
# Seconds. What is open then is asked for by the next round, with the same key.
PATIENCE = 0.5
# How often to go on with the run before giving up on what is open. At the default storm
# one call in a few hundred stays open, so this many never do.
ROUNDS = 20
# How often the batch is killed, and the time of each of its calls: the command line has
# an attempt last as long as its call.
KILLS = 5
CALL_SECONDS = "2"

KEY = "sk_test_demo"


class DemoReport(msgspec.Struct, frozen=True, kw_only=True):
    """What happened, from the client's side and from the emulator's."""

    refunds: int
    canceled: int
    """As the client reports."""
    canceled_exactly_once: int
    """As the emulator's books have it."""
    requests: int
    retries: int
    settled_by_a_read: int
    asked_again: int
    """Calls for a refund that was asked before, and left open or cut off."""
    replays: int
    """Answers that the emulator had saved under a key."""
    faults: dict[str, int]
    killed: int = 0
    """How often the process of the batch was."""
    seconds: float

    @property
    def good(self) -> bool:
        """Whether both sides agree that each refund was canceled exactly once."""
        return self.refunds == self.canceled == self.canceled_exactly_once


class Log(deque[ReceivedRequest]):
    """Everything that arrived, by the process that sent it."""

    def __init__(self) -> None:
        super().__init__()
        self._senders: dict[str, set[int]] = {}
        self._sender = 0
        self._left = 0
        self._reached = asyncio.Event()

    def next_sender(self, requests: int) -> asyncio.Event:
        """Begin with another process; its event: so many requests came (0: never)."""
        self._sender += 1
        self._left = requests
        self._reached = asyncio.Event()
        return self._reached

    def append(self, request: ReceivedRequest) -> None:
        """Take one in."""
        super().append(request)
        if request.idempotency_key is not None:
            senders = self._senders.setdefault(request.idempotency_key, set())
            senders.add(self._sender)
        self._left -= 1
        if not self._left:
            self._reached.set()

    @property
    def shared_keys(self) -> int:
        """How many keys more than one process has sent."""
        return sum(len(senders) > 1 for senders in self._senders.values())


class Demo:
    """One run of the demonstration.

    Args:
        refunds: How many to cancel.
        faults: The weather, as `Faults.load` takes it.
        seed: The same seed draws the same refunds and the same weather.

    Raises:
        ValueError: Weather that there is not.
    """

    def __init__(self, *, refunds: int, faults: str, seed: int) -> None:
        self._emulator = Emulator(seed=seed)
        self._ids = self._emulator.seed_refunds(refunds)
        self._emulator.faults.load(faults)
        self._attempts: list[Attempt] = []
        self._canceled: set[str] = set()
        self._settled_by_a_read = 0
        self._random = Random(seed)  # noqa: S311 - the moment of a kill is no secret

    async def run(self, output: Output) -> DemoReport:
        """Cancel them all, with a progress bar for people, and return what happened."""
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
                    journal.load(map(CancelRequest, self._ids))
                for _ in range(ROUNDS):
                    if not await self._round(refunds, path, output):
                        break
        calls = sum(attempt.number == 1 for attempt in self._attempts)
        return self._report(
            time.perf_counter() - began,
            canceled=len(self._canceled),
            requests=len(self._attempts),
            retries=sum(attempt.slept > 0 for attempt in self._attempts),
            settled_by_a_read=self._settled_by_a_read,
            asked_again=calls - len(self._ids),
        )

    async def _round(self, refunds: RefundsClient, path: Path, output: Output) -> int:
        """Go on with the run, and return how many refunds are open then."""
        async with SqliteJournal.open(path) as journal:
            batch = Batch(
                refunds,
                (),
                concurrency=CONCURRENCY,
                rate=RATE,
                journal=journal,
                patience=PATIENCE,
            )
            watch = Watch(
                output,
                batch.progress,
                total=len(self._ids),
                done=len(self._canceled),
                clock=time.perf_counter,
            )
            async with watch.shown(), aclosing(batch.results()) as results:
                async for result in results:
                    if result.outcome in CANCELED:
                        self._canceled.add(result.refund_id)
                        self._settled_by_a_read += result.attempts[-1].method == "GET"
            return journal.tally().open

    def killed(self) -> DemoReport:
        """Cancel them all in a process that is killed, and return what happened."""
        began = time.perf_counter()
        log = self._emulator.requests = Log()
        with TemporaryDirectory() as folder:
            ids, journal = Path(folder, "ids.txt"), Path(folder, "run.sqlite3")
            ids.write_text("\n".join(self._ids))
            killed = asyncio.run(self._killing(ids, journal, log))
            records = list(JournalReader(journal).records())
        asked = {request.request_id: request.endpoint for request in log}
        cancels = self._emulator.books.cancel_requests
        return self._report(
            time.perf_counter() - began,
            canceled=sum(record.outcome in CANCELED for record in records),
            requests=len(log),
            retries=cancels.total() - len(cancels),
            settled_by_a_read=sum(
                asked.get(record.request_id or "") == "retrieve" for record in records
            ),
            asked_again=log.shared_keys,
            killed=killed,
        )

    async def _killing(self, ids: Path, journal: Path, log: Log) -> int:
        """Begin, kill and resume until all is done; return how often it was killed."""
        killed = 0
        most = max(1, len(self._ids) // KILLS)
        async with self._emulator.serve() as base_url:
            command = ["cancel", "--from", str(ids), "--journal", str(journal)]
            command += ["--base-url", base_url, "--rate", str(RATE)]
            command += ["--timeout", CALL_SECONDS, "--patience", CALL_SECONDS]
            for turn in range(KILLS + ROUNDS):
                requests = self._random.randint(1, most) if turn < KILLS else 0
                code = await _process(command, log.next_sender(requests))
                if code == 0:
                    break
                killed += code < 0
                command = ["resume", str(journal)]
        return killed

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
            refunds=len(self._ids),
            canceled=canceled,
            canceled_exactly_once=sum(
                books.cancellations[refund_id] == 1 for refund_id in self._ids
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


async def _process(command: list[str], enough: asyncio.Event) -> int:
    """Run a command until its end or, at the event, kill it; return how it ended."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "async_refunds", *command),
        env={**os.environ, "STRIPE_API_KEY": KEY},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    ending = asyncio.create_task(process.wait())
    killing = asyncio.create_task(enough.wait())
    try:
        await asyncio.wait([ending, killing], return_when=asyncio.FIRST_COMPLETED)
    finally:
        killing.cancel()
        if process.returncode is None:
            process.kill()
        await ending
    return ending.result()


def story(report: DemoReport) -> Iterator[str]:
    """Tell the report to people, a line at a time."""
    faults = ", ".join(f"{name} {count}" for name, count in report.faults.items())
    yield f"{report.canceled} of {report.refunds} refunds canceled"
    if report.killed:
        yield f"  killed           {report.killed} times in the midst, and resumed"
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
