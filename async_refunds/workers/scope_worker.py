"""One batch on the accounts of one scope: wins their leases, and gives them back.

A scope is what one API key works on: a tenant, a server and a mode.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
import psycopg

from async_refunds import telemetry
from async_refunds.batch.execution import Execution
from async_refunds.client import deadline_of, digest_of
from async_refunds.errors import JournalError
from async_refunds.journal.postgres.connection import describe
from async_refunds.journal.postgres.journal import PostgresJournal
from async_refunds.journal.postgres.leases import Leases
from async_refunds.protocol.error_mapping import describe_failure
from async_refunds.protocol.requests import Response

from . import notices
from .fair_share import FairShare, Presence
from .held_accounts import HeldAccounts
from .kept_rates import KeptRates
from .metrics import Counts, WorkerMetrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_refunds.client import RefundsClient
    from async_refunds.journal.postgres.connection import Database
    from async_refunds.protocol.classification import Classification
    from async_refunds.results import CancelResult

_INTERVAL = 0.7
"""Seconds between two looks for work, and within which a free account is found."""
_OFTEN = 0.2
"""The same while the leases of a worker that was killed may end any moment."""
_GAP = 0.05
"""Seconds between two looks at least, however often others say that there is work."""
_REFUSED, _MOST_REFUSED = 60.0, 900.0
"""Seconds for which an account waits whose key is refused, doubled each time."""
_OUTAGE = 15.0
"""The same while Stripe cannot be reached, or only fails."""
_END_OF_CALLS, _END_OF_JOURNAL, _CLOSES_WITHIN = 3.0, 4.5, 1.0
"""Seconds from the request to stop until the calls under way are broken off, and until
the journal is not waited for any longer; then those until it and the leases are closed.
In all less than the ten after which containers are killed."""


class WorkerOptions(msgspec.Struct, frozen=True):
    """How a worker works, whatever the scope."""

    name: str
    """How its leases are shown."""
    identity: str
    """Another one for each process."""
    concurrency: int
    rate: float | None
    patience: float
    timeout: float | None
    """Of each call, in place of what the client's policy has."""
    ttl: float
    """Seconds after which the accounts of a worker that was killed are free."""
    on_result: Callable[[CancelResult], object] | None


