"""The workers of the demo: processes of the real command."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from async_refunds.cli.children import end_with_us
from async_refunds.cli.crash_recovery import KEY, without_options

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from pathlib import Path

# Seconds after which the accounts of one that was killed are free.
LEASE = 3.0
# Of each worker. A call ends soon, so that a stalled request holds up little.
_OPTIONS = ("--lease", str(LEASE), "--timeout", "5", "--concurrency", "50")
_ENDS_WITHIN = 15.0  # seconds; it takes ten at most
_LAST_LINES = 5


class WorkerEndedError(Exception):
    """A worker has ended that was not asked to, or with an error, or does not end.

    Args:
        text: Which, and how.
        last_words: The last lines that it wrote.
    """

    def __init__(self, text: str, last_words: list[str]) -> None:
        super().__init__(text)
        self.last_words = last_words


class WorkerProcess:
    """One worker.

    Args:
        name: As the database and people know it.
        process: Its process.
        log: The file that it writes to.
    """

    def __init__(self, name: str, process: Process, log: Path) -> None:
        self.name = name
        self._process = process
        self._log = log
        self._killed = False

    @property
    def alive(self) -> bool:
        """Whether it was not killed."""
        return not self._killed

    def check(self) -> None:
        """Make sure that it runs, unless it was killed.

        Raises:
            WorkerEndedError: It does not.
        """
        if self._process.returncode is not None and not self._killed:
            self._fail()

    def freeze(self) -> None:
        """Stop it where it is."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    async def kill(self) -> None:
        """Kill it, and wait until it is gone."""
        self._killed = True
        self._signal(signal.SIGKILL)
        await self._process.wait()

    async def end(self) -> None:
        """Ask it to give its accounts back and to end.

        Raises:
            WorkerEndedError: It ends with an error, or does not.
        """
        self._signal(signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(_ENDS_WITHIN):
                await self._process.wait()
        # Ended by the signal itself: it had not begun.
        if self._process.returncode not in (0, -signal.SIGTERM):
            self._fail()

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            self._process.send_signal(number)

    def _fail(self) -> NoReturn:
        code = self._process.returncode
        how = "does not end" if code is None else f"ended with exit code {code}"
        told = self._log.read_text(errors="replace").splitlines()
        raise WorkerEndedError(f"worker {self.name} {how}", told[-_LAST_LINES:])


class WorkerProcesses:
    """All workers of the demo.

    Args:
        folder: For their logs.
        address: Of the database.
        base_url: Of the emulator.
    """

    def __init__(self, folder: Path, address: str, base_url: str) -> None:
        self._folder = folder
        self._command = (
            *(sys.executable, "-m", "async_refunds", "fleet", "worker"),
            *("--base-url", base_url, *_OPTIONS),
        )
        self._environment = {
            **without_options(os.environ),
            # Not an argument, which every process list shows: it may have a password.
            "ASYNC_REFUNDS_DATABASE": address,
            "STRIPE_API_KEY": KEY,
        }
        self._all: dict[str, WorkerProcess] = {}

    def __getitem__(self, name: str) -> WorkerProcess:
        """Return the one of that name."""
        return self._all[name]

    @property
    def alive(self) -> list[WorkerProcess]:
        """Those that were not killed."""
        return [each for each in self._all.values() if each.alive]

    async def start(self) -> None:
        """Start one more, as ``w1``, ``w2``, and so on."""
        name = f"w{len(self._all) + 1}"
        starting = asyncio.create_task(self._started(name))
        try:
            await asyncio.shield(starting)
        finally:
            # Also when the demo is interrupted meanwhile, or the process would be left.
            self._all[name] = await starting

    async def _started(self, name: str) -> WorkerProcess:
        log = self._folder / f"{name}.log"
        with log.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                *(*self._command, "--name", name),
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,  # Ctrl-C is for us, who end it
                preexec_fn=end_with_us(signal.SIGKILL),
            )
        return WorkerProcess(name, process, log)

    def check(self) -> None:
        """Make sure that none has ended by itself.

        Raises:
            WorkerEndedError: One has.
        """
        for each in self._all.values():
            each.check()

    async def end(self) -> None:
        """Ask those that are left to end, and wait for them.

        Raises:
            WorkerEndedError: One ends with an error, or does not.
        """
        await asyncio.gather(*(each.end() for each in self.alive))

    async def close(self) -> None:
        """Kill those that are left."""
        await asyncio.gather(*(each.kill() for each in self.alive))
