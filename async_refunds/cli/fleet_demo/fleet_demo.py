"""Cancel refunds of many accounts with several workers, and kill one of them."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import msgspec
import psycopg

from async_refunds.cli.crash_recovery import RequestLog
from async_refunds.cli.progress import shown
from async_refunds.cli.tables import counted
from async_refunds.emulator import Emulator, Limits
from async_refunds.journal.postgres import Database, FleetReader, enqueue, migrate
from async_refunds.results import CancelRequest

from .fleet_run import RUN, FleetRun
from .observer import Observer
from .report import FleetDemoReport
from .workers import WorkerProcesses

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_refunds.cli.output import Output

    from .report import HeldAccount

_ENSURE = "SELECT async_refunds.ensure_run(%s, %s, false)"


class FleetDemo:
    """One run of the demo.

    Args:
        workers: How many processes.
        refunds: How many to cancel.
        accounts: Of how many connected accounts.
        faults: What goes wrong, as `Faults.load` takes it.
        seed: The same seed draws the same refunds and the same faults.

    Raises:
        ValueError: Unknown faults.
    """

    def __init__(
        self, *, workers: int, refunds: int, accounts: int, faults: str, seed: int
    ) -> None:
        self._workers = workers
        self._emulator = Emulator(seed=seed, limits=Limits())
        self._log = self._emulator.requests = RequestLog()
        self._requests = [
            CancelRequest(refund_id, account)
            for account, share in _shares(refunds, accounts)
            for refund_id in self._emulator.seed_refunds(share, account=account)
        ]
        self._emulator.faults.load(faults)

    async def run(self, address: str, output: Output) -> FleetDemoReport:
        """Cancel all refunds with a progress display, and return what happened.

        Args:
            address: Of an empty database.
            output: Its stderr shows the progress.

        Raises:
            WorkerEndedError: A worker ended by itself.
            psycopg.Error: The database failed.
        """
        began = time.perf_counter()
        async with AsyncExitStack() as stack:
            folder = stack.enter_context(TemporaryDirectory(prefix="demo-"))
            base_url = await stack.enter_async_context(self._emulator.serve())
            await self._enqueue(address, base_url)
            connection = await stack.enter_async_context(
                await psycopg.AsyncConnection.connect(address, autocommit=True)
            )
            workers = WorkerProcesses(Path(folder), address, base_url)
            stack.push_async_callback(workers.close)
            for _ in range(self._workers):
                await workers.start()
            run = FleetRun(len(self._requests), address, Observer(connection), workers)
            async with shown(output, run.line):
                await run.work(output)
            await workers.end()
        return self._report(run, address, time.perf_counter() - began)

    def so_far(self) -> str:
        """Say how many are canceled, by the emulator's books."""
        canceled = len(self._emulator.books.cancellations)
        return f"{canceled:,} of {counted(len(self._requests), 'refund')} canceled"

    async def _enqueue(self, address: str, base_url: str) -> None:
        with psycopg.connect(address, autocommit=True) as connection:
            migrate(connection)
        async with await psycopg.AsyncConnection.connect(address) as transaction:
            await transaction.execute(_ENSURE, (RUN, base_url))
            await enqueue(transaction, self._requests, run=RUN)

    def _report(self, run: FleetRun, address: str, seconds: float) -> FleetDemoReport:
        books = self._emulator.books
        times = [books.cancellations[each.refund_id] for each in self._requests]
        outcomes = FleetReader(Database(address)).tally().outcomes
        cancels = books.cancel_requests
        return FleetDemoReport(
            refunds=len(self._requests),
            accounts=len({each.stripe_account for each in self._requests}),
            workers=self._workers,
            canceled=outcomes["canceled"],
            outcomes={name or "not asked": count for name, count in outcomes.items()},
            canceled_exactly_once=times.count(1),
            canceled_twice=sum(each > 1 for each in times),
            never_canceled=times.count(0),
            refunds_with_two_keys=self._log.refunds_with_two_keys,
            requests=len(self._log),
            retries=cancels.total() - len(cancels),
            replays=books.replays,
            retried=run.retried,
            rate_limited=books.rate_limited.total(),
            faults=dict(sorted(books.faults.items())),
            killed=run.killed,
            held=[self._completed(each, run.killed_at) for each in run.held.values()],
            seconds=round(seconds, 2),
        )

    def _completed(self, held: HeldAccount, killed_at: float) -> HeldAccount:
        """Count what was sent for an account while nobody held it."""
        until = inf if held.seconds is None else killed_at + held.seconds
        meanwhile = sum(
            killed_at < request.received_at < until
            and request.stripe_account == held.stripe_account
            for request in self._log
        )
        return msgspec.structs.replace(
            held,
            seconds=None if held.seconds is None else round(held.seconds, 2),
            requests_meanwhile=meanwhile,
        )


def _shares(refunds: int, accounts: int) -> Iterator[tuple[str, int]]:
    """Yield the name of each account, and how many of the refunds are its own."""
    for number in range(min(accounts, refunds)):
        share = refunds // accounts + (number < refunds % accounts)
        yield f"acct_1demo{number + 1:04d}", share
