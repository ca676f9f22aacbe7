"""A terminal to type commands at: real processes, pipes, signals, pseudo-terminals."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import sys
import termios
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from async_refunds.emulator import Emulator
from tests.support.forked import READ_AT_START, ForkedProcess

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

TEST_KEY = "sk_test_51CanaryOfTheTerminal"
LIVE_KEY = "sk_live_51CanaryOfTheTerminal"
CANARY = "CanaryOfTheTerminal"

# What a developer's or a CI's environment may hold that would change the output.
UNSET = (
    *("STRIPE_API_KEY", "PYTHONUNBUFFERED", "PYTHONIOENCODING"),
    *("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"),
)

# What came back or was canceled before in each currency, and how much work it was.
FIGURES = re.compile(
    r"(came back|canceled before)  |[a-z]{3} +[\d,]+ +[\d,.]+$|[\d,]+ requests? in "
)
# What a log gets every ten seconds, which a busy machine may need for anything.
PROGRESS = re.compile(r"^(\[[#-]{20}\]|[\d,]+ searched)  .*\n", re.MULTILINE)

COMMAND = ("-m", "async_refunds")
IN_SHELL = (
    "-c",
    "import os, sys; os.execv('/bin/sh', ['sh', '-c', sys.argv[1], sys.executable])",
)
# The command as a job in the background of a script, for which a shell ignores Ctrl-C.
IN_BACKGROUND = (
    "-c",
    (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "runpy.run_module('async_refunds', run_name='__main__', alter_sys=True)"
    ),
)


class How(TypedDict, total=False):
    """What a process gets besides its arguments; pipes unless told otherwise.

    ``python`` is what a Python of its own runs; without it the process is forked, with
    the command imported (see `tests.support.forked`). ``encoding`` is the terminal's;
    ``folder`` is where it runs and where it has its temporary files; ``environment``
    is added to what it inherits.
    """

    key: str | None
    python: tuple[str, ...]
    encoding: str
    folder: Path
    environment: Mapping[str, str]
    stdin: int
    stdout: int
    stderr: int


@dataclass(frozen=True)
class Ended:
    """What a process left behind; stderr without the lines of progress."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> list[str]:
        """The lines of stderr without the money and effort of a batch at its end."""
        return [line for line in self.err.splitlines() if not FIGURES.match(line)]

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Stdout, as one JSON object a line."""
        return [json.loads(line) for line in self.out.splitlines()]


def _state(pid: int) -> str:
    """Return what Linux says a process does: R runs, S sleeps."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


class Running:
    """A process under way."""

    def __init__(self, process: asyncio.subprocess.Process | ForkedProcess) -> None:
        self.process = process
        self._told = ""

    async def says(self, pattern: str) -> re.Match[str]:
        """Wait for a line on stderr in which the pattern is found."""
        assert self.process.stderr is not None
        while line := (await self.process.stderr.readline()).decode():
            self._told += line
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"{pattern!r} is not in {self._told!r}")

    async def sleeps(self) -> None:
        """Wait until it waits for something, such as an answer that it asked for.

        A signal that comes just before a system call does not interrupt it.
        """
        while _state(self.process.pid) != "S":  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)

    async def ended(self) -> Ended:
        """Wait for its end; whatever it said, it never told the key."""
        out, err = await self.process.communicate()
        assert self.process.returncode is not None
        told, said = (out or b"").decode(), self._told + (err or b"").decode()
        assert CANARY not in told + said
        return Ended(self.process.returncode, told, PROGRESS.sub("", said))


