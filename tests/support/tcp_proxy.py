"""A port that stays the same while what is behind it fails, moves or falls silent."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

# Lingering for no time at all makes a close a reset.
_RESET = struct.pack("ii", 1, 0)


class TcpProxy:
    """Carries connections from a port of the loopback to a Unix socket.

    Args:
        target: The Unix socket.

    Attributes:
        target: Where new connections go.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self._socket = _bound(0)
        self.port: int = self._socket.getsockname()[1]
        """Stays the same, also while connections are refused."""
        self._accepting = False
        self.ends: set[_End] = set()
        """Both ends of each connection, from the moment that it is accepted."""
        self.held = False
        """Whether no byte is carried."""
        self.losing_answer = False
        """Whether the next bytes from the target are lost, and their connection."""
        self._tasks: set[asyncio.Task[Any]] = set()

    async def accept(self) -> None:
        """Accept connections; until then they are refused."""
        # No server of asyncio, which loses what it accepts as it is closed.
        if not self._accepting:
            self._accepting = True
            self._socket.listen()
            asyncio.get_running_loop().add_reader(self._socket, self._accept)

    def refuse(self) -> None:
        """Refuse connections from now on, and keep those there are."""
        if self._accepting:
            self._accepting = False
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = _bound(self.port)  # nobody else gets the port meanwhile

    def cut(self) -> None:
        """Reset every connection."""
        for end in list(self.ends):
            end.reset()

    def hold(self) -> None:
        """Carry no byte, and end no connection, as a broken network does."""
        self.held = True
        for end in self.ends:
            if end.made:
                end.transport.pause_reading()

    def lose_next_answer(self) -> None:
        """Reset the connection on which the next answer comes, in place of carrying it.

        What was asked for is done: a commit is in doubt.
        """
        self.losing_answer = True

    def release(self) -> None:
        """Carry again, and first what was sent meanwhile."""
        self.held = False
        for end in self.ends:
            if end.made and end.peer is not None:
                end.transport.resume_reading()

    def close(self) -> None:
        """Reset every connection, and free the port."""
        self.refuse()
        self.cut()
        self._socket.close()

    def _accept(self) -> None:
        try:
            client, _ = self._socket.accept()
        except OSError:  # it left at once
            return
        client.setblocking(False)  # noqa: FBT003 - its name for it
        end = _End(self)
        loop = asyncio.get_running_loop()
        self._start(loop.connect_accepted_socket(lambda: end, client))

    def join(self, end: _End) -> None:
        """Connect a client that has come to the target."""
        self._start(self._join(end))

    async def _join(self, end: _End) -> None:
        try:
            await asyncio.get_running_loop().create_unix_connection(
                lambda: _End(self, end), str(self.target)
            )
        except OSError:  # nobody listens there
            end.reset()

    def _start(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # or it may be collected before it is done
        task.add_done_callback(self._tasks.discard)


class _End(asyncio.Protocol):
    """One end of a connection: the client's, or, with a peer, the server's."""

    def __init__(self, proxy: TcpProxy, peer: _End | None = None) -> None:
        self._proxy = proxy
        self.peer = peer
        self._of_target = peer is not None
        self.transport: asyncio.Transport
        self.made = False
        """Whether it has a transport yet."""
        self._cut = False
        proxy.ends.add(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.made = True
        # It was cut, or its other side was, or left, before it came so far.
        if self._cut or (self.peer is not None and self.peer.transport.is_closing()):
            self.reset()
            return
        if self.peer is None:
            self.transport.pause_reading()  # until there is where to carry it
            self._proxy.join(self)
            return
        self.peer.peer = self
        if self._proxy.held:
            self.transport.pause_reading()
        else:
            self.peer.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        assert self.peer is not None
        if self._of_target and self._proxy.losing_answer:
            self._proxy.losing_answer = False
            self.peer.reset()
            self.reset()
            return
        self.peer.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._proxy.ends.discard(self)
        if self.peer is not None:
            self.peer.transport.close()  # neither side of PostgreSQL half-closes

    def reset(self) -> None:
        """End the connection at once, or as soon as there is one."""
        if not self.made:
            self._cut = True
            return
        found = self.transport.get_extra_info("socket")
        if found.family == socket.AF_INET and not self.transport.is_closing():
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()


def _bound(port: int) -> socket.socket:
    made = socket.socket()
    made.setblocking(False)  # noqa: FBT003 - its name for it
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", port))
    return made
