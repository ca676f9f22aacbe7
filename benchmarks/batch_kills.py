"""Does a batch lose anything: the part ``kills``.

A run is killed again and again, each time at another request, while the emulator
answers a fifth of them badly.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from random import Random
from typing import TYPE_CHECKING

from async_refunds.emulator import Emulator
from async_refunds.journal import JournalReader
from benchmarks import batch_child

if TYPE_CHECKING:
    from pathlib import Path

    from async_refunds.emulator import ReceivedRequest

WEATHER = ("", "reset_after", "stall", "saved_500", "503", "cut_body")
"""What the killed runs meet, a fifth of their requests each."""


def kills(times: int, folder: Path) -> dict[str, float]:
    """Return what was lost or done twice by runs that were killed so many times."""
    return asyncio.run(_kills(times, folder))


async def _kills(times: int, folder: Path) -> dict[str, float]:
    lost = twice = keys = unsettled = 0
    for place, fault in enumerate(WEATHER):
        often = (times + place) // len(WEATHER)
        found = await _killed(folder / f"kills-{fault}.sqlite3", fault, often)
        lost += found[0]
        twice += found[1]
        keys += found[2]
        unsettled += found[3]
    return {
        "kills": times,
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
            await _run(batch_child.command(base_url, path, count), log, moment)
        for _ in range(3):  # what is unknown is asked again
            await _run(batch_child.command(base_url, path, count), log, sys.maxsize)
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
