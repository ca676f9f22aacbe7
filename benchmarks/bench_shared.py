"""What does a fleet of three make of Stripe's limits, and of many small accounts?

Parts, each of which can be asked for alone: ``limited`` (one account of 25 requests a
second, three workers, and the one that has it ended each 15 s: the share of the limit,
the 429s, the fullest second), ``accounts`` (1,000 accounts of ten refunds, with one
worker and with three, each over one plain batch), ``away`` (the database stands still
for ten seconds under three workers: how many end, how many leases are lost, when the
pace is that of before).

The workers are the real command in processes of their own.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import deque
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import psycopg

if not __package__:  # run by its path, whose folder is first in the search path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from async_refunds.emulator import Emulator, Limits
from async_refunds.journal import Run, SqliteJournal
from benchmarks import batch_child, drawing, fleet_child, fleet_server, report
from benchmarks.canned import canned_server
from benchmarks.harness import in_turn

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from tests.support.postgres_server import PostgresServer

QUESTION = "What does a fleet make of Stripe's limits, and of many small accounts?"

_OK, _LIMITED = 200, 429
_LIMIT = 25.0
_BETWEEN = 15.0  # seconds from one end of the worker that has the account to the next
_LATENCY = 0.1  # seconds; Stripe takes that long at least
_WORKERS = 3
_STARTS_WITHIN = 30.0
_WORKS_WITHIN = 300.0
_POLL = 0.01
_TICK = os.sysconf("SC_CLK_TCK")
_HOLDER = """SELECT owner FROM async_refunds.leases
    WHERE token IS NOT NULL AND until > clock_timestamp()"""
_READY = """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
    AND application_name = 'async_refunds' AND query LIKE '%pg_notify%'"""
_TOKENS = """SELECT string_agg(account || ' ' || token, ',' ORDER BY account)
    FROM async_refunds.leases WHERE token IS NOT NULL"""
_DATA = "SELECT current_setting('data_directory')"
_AWAY = 10.0  # seconds for which the database stands still
_AWAY_ACCOUNTS = 12
_FULL = 0.9  # of the pace of before: less is within what any second differs by
_OPEN = "SELECT count(*) FROM async_refunds.items WHERE NOT settled"


class Flags(report.Flags, frozen=True, kw_only=True):
    """What the command line asked for."""

    parts: tuple[str, ...]
    seconds: int
    accounts: int


class Cost(msgspec.Struct, frozen=True):
    """What a run of many accounts took."""

    seconds: float
    cpu: float
    """Seconds of CPU of the workers."""


class Fleet:
    """Worker processes on one database.

    Args:
        address: Of the database.
        base_url: Of what they ask.
        words: Further arguments of each.
    """

    def __init__(self, address: str, base_url: str, words: Sequence[str] = ()) -> None:
        self.address = address
        self._words = ("--base-url", base_url, *words)
        self._names = count(1)
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start one more worker."""
        name = f"w{next(self._names)}"
        command = ("-m", "async_refunds", "fleet", "worker", "--quiet")
        self._running[name] = subprocess.Popen(  # noqa: S603 - our own
            [sys.executable, *command, "--name", name, *self._words],
            env={
                **os.environ,
                "ASYNC_REFUNDS_DATABASE": self.address,
                "STRIPE_API_KEY": batch_child.KEY,
            },
            stdin=subprocess.DEVNULL,
        )

    @property
    def ended(self) -> int:
        """How many have ended."""
        return sum(each.poll() is not None for each in self._running.values())

    def end(self, name: str) -> None:
        """Ask one to end."""
        self._running[name].send_signal(signal.SIGTERM)

    def value(self, query: str) -> int | str | None:
        """Return what a query finds first, if anything."""
        with psycopg.connect(self.address) as connection:
            row = connection.execute(query.encode()).fetchone()
        return None if row is None else row[0]

    def wait_ready(self, workers: int) -> None:
        """Wait until so many workers listen.

        Raises:
            SystemExit: They do not.
        """
        self._wait(lambda: self.value(_READY) == workers, _STARTS_WITHIN)

    def wait_done(self) -> None:
        """Wait until nothing is open.

        Raises:
            SystemExit: Something stays so.
        """
        self._wait(lambda: self.value(_OPEN) == 0, _WORKS_WITHIN)

    @staticmethod
    def _wait(holds: Callable[[], bool], seconds: float) -> None:
        until = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > until:
                raise SystemExit("the workers do not get there")
            time.sleep(_POLL)

    def cpu(self) -> float:
        """Return the seconds of CPU that the running ones have used."""
        used = 0
        for each in self._running.values():
            text = Path(f"/proc/{each.pid}/stat").read_text()
            # proc_pid_stat(5): utime and stime.
            used += sum(map(int, text.rpartition(")")[2].split()[11:13]))
        return used / _TICK

    def close(self) -> None:
        """End all, and wait for them."""
        for each in self._running.values():
            each.send_signal(signal.SIGTERM)
        for each in self._running.values():
            each.wait(_STARTS_WITHIN)


