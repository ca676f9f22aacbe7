"""Plays a script: a database, a Stripe, workers, and what befalls them."""

from __future__ import annotations

import asyncio
import math
import random
import time
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.support.postgres_cluster import postgres_cluster

from . import database
from .books import Books, account_id, refund_id
from .judge import PASSWORD, End, Moment, Report, Zombie, judge
from .load import note_stalls
from .script import DEADLINE, LEASE, Disaster, options_of
from .server import StripeServer
from .workers import Workers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Sequence
    from pathlib import Path

    from tests.support.postgres_cluster import PostgresCluster

    from .script import Script
    from .workers import Worker

WORKER = ("-m", "async_refunds", "fleet", "worker")
_POLL = 0.02
# Seconds that a run may take without any disaster, beyond what its pace needs.
_PATIENCE = 60.0
_RATES = (5.0, 25.0, 25.0, 100.0)
_IMPATIENT = 3.0
_NEARLY = 0.9
_LOST = 50
"""Settled rows that a failover loses at least, if there are as many left."""
_ZOMBIE_LOOKS = 2.0
"""Seconds for which a worker that woke up is watched."""


@dataclass
class Run:
    """A run that is going on."""

    cluster: PostgresCluster
    books: Books
    workers: Workers
    report: Report
    disasters: list[asyncio.Task[None]] = field(
        default_factory=list[asyncio.Task[None]]
    )
    database: asyncio.Lock = field(default_factory=asyncio.Lock)
    """What befalls the database comes one after the other."""

    @property
    def share(self) -> float:
        """The share of the refunds that are canceled."""
        return self.books.canceled / len(self.books.refunds)

    @contextmanager
    def noted(self, kind: str, worker: str = "") -> Generator[Moment]:
        """Note that something befalls the fleet until the end of the block."""
        moment = Moment(kind, self.books.clock(), worker)
        self.report.moments.append(moment)
        try:
            yield moment
        finally:
            moment.until = self.books.clock()


async def play(
    script: Script,
    seed: str,
    template: Path,
    folder: Path,
    worker: Sequence[str] = WORKER,
) -> Report:
    """Play a script, and return what came of it.

    Args:
        script: What happens.
        seed: Of the accounts' sizes and limits, and of Stripe's faults.
        template: The data of a database server with the fleet's schema.
        folder: For the workers' logs.
        worker: The arguments of Python that run one.
    """
    options = options_of(script)
    loop = asyncio.get_running_loop()
    books = _books(
        seed, int(options["accounts"]), int(options["refunds"]), options["rate"]
    )
    server = StripeServer(books, seed=seed, share=options["faults"])
    report = Report()
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(postgres_cluster(template))
        base_url = await stack.enter_async_context(server.serve())
        pairs = [(each.refund_id, each.account) for each in books.refunds.values()]
        await database.enqueue(cluster.primary, base_url, pairs)
        if any(part.kind == "failover" for part in _disasters(script)):
            await cluster.add_standby()
        workers = Workers(
            folder,
            (*worker, "--base-url", base_url),
            _environment(cluster),
        )
        stack.push_async_callback(workers.close)
        run = Run(cluster, books, workers, report)
        began = loop.time()
        watching = asyncio.create_task(note_stalls(loop.time, report.stalls))
        stack.callback(watching.cancel)
        for _ in range(int(options["workers"])):
            await workers.start()
        try:
            async with asyncio.timeout(_time_limit(books, script)):
                async with asyncio.TaskGroup() as group:
                    operating = group.create_task(_operate(run))
                    for part in _disasters(script):
                        run.disasters.append(group.create_task(_befall(run, part)))
                    await asyncio.gather(*run.disasters)
                    await _all_kept(run)
                    operating.cancel()
        except TimeoutError:
            report.timed_out = True
            report.left = await database.left(cluster.primary)
        report.seconds = loop.time() - began
        report.items = await database.items(cluster.primary)
        await asyncio.gather(*(_end_worker(run, each) for each in workers.present))
        report.faults_met = server.faults_met
    judge(report, books, workers.all)
    return report


def _books(seed: str, accounts: int, refunds: int, rate: float) -> Books:
    chance = random.Random(f"{seed} accounts")  # noqa: S311 - no secret
    names = [account_id(number) for number in range(accounts)]
    rates = {name: rate or chance.choice(_RATES) for name in names}
    books = Books(asyncio.get_running_loop().time, rates)
    # Busy accounts and idle ones.
    weights = [chance.choice((1, 1, 2, 4)) for _ in names]
    owners = chance.choices(names, weights, k=refunds)
    books.give((refund_id(number), owner) for number, owner in enumerate(owners))
    return books


def _environment(cluster: PostgresCluster) -> dict[str, str]:
    address = cluster.dsn(database.DATABASE).replace("@", f":{PASSWORD}@", 1)
    return {
        "ASYNC_REFUNDS_DATABASE": address,
        "ASYNC_REFUNDS_LEASE": str(LEASE),
        # After an unclean takeover no refund gets a new key for so long.
        "ASYNC_REFUNDS_TIMEOUT": str(DEADLINE),
    }


def _disasters(script: Script) -> list[Disaster]:
    return [part for part in script if isinstance(part, Disaster)]


