"""A process that has loaded everything, and forks one child for each job.

To start Python anew for each of some 30,000 runs would take most of the time.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from .journal_child import Job, work

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


class Child:
    """A process of the fork server."""

    def __init__(self) -> None:
        self.pid = 0
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self.status = 0
        """As `os.waitpid` gives it."""

    def kill(self, name: str = "SIGKILL") -> None:
        """Send it a signal, wherever it is."""
        if self.pid and not self.ended.is_set():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.Signals[name])


class ForkServer:
    """Starts children. Use `fork_server`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.children: list[Child] = []

    async def start(self, job: Job) -> Child:
        """Return a child that has begun to work."""
        assert self._process.stdin is not None
        child = Child()
        number = len(self.children)
        self.children.append(child)
        line = json.dumps({"number": number, "job": job}) + "\n"
        self._process.stdin.write(line.encode())
        await child.started.wait()
        return child

    async def listen(self) -> None:
        """Take note of what becomes of the children."""
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            news: dict[str, int] = json.loads(line)
            child = self.children[news["number"]]
            if "pid" in news:
                child.pid = news["pid"]
                child.started.set()
            else:
                child.status = news["status"]
                child.ended.set()


@asynccontextmanager
async def fork_server() -> AsyncGenerator[ForkServer]:
    """Start the fork server, and end it with all of its children."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.attack.fork_server"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    server = ForkServer(process)
    listening = asyncio.create_task(server.listen())
    try:
        yield server
    finally:
        for child in server.children:
            child.kill()
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()
        await listening


# ---------------------------------------------------------------- in the other process


def _say(**news: object) -> None:
    os.write(1, json.dumps(news).encode() + b"\n")


def _serve() -> None:
    # What is never collected is not copied for each child either.
    gc.collect()
    gc.freeze()
    children: dict[int, int] = {}
    wakeup, alarm = os.pipe()
    os.set_blocking(alarm, False)
    signal.set_wakeup_fd(alarm)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    buffer = b""
    while True:
        ready = _ready(wakeup)
        if wakeup in ready:
            os.read(wakeup, 1000)
            _reap(children)
        if 0 in ready:
            got = os.read(0, 1_000_000)
            if not got:
                return
            *lines, buffer = (buffer + got).split(b"\n")
            for line in lines:
                order = json.loads(line)
                pid = os.fork()
                if not pid:
                    _child(order["job"])
                children[pid] = order["number"]
                _say(number=order["number"], pid=pid)


def _ready(wakeup: int) -> list[int]:
    import select  # noqa: PLC0415 - of this process alone

    return select.select([0, wakeup], [], [])[0]


def _reap(children: dict[int, int]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        _say(number=children.pop(pid), status=status)


def _child(job: Job) -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 4
    try:
        # Nothing of a batch may be taken for the fork server's own words.
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.dup2(null, 2)
        code = work(job)
    finally:
        os._exit(code)


if __name__ == "__main__":
    _serve()
