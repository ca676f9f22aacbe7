"""What does a batch cost, does it find Stripe's pace, and does it lose anything?

Parts, each of which can be asked for alone: ``journal`` (CPU and memory per item, with
one and without), ``resume`` (how long until a run of many goes on), ``pace`` (against a
limit that halves in mid-run, and two clients at once), ``brownout`` (every answer 503
for a while), ``kills`` (killed again and again under faults).
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import msgspec

from async_refunds import CancelRequest, RefundsClient
from async_refunds.batch import Batch
from async_refunds.emulator import Emulator, Limits
from async_refunds.journal import JournalReader, Run, SqliteJournal
from benchmarks import batch_child
from benchmarks.canned import canned_server
from benchmarks.harness import figure, versions

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from async_refunds.emulator import ReceivedRequest

KEY = "sk_test_bench"
LIMIT = 25.0
WEATHER = ("", "reset_after", "stall", "saved_500", "503", "cut_body")
"""What the killed runs meet, a fifth of their requests each."""


class Options(msgspec.Struct, frozen=True):
    """What the command line asked for."""

    parts: tuple[str, ...]
    rounds: int
    items: int
    seconds: float
    kills: int
    json: bool
    plot: Path | None


def options() -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", default=",".join(_MEASURE), help="by commas")
    parser.add_argument("--rounds", type=int, default=3, help="of the part journal")
    parser.add_argument("--items", type=int, default=1_000_000, help="of the largest")
    parser.add_argument(
        "--seconds", type=float, default=60, help="of each half of the part pace"
    )
    parser.add_argument("--kills", type=int, default=100, help="over all weathers")
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    parser.add_argument("--plot", type=Path, metavar="FILE", help=".svg or .png")
    given = parser.parse_args()
    parts = tuple(given.parts.split(","))
    if unknown := set(parts) - _MEASURE.keys():
        parser.error(f"no part {min(unknown)!r}: there are {', '.join(_MEASURE)}")
    return Options(
        parts=parts,
        rounds=given.rounds,
        items=given.items,
        seconds=given.seconds,
        kills=given.kills,
        json=given.json,
        plot=given.plot,
    )


def child(base_url: str, journal: Path | None, count: int) -> batch_child.Measured:
    """Run a batch in a process of its own, and return what it measured."""
    told = subprocess.run(  # noqa: S603 - our own module, by this interpreter
        _command(base_url, journal, count), stdout=subprocess.PIPE, check=True
    )
    return msgspec.json.decode(told.stdout, type=batch_child.Measured)


def _command(base_url: str, journal: Path | None, count: int) -> list[str]:
    path = "-" if journal is None else str(journal)
    module = "benchmarks.batch_child"
    return [sys.executable, "-m", module, base_url, path, str(count)]


def journal(asked: Options, folder: Path) -> dict[str, float]:
    """Return what a journal adds to an item, and what memory many items take."""
    few, many = min(1000, asked.items), asked.items
    sample = min(50_000, many)
    added: list[float] = []
    each: dict[str, list[float]] = {"without": [], "with": []}
    with canned_server() as base_url:
        for number in range(asked.rounds):
            plain = child(base_url, None, sample)
            kept = child(base_url, folder / f"cost-{number}.sqlite3", sample)
            each["without"].append(plain.cpu / sample * 1e6)
            each["with"].append(kept.cpu / sample * 1e6)
            added.append((kept.cpu - plain.cpu) / sample * 1e6)
        small = child(base_url, folder / "few.sqlite3", few)
        large = child(base_url, folder / "many.sqlite3", many)
    return {
        "µs CPU an item without a journal": statistics.median(each["without"]),
        "µs CPU an item with one": statistics.median(each["with"]),
        "µs CPU that a journal adds": figure(iter(added)).median,
        f"MB, {few} items": small.memory / 1e6,
        f"MB, {many} items": large.memory / 1e6,
        "MB between them": (large.memory - small.memory) / 1e6,
        f"s, {many} items": large.seconds,
    }


def resume(asked: Options, folder: Path) -> dict[str, float]:
    """Return how long it takes until a run of many items goes on."""
    path = folder / "resume.sqlite3"
    with canned_server() as base_url:
        run = Run(base_url=base_url, livemode=False)
        began = time.perf_counter()
        with SqliteJournal.open(path, run) as store:
            store.load(CancelRequest(each) for each in batch_child.ids(asked.items))
        loaded = time.perf_counter() - began
        # Half of them are settled, as after a kill in the midst.
        half = subprocess.Popen(  # noqa: S603 - our own module, by this interpreter
            _command(base_url, path, 0), stdout=subprocess.DEVNULL
        )
        while half.poll() is None and _settled(path) < asked.items // 2:
            time.sleep(0.5)
        half.kill()
        half.wait()
        return {
            f"s to load {asked.items} items": loaded,
            "s from the start of the batch to its first result": asyncio.run(
                _first(base_url, path)
            ),
        }


def _settled(path: Path) -> int:
    tally = JournalReader(path).tally()
    return tally.outcomes.total() - tally.open


async def _first(base_url: str, path: Path) -> float:
    began = time.perf_counter()
    async with RefundsClient(KEY, base_url=base_url) as refunds:
        batch = Batch(refunds, (), journal=path)
        results = batch.results()
        await anext(results)
        seconds = time.perf_counter() - began
        await results.aclose()
    return seconds


@asynccontextmanager
async def limited(count: int) -> AsyncGenerator[tuple[Emulator, str, list[str]]]:
    """Serve an emulator with Stripe's limit, and the log of all its requests."""
    stripe = Emulator(limits=Limits(global_rate=None, endpoint_rate=LIMIT))
    stripe.requests = deque()
    ids = stripe.seed_refunds(count)
    async with stripe.serve() as base_url:
        yield stripe, base_url, ids


