"""What does a request to the emulator cost, beside a handler that does nothing?

``bare`` is an ``aiohttp.web`` application whose only handler returns the same bytes of
JSON each time. Each server is a process of its own; measured is the CPU of that
process, user and system, for each request that one plain client sends over loopback.
Client and servers share one core.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from functools import partial
from pathlib import Path

if not __package__:  # run by its path, whose folder is first in the search path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from async_refunds.emulator import Emulator
from benchmarks import drawing, memory, raw_http, report
from benchmarks.emulator_child import SERVERS, Server, started
from benchmarks.harness import Figure, figure, in_turn, on_one_core, ratio

QUESTION = "What does a request to the emulator cost?"
CONCURRENCY = 50
HEADERS = (
    "Host: localhost\r\nAuthorization: Bearer sk_test_51Bench\r\n"
    "Stripe-Version: 2026-10-28.endive\r\n"
)
FORM = "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 0\r\n"
REQUESTS = ("cancel", "retrieve")


class Flags(report.Flags, frozen=True, kw_only=True):
    """What the command line asked for."""

    calls: int
    seed: int


class Report(report.Report, frozen=True, kw_only=True):
    """What each request cost, and what many refunds take."""

    calls: int
    cpu: dict[str, dict[str, Figure]]
    """Seconds per request, by request and server."""
    rate_ratios: dict[str, Figure]
    """Requests per second and core over those of ``bare``, by request."""
    seeded: int
    seed_seconds: float
    """Of CPU."""
    seed_bytes: int
    """The peak of the process, the interpreter and aiohttp among it."""


def flags() -> Flags:
    """Read the command line."""
    parser = report.parser(QUESTION, rounds=9)
    parser.add_argument(
        "--calls", type=report.count, default=2000, help="in each round"
    )
    parser.add_argument(
        "--seed", type=report.count, default=1_000_000, help="refunds, for the memory"
    )
    return report.read(parser, Flags)


def _request(kind: str, refund_id: str) -> str:
    if kind == "retrieve":
        return f"GET /v1/refunds/{refund_id} HTTP/1.1\r\n{HEADERS}\r\n"
    return (
        f"POST /v1/refunds/{refund_id}/cancel HTTP/1.1\r\n{HEADERS}{FORM}"
        f"Idempotency-Key: {refund_id}\r\n\r\n"
    )


async def _turn(server: Server, kind: str, calls: int) -> float:
    """Send requests, each for an id of its own; return seconds of CPU for each."""
    waiting = iter([_request(kind, next(server.ids)) for _ in range(calls)])
    async with raw_http.pool(server.base_url, CONCURRENCY) as exchange:

        async def work() -> None:
            for request in waiting:
                await exchange(request)

        began = server.cpu()
        await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
        return (server.cpu() - began) / calls


def measure(rounds: int, calls: int) -> dict[str, dict[str, list[float]]]:
    """Return seconds of CPU for each request, by request and server, of each round."""
    # The round before the first is not kept.
    count = (rounds + 1) * calls * len(REQUESTS)
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(started(name, count)) for name in SERVERS}

        def turn(name: str, kind: str) -> float:
            return asyncio.run(_turn(servers[name], kind, calls))

        return {
            kind: in_turn({name: partial(turn, name, kind) for name in servers}, rounds)
            for kind in REQUESTS
        }


def seed(count: int) -> tuple[float, int]:
    """Seed refunds; return the seconds of CPU and the peak of memory in bytes."""
    began = time.process_time()
    Emulator().seed_refunds(count)
    return time.process_time() - began, memory.peak()


def found(asked: Flags) -> Report:
    """Measure what was asked for."""
    on_one_core()
    turns = measure(asked.rounds, asked.calls)
    seconds, peak = seed(asked.seed)
    rates = {
        kind: ratio(each["bare"], each["emulator"]) for kind, each in turns.items()
    }
    return Report(
        question=QUESTION,
        versions=report.versions(),
        rounds=asked.rounds,
        headlines={
            f"req/s and core x bare, {kind}": each.median
            for kind, each in rates.items()
        },
        calls=asked.calls,
        cpu={
            kind: {name: figure(seconds) for name, seconds in each.items()}
            for kind, each in turns.items()
        },
        rate_ratios=rates,
        seeded=asked.seed,
        seed_seconds=seconds,
        seed_bytes=peak,
    )


def table(told: Report) -> list[str]:
    """Return the lines of a table: medians, each with half its quartiles' distance."""
    return report.table(
        ["request", *(f"{name} µs CPU" for name in SERVERS), "req/s and core x bare"],
        [
            [
                kind,
                *(report.shown(cpu[name], 1, 1e6) for name in SERVERS),
                report.shown(told.rate_ratios[kind], 2),
            ]
            for kind, cpu in told.cpu.items()
        ],
    )


def draw(told: Report, path: Path) -> None:
    """Write a bar for each server's CPU per request, a panel for each request."""
    most = max(each.median for cpu in told.cpu.values() for each in cpu.values())
    with drawing.sheet(path, QUESTION, size=(8, 3.6), panels=len(told.cpu)) as sheet:
        for axes, (kind, cpu) in zip(sheet, told.cpu.items(), strict=True):
            drawing.bars(
                axes,
                list(cpu),
                [each.median * 1e6 for each in cpu.values()],
                [f"{each.median * 1e6:.0f} µs" for each in cpu.values()],
                spreads=[each.iqr / 2 * 1e6 for each in cpu.values()],
                ours="emulator",
            )
            axes.set_title(kind)
            # One scale for both, with room for the labels.
            axes.set_xlim(0, most * 1.2e6)
            axes.set_xlabel("µs of the server's CPU per request")


def main() -> None:
    """Measure as the command line says; print, and draw if asked."""
    asked = flags()
    if not asked.json:
        how = f"medians of {asked.rounds} rounds of {asked.calls} requests, ± IQR / 2"
        print(report.heading(QUESTION, how), flush=True)
    told = found(asked)
    if not asked.json:
        print("\n".join(("", *table(told))))
        print(
            f"\n{told.seeded} refunds seeded in {told.seed_seconds:.1f} s of CPU, "
            f"{told.seed_bytes / 2**20:.0f} MiB at most"
        )
    report.finish(asked, told, lambda path: draw(told, path))


if __name__ == "__main__":
    main()