@asynccontextmanager
async def started(*arguments: str, **how: Unpack[How]) -> AsyncGenerator[Running]:
    """Start a command; one that is still there at the end is killed."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in UNSET
        and not name.startswith("ASYNC_REFUNDS_")
        and not name.lower().endswith("_proxy")
    }
    environment["TERM"] = "xterm"
    key = how.get("key", TEST_KEY)
    if "encoding" in how:
        environment["PYTHONIOENCODING"] = how["encoding"]
    if key is not None:
        environment["STRIPE_API_KEY"] = key
    if "folder" in how:
        environment["TMPDIR"] = str(how["folder"])
    more = how.get("environment", {})
    environment.update(more)
    if not ({"python", "encoding"} & how.keys() or READ_AT_START & more.keys()):
        async with _forked(arguments, environment, how) as running:
            yield running
        return
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *how.get("python", COMMAND),
        *arguments,
        env=environment,
        cwd=how.get("folder"),
        stdin=how.get("stdin", DEVNULL),
        stdout=how.get("stdout", PIPE),
        stderr=how.get("stderr", PIPE),
    )
    try:
        yield Running(process)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@asynccontextmanager
async def _forked(
    arguments: Sequence[str], environment: Mapping[str, str], how: How
) -> AsyncGenerator[Running]:
    process = ForkedProcess(
        *(arguments, environment, how.get("folder")),
        [how.get("stdin", DEVNULL), how.get("stdout", PIPE), how.get("stderr", PIPE)],
    )
    await process.start()
    try:
        yield Running(process)
    finally:
        process.kill()
        await process.communicate()
        process.close()


async def run(*arguments: str, **how: Unpack[How]) -> Ended:
    """Run a command to its end."""
    async with started(*arguments, **how) as running:
        return await running.ended()


async def run_each(*commands: tuple[str, ...], **how: Unpack[How]) -> list[Ended]:
    """Run commands to their ends, beside each other."""
    return await asyncio.gather(*(run(*command, **how) for command in commands))


async def run_in_shell(line: str, **how: Unpack[How]) -> Ended:
    """Run a line of shell, in which ``refunds`` is the command."""
    command = 'refunds() { "$0" -m async_refunds "$@"; }'
    how["python"] = IN_SHELL
    return await run(f"{command}; {line}", **how)


def there(folder: Path, pattern: str) -> bool:
    """Tell whether a file of that name is in the folder."""
    return any(folder.glob(pattern))


async def appears(running: Running, folder: Path, pattern: str) -> None:
    """Wait for a file that a process makes, which tells nobody of it."""
    while not there(folder, pattern):
        if running.process.returncode is not None:
            ended = await running.ended()
            raise AssertionError(f"it ended before, with {ended.code}: {ended.err}")
        await asyncio.sleep(0.01)


class Screen:
    """A pseudo-terminal of so many columns, for a process to write to."""

    def __init__(self, columns: int = 200) -> None:
        self._screen, self.terminal = pty.openpty()
        termios.tcsetwinsize(self.terminal, (24, columns))
        self._shown = b""
        self._more = asyncio.Event()

    async def shows(self, running: Running) -> tuple[Ended, str]:
        """Wait for the end of the process, and for all that it wrote here."""
        showing = self.reading()
        ended = await running.ended()
        return ended, await showing

    def reading(self) -> asyncio.Task[str]:
        """Begin to read what is written here, until nobody does any more."""
        self.leave_to_process()
        tell = asyncio.get_running_loop().call_soon_threadsafe
        return asyncio.create_task(
            asyncio.to_thread(self._read, lambda: tell(self._more.set))
        )

    async def asks(self, text: str) -> None:
        """Wait until a text is shown, while the screen is being read."""
        while text.encode() not in self._shown:
            await self._more.wait()
            self._more.clear()

    async def answers(self, running: Running, text: str) -> tuple[Ended, str]:
        """Type a text once there is a question; then as `shows`."""
        showing = self.reading()
        await self.asks("[y/N]:")
        self.types(text)
        ended = await running.ended()
        return ended, await showing

    def types(self, text: str) -> None:
        """Write as a person at the keyboard."""
        os.write(self._screen, text.encode())

    def leave_to_process(self) -> None:
        """Close this side's handle of the terminal, so that an end can be seen."""
        os.close(self.terminal)

    def unplug(self) -> None:
        """Hang up on whoever writes."""
        os.close(self._screen)

    def _read(self, tell: Callable[[], object]) -> str:
        with suppress(OSError):  # how Linux says that nobody writes any more
            while data := os.read(self._screen, 65536):
                self._shown += data
                tell()
        self.unplug()
        text = self._shown.decode().replace("\r\n", "\n")
        assert CANARY not in text
        return text


class Gate:
    """Stands before an emulator and holds its answers back until it is opened."""

    def __init__(self, base_url: str) -> None:
        self._port = int(base_url.rpartition(":")[2])
        self._tasks: set[asyncio.Task[None]] = set()
        self._holds = asyncio.Queue[None]()
        self._open = asyncio.Event()
        self.base_url = ""
        """Of the gate, once it serves."""

    @asynccontextmanager
    async def serve(self) -> AsyncGenerator[str]:
        """Give the base URL of the gate."""
        server = await asyncio.start_server(self._enter, "127.0.0.1", 0)
        self.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self.base_url
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def holds(self, answers: int) -> None:
        """Wait until so many more answers are held back."""
        for _ in range(answers):
            await self._holds.get()

    def open(self) -> None:
        """Let them through, and all that follow."""
        self._open.set()

    def close(self) -> None:
        """Hold back what comes from now on."""
        self._open.clear()

    def _enter(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.create_task(self._connect(reader, writer))
        self._tasks.add(task)

    async def _connect(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        answers, requests = await asyncio.open_connection("127.0.0.1", self._port)
        asking = asyncio.create_task(self._ask(reader, requests))
        try:
            while data := await answers.read(65536):
                if not self._open.is_set():
                    self._holds.put_nowait(None)
                    await self._open.wait()
                writer.write(data)
        finally:
            asking.cancel()
            requests.close()
            writer.close()

    async def _ask(
        self, reader: asyncio.StreamReader, requests: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(65536):
            requests.write(data)
        requests.write_eof()


@asynccontextmanager
async def held(
    emulator: Emulator, answers: int, *arguments: str, **how: Unpack[How]
) -> AsyncGenerator[tuple[Gate, Running]]:
    """Start a command, and wait until so many answers to it are held back.

    Args:
        emulator: What it asks, through the gate.
        answers: How many.
        arguments: Of the command; ``--base-url`` is added.
        how: See `started`.
    """
    async with emulator.serve() as behind:
        gate = Gate(behind)
        async with (
            gate.serve() as base_url,
            started(*arguments, "--base-url", base_url, **how) as running,
        ):
            await gate.holds(answers)
            yield gate, running


def emulator_of(count: int) -> tuple[Emulator, list[str]]:
    """Make an emulator with so many refunds in requires_action, oldest first."""
    emulator = Emulator()
    return emulator, emulator.seed_refunds(count)
