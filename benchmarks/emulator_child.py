"""The servers of `bench_emulator`, each in a process of its own.

Arguments: ``bare`` or ``emulator``, and how many refunds to seed. The first line it
prints is its port, then the ids. For each line that it gets it prints the seconds of
CPU that it has used; it ends with its standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
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

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Iterator

HOST = "127.0.0.1"
SERVERS = ("bare", "emulator")


class Server:
    """What the parent has of a server."""

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


@contextlib.contextmanager
def started(kind: str, count: int) -> Generator[Server, None, None]:
    """Run a server for a ``with`` block."""
    with subprocess.Popen(  # noqa: S603 - this module, by this interpreter
        [sys.executable, str(Path(__file__).resolve()), kind, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Server(process)
        assert process.stdin is not None  # noqa: S101 - asked for
        process.stdin.close()


def _others() -> Iterator[str]:
    """Ids of which none comes twice: a URL that does is found in yarl's caches."""
    return (f"re_1{number:023d}" for number in itertools.count())


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


async def serve(kind: str, count: int) -> None:
    """Be one of the servers until standard input ends."""
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


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