@contextmanager
def _fleet(
    server: PostgresServer, base_url: str, words: Sequence[str] = ()
) -> Generator[Fleet]:
    with server.database() as address:
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(
                "SELECT async_refunds.ensure_run('run', %s, false)", [base_url]
            )
        fleet = Fleet(address, base_url, words)
        try:
            yield fleet
        finally:
            fleet.close()


class Bench:
    """A run of the parts that were asked for, on one server."""

    def __init__(self, asked: Flags, folder: Path, server: PostgresServer) -> None:
        self._asked = asked
        self._server = server
        self._paths = (folder / f"{number}.sqlite3" for number in count())

    # -------------------------------------------------------------- one account

    def limited(self) -> dict[str, float]:
        """Return what three workers make of one account while its holder changes."""
        return asyncio.run(self._limited())

    async def _limited(self) -> dict[str, float]:
        seconds = self._asked.seconds
        limits = Limits(global_rate=None, endpoint_rate=_LIMIT)
        stripe = Emulator(limits=limits, latency=_LATENCY)
        stripe.requests = deque()
        ids = stripe.seed_refunds(int(2 * _LIMIT * (seconds + _STARTS_WITHIN)))
        with ExitStack() as stack:
            async with stripe.serve() as base_url:
                fleet = stack.enter_context(_fleet(self._server, base_url))
                for _ in range(_WORKERS):
                    fleet.start()
                await asyncio.to_thread(fleet.wait_ready, _WORKERS)
                await asyncio.to_thread(_enqueue, fleet.address, ids)
                while not stripe.requests:  # noqa: ASYNC110 - of the emulator
                    await asyncio.sleep(_POLL)
                # The way up to the limit, of the first holder.
                await asyncio.sleep(_BETWEEN)
                began = time.time()
                watching = asyncio.create_task(_most_late(began + seconds))
                ended = await self._end_holders(fleet, began + seconds)
                over = time.time()
                late = await watching
                await asyncio.to_thread(fleet.close)
        log = [each for each in stripe.requests if began <= each.received_at < over]
        sent = [each.received_at for each in log]
        passed = sum(each.status == _OK for each in log)
        refused = sum(each.status == _LIMITED for each in log)
        return {
            "handovers": ended,
            "% of the limit": 100 * passed / (over - began) / _LIMIT,
            "% answered 429": 100 * refused / (passed + refused),
            "% of the limit, requests in the fullest second": 100
            * _fullest(sent)
            / _LIMIT,
            "s without a request, at most": max(
                later - at for at, later in pairwise(sent)
            ),
            # What was sent meanwhile is received at once, and counts in one second.
            "s late, the emulator at most": late,
        }

    async def _end_holders(self, fleet: Fleet, until: float) -> int:
        """End the holder now and then, and start another; return how often."""
        ended = 0
        while time.time() + _BETWEEN <= until:
            await asyncio.sleep(_BETWEEN / 2)
            fleet.start()  # it is there when the other one ends
            await asyncio.sleep(_BETWEEN / 2)
            holder = await asyncio.to_thread(fleet.value, _HOLDER)
            if isinstance(holder, str):
                fleet.end(holder)
                ended += 1
        await asyncio.sleep(max(0.0, until - time.time()))
        return ended

    # ------------------------------------------------------ a database that is away

    def away(self) -> dict[str, float]:
        """Return what three workers make of a database that stands still."""
        return asyncio.run(self._away())

    async def _away(self) -> dict[str, float]:
        limits = Limits(global_rate=None, endpoint_rate=_LIMIT)
        stripe = Emulator(limits=limits, latency=_LATENCY)
        stripe.requests = deque()
        names = [f"acct_{number}" for number in range(_AWAY_ACCOUNTS)]
        lasts = int(_LIMIT * (_STARTS_WITHIN + _BETWEEN + 3 * _AWAY))
        with ExitStack() as stack:
            async with stripe.serve() as base_url:
                fleet = stack.enter_context(_fleet(self._server, base_url))
                for name in names:
                    ids = stripe.seed_refunds(lasts, account=name)
                    await asyncio.to_thread(
                        _enqueue, fleet.address, ids, [name] * lasts
                    )
                for _ in range(_WORKERS):
                    fleet.start()
                while not stripe.requests:  # noqa: ASYNC110 - of the emulator
                    await asyncio.sleep(_POLL)
                await asyncio.sleep(_BETWEEN + _AWAY)
                held = await asyncio.to_thread(fleet.value, _TOKENS)
                folder = await asyncio.to_thread(fleet.value, _DATA)
                began = time.time()
                with _standing_still(Path(str(folder))):
                    await asyncio.sleep(_AWAY)
                back = time.time()
                await asyncio.sleep(_AWAY)
                kept = await asyncio.to_thread(fleet.value, _TOKENS)
                ended = fleet.ended
                await asyncio.to_thread(fleet.close)
        times = [each.received_at for each in stripe.requests]
        before = sum(began - _AWAY <= at < began for at in times) / _AWAY
        meanwhile = sum(began <= at < back for at in times) / _AWAY
        before_tokens = str(held).split(",")
        return {
            "workers that ended": ended,
            "leases lost": len({*before_tokens} - {*str(kept).split(",")}),
            "leases held": len(before_tokens),
            "requests/s before": before,
            "requests/s meanwhile": meanwhile,
            "s to the full pace": _until_full(times, back, _FULL * before),
        }

    # ------------------------------------------------------------ many accounts

    def accounts(self) -> dict[str, float]:
        """Return what many small accounts cost a fleet, over one plain batch."""
        items = 10 * self._asked.accounts
        with canned_server() as base_url:
            turns = in_turn(
                {
                    "plain": lambda: self._plain(base_url, items),
                    "one": lambda: self._shared(base_url, 1, items),
                    "three": lambda: self._shared(base_url, _WORKERS, items),
                },
                self._asked.rounds,
                warm_up=False,
            )
        found = {"s of the plain batch": _median(turns["plain"], "seconds")}
        for name in ("one", "three"):
            for what, field in (("seconds", "seconds"), ("CPU", "cpu")):
                found[f"x {what}, {name}"] = statistics.median(
                    getattr(ours, field) / getattr(alone, field)
                    for ours, alone in zip(turns[name], turns["plain"], strict=True)
                )
        return found

    def _plain(self, base_url: str, items: int) -> Cost:
        path = next(self._paths)
        began = time.perf_counter()
        with SqliteJournal.open(path, Run(base_url, livemode=False)) as journal:
            journal.load(batch_child.requests(items, self._asked.accounts))
        loaded = time.perf_counter() - began
        found = fleet_child.measured(base_url, "sqlite", str(path), items, 0.0)
        return Cost(loaded + found.seconds, found.cpu)

    def _shared(self, base_url: str, workers: int, items: int) -> Cost:
        words = (
            *("--rate", str(batch_child.RATE)),
            *("--concurrency", str(batch_child.CONCURRENCY)),
        )
        requests = list(batch_child.requests(items, self._asked.accounts))
        with _fleet(self._server, base_url, words) as fleet:
            for _ in range(workers):
                fleet.start()
            fleet.wait_ready(workers)
            began, used = time.perf_counter(), fleet.cpu()
            _enqueue(
                fleet.address,
                [each.refund_id for each in requests],
                [each.stripe_account or "" for each in requests],
            )
            fleet.wait_done()
            return Cost(time.perf_counter() - began, fleet.cpu() - used)