def pace(asked: Options, _: Path) -> dict[str, float]:
    """Return what share of a limit gets through, before and after it halves."""
    half = asked.seconds

    async def both() -> tuple[list[ReceivedRequest], dict[str, float]]:
        return await asyncio.gather(_alone(half), _together(half))

    log, shares = asyncio.run(both())
    began = log[0].received_at
    found: dict[str, float] = {}
    for name, start, end, limit in (
        ("first 30 s", 0.0, min(30.0, half), LIMIT),
        ("after 30 s", min(30.0, half / 2), half, LIMIT),
        ("20 s after it halved", half + min(20.0, half / 2), 2 * half, LIMIT / 2),
    ):
        passed = _count(log, began, start, end, 200)
        found[f"% of the limit, {name}"] = 100 * passed / (end - start) / limit
    for name, start, end in (("whole", 0.0, half), ("halved", half, 2 * half)):
        refused = _count(log, began, start, end, 429)
        passed = _count(log, began, start, end, 200)
        found[f"% answered 429, limit {name}"] = 100 * refused / (refused + passed)
    if asked.plot is not None:
        draw(log, asked.seconds, asked.plot)
    return found | shares


def _count(
    log: list[ReceivedRequest], began: float, start: float, end: float, status: int
) -> int:
    return sum(
        request.status == status and start <= request.received_at - began < end
        for request in log
    )


async def _alone(half: float) -> list[ReceivedRequest]:
    async with (
        limited(int(4 * half * LIMIT)) as (stripe, base_url, ids),
        RefundsClient(KEY, base_url=base_url) as refunds,
    ):
        batch = Batch(refunds, ids)
        loop = asyncio.get_running_loop()
        loop.call_later(half, setattr, stripe.limits, "endpoint_rate", LIMIT / 2)
        loop.call_later(2 * half, batch.stop)
        async for _ in batch.results():
            pass
        return list(stripe.requests)


async def _together(half: float) -> dict[str, float]:
    """Two clients of one account, which know nothing of each other."""
    async with limited(int(8 * half * LIMIT)) as (stripe, base_url, ids):
        done: Counter[int] = Counter()
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def work(number: int) -> None:
            async with RefundsClient(KEY, base_url=base_url) as refunds:
                batch = Batch(refunds, ids[number::2])
                loop.call_later(2 * half, batch.stop)
                async for _ in batch.results():
                    if loop.time() - began > half:
                        done[number] += 1

        await asyncio.gather(work(0), work(1))
        del stripe
    return {
        "% that the lesser of two has of the greater": 100
        * min(done.values())
        / max(done.values()),
        "% of the limit, both": 100 * done.total() / half / LIMIT,
    }


def brownout(asked: Options, _: Path) -> dict[str, float]:
    """Return what it costs when every answer is a 503 for a minute in mid-run."""
    return asyncio.run(_browned_out(asked))


async def _browned_out(asked: Options) -> dict[str, float]:
    count = int(asked.seconds * LIMIT)
    stripe = Emulator()
    stripe.requests = deque()
    ids = stripe.seed_refunds(count)
    outcomes: Counter[str] = Counter()
    async with (
        stripe.serve() as base_url,
        RefundsClient(KEY, base_url=base_url) as refunds,
    ):
        async for result in Batch(refunds, ids).results():
            outcomes[result.outcome] += 1
            if outcomes.total() == count // 4:
                stripe.faults.storm(1, names=["503"])
                asyncio.get_running_loop().call_later(
                    asked.seconds, stripe.faults.clear
                )
    return {
        "requests an item": sum(stripe.books.requests.values()) / count,
        "items not canceled": count - outcomes["canceled"],
    }


