"""What does a fleet's journal in PostgreSQL cost over one in SQLite?

Parts, each of which can be asked for alone: ``saturated`` (one worker, one account, no
limit: CPU an item, of the worker and of the server), ``paced`` (the same at 400 a
second, where transactions are small), ``enqueue`` (how long many ids take, and the
memory of the client), ``claims`` (a page of claims beside many settled items, to one
beside none).
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

if not __package__:  # run by its path, whose folder is first in the search path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from async_refunds import CancelRequest
from async_refunds.journal import Run, SqliteJournal
from async_refunds.journal.postgres import Database, Leases, PostgresJournal
from benchmarks import batch_child, drawing, fleet_child, fleet_server, report
from benchmarks.canned import canned_server
from benchmarks.harness import in_turn

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.postgres_server import PostgresServer

QUESTION = "What does a fleet's journal in PostgreSQL cost over one in SQLite?"

_PACE = 400.0
"""Requests a second of the part ``paced``."""
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = 100  # claims at once
_CLAIMS = 30  # pages


class Flags(report.Flags, frozen=True, kw_only=True):
    """What the command line asked for."""

    parts: tuple[str, ...]
    items: int
    seconds: int


class Bench:
    """A run of the parts that were asked for, on one server."""

    def __init__(self, asked: Flags, folder: Path, server: PostgresServer) -> None:
        self._asked = asked
        self._folder = folder
        self._server = server
        self._paths = (folder / f"{number}.sqlite3" for number in count())

    def saturated(self) -> dict[str, float]:
        """Return the CPU of an item where nothing holds the worker up."""
        return self._compared(min(30_000, self._asked.items), 0.0)

    def paced(self) -> dict[str, float]:
        """Return the CPU of an item at a pace at which transactions are small."""
        return self._compared(int(_PACE) * self._asked.seconds, _PACE)

    def _compared(self, items: int, rate: float) -> dict[str, float]:
        served: list[float] = []
        with canned_server() as base_url:

            def in_postgres() -> fleet_child.Work:
                with self._server.database() as address:
                    _enqueue(address, base_url, items)
                    before = server_cpu(address)
                    found = fleet_child.measured(
                        base_url, "postgres", address, items, rate
                    )
                    served.append((server_cpu(address) - before) / items)
                    return found

            turns = in_turn(
                {
                    "sqlite": lambda: self._in_sqlite(base_url, items, rate),
                    "postgres": in_postgres,
                },
                self._asked.rounds,
                warm_up=False,
            )
        cpu = {
            name: [turn.cpu / items for turn in each] for name, each in turns.items()
        }
        pairs = zip(cpu["postgres"], cpu["sqlite"], strict=True)
        return {
            "CPU of the worker, x SQLite": statistics.median(
                ours / other for ours, other in pairs
            ),
            "µs CPU of the worker an item": 1e6 * statistics.median(cpu["postgres"]),
            "µs CPU of PostgreSQL an item": 1e6 * statistics.median(served),
            "items/s": statistics.median(
                items / turn.seconds for turn in turns["postgres"]
            ),
            "items/s with SQLite": statistics.median(
                items / turn.seconds for turn in turns["sqlite"]
            ),
        }

    def _in_sqlite(self, base_url: str, items: int, rate: float) -> fleet_child.Work:
        path = next(self._paths)
        with SqliteJournal.open(path, Run(base_url, livemode=False)) as journal:
            journal.load(CancelRequest(each) for each in batch_child.ids(items))
        return fleet_child.measured(base_url, "sqlite", str(path), items, rate)

    def enqueue(self) -> dict[str, float]:
        """Return what it costs to hand many ids over."""
        items = self._asked.items
        with self._server.database() as address:
            code = f"from benchmarks.bench_fleet import enqueue_alone as e; e({items})"
            told = subprocess.run(  # noqa: S603 - this module, by this interpreter
                [sys.executable, "-c", code],
                env={**os.environ, "BENCH_DATABASE": address},
                cwd=Path(__file__).resolve().parent.parent,
                stdout=subprocess.PIPE,
                check=True,
            )
        seconds, peak = told.stdout.split()
        return {
            f"s to enqueue {items} ids": float(seconds),
            "MB of the client": int(peak) / 1e6,
        }

    def claims(self) -> dict[str, float]:
        """Return what many settled items beside do to a claim."""
        with self._server.database() as address:
            url = "https://a.example"
            _enqueue(address, url, _PAGE * _CLAIMS)
            alone = asyncio.run(_claimed(address, url))
        with self._server.database() as address:
            _enqueue(address, url, self._asked.items + _PAGE * _CLAIMS)
            with psycopg.connect(address, autocommit=True) as connection:
                connection.execute(
                    "UPDATE async_refunds.items SET settled = true WHERE number <= %s",
                    [self._asked.items],
                )
                connection.execute("ANALYZE async_refunds.items")
            beside = asyncio.run(_claimed(address, url))
        return {
            f"ms for a claim of {_PAGE}": 1e3 * alone,
            f"x beside {self._asked.items} settled items": beside / alone,
        }


def _enqueue(address: str, base_url: str, items: int) -> None:
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(
            "SELECT async_refunds.ensure_run('run', %s, false)", [base_url]
        )
        ids = list(batch_child.ids(items))
        connection.execute("SELECT async_refunds.enqueue('run', %s)", [ids])
        connection.execute("ANALYZE async_refunds.items")


def enqueue_alone(items: int) -> None:
    """Enqueue so many into the database of the environment; print seconds and bytes."""
    asyncio.run(_enqueue_alone(os.environ["BENCH_DATABASE"], items))


async def _enqueue_alone(address: str, items: int) -> None:
    from async_refunds.journal.postgres import enqueue  # noqa: PLC0415 - of a child
    from benchmarks import memory  # noqa: PLC0415 - of a child

    async with await psycopg.AsyncConnection.connect(address) as connection:
        await connection.execute(
            "SELECT async_refunds.ensure_run('run', 'https://a.example', false)"
        )
        began = time.perf_counter()
        await enqueue(connection, batch_child.ids(items), run="run")
        await connection.commit()
        print(time.perf_counter() - began, memory.peak())


async def _claimed(address: str, url: str) -> float:
    """Return the seconds of a page of claims, the median of many."""
    database = Database(address)
    async with Leases(database, f"default {url} test", "bench") as leases:
        await leases.acquire(1)
        journal = PostgresJournal(database, leases)
        seconds: list[float] = []
        for _ in range(_CLAIMS):
            await asyncio.sleep(0.1)  # or the writer waits for more to write
            began = time.perf_counter()
            found = await journal.claim({None: _PAGE})
            seconds.append(time.perf_counter() - began)
            if len(found[None]) != _PAGE:
                raise SystemExit(f"claims: {len(found[None])} of {_PAGE}")
        await journal.close()
        return statistics.median(seconds)


def server_cpu(address: str) -> float:
    """Return the seconds of CPU of all processes of a server on this machine so far."""
    with psycopg.connect(address) as connection:
        ((folder,),) = connection.execute("SHOW data_directory").fetchall()
    first = int((Path(folder) / "postmaster.pid").read_text().split()[0])
    found = 0.0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:  # it has ended: its first process has what it used
            continue
        fields = text.rpartition(")")[2].split()
        # proc_pid_stat(5): utime, stime, and of children that have ended.
        if int(stat.parent.name) == first:
            found += sum(map(int, fields[11:15]))
        elif int(fields[1]) == first:
            found += sum(map(int, fields[11:13]))
    return found / _TICK


PARTS: dict[str, Callable[[Bench], dict[str, float]]] = {
    "saturated": Bench.saturated,
    "paced": Bench.paced,
    "enqueue": Bench.enqueue,
    "claims": Bench.claims,
}


def flags() -> Flags:
    """Read the command line."""
    parser = report.parser(QUESTION, rounds=3)
    report.add_parts(parser, PARTS)
    report.add_counts(
        parser,
        ("--items", 1_000_000, "of the parts enqueue and claims"),
        ("--seconds", 15, "of a turn of the part paced"),
    )
    return report.read(parser, Flags)


def draw(found: report.Parts, path: Path) -> None:
    """Draw the CPU of an item."""
    bars = {
        f"{who}, {part}": figures[f"µs CPU of {who} an item"]
        for part, figures in found.items()
        for who in ("the worker", "PostgreSQL")
        if f"µs CPU of {who} an item" in figures
    }
    with drawing.sheet(path, QUESTION, size=(8, 3)) as (axes,):
        labels = [f"{value:.0f}" for value in bars.values()]
        drawing.bars(axes, list(bars), list(bars.values()), labels, ours="the worker")
        axes.set_xlabel("µs CPU an item")


def main() -> None:
    """Measure what was asked for, and print it."""
    asked = flags()
    how = f"{asked.rounds} rounds of the parts saturated and paced, all else once"
    measured = fleet_server.measured(asked.parts, PARTS, partial(Bench, asked))
    report.tell_parts(asked, QUESTION, how, measured, draw)


if __name__ == "__main__":
    main()
