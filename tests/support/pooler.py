"""A pooler as PgBouncer is with ``pool_mode = transaction``.

Each transaction goes to the next of its connections to the server, so that whatever a
client has left in a session, such as a prepared statement, is somewhere else then.
"""

from __future__ import annotations

import asyncio
import secrets
import struct
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

# https://www.postgresql.org/docs/current/protocol-message-formats.html
_ENCRYPT = (80877103, 80877104)  # TLS, GSSAPI
_CANCEL = 80877102
_READY, _PARAMETER, _KEY = b"Z", b"S", b"K"
_ASKS_FOR_READY = (b"Q", b"S")
_TERMINATE = b"X"


class _Stream:
    """The messages of one connection, each with its type and length."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._reader, self._writer = reader, writer
        self._buffer = b""

    async def _peek(self, size: int) -> None:
        # Nothing is lost if the wait is cancelled.
        while len(self._buffer) < size:
            data = await self._reader.read(65536)
            if not data:
                raise EOFError
            self._buffer += data

    async def message(self, *, typed: bool = True) -> bytes:
        """Return the next message; the first ones of a client have no type."""
        await self._peek(4 + typed)
        (length,) = struct.unpack_from("!i", self._buffer, typed)
        await self._peek(typed + length)
        message = self._buffer[: typed + length]
        self._buffer = self._buffer[typed + length :]
        return message

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    def close(self) -> None:
        self._writer.close()


class _Server(_Stream):
    """A connection to the server, used for one transaction at a time."""

    greeting: bytes = b""
    """What a client of it is told of the server."""

    async def begin(self, startup: bytes) -> None:
        self.send(startup)
        while (message := await self.message())[:1] != _READY:
            if message[:1] == _PARAMETER:
                self.greeting += message

    async def carry(self, first: bytes, client: _Stream) -> None:
        """Carry the messages of a transaction, of which the first is known."""
        awaited = 0  # messages that say that the server is ready

        def send(message: bytes) -> None:
            nonlocal awaited
            awaited += message[:1] in _ASKS_FOR_READY
            self.send(message)

        async def send_on() -> None:
            while True:
                send(await client.message())

        send(first)
        sending = asyncio.create_task(send_on())
        try:
            while True:
                message = await self.message()
                awaited -= message[:1] == _READY
                client.send(message)
                if message[:1] == _READY and not awaited and message[5:] == b"I":
                    return
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


class TransactionPooler:
    """Listens on a port of the loopback.

    Args:
        target: The Unix socket of the server.
        size: Connections to it.
    """

    def __init__(self, target: Path, *, size: int = 2) -> None:
        self._target, self._size = target, size
        self._servers: list[_Server] = []
        self._opening = asyncio.Lock()
        # The one that has been free for longest comes next.
        self._free: asyncio.Queue[_Server] = asyncio.Queue()
        self._clients: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def serve(self) -> AsyncGenerator[int]:
        """Accept connections until the end of the block; give the port."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for task in self._clients:
                task.cancel()
            await asyncio.gather(*self._clients, return_exceptions=True)
            for each in self._servers:
                each.close()

    def _accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.create_task(self._serve(_Stream(reader, writer)))
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _serve(self, client: _Stream) -> None:
        try:
            with suppress(EOFError, OSError):
                await self._talk(client)
        finally:
            client.close()

    async def _talk(self, client: _Stream) -> None:
        while True:
            startup = await client.message(typed=False)
            (code,) = struct.unpack_from("!i", startup, 4)
            if code not in _ENCRYPT:
                break
            client.send(b"N")
        if code == _CANCEL:
            return
        await self._open(startup)
        welcome = struct.pack("!cii", b"R", 8, 0) + self._servers[0].greeting
        # A key of its own, for whoever asks it to cancel.
        key = struct.pack("!ciii", _KEY, 12, 2**31 - 1, secrets.randbelow(2**31))
        client.send(welcome + key + struct.pack("!cic", _READY, 5, b"I"))
        while (message := await client.message())[:1] != _TERMINATE:
            server = await self._free.get()
            try:
                await server.carry(message, client)
            finally:
                self._free.put_nowait(server)

    async def _open(self, startup: bytes) -> None:
        """Connect to the server as the first client asks for: all are alike."""
        async with self._opening:
            while len(self._servers) < self._size:
                server = _Server(*await asyncio.open_unix_connection(str(self._target)))
                await server.begin(startup)
                self._servers.append(server)
                self._free.put_nowait(server)