def kills(asked: Options, folder: Path) -> dict[str, float]:
    """Return what was lost or done twice by runs that were killed."""
    return asyncio.run(_kills(asked, folder))


async def _kills(asked: Options, folder: Path) -> dict[str, float]:
    lost = twice = keys = unsettled = 0
    for place, fault in enumerate(WEATHER):
        often = (asked.kills + place) // len(WEATHER)
        found = await _killed(folder / f"kills-{fault}.sqlite3", fault, often)
        lost += found[0]
        twice += found[1]
        keys += found[2]
        unsettled += found[3]
    return {
        "kills": asked.kills,
        "refunds without a final outcome": unsettled,
        "refunds not canceled": lost,
        "refunds canceled twice": twice,
        "refunds asked for with a second key": keys,
    }


async def _killed(path: Path, fault: str, often: int) -> tuple[int, int, int, int]:
    count = 2000
    stripe = Emulator()
    log: deque[ReceivedRequest] = deque()
    stripe.requests = log
    ids = list(batch_child.ids(count))
    for refund_id in ids:
        stripe.add_refund(refund_id=refund_id)
    if fault:
        stripe.faults.load(f"{fault}=0.2")
    moments = sorted(Random(fault).sample(range(count), often))  # noqa: S311 - no secret
    async with stripe.serve() as base_url:
        for moment in moments:
            await _run(_command(base_url, path, count), log, moment)
        for _ in range(3):  # what is unknown is asked again
            await _run(_command(base_url, path, count), log, sys.maxsize)
    keys: dict[str, set[str | None]] = {}
    for request in log:
        if request.method == "POST":
            keys.setdefault(request.path, set()).add(request.idempotency_key)
    canceled = stripe.books.cancellations
    settled = sum(record.settled for record in JournalReader(path).records())
    return (
        sum(canceled[each] == 0 for each in ids),
        sum(canceled[each] > 1 for each in ids),
        sum(len(each) > 1 for each in keys.values()),
        count - settled,
    )


async def _run(command: list[str], log: deque[ReceivedRequest], moment: int) -> None:
    """Run a process, and kill it once there were so many requests in all."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL
    )
    while process.returncode is None and len(log) <= moment:  # noqa: ASYNC110 - a log has no event
        await asyncio.sleep(0.001)
    if process.returncode is None:
        process.kill()
    await process.wait()


def draw(log: list[ReceivedRequest], half: float, path: Path) -> None:
    """Write the requests of each second, let in and refused, over the limit."""
    # By name, since it is no dependency of the benchmarks and need not be installed.
    figures = importlib.import_module("matplotlib.figure")
    began = log[0].received_at
    seconds = range(int(2 * half))
    sheet = figures.Figure(figsize=(9, 3.5), layout="constrained")
    axes = sheet.subplots()
    passed = [_count(log, began, each, each + 1, 200) for each in seconds]
    refused = [_count(log, began, each, each + 1, 429) for each in seconds]
    axes.bar(seconds, passed, width=1, label="canceled")
    axes.bar(seconds, refused, bottom=passed, width=1, label="429", color="C3")
    limits = [LIMIT if each < half else LIMIT / 2 for each in seconds]
    axes.step(seconds, limits, where="post", color="black", label="the limit")
    axes.set_xlabel("seconds")
    axes.set_ylabel("requests a second")
    axes.legend(loc="lower left")
    axes.set_title("The pace that a batch finds, by itself")
    sheet.savefig(path)


_MEASURE = {
    "journal": journal,
    "resume": resume,
    "pace": pace,
    "brownout": brownout,
    "kills": kills,
}


def main() -> None:
    """Measure what was asked for, and print it."""
    asked = options()
    found: dict[str, dict[str, float]] = {}
    named = ", ".join(f"{name} {each}" for name, each in versions().items())
    if not asked.json:
        sys.stdout.write(f"{named}\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in asked.parts:
            found[part] = _MEASURE[part](asked, folder)
            if not asked.json:
                sys.stdout.write(f"\n{part}\n")
                for what, value in found[part].items():
                    sys.stdout.write(f"  {value:12.2f}  {what}\n")
                sys.stdout.flush()
    if asked.json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")


if __name__ == "__main__":
    main()
