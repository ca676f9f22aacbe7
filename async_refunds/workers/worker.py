"""`work`: one worker of a fleet, under whatever engine starts it."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

import psycopg

from async_refunds import telemetry
from async_refunds.client import RefundsClient, load_key
from async_refunds.errors import JournalError, RefundsError
from async_refunds.journal.postgres.connection import (
    TRANSIENT,
    Database,
    answering_within,
    describe,
)
from async_refunds.journal.postgres.outage import TRYING_AGAIN
from async_refunds.protocol import validation

from .channel import Channel
from .scope_worker import ScopeWorker, WorkerOptions
from .startup import wait_for_database, wait_for_key
from .supervisor import Supervisor, end

if TYPE_CHECKING:
    from collections.abc import Callable

    from procrastinate import App

    from async_refunds.results import CancelResult

    from .fair_share import Presence
    from .metrics import WorkerMetrics

Clients: TypeAlias = "RefundsClient | Callable[[str], RefundsClient | None]"
"""A client; or what returns the one of a tenant, ``None`` if this worker has no key."""

_SCOPES = """SELECT DISTINCT tenant, scope
    FROM async_refunds.runs WHERE state IN ('open', 'closing') ORDER BY scope"""
_INTERVAL = 5.0
"""Seconds between two looks for tenants: notifications tell of most of them. So often
metrics are told, too."""
_PATIENCE = 5.0  # seconds for an answer
_ASK_AGAIN = 60.0
"""Seconds until a tenant for which there was no key is asked for again."""
_GOOD_BYE = 0.5  # seconds


async def work(
    database: str,
    refunds: Clients,
    *,
    tenant: str = "default",
    name: str | None = None,
    concurrency: int = 100,
    rate: float | None = None,
    ttl: float = 30.0,
    patience: float = 120.0,
    timeout: float | None = None,  # noqa: ASYNC109 - of each call, as the client has it
    stop: asyncio.Event | None = None,
    on_ready: Callable[[], object] | None = None,
    on_result: Callable[[CancelResult], object] | None = None,
    on_metrics: Callable[[WorkerMetrics], object] | None = None,
    app: App | None = None,
) -> None:
    """Work on the runs in a database, together with other workers, until told to stop.

    Each account belongs to one worker at a time, which holds a lease for it. A worker
    that is killed loses its accounts after ``ttl`` seconds to the others, which ask
    again with the same keys. While the database is away, the worker waits, also at the
    start, and sends nothing once its leases have ended.

    Args:
        database: As libpq has it: an address, ``key=value`` pairs, or nothing for the
            variables ``PGHOST``, ``PGDATABASE``, ... It may hold a password.
        refunds: The client, with the key of the tenant; or a function that is given a
            tenant and returns its client, or ``None`` if this worker has no key for it
            yet. Each tenant gets a batch of its own; one without a key is asked for
            again each minute.
        tenant: Whose runs a single client works on.
        name: How the worker is shown; the host's name and the process by default.
        concurrency: The most refunds of a tenant under way at once.
        rate: Requests a second for each account, in place of the limit that is found.
        ttl: Seconds without a renewal after which others may take an account.
        patience: Seconds for which a refund is tried again, as in `cancel_many`.
        timeout: Seconds for each call, in place of the policy's deadline.
        stop: Set it to end: what is under way ends, its results are kept and the
            accounts given back, in less than ten seconds.
        on_ready: Called once the database has answered, and the work begins.
        on_result: Called with each result, once it is kept.
        on_metrics: Called every five seconds, and at the end, with what the worker has
            done so far; once for each tenant.
        app: A procrastinate app with the tasks of a fleet (`new_app`, `add_tasks`), to
            be run beside: its jobs wake the worker, which needs none of them.

    Raises:
        JournalError: The database refuses the worker at the start (a wrong password, a
            missing database, a right that its role lacks), its tables are of another
            release, or they cannot be written.
        RuntimeError: The client is closed, or a session that it was given; or
            something cancelled a task of the worker, such as a hook.
        TypeError, ValueError: A bad argument.
    """
    if not (isinstance(refunds, RefundsClient) or callable(refunds)):
        raise TypeError("refunds must be a RefundsClient, or a function of a tenant")
    call_timeout = None if timeout is None else validation.seconds("timeout", timeout)
    options = WorkerOptions(
        name=name or f"{socket.gethostname()} {os.getpid()}",
        identity=uuid.uuid4().hex,
        concurrency=validation.whole("concurrency", concurrency, least=1),
        rate=None if rate is None else validation.rate("rate", rate),
        patience=validation.seconds("patience", patience),
        timeout=call_timeout,
        ttl=validation.seconds("ttl", ttl),
        on_result=on_result,
    )
    fleet = _Worker(Database(database), refunds, tenant, options, on_metrics)
    await fleet.run(stop or asyncio.Event(), app, on_ready)


class _Worker:
    """The batches of one process, one for each tenant, and what they share."""

    def __init__(
        self,
        database: Database,
        refunds: Clients,
        tenant: str,
        options: WorkerOptions,
        on_metrics: Callable[[WorkerMetrics], object] | None,
    ) -> None:
        self._database = database
        self._refunds = refunds
        self._tenant = tenant
        self._options = options
        self._on_metrics = on_metrics
        self._scopes: dict[str, ScopeWorker] = {}
        # Scopes for which there is no client, and when to ask for it again.
        self._ask_at: dict[str, float] = {}
        self._clock = asyncio.get_running_loop().time
        self._tasks: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()
        self._channel = Channel(
            database,
            presences=lambda: [each.presence() for each in self._scopes.values()],
            on_work=self._on_work,
            on_presence=self._on_presence,
        )

    async def run(
        self,
        stop: asyncio.Event,
        app: App | None,
        on_ready: Callable[[], object] | None,
    ) -> None:
        if not await self._can_begin(stop):
            return
        if on_ready is not None:
            telemetry.call_hook("on_ready", lambda _: on_ready(), None)
        if isinstance(self._refunds, RefundsClient):
            self._begin(_scope(self._tenant, self._refunds), self._refunds)
        listening = asyncio.create_task(self._channel.run())
        stopping = asyncio.create_task(stop.wait())
        looking = asyncio.create_task(self._look_for_tenants())
        supervising = None
        if app is not None:
            supervisor = Supervisor(app, self._on_work)
            supervising = asyncio.create_task(supervisor.run())
        try:
            ended = False
            while not ended:
                # One that begins while this waits is looked at a little later.
                watched = [stopping, looking, *self._tasks]
                done, _ = await asyncio.wait(
                    watched, timeout=_INTERVAL, return_when=asyncio.FIRST_COMPLETED
                )
                ended = bool(done)
                self._tell_metrics()
        finally:
            looking.cancel()
            stopping.cancel()
            for each in self._scopes.values():
                each.stop()
            if supervising is not None:
                await end(supervising)
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._tell_metrics()
            self._channel.close(within=_GOOD_BYE)
            await asyncio.wait([listening, looking], timeout=2 * _GOOD_BYE)
            # It may be connecting over a network that carries nothing.
            listening.cancel()
            await asyncio.wait([listening, looking], timeout=_GOOD_BYE)
        for task in (*self._tasks, looking):
            _raise_error_of(task)
        if not stop.is_set():
            # An end without an error would look as if it was told to, with work left.
            raise RuntimeError("a task of the worker was cancelled from outside")

    async def _can_begin(self, stop: asyncio.Event) -> bool:
        """Wait for the database and the key; false if it is to stop before."""
        if not await wait_for_database(self._database, stop):
            return False
        refunds = self._refunds
        return not isinstance(refunds, RefundsClient) or await wait_for_key(
            refunds, stop
        )

    # ------------------------------------------------------------------ tenants

    async def _look_for_tenants(self) -> None:
        """Begin with each tenant of which there is an open run.

        Raises:
            JournalError: The runs cannot be read, other than for a while.
        """
        outage = self._database.outage
        while True:
            self._news.clear()
            try:
                if not isinstance(self._refunds, RefundsClient):
                    await self._begin_all(self._refunds)
            except TRANSIENT as error:
                outage.away(self, TRYING_AGAIN, describe(error))
            except psycopg.Error as error:
                raise JournalError(
                    f"the runs could not be read: {describe(error)}"
                ) from None
            else:
                outage.back(self)
            with suppress(TimeoutError):
                async with asyncio.timeout(_INTERVAL):
                    await self._news.wait()

    async def _begin_all(
        self, client_of: Callable[[str], RefundsClient | None]
    ) -> None:
        connection = await self._database.connect()
        try:
            with answering_within(_PATIENCE, connection):
                rows = await (await connection.execute(_SCOPES)).fetchall()
        finally:
            await connection.close()
        # Together: one whose key does not come holds up no other.
        await asyncio.gather(
            *[
                self._begin_if_there_is_a_key(client_of, tenant, scope)
                for tenant, scope in rows
                if scope not in self._scopes and self._may_ask(scope)
            ]
        )

    def _may_ask(self, scope: str) -> bool:
        return self._clock() >= self._ask_at.get(scope, 0.0)

    async def _begin_if_there_is_a_key(
        self, client_of: Callable[[str], RefundsClient | None], tenant: str, scope: str
    ) -> None:
        """Begin with a scope; without a key for it say so, but only once."""
        why = ""
        try:
            client = client_of(tenant)
            if client is not None:
                await load_key(client, _PATIENCE)
        except Exception as error:  # noqa: BLE001 - the other tenants' runs go on
            # The text alone may be no more than "'STRIPE_API_KEY'".
            named = "" if isinstance(error, RefundsError) else type(error).__name__
            client, why = (
                None,
                f" ({': '.join(filter(None, [named, describe(error)]))})",
            )
        if client is not None and _scope(tenant, client) == scope:
            self._ask_at.pop(scope, None)
            self._begin(scope, client)
            return
        if scope not in self._ask_at:
            telemetry.log(
                logging.WARNING,
                "no key for %s: its runs wait for others%s",
                scope,
                why,
            )
        self._ask_at[scope] = self._clock() + _ASK_AGAIN

    def _begin(self, scope: str, refunds: RefundsClient) -> None:
        worker = self._scopes[scope] = ScopeWorker(
            self._database, scope, refunds, self._options, self._channel.tell
        )
        self._tasks.add(asyncio.create_task(worker.run()))

    def _tell_metrics(self) -> None:
        if self._on_metrics is not None:
            for each in self._scopes.values():
                telemetry.call_hook("on_metrics", self._on_metrics, each.metrics())

    # ------------------------------------------------------------ notifications

    def _on_work(self, scope: str) -> None:
        if scope in self._scopes:
            self._scopes[scope].wake()
        elif self._may_ask(scope):
            self._news.set()

    def _on_presence(self, presence: Presence) -> None:
        if presence.scope in self._scopes:
            self._scopes[presence.scope].hear(presence)


def _raise_error_of(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error


def _scope(tenant: str, refunds: RefundsClient) -> str:
    mode = "live" if refunds.livemode else "test"
    return f"{tenant} {refunds.base_url} {mode}"
