"""Workers of a fleet without their batches: each has leases and a journal."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from async_refunds.journal.postgres import Database, Leases, PostgresJournal
from async_refunds.results import CancelResult

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterable

    from async_refunds.journal import Claim
    from async_refunds.models import Attempt
    from async_refunds.results import CancelOutcome

FAR_TOO_LONG = 30.0
"""Seconds after which a test gives up what waits, and never ends by itself."""
WAITING = """SELECT count(*) FROM pg_locks WHERE NOT granted AND pid IN (
    SELECT pid FROM pg_locks JOIN pg_database d ON d.oid = database
    WHERE datname = current_database())"""
"""How many statements wait for a lock: other databases of the server are of others."""
URL = "https://a.example"
SCOPE = f"default {URL} test"


class Clock:
    """A monotonic clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Fleet:
    """The database, as its owner sees it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._connection = psycopg.connect(address, autocommit=True)

    def rows(self, query: str, *values: object) -> list[Any]:
        """Return what a query finds."""
        return self._connection.execute(query.encode(), values).fetchall()

    def value(self, query: str, *values: object) -> Any:  # noqa: ANN401 - as SQL has it
        """Return the only value that it finds."""
        ((value,),) = self.rows(query, *values)
        return value

    def do(self, statement: str, *values: object) -> None:
        """Carry out a statement that returns nothing."""
        self._connection.execute(statement.encode(), values)

    def add(
        self,
        ids: Iterable[str],
        account: str = "",
        *,
        run: str = "run",
        priority: int = 0,
    ) -> None:
        """Add refunds of one account to a run."""
        ids = list(ids)
        self.do(
            "SELECT async_refunds.ensure_run(%s, %s, false, priority => %s)",
            *(run, URL, priority),
        )
        self.do(
            "SELECT async_refunds.enqueue(%s, %s, %s)", run, ids, [account] * len(ids)
        )

    def expire(self) -> None:
        """Let all leases end, as if their holders had been killed long ago."""
        self.do(
            "UPDATE async_refunds.leases SET until = clock_timestamp() - interval '1 s'"
        )

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def begin_history(fleet: Fleet) -> None:
    """Let what was noted so far be of another history, as after a failover."""
    fleet.do("UPDATE async_refunds.timelines SET timeline = 'before'")
    fleet.do("UPDATE async_refunds.leases SET timeline = 'before'")
    fleet.do("UPDATE async_refunds.items SET timeline = 'before'")


def grow_old(fleet: Fleet, seconds: float) -> None:
    """Let the database be in its history for some more seconds."""
    fleet.do(
        """UPDATE async_refunds.timelines SET
            seen_at = seen_at - make_interval(secs => %s)""",
        seconds,
    )


@contextmanager
def defaults(address: str, **settings: str) -> Generator[None]:
    """Let new sessions in a database begin with these until the end of the block."""
    with psycopg.connect(address, autocommit=True) as connection:
        name = sql.Identifier(connection.info.dbname)
        for setting, value in settings.items():
            connection.execute(
                sql.SQL("ALTER DATABASE {} SET {} = {}").format(
                    name, sql.Identifier(setting), sql.Literal(value)
                )
            )
        try:
            yield
        finally:
            connection.execute(sql.SQL("ALTER DATABASE {} RESET ALL").format(name))


class Worker:
    """What a worker has of the journal."""

    def __init__(self, leases: Leases, journal: PostgresJournal, clock: Clock) -> None:
        self.leases, self.journal, self.clock = leases, journal, clock
        self.lost: list[str | None] = []
        leases.on_lost = self.lost.append

    async def acquire(self, limit: int = 10) -> set[str | None]:
        """Take accounts, and return which."""
        return {lease.account for lease in await self.leases.acquire(limit)}

    async def acquire_after_failover(self, fleet: Fleet) -> set[str | None]:
        """Take accounts when what was held before has ended, and return which."""
        assert not await self.acquire()
        grow_old(fleet, self.leases.ttl)
        return await self.acquire()

    async def claim(self, account: str | None = None, limit: int = 10) -> list[Claim]:
        """Claim of one account that is held."""
        return (await self.journal.claim({account: limit}))[account]

    async def settle(self, claim: Claim, outcome: CancelOutcome = "canceled") -> None:
        """Keep a result."""
        await self.journal.settle([(claim, result(claim, outcome))])


@asynccontextmanager
async def worker(
    address: str,
    owner: str = "one",
    *,
    ttl: float = 30.0,
    deadline: float = 100.0,
    scope: str = SCOPE,
) -> AsyncGenerator[Worker]:
    """Give a worker, whose leases are not renewed by themselves."""
    clock = Clock()
    database = Database(address)
    leases = Leases(database, scope, owner, ttl=ttl, deadline=deadline, clock=clock)
    journal = PostgresJournal(database, leases)
    try:
        yield Worker(leases, journal, clock)
    finally:
        await journal.close()
        await leases.close()


def result(
    claim: Claim,
    outcome: CancelOutcome = "canceled",
    attempts: tuple[Attempt, ...] = (),
) -> CancelResult:
    """Return a result of a claim, open if it is unknown or failed."""
    return CancelResult(
        refund_id=claim.refund_id,
        stripe_account=claim.stripe_account,
        outcome=outcome,
        idempotency_key=claim.idempotency_key,
        attempts=attempts,
        settled=outcome not in {"unknown", "failed"},
    )


def ids(claims: Iterable[Claim]) -> list[str]:
    """Return the ids of claims."""
    return [claim.refund_id for claim in claims]


async def until(reached: Callable[[], object]) -> None:
    """Wait until another process has come so far.

    Raises:
        TimeoutError: It does not, in far more time than it can take.
    """
    async with asyncio.timeout(FAR_TOO_LONG):
        while not reached():  # noqa: ASYNC110 - it sets no event of ours
            await asyncio.sleep(0.01)
