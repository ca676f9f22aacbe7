"""A proxy that keeps what passes: the answers that a client does not show."""

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
class _Connection:
    """The bytes of one connection."""

    sent: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)


@dataclass(frozen=True)
class Exchange:
    """A request and its whole answer."""

    method: str
    path: str
    status: int
    headers: Mapping[str, str]
    body: bytes


class Tap:
    """Passes bytes and resets on in both directions, and keeps the bytes."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = parts.hostname, parts.port
        self._connections: list[_Connection] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    @asynccontextmanager
    async def serve(self) -> AsyncGenerator[str]:
        """Listen, and give the base URL for the client."""
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def exchanges(self) -> Iterator[Exchange]:
        """Yield the requests that have a whole answer."""
        for connection in self._connections:
            requests = _messages(bytes(connection.sent))
            answers = _messages(bytes(connection.received))
            # A request without an answer is the last of its connection.
            for (request, _, _), (status, headers, body) in zip(
                requests, answers, strict=False
            ):
                method, target, _ = request.split(" ")
                path = urlsplit(target).path
                yield Exchange(method, path, int(status.split(" ")[1]), headers, body)

    def check(self) -> int:
        """Fail if Stripe's description forbids an answer; return how many there are."""
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
        connection = _Connection()
        self._connections.append(connection)
        try:
            upstream = await asyncio.open_connection(*self._upstream)
            directions = (
                asyncio.create_task(_pass(reader, upstream[1], connection.sent)),
                asyncio.create_task(_pass(upstream[0], writer, connection.received)),
            )
            try:
                # Either side ends the connection.
                await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for direction in directions:
                    direction.cancel()
                upstream[1].close()
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
    """Yield the first line, the headers and the body of each whole message."""
    stream = io.BytesIO(data)
    while first := stream.readline().decode("latin-1").strip():
        headers = http.client.parse_headers(stream)
        length = int(headers.get("Content-Length", "0"))
        body = stream.read(length)
        if len(body) < length:
            return
        yield first, dict(headers), body
