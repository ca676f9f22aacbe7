"""A client with calls in flight, in a process of its own, to be weighed.

Arguments: client, pool, base URL of a `canned_server`, how many calls, ``resident`` or
``traced``. Prints the bytes that it then holds: those that are resident, or those that
Python's allocators have given out.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import stripe

if not __package__:  # run by its path, whose folder is first in the search path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from async_refunds import RefundsClient
from benchmarks import memory, raw_http
from benchmarks.cancel_clients import API_KEY, bare_call, official
from benchmarks.canned import HELD

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from benchmarks.harness import Call

CLIENTS = ("bare", "async_refunds", "official_aiohttp")
EACH, DEFAULT = "a connection each", "the default pool"
POOLS = (EACH, DEFAULT)
DEFAULT_LIMIT = 100
"""Connections of aiohttp's own pool, which all three clients have by default."""

# Enough to have made whatever is made once, and fewer than any pool.
_WARM_UP = 50


def weighed(client: str, pool: str, base_url: str, calls: int, kind: str) -> int:
    """Return what a process of its own tells of itself."""
    told = subprocess.run(  # noqa: S603 - this file, by this interpreter
        [
            *(sys.executable, str(Path(__file__).resolve())),
            *(client, pool, base_url, str(calls), kind),
        ],
        stdout=subprocess.PIPE,
        check=True,
    )
    return int(told.stdout)


@contextlib.asynccontextmanager
async def opened(client: str, pool: str, base_url: str) -> AsyncGenerator[Call, None]:
    """Open a client, through its public arguments alone."""
    async with contextlib.AsyncExitStack() as stack:
        session = None
        if pool == EACH:
            connector = aiohttp.TCPConnector(limit=0)  # no limit
            session = aiohttp.ClientSession(connector=connector)
        if client == "official_aiohttp":
            http_client = stripe.AIOHTTPClient(session=session)
            yield await stack.enter_async_context(official(base_url, http_client))
        elif client == "async_refunds":
            refunds = RefundsClient(API_KEY, base_url=base_url, session=session)
            yield (await stack.enter_async_context(refunds)).cancel
        else:
            own = session or aiohttp.ClientSession()
            yield bare_call(await stack.enter_async_context(own), base_url)


async def weigh(
    call: Call, base_url: str, calls: int, *, traced: bool, limit: int
) -> int:
    """Return the bytes held with so many calls in flight, none of them answered."""
    await asyncio.gather(*(call(f"re_warm{each:020d}") for each in range(_WARM_UP)))
    if traced:
        tracemalloc.start()
    ids = [f"{HELD}{each:017d}" for each in range(calls)]
    tasks = [asyncio.ensure_future(call(refund_id)) for refund_id in ids]
    async with raw_http.pool(base_url, 1) as exchange:
        # The rest wait for a connection.
        sent = min(calls, limit)
        await exchange(f"GET /held/{sent} HTTP/1.1\r\nHost: localhost\r\n\r\n")
    gc.collect()
    held = tracemalloc.get_traced_memory()[0] if traced else memory.resident()
    if ended := [task for task in tasks if task.done()]:
        raise RuntimeError(f"{len(ended)} calls ended: {ended[0]!r}")
    return held


async def run(
    client: str, pool: str, base_url: str, calls: int, *, traced: bool
) -> None:
    """Weigh, tell, and end at once: the calls in flight are left as they are."""
    limit = calls if pool == EACH else DEFAULT_LIMIT
    async with opened(client, pool, base_url) as call:
        held = await weigh(call, base_url, calls, traced=traced, limit=limit)
        print(held, flush=True)
        os._exit(0)


if __name__ == "__main__":
    _, name, connections, url, number, kind = sys.argv
    asyncio.run(run(name, connections, url, int(number), traced=kind == "traced"))
