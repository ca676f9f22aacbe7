"""With faults on the way, what does each client cost, and what does it get wrong?

Each client cancels the same refunds on a fresh emulator under the same storm of faults,
and what its callers were told is held against the emulator's books. The headline is how
many wrong reports per 10,000 cancels async_refunds makes when a fifth of all requests
meet a fault.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import msgspec

if not __package__:  # run by its path, whose folder is first in the search path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from async_refunds.emulator import FAULTS
from benchmarks import faults_report, report
from benchmarks.faults_clients import CLIENTS
from benchmarks.faults_emulator import STORM, emulator
from benchmarks.faults_judge import Turn, calls, result, turn
from benchmarks.faults_report import Report, Weather

BARE = "bare"
QUESTION = "With faults on the way, what does each client get wrong, at what cost?"
CONCURRENCY = 50
PACE = 400.0
"""Calls that begin in a second, as long as fewer than those are in flight. With no pace
the fastest client would meet the most closed doors: see `REFUSE_SECONDS`."""
LATE = 1.5
"""Times an attempt's seconds is how long ``slow`` keeps its answer: the cancel was
executed, and its caller has gone. In time it would be no fault at all."""
REFUSE_SECONDS = 0.001
"""As little as can be. All who come meanwhile are refused, and those are the more the
faster a client is, which would be another storm for each."""


class Flags(report.Flags, frozen=True, kw_only=True):
    """What the command line asked for."""

    calls: int
    rates: tuple[int, ...]
    clients: tuple[str, ...]
    faults: tuple[str, ...]
    each: int
    seconds: float


def flags() -> Flags:
    """Read the command line."""
    parser = report.parser(QUESTION, rounds=1)
    parser.add_argument(
        "--calls",
        type=report.count,
        default=10_000,
        help="of each client at each rate in each round; default: %(default)s",
    )
    parser.add_argument(
        "--rates",
        type=report.counts,
        default="1,5,20",
        help="%% of the requests meet a fault; by commas; default: %(default)s",
    )
    parser.add_argument(
        "--clients",
        type=report.some_of(tuple(CLIENTS)),
        default=",".join(CLIENTS),
        help="by commas; default: %(default)s",
    )
    parser.add_argument(
        "--faults",
        type=report.some_of(tuple(FAULTS)),
        default=",".join(STORM),
        help="of which each storm is made; default: all but redirect",
    )
    parser.add_argument(
        "--each",
        type=int,
        default=0,
        metavar="N",
        help="then each fault alone, at the highest rate, N calls of each client",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=2.0,
        help="for each attempt of each client; default: %(default)s",
    )
    return report.read(parser, Flags)


class Storm(msgspec.Struct, frozen=True):
    """What the requests of a turn meet."""

    rate: int
    """Percent of them."""
    faults: tuple[str, ...]
    seed: int


def measure(name: str, count: int, storm: Storm, seconds: float) -> Turn:
    """Let one client cancel so many refunds, with so many seconds for an attempt."""
    slow = LATE * seconds
    with emulator() as stripe:
        ids = stripe.seed(count)
        stripe.timing(slow=slow, refuse=REFUSE_SECONDS)
        stripe.storm(storm.rate / 100, storm.faults, storm.seed)
        reports, cpu = asyncio.run(
            calls(
                CLIENTS[name],
                stripe.base_url,
                ids,
                concurrency=CONCURRENCY,
                pace=PACE,
                seconds=seconds,
            )
        )
        stripe.calm()
        if "slow" in storm.faults:
            time.sleep(slow)  # what is under way comes to its end
        return turn(stripe, reports, cpu)


def weather(asked: Flags, faults: tuple[str, ...], rate: int, count: int) -> Weather:
    """Let all clients have their turns under one weather, round after round."""
    turns: dict[str, list[Turn]] = {name: [] for name in asked.clients}
    for seed in range(1, asked.rounds + 1):
        storm = Storm(rate, faults, seed)
        for name in asked.clients:
            report.say(f"{rate} %, {faults_report.named(faults)}: {name} ...")
            turns[name].append(measure(name, count, storm, asked.seconds))
    baseline = BARE if BARE in turns else asked.clients[0]
    return Weather(
        rate=rate,
        faults=faults,
        baseline=baseline,
        results=[result(name, own, turns[baseline]) for name, own in turns.items()],
    )


def main() -> None:
    """Measure what was asked for, and tell it."""
    asked = flags()
    how = (
        f"{asked.rounds} rounds of {asked.calls} calls of each client at each rate, "
        f"{PACE:.0f} begun in a second, {CONCURRENCY} in flight at most"
    )
    if not asked.json:
        print(report.heading(QUESTION, how))
    # What is done for the first time costs more: not kept.
    for name in asked.clients:
        measure(name, CONCURRENCY, Storm(0, STORM[:1], 0), asked.seconds)
    found: list[Weather] = []
    for rate in asked.rates:
        found.append(weather(asked, asked.faults, rate, asked.calls))
        if not asked.json:
            print("\n".join(faults_report.lines(found[-1])), flush=True)
    alone = [
        weather(asked, (fault,), max(asked.rates), asked.each)
        for fault in (asked.faults if asked.each else ())
    ]
    if alone and not asked.json:
        print("\n".join(faults_report.matrix(alone)), flush=True)
    told = Report(
        question=QUESTION,
        versions=report.versions(),
        rounds=asked.rounds,
        headlines=faults_report.headlines(found),
        storms=found,
        alone=alone,
    )
    report.finish(asked, told, lambda path: faults_report.draw(told, path))


if __name__ == "__main__":
    main()