def _enqueue(
    address: str, ids: Sequence[str], accounts: Sequence[str] | None = None
) -> None:
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(
            "SELECT async_refunds.enqueue('run', %s, %s)",
            [list(ids), list(accounts or [""] * len(ids))],
        )


@contextmanager
def _standing_still(folder: Path) -> Generator[None]:
    """Let no process of a database server run."""
    server = int((folder / "postmaster.pid").read_text().split()[0])
    os.kill(server, signal.SIGSTOP)  # first: it starts no others then
    children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    stopped = [server]
    for each in map(int, children):
        with suppress(ProcessLookupError):  # one that was about to end
            os.kill(each, signal.SIGSTOP)
            stopped.append(each)
    try:
        yield
    finally:
        for each in stopped:
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGCONT)


def _until_full(times: Sequence[float], back: float, pace: float) -> float:
    """Return the seconds until a second begins that has so many requests."""
    later = [at for at in times if at >= back]
    for at in later:
        if sum(at <= other < at + 1.0 for other in later) >= pace:
            return at - back
    return float("inf")


async def _most_late(until: float) -> float:
    """Return the seconds by which this loop, and so the emulator, is late at most."""
    most = 0.0
    while (now := time.time()) < until:
        await asyncio.sleep(_POLL)
        most = max(most, time.time() - now - _POLL)
    return most


