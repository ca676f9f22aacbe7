"""Watches the workers of the demo at work, and kills one that holds accounts."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import msgspec
import psycopg

from async_refunds.cli.progress import Speed, bar, fitted, time_left
from async_refunds.cli.tables import counted
from async_refunds.journal.postgres import administration

from .observer import FleetView, busiest
from .report import HeldAccount

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_refunds.cli.output import Output

    from .observer import Observer
    from .workers import WorkerProcesses

RUN = "demo"
"""The name of the run."""
KILL_AT = 1 / 3
"""The share of the refunds that is settled when a worker is killed."""
PATIENCE = 20.0
"""Seconds without a settled refund after which the rest is given up."""

_INTERVAL = 0.1  # seconds between two looks at the database
_DRAIN = 0.1
"""Seconds in which the emulator reads what the frozen worker had sent before."""


class FleetRun:
    """The work on the demo's refunds.

    Args:
        total: How many there are.
        address: Of the database.
        observer: Of the database.
        workers: They are started already.
    """

    def __init__(
        self, total: int, address: str, observer: Observer, workers: WorkerProcesses
    ) -> None:
        self._total = total
        self._address = address
        self._observer = observer
        self._workers = workers
        self._view = FleetView([])
        self._speed = Speed(time.perf_counter)
        self._settled, self._since = 0, time.perf_counter()
        self._killed_at = 0.0  # by the database's clock
        self.killed: str | None = None
        """The worker that was killed."""
        self.killed_at = 0.0
        """When, in Unix seconds."""
        self.held: dict[str, HeldAccount] = {}
        """What it held then, by the account."""
        self.retried = 0
        """Refunds that were opened again, rather than waited for."""

    async def work(self, output: Output) -> None:
        """Wait until all is settled or given up, and kill a worker on the way.

        Args:
            output: Its stderr tells of the kill.

        Raises:
            WorkerEndedError: A worker ended by itself.
            psycopg.Error: The database failed.
        """
        first = self._total * KILL_AT
        await self._until(lambda view: view.settled >= first)
        await self._kill_one()
        if self.killed is not None:
            output.say(
                f"{self.killed} killed; it held {counted(len(self.held), 'account')}"
            )
            if not self._workers.alive:  # as a service manager does
                await self._workers.start()
        await self._until(lambda view: not view.open)

    def line(self, columns: int) -> str:
        """Return the progress as a line, with the parts that fit."""
        view = self._view
        held = [f"{name} {len(each)}" for name, each in view.held().items()]
        speed = self._speed.per_second(view.settled)
        parts = [
            (3, bar(view.settled, self._total)),
            (0, f"{view.settled:,}/{self._total:,}"),
            (4, f"{speed:.1f}/s"),
            (2, time_left(self._total - view.settled, speed)),
            (1, f"accounts: {', '.join(held)}" if held else ""),
            (5, f"{self.killed} killed" if self.killed is not None else ""),
        ]
        return fitted(parts, columns)

    async def _until(self, reached: Callable[[FleetView], object]) -> bool:
        """Look at the fleet until it has come so far.

        Returns:
            Whether it has; otherwise nothing has been settled for too long.
        """
        while True:
            view = await self._look()
            self._workers.check()
            if reached(view):
                return True
            if view.stands_still:
                self._retry()
            now = time.perf_counter()
            if view.settled > self._settled:
                self._settled, self._since = view.settled, now
            elif now - self._since > PATIENCE:
                return False
            await asyncio.sleep(_INTERVAL)

    def _retry(self) -> None:
        """Open what was left with a result, as an operator does by ``fleet retry``.

        Workers would ask for it again by themselves, after a minute.
        """
        with psycopg.connect(self._address, autocommit=True) as connection:
            found = administration.retry(connection, RUN, {"failed", "unknown"})
            self.retried += found.opened + found.open_already

    async def _look(self) -> FleetView:
        view = self._view = await self._observer.look()
        for each in view.accounts:
            before = self.held.get(each.stripe_account)
            if (
                before is not None
                and before.seconds is None
                and each.acquired_at > self._killed_at
            ):
                self.held[each.stripe_account] = msgspec.structs.replace(
                    before,
                    taken_over_by=each.owner,
                    seconds=each.acquired_at - self._killed_at,
                )
        return view

    async def _kill_one(self) -> None:
        """Kill the worker that holds most accounts, while it holds them."""
        while await self._until(lambda view: view.held() or not view.open):
            held = self._view.held()
            if not held:
                return  # all is done, and given back
            name = busiest(held)
            worker = self._workers[name]
            # From now on it gives nothing back, and sends nothing.
            worker.freeze()
            await asyncio.sleep(_DRAIN)
            self.killed_at = time.time()
            view = await self._look()
            if view.held().get(name):
                self._killed_at = view.now
                await worker.kill()
                self.killed = name
                self.held = await self._held_by(name)
                return
            worker.thaw()

    async def _held_by(self, name: str) -> dict[str, HeldAccount]:
        """Return what the database says that a worker held, now that it is gone."""
        view = await self._look()
        return {
            each.stripe_account: HeldAccount(
                stripe_account=each.stripe_account, open=each.open
            )
            for each in view.held().get(name, [])
        }
