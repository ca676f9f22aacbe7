"""What does a request to the emulator cost, beside a handler that does nothing?

``bare`` is an ``aiohttp.web`` application whose only handler returns the same bytes of
JSON each time. Each server is a process of its own; measured is the CPU of that
process, user and system, for each request that one plain client sends over loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import itertools
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

if not __package__:  # run by its path, whose folder is first in the search path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from async_refunds.emulator import Emulator
from benchmarks import raw_http
from benchmarks.harness import Figure, figure, versions

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Iterator

HOST = "127.0.0.1"
CONCURRENCY = 50
HEADERS = (
    "Host: localhost\r\nAuthorization: Bearer sk_test_51Bench\r\n"
    "Stripe-Version: 2026-10-28.endive\r\n"
)
FORM = "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 0\r\n"
SERVERS = ("bare", "emulator")
REQUESTS = ("cancel", "retrieve")


def _body() -> bytes:
    """Return a refund's JSON, of the emulator's own length."""
    emulator = Emulator()
    refund_id = emulator.add_refund()
    emulator.set_status(refund_id, "canceled")
    return msgspec.json.encode(emulator.refund(refund_id))


@contextlib.asynccontextmanager
async def _bare() -> AsyncGenerator[str, None]:
    body = _body()

    async def handler(_request: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    application = web.Application()
    application.router.add_get("/v1/refunds/{id}", handler)
    application.router.add_post("/v1/refunds/{id}/cancel", handler)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, HOST, 0).start()
    yield str(runner.addresses[0][1])
    await runner.cleanup()


@contextlib.asynccontextmanager
async def _emulator(count: int) -> AsyncGenerator[str, None]:
    emulator = Emulator()
    ids = emulator.seed_refunds(count)
    async with emulator.serve(host=HOST) as base_url:
        yield " ".join([base_url.rpartition(":")[2], *ids])


async def _serve(kind: str, count: int) -> None:
    async with _bare() if kind == "bare" else _emulator(count) as told:
        # What stands before the first request is no part of the question.
        gc.collect()
        gc.freeze()
        print(told, flush=True)
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def tell() -> None:
            # A line asks for the time; the end of all lines is the parent's end.
            if sys.stdin.readline():
                print(time.process_time(), flush=True)
            else:
                ended.set()

        loop.add_reader(sys.stdin.fileno(), tell)
        await ended.wait()


class _Server:
    """A server in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        port, *ids = self._line().split()
        self.base_url = f"http://{HOST}:{port}"
        self.ids: Iterator[str] = iter(ids) if ids else _others()

    def cpu(self) -> float:
        """Return the seconds of CPU it has used."""
        assert self._process.stdin is not None  # noqa: S101 - asked for
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None  # noqa: S101 - asked for
        return self._process.stdout.readline()


def _others() -> Iterator[str]:
    """Ids of which none comes twice: a URL that does is found in yarl's caches."""
    return (f"re_1{number:023d}" for number in itertools.count())


@contextlib.contextmanager
def _started(kind: str, count: int) -> Generator[_Server, None, None]:
    command = [sys.executable, str(Path(__file__).resolve())]
    with subprocess.Popen(  # noqa: S603 - this file, by this interpreter
        [*command, "--serve", kind, "--seed", str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield _Server(process)
        assert process.stdin is not None  # noqa: S101 - asked for
        process.stdin.close()


def _request(kind: str, refund_id: str) -> str:
    if kind == "retrieve":
        return f"GET /v1/refunds/{refund_id} HTTP/1.1\r\n{HEADERS}\r\n"
    return (
        f"POST /v1/refunds/{refund_id}/cancel HTTP/1.1\r\n{HEADERS}{FORM}"
        f"Idempotency-Key: {refund_id}\r\n\r\n"
    )


async def _turn(server: _Server, kind: str, calls: int) -> float:
    """Send requests, each for an id of its own; return seconds of CPU for each."""
    waiting = iter([_request(kind, next(server.ids)) for _ in range(calls)])
    async with raw_http.pool(server.base_url, CONCURRENCY) as exchange:

        async def work() -> None:
            for request in waiting:
                await exchange(request)

        began = server.cpu()
        await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
        return (server.cpu() - began) / calls


async def measure(rounds: int, calls: int) -> dict[str, dict[str, list[float]]]:
    """Return seconds of CPU for each request, by request and server, of each round."""
    found: dict[str, dict[str, list[float]]] = {}
    # The round before the first is not kept.
    count = (rounds + 1) * calls * len(REQUESTS)
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(_started(name, count)) for name in SERVERS}
        for kind in REQUESTS:
            found[kind] = {name: [] for name in SERVERS}
            for number in range(rounds + 1):
                for name, server in servers.items():
                    cpu = await _turn(server, kind, calls)
                    if number > 0:
                        found[kind][name].append(cpu)
    return found


def seed(count: int) -> tuple[float, float]:
    """Seed refunds; return the seconds of CPU and the peak of memory in MiB."""
    began = time.process_time()
    Emulator().seed_refunds(count)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return time.process_time() - began, peak / unit


def _shown(value: Figure, scale: float, digits: int) -> str:
    return f"{value.median * scale:.{digits}f} ±{value.iqr * scale / 2:.{digits}f}"


def main() -> None:
    """Measure, or be one of the servers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="kept ones")
    parser.add_argument("--calls", type=int, default=2000, help="in each round")
    parser.add_argument("--seed", type=int, default=1_000_000, help="for the memory")
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        asyncio.run(_serve(given.serve, given.seed))
        return
    print((__doc__ or "").splitlines()[0])
    named = ", ".join(f"{name} {version}" for name, version in versions().items())
    print(f"{named}; {given.rounds} rounds of {given.calls} requests, ± IQR / 2")
    for kind, turns in asyncio.run(measure(given.rounds, given.calls)).items():
        rates = figure(
            bare / ours
            for bare, ours in zip(turns["bare"], turns["emulator"], strict=True)
        )
        shown = [
            f"{name} {_shown(figure(iter(turns[name])), 1e6, 1)}" for name in turns
        ]
        print(
            f"{kind:9} µs CPU: {', '.join(shown)};"
            f" requests per second and core: x {_shown(rates, 1, 2)}"
        )
    seconds, mebibytes = seed(given.seed)
    print(
        f"{given.seed} refunds seeded in {seconds:.1f} s, {mebibytes:.0f} MiB at most"
    )


if __name__ == "__main__":
    main()
