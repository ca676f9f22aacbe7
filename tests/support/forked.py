"""Commands in processes that are forked from one that has imported everything.

An interpreter's start and the imports take longer than nearly every command of a test.
Python's own fork server pays for them once. A forked process has its own arguments,
environment, folder, streams and signals, and is killed and waited for like any other.
"""

from __future__ import annotations

import asyncio
import io
import multiprocessing
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from multiprocessing import forkserver, reduction
from typing import TYPE_CHECKING, Any

import coverage

from async_refunds.__main__ import main
from async_refunds.cli import app as _imported_here_and_not_in_each

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

del _imported_here_and_not_in_each

# What only the first import or the start of Python reads: such a process is not forked.
READ_AT_START = {"SSL_CERT_FILE", "ASYNC_REFUNDS_LOG"}

_STDERR = 2

_forking = multiprocessing.get_context("forkserver")
# Those that are not there are passed over, such as typer's own of another release.
_forking.set_forkserver_preload(
    ["coverage", "typer._adapters", "async_refunds.cli.fleet.commands", __name__]
)


class ForkedProcess:
    """A process of the command, in the shape of `asyncio.subprocess.Process`.

    Args:
        words: The arguments.
        environment: All variables.
        folder: Where it runs.
        streams: Of stdin, stdout and stderr: a descriptor, ``DEVNULL`` or ``PIPE``.
    """

    def __init__(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        folder: Path | None,
        streams: Sequence[int],
    ) -> None:
        _ensure_server()
        self._words = words
        self._environment = {**environment}
        self._folder = folder
        self._streams = streams
        self._readers: list[asyncio.StreamReader | None] = []
        self._pipes: list[asyncio.ReadTransport] = []
        self._ended = asyncio.Event()

    async def start(self) -> None:
        """Start it."""
        streams = [await self._stream(each) for each in self._streams]
        self._process = _forking.Process(
            target=_become_command,
            args=(
                *(self._words, self._environment, self._folder),
                [_Descriptor(each) for each in streams],
            ),
        )
        self._process.start()
        for ours, given in zip(streams, self._streams, strict=True):
            if ours != given:
                os.close(ours)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._process.sentinel, self._note_end)

    async def _stream(self, given: int) -> int:
        """Return a descriptor for the process, and begin to read a pipe."""
        reader, descriptor = None, given
        if given == DEVNULL:
            descriptor = os.open(os.devnull, os.O_RDWR)
        elif given == PIPE:
            read, descriptor = os.pipe()
            reader = await self._reader(read)
        self._readers.append(reader)
        return descriptor

    async def _reader(self, descriptor: int) -> asyncio.StreamReader:
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader),
            os.fdopen(descriptor, "rb", 0),
        )
        self._pipes.append(transport)
        return reader

    def _note_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._process.sentinel)
        self._ended.set()

    @property
    def stderr(self) -> asyncio.StreamReader | None:
        """Its stderr, if that is a pipe."""
        return self._readers[2]

    @property
    def returncode(self) -> int | None:
        """The exit code, if it has ended."""
        return self._process.exitcode

    @property
    def pid(self) -> int:
        """Its number, which others have once it is closed."""
        pid = self._process.pid
        assert pid is not None
        return pid

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, if it is still there."""
        if self.returncode is None:
            self.send_signal(signal.SIGKILL)

    async def communicate(self) -> tuple[bytes, bytes]:
        """Wait for its end, and return what it wrote to pipes."""
        readers = [each for each in self._readers[1:] if each is not None]
        told = iter(await asyncio.gather(*(each.read() for each in readers)))
        out, err = (next(told) if each else b"" for each in self._readers[1:])
        await self._ended.wait()
        return out, err

    def close(self) -> None:
        """Let go of it, once it has ended."""
        for pipe in self._pipes:
            pipe.close()
        self._process.join()
        self._process.close()


def _ensure_server() -> None:
    """Start the fork server, which lives as long as the tests; coverage skips it.

    It would write its figures when those of the tests are combined already.
    """
    measured = {
        name: os.environ.pop(name)
        for name in [*os.environ]
        if name.startswith("COVERAGE_PROCESS")
    }
    try:
        forkserver.ensure_running()
    finally:
        os.environ.update(measured)


class _Descriptor:
    """A descriptor of this process that arrives in another one as its own there."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __reduce__(self) -> tuple[Callable[[Any], int], tuple[Any]]:
        return _received, (reduction.DupFd(self._number),)


def _received(descriptor: Any) -> int:  # noqa: ANN401 - multiprocessing does not say
    number: int = descriptor.detach()
    return number


def _become_command(
    words: Sequence[str],
    environment: Mapping[str, str],
    folder: Path | None,
    streams: Sequence[int],
) -> None:
    """Run the command, in a process just forked."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(environment)
    if folder is not None:
        os.chdir(folder)
    sys.stdin, sys.stdout, sys.stderr = _text(0, "r"), _text(1, "w"), _text(2, "w")
    sys.argv = ["async-refunds", *words]
    coverage.process_startup()
    main()


def _text(descriptor: int, mode: str) -> io.TextIOWrapper:
    """Open a standard stream as Python does at its start."""
    raw = io.FileIO(descriptor, mode, closefd=False)
    buffered = io.BufferedReader(raw) if mode == "r" else io.BufferedWriter(raw)
    return io.TextIOWrapper(
        buffered,
        "utf-8",
        "backslashreplace" if descriptor == _STDERR else "strict",
        line_buffering=descriptor == _STDERR or os.isatty(descriptor),
    )
