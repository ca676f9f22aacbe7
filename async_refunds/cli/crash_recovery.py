"""Kill a batch at chosen moments, resume it each time, and check the emulator's books.

`async-refunds demo --kill` shows it; tests and benchmarks draw their figures from it.
"""

from __future__ import annotations

import asyncio
import csv
import os
import signal
import sys
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from async_refunds.emulator import ReceivedRequest
from async_refunds.journal import JournalReader
from async_refunds.results import CANCELED

from .children import end_with_us
from .environment import PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from async_refunds.emulator import Emulator
    from async_refunds.results import CancelRequest

KEY = "sk_test_demo"

# How often the run is resumed before what is open is given up. Under a storm of 0.3 one
# call in a few hundred stays open, so this many never do.
ROUNDS = 20


class RequestLog(deque[ReceivedRequest]):
    """Every request that the emulator received, and which process sent it."""

    def __init__(self) -> None:
        super().__init__()
        self._senders: dict[str, set[int]] = {}
        self._process = 0
        self._left = 0
        self._reached = asyncio.Event()

    def next_process(self, requests: int) -> asyncio.Event:
        """Count for a new process.

        Args:
            requests: How many.

        Returns:
            An event that is set when so many have come; with 0 it never is.
        """
        self._process += 1
        self._left = requests
        self._reached = asyncio.Event()
        return self._reached

    def append(self, request: ReceivedRequest) -> None:
        """Add a request."""
        super().append(request)
        if request.idempotency_key is not None:
            senders = self._senders.setdefault(request.idempotency_key, set())
            senders.add(self._process)
        self._left -= 1
        if not self._left:
            self._reached.set()

    @property
    def keys_sent_again(self) -> int:
        """The number of keys that more than one process sent."""
        return sum(len(senders) > 1 for senders in self._senders.values())

    @property
    def refunds_with_two_keys(self) -> int:
        """The number of refunds that were sent with more than one key."""
        keys: dict[str, set[str | None]] = {}
        for request in self:
            if request.endpoint == "cancel":
                keys.setdefault(request.path, set()).add(request.idempotency_key)
        return sum(len(each) > 1 for each in keys.values())


class KillReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the journal and the emulator's books hold after a run with kills."""

    killed: int
    """How often the process was killed."""
    canceled: int
    """Refunds that are canceled by the journal."""
    unsettled: int
    """Refunds without a final outcome in the journal."""
    canceled_exactly_once: int
    """Refunds that are canceled by the emulator's books."""
    canceled_twice: int
    refunds_with_two_keys: int
    keys_sent_again: int
    """Keys that more than one process sent: they were in flight at a kill."""
    settled_by_a_read: int


async def kill_and_resume(
    emulator: Emulator,
    requests: Sequence[CancelRequest],
    folder: Path,
    *,
    kill_after: Iterable[int],
    rounds: int = ROUNDS,
    options: Sequence[str] = (),
) -> KillReport:
    """Cancel refunds with the command line, and kill and resume it.

    The journal is ``run.sqlite3`` in the folder. The emulator's ``requests`` become a
    `RequestLog`.

    Args:
        emulator: Holds the refunds; it must not be served yet.
        requests: What to cancel.
        folder: An empty folder.
        kill_after: For each kill, after how many requests of a process.
        rounds: At most how often to resume after the last kill.
        options: More options of ``cancel``.
    """
    log = emulator.requests = RequestLog()
    listed, journal = folder / "refunds.csv", folder / "run.sqlite3"
    with listed.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("refund_id", "stripe_account"))
        rows.writerows((each.refund_id, each.stripe_account) for each in requests)
    killed = 0
    async with emulator.serve() as base_url:
        command = ["cancel", "--from", str(listed), "--journal", str(journal)]
        command += ["--base-url", base_url, *options]
        for limit in (*kill_after, *[0] * rounds):
            code = await _run(command, log.next_process(limit))
            if code == 0:
                break
            killed += code < 0
            command = ["resume", str(journal)]
    records = list(JournalReader(journal).records())
    endpoints = {request.request_id: request.endpoint for request in log}
    times = [emulator.books.cancellations[each.refund_id] for each in requests]
    return KillReport(
        killed=killed,
        canceled=sum(record.outcome in CANCELED for record in records),
        unsettled=len(requests) - sum(record.settled for record in records),
        canceled_exactly_once=times.count(1),
        canceled_twice=sum(each > 1 for each in times),
        refunds_with_two_keys=log.refunds_with_two_keys,
        keys_sent_again=log.keys_sent_again,
        settled_by_a_read=sum(
            endpoints.get(record.request_id or "") == "retrieve" for record in records
        ),
    )


async def _run(command: list[str], killing: asyncio.Event) -> int:
    """Run a command to its end, or kill it at the event; return its exit code."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "async_refunds", *command),
        env={**without_options(os.environ), "STRIPE_API_KEY": KEY},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        preexec_fn=end_with_us(signal.SIGKILL),
    )
    ended = asyncio.create_task(process.wait())
    reached = asyncio.create_task(killing.wait())
    try:
        await asyncio.wait([ended, reached], return_when=asyncio.FIRST_COMPLETED)
    finally:
        reached.cancel()
        if process.returncode is None:
            process.kill()
        await ended
    return ended.result()


def without_options(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what would change the options of a command."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(PREFIX)
    }
