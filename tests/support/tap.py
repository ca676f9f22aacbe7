"""A tap on the wire: what a client that tells little of its answers has received."""

from __future__ import annotations

import asyncio
import http.client
import io
import socket
import struct
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tests.support.stripe_schema import check_answer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Mapping

_RESET = struct.pack("ii", 1, 0)


@dataclass
class _Line:
    """The bytes of one connection."""

    asked: bytearray = field(default_factory=bytearray)
    answered: bytearray = field(default_factory=bytearray)


@dataclass(frozen=True)
class Exchange:
    """A request, and the whole answer to it."""

    method: str
    path: str
    status: int
    headers: Mapping[str, str]
    body: bytes


class Tap:
    """Passes bytes on, both ways, resets among them, and keeps them all."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = parts.hostname, parts.port
        self._lines: list[_Line] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    @asynccontextmanager
    async def serve(self) -> AsyncGenerator[str]:
        """Listen, and give the base URL to use in the place of the other."""
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def exchanges(self) -> Iterator[Exchange]:
        """Return what was answered in full; an answer that was cut is left out."""
        for line in self._lines:
            answers = _messages(bytes(line.answered))
            # An answer that never came is the last of its connection.
            for (asked, _, _), (told, headers, body) in zip(
                _messages(bytes(line.asked)), answers, strict=False
            ):
                method, target, _ = asked.split(" ")
                path = urlsplit(target).path
                yield Exchange(method, path, int(told.split(" ")[1]), headers, body)

    def check(self) -> int:
        """Fail unless Stripe's description allows each answer; return their number."""
        exchanges = list(self.exchanges())
        for each in exchanges:
            assert each.headers["Content-Type"] == "application/json"
            assert each.headers["Request-Id"].startswith("req_")
            check_answer(each.method, each.path, each.status, each.body)
        return len(exchanges)

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        line = _Line()
        self._lines.append(line)
        try:
            onward = await asyncio.open_connection(*self._upstream)
            ways = (
                asyncio.create_task(_pass(reader, onward[1], line.asked)),
                asyncio.create_task(_pass(onward[0], writer, line.answered)),
            )
            try:
                # Who ends one way has ended the conversation.
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                onward[1].close()
        finally:
            writer.close()
            self._tasks.discard(task)


async def _pass(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray
) -> None:
    try:
        while data := await reader.read(2**16):
            kept += data
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        sock = writer.get_extra_info("socket")
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        writer.transport.abort()


def _messages(data: bytes) -> Iterator[tuple[str, dict[str, str], bytes]]:
    """Read requests, or answers, that say how long their bodies are."""
    stream = io.BytesIO(data)
    while first := stream.readline().decode("latin-1").strip():
        headers = http.client.parse_headers(stream)
        length = int(headers.get("Content-Length", "0"))
        body = stream.read(length)
        if len(body) < length:
            return
        yield first, dict(headers), body
