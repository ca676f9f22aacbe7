"""The workers of a run: real processes that are killed, frozen and ended."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .server import api_key

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_ENDS_WITHIN = 15.0


@dataclass
class Worker:
    """One process."""

    name: str
    process: asyncio.subprocess.Process
    log: Path
    frozen: bool = False
    asked_to_end: bool = False
    """Whether it was ended or killed: otherwise it must not exit."""

    @property
    def alive(self) -> bool:
        """Whether it runs, frozen or not."""
        return self.process.returncode is None

    @property
    def works(self) -> bool:
        """Whether it has said that it works."""
        return "working at" in self.log.read_text(errors="replace")

    def kill(self) -> None:
        """Kill it."""
        self._signal(signal.SIGKILL)
        self.asked_to_end = True

    def freeze(self) -> None:
        """Stop it where it is."""
        self._signal(signal.SIGSTOP)
        self.frozen = True

    def thaw(self) -> None:
        """Let it go on."""
        self.frozen = False
        self._signal(signal.SIGCONT)

    async def end(self) -> int:
        """Ask it to end, and return its exit code: -9 if it had to be killed."""
        self.asked_to_end = True
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_ENDS_WITHIN):
                return await self.process.wait()
        except TimeoutError:
            self.kill()
            return await self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self.alive:
            self.process.send_signal(number)


@dataclass
class Workers:
    """All workers of a run.

    Args:
        folder: For their logs.
        command: The arguments of Python that run one.
        environment: Its environment, but for the API key.
    """

    folder: Path
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    all: list[Worker] = field(default_factory=list[Worker])
    """Each one that was ever started."""

    @property
    def present(self) -> list[Worker]:
        """Those that neither ended, nor were asked to."""
        return [each for each in self.all if each.alive and not each.asked_to_end]

    async def start(self) -> Worker:
        """Start one more, under a name that none had before."""
        name = f"w{len(self.all) + 1}"
        log = self.folder / f"{name}.log"
        with log.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, *self.command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={
                    **os.environ,
                    **self.environment,
                    "STRIPE_API_KEY": api_key(name),
                    "ASYNC_REFUNDS_NAME": name,
                },
            )
        worker = Worker(name, process, log)
        self.all.append(worker)
        return worker

    async def close(self) -> None:
        """Kill those that are left."""
        for worker in self.all:
            worker.kill()
        await asyncio.gather(*(worker.process.wait() for worker in self.all))