class ScopeWorker:
    """Works on the accounts of a scope until it is stopped.

    Args:
        database: Where the journal is.
        scope: ``tenant base_url mode``.
        refunds: The client, with the key of the tenant.
        options: Of the worker.
        tell: Called when there is something new in `presence`.
    """

    def __init__(
        self,
        database: Database,
        scope: str,
        refunds: RefundsClient,
        options: WorkerOptions,
        tell: Callable[[], object],
    ) -> None:
        self.scope = scope
        self._tell = tell
        self._options = options
        self._clock = asyncio.get_running_loop().time
        self._credentials = digest_of(refunds)
        self._leases = Leases(
            database,
            scope,
            options.name,
            ttl=options.ttl,
            deadline=options.timeout or deadline_of(refunds),
            credentials=self._credentials,
        )
        self._journal = PostgresJournal(database, self._leases)
        self._execution = Execution(
            refunds,
            (),
            self._journal,
            concurrency=options.concurrency,
            rate=options.rate,
            patience=options.patience,
            timeout=options.timeout,
            log_untaken=False,
            on_idle=self._on_idle,
        )
        self._held = HeldAccounts(self._leases, self._execution, self._clock)
        self._rates = KeptRates(
            self._leases, self._execution, options.rate, self._clock
        )
        self._share = FairShare(
            2 * options.concurrency, ttl=options.ttl, worker=options.identity
        )
        self._refusals: dict[str | None, int] = {}  # of the key, in turn
        self._counts = Counts()
        self._may_take_more = False  # when others tell what they have
        self._hungry = False
        self._freed = False  # accounts, since the others were told
        self._timers: list[asyncio.TimerHandle] = []
        self._news = asyncio.Event()
        self._stopping = self._ending = False

    # ---------------------------------------------------------------- the others

    def presence(self) -> Presence:
        """Return what the other workers are told, for the first time or again."""
        freed, self._freed = self._freed, False
        return Presence(
            self.scope,
            self._options.identity,
            len(self._held.at_work()),
            self._hungry,
            leaving=self._stopping,
            freed=freed,
            name=self._options.name,
        )

    def metrics(self) -> WorkerMetrics:
        """Return what it holds, and what it has done so far."""
        return WorkerMetrics(
            scope=self.scope,
            worker=self._options.name,
            accounts=len(self._leases.accounts),
            takeovers=self._leases.takeovers,
            fenced=self._journal.fenced,
            transactions=self._journal.transactions,
            results=self._counts.results,
            requests=self._counts.requests,
            rate_limited=self._counts.rate_limited,
        )

    def hear(self, presence: Presence) -> None:
        """Note what another worker tells."""
        if presence.worker == self._options.identity:
            return
        has_enough = self._share.is_hungry(presence.worker) and not presence.hungry
        self._share.hear(presence, self._clock())
        more = has_enough or self._may_take_more
        if presence.hungry or presence.leaving or presence.freed or more:
            self._news.set()

    def wake(self) -> None:
        """Look for work now."""
        self._held.note_more()
        self._news.set()

    # ------------------------------------------------------------------ the life

    async def run(self) -> None:
        """Work until `stop` is called.

        Raises:
            JournalError: The tables are of another release, or cannot be written.
            RuntimeError: The client is closed.
        """
        self._journal.begin(self._credentials)
        await self._leases.start()
        sweeping = asyncio.create_task(self._sweep_on())
        try:
            async for result in self._execution.results():
                self._counts.add(result)
                if self._options.on_result is not None:
                    telemetry.call_hook("on_result", self._options.on_result, result)
        except JournalError:
            if not self._stopping:
                raise
        finally:
            self.stop()
            self._ending = True
            self._news.set()
            await self._end(sweeping)

    async def _end(self, sweeping: asyncio.Task[None]) -> None:
        """Give the accounts back, and close."""
        for timer in self._timers:
            timer.cancel()
        self._rates.note_all()
        await self._journal.close(within=_CLOSES_WITHIN)
        await self._leases.close(within=_CLOSES_WITHIN)
        # Its wait for the database has ended with the leases.
        await asyncio.wait([sweeping])
        self._journal.end()
        if (error := sweeping.exception()) is not None:
            raise error

    def stop(self) -> None:
        """Begin nothing more; what is under way has some seconds to end.

        Each account is given back as soon as its own calls have ended: one that waits
        for Stripe holds up no other.
        """
        if self._stopping:
            return
        self._stopping = True
        for account in self._leases.accounts:
            self._held.drain(account)
        self._news.set()
        loop = asyncio.get_running_loop()
        self._timers = [
            loop.call_later(_END_OF_CALLS, self._execution.interrupt),
            loop.call_later(_END_OF_JOURNAL, self._execution.abandon),
        ]

    # ---------------------------------------------------------------- the sweeps

    async def _sweep_on(self) -> None:
        try:
            while not self._stopping:
                self._news.clear()
                if await self._sweep():
                    continue
                await asyncio.sleep(_GAP)
                often = self._share.leases_may_end(self._clock())
                with suppress(TimeoutError):
                    async with asyncio.timeout((_OFTEN if often else _INTERVAL) - _GAP):
                        await self._news.wait()
            await self._release_drained()
        except (psycopg.Error, JournalError) as error:
            if not self._stopping:
                raise JournalError(
                    f"the leases could not be taken: {describe(error)}"
                ) from None
        finally:
            self._execution.stop()

    async def _sweep(self) -> bool:
        """Give back and take accounts; return whether there may be more to take."""
        await self._rates.keep()
        await self._release()
        self._held.open_again()
        now, held = self._clock(), len(self._held.at_work())
        # Some may be for workers that have less than their share.
        self._held.drain_some(self._share.hand_over(held, self._held.draining, now))
        room = 0 if self._stopping else self._share.room(held, now)
        taken = await self._leases.acquire(room) if room else []
        for line in notices.takeovers(taken):
            telemetry.log(logging.WARNING, "%s", line)
        for lease in taken:
            if self._stopping:  # since then
                self._held.decline(lease.account)
            else:
                self._held.open(lease.account)
        self._may_take_more = len(taken) == room
        hungry = self._share.is_short(held + len(taken), len(taken), now)
        if taken or hungry != self._hungry:
            self._hungry = hungry
            self._tell()
        return bool(taken) and self._may_take_more

    def _on_idle(self, account: str | None) -> None:
        closing = self._execution.closing_of(account)
        self._rates.note(account)
        if closing is not None:
            wait = self._wait_after(account, closing)
            refused = isinstance(closing.reply, Response)
            self._held.leave(account, wait, refused=refused)
            self._news.set()
            return
        self._refusals.pop(account, None)
        if self._stopping:
            self._held.leave(account)
            self._news.set()
        elif not self._held.keep_idle(account):
            self._news.set()

    def _wait_after(
        self, account: str | None, closing: Classification[object]
    ) -> float:
        """Return how long nobody is to take an account, and say why."""
        with_what = ""
        if not isinstance(closing.reply, Response):
            seconds, what = _OUTAGE, closing.reply.detail
        else:
            before = self._refusals.get(account, 0)
            self._refusals[account] = before + 1
            seconds = min(_REFUSED * 2**before, _MOST_REFUSED)
            what = f"its key was refused ({describe_failure(closing)})"
            if self._credentials:
                with_what = " with that key"
        telemetry.log(
            logging.WARNING,
            "%s: %s; nothing is sent for it%s for %.0f s, or until "
            "`async-refunds fleet retry`",
            account or "the key's own account",
            what,
            with_what,
            seconds,
        )
        return seconds

    async def _release(self) -> None:
        if await self._held.release():
            self._freed = True
            self._tell()

    async def _release_drained(self) -> None:
        """Give each account back as its last call ends."""
        while self._leases.accounts and not self._ending:
            self._news.clear()
            await self._release()
            if self._leases.accounts and not self._ending:
                await self._news.wait()