def _fullest(times: Sequence[float]) -> int:
    """Return how many of these times lie in the fullest second of all."""
    most, first = 0, 0
    for last, at in enumerate(times):
        while at - times[first] >= 1.0:
            first += 1
        most = max(most, last - first + 1)
    return most


def _median(costs: Sequence[Cost], field: str) -> float:
    return float(statistics.median(getattr(each, field) for each in costs))


PARTS: dict[str, Callable[[Bench], dict[str, float]]] = {
    "limited": Bench.limited,
    "accounts": Bench.accounts,
    "away": Bench.away,
}


def flags() -> Flags:
    """Read the command line."""
    parser = report.parser(QUESTION, rounds=3)
    report.add_parts(parser, PARTS)
    report.add_counts(
        parser,
        ("--seconds", 60, "of the part limited"),
        ("--accounts", 1000, "of the part accounts, ten refunds each"),
    )
    return report.read(parser, Flags)


def draw(found: report.Parts, path: Path) -> None:
    """Draw what many accounts cost over one plain batch."""
    bars = {
        what: value
        for what, value in found.get("accounts", {}).items()
        if what.startswith("x ")
    }
    with drawing.sheet(path, QUESTION, size=(8, 3)) as (axes,):
        labels = [f"{value:.2f}" for value in bars.values()]
        drawing.bars(axes, list(bars), list(bars.values()), labels, ours="x ")
        axes.set_xlabel("times the plain batch")


def main() -> None:
    """Measure what was asked for, and print it."""
    asked = flags()
    how = f"{asked.rounds} rounds of the part accounts, the others once"
    measured = fleet_server.measured(asked.parts, PARTS, partial(Bench, asked))
    report.tell_parts(asked, QUESTION, how, measured, draw)


if __name__ == "__main__":
    main()