def _time_limit(books: Books, script: Script) -> float:
    slowest = max(
        sum(each.account == account for each in books.refunds.values()) / rate
        for account, rate in books.rates.items()
    )
    lasting = sum(part.seconds + LEASE + DEADLINE for part in _disasters(script))
    return _PATIENCE + 2 * slowest + lasting


async def _all_kept(run: Run) -> None:
    """Wait until everything is canceled, and the database knows it."""
    while True:
        if run.share == 1.0 and not await database.open_items(run.cluster.primary):
            return
        await asyncio.sleep(5 * _POLL)


async def _operate(run: Run) -> None:
    """Open now and then what workers gave up, as one who does not wait minutes does."""
    while True:
        await asyncio.sleep(_IMPATIENT)
        if run.share > _NEARLY:
            async with run.database:
                await database.retry(run.cluster.primary)


async def _end_worker(run: Run, worker: Worker) -> None:
    """End a worker as an operator does, and note how long that takes."""
    clock = run.books.clock
    began, at_start = clock(), not worker.works
    code = await worker.end()
    run.report.ends.append(End(worker.name, code, clock() - began, at_start))


# --------------------------------------------------------------------------- disasters


async def _befall(run: Run, part: Disaster) -> None:
    """Wait for the moment of a disaster, and let it happen."""
    while True:
        if run.share >= part.at:
            break
        await asyncio.sleep(_POLL)
    run.report.done[part.kind] += 1
    if part.kind in _WORKERS:
        present = [each for each in run.workers.present if not each.frozen]
        if present:
            worker = present[part.worker % len(present)]
            await _WORKERS[part.kind](run, worker, part.seconds)
        return
    async with run.database:
        with run.noted(part.kind):
            await _DATABASE[part.kind](run, part.seconds)


async def _kill(run: Run, worker: Worker, seconds: float) -> None:
    with run.noted("kill", worker.name):
        worker.kill()
    await asyncio.sleep(seconds)
    await run.workers.start()


async def _end(run: Run, worker: Worker, seconds: float) -> None:
    with run.noted("end", worker.name):
        await _end_worker(run, worker)
    await asyncio.sleep(seconds)
    await run.workers.start()


async def _freeze(run: Run, worker: Worker, seconds: float) -> None:
    """Freeze a worker, and look at what it does when it wakes up.

    For the accounts that others have won meanwhile it may do nothing, whether or not
    there is something left to do.
    """
    clock = run.books.clock
    with run.noted("freeze", worker.name) as moment:
        worker.freeze()
        frozen_at = time.time()
        await asyncio.sleep(seconds)
        # Until it was looked at, no failover forgets who won what, and nobody else
        # opens rows again.
        await run.database.acquire()
    try:
        node = run.cluster.primary
        lost = await database.lost(node, worker.name, frozen_at)
        before = await database.written(node, lost.tokens)
        woken_at, offset = clock(), time.time() - clock()
        worker.thaw()
        await asyncio.sleep(_ZOMBIE_LOOKS)
        after = await database.written(node, lost.tokens)
        won = await database.won_since(node, worker.name, woken_at + offset)
    finally:
        run.database.release()
    sent = sum(
        each.worker == worker.name
        and each.account in lost.accounts
        and woken_at < each.at < won.get(each.account, math.inf) - offset
        for each in run.books.requests
    )
    if lost.at_freeze:
        run.report.zombies.append(
            Zombie(
                worker.name,
                sent,
                len(after - before),
                lost.at_freeze,
                moment.until - moment.at,
            )
        )


async def _database_killed(run: Run, seconds: float) -> None:
    await run.cluster.restart("kill", away=seconds)


async def _database_ended(run: Run, seconds: float) -> None:
    await run.cluster.restart("immediate", away=seconds)


async def _database_away(run: Run, seconds: float) -> None:
    run.cluster.proxy.refuse()
    run.cluster.proxy.cut()
    await asyncio.sleep(seconds)
    await run.cluster.proxy.accept()


async def _database_silent(run: Run, seconds: float) -> None:
    run.cluster.proxy.hold()
    await asyncio.sleep(seconds)
    run.cluster.proxy.release()


async def _database_frozen(run: Run, seconds: float) -> None:
    run.cluster.primary.freeze()
    await asyncio.sleep(seconds)
    run.cluster.primary.thaw()


async def _connections_cut(run: Run, _seconds: float) -> None:
    run.cluster.proxy.cut()


async def _failover(run: Run, _seconds: float) -> None:
    """Lose the primary, and with it what was settled since the replication stopped."""
    cluster = run.cluster
    if cluster.standby is None:
        await cluster.add_standby()
    before = await database.settled(cluster.primary)
    cluster.stop_replication()
    while True:
        after = await database.settled(cluster.primary)
        if after - before >= _LOST or run.share == 1.0:
            break
        await asyncio.sleep(2 * _POLL)
    await cluster.fail_over()
    run.report.lost.append(after - await database.settled(cluster.primary))


_WORKERS: dict[str, Callable[[Run, Worker, float], Awaitable[None]]] = {
    "kill": _kill,
    "end": _end,
    "freeze": _freeze,
}
_DATABASE: dict[str, Callable[[Run, float], Awaitable[None]]] = {
    "database killed": _database_killed,
    "database ended": _database_ended,
    "database away": _database_away,
    "database silent": _database_silent,
    "database frozen": _database_frozen,
    "connections cut": _connections_cut,
    "failover": _failover,
}
