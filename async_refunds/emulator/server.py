"""The emulator's door: a listening socket that can be shut and opened again."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from aiohttp import web

from .handling import Handling

if TYPE_CHECKING:
    from collections.abc import Callable

    from .books import ReceivedRequest
    from .control import Control
    from .faults import Faults
    from .service import Service

# How many connections may wait to be accepted: a client that opens some hundred at
# once must meet no refusal but those asked for.
BACKLOG = 1024

# The longest request line that is read; aiohttp's own 8 KiB would answer a long list of
# expand[] with an error that is none of Stripe's.
LONGEST_LINE = 2**20

# How long closing may take, in seconds; all that could last has been ended before.
CLOSING_SECONDS = 5.0


class Server:
    """Serves one emulator on one address; used within one event loop.

    The loop must have ``add_reader``, which the default loop of Windows lacks.

    Args:
        service: Answers.
        faults: Says what goes wrong.
        control: Answers what is not for Stripe but for the emulator.
        log: Gets a record of each request.
    """

    def __init__(
        self,
        service: Service,
        faults: Faults,
        control: Control,
        log: Callable[[ReceivedRequest], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._faults = faults
        self._books = service.books
        self._handling = Handling(service, faults, control, log, self._refuse)
        self._web = web.Server(
            self._handling.handle,
            # A stalled request must learn that its client has hung up.
            handler_cancellation=True,
            access_log=None,
            # Long lines are answered by the API, in its words.
            max_line_size=LONGEST_LINE,
            # What claims to be compressed is no form: it is refused, not unpacked.
            auto_decompress=False,
        )
        self._address: tuple[str, int] = ("", 0)
        # An asyncio.Server trips over a connection that it accepted just before it
        # was closed, and `refuse` closes all the time: so the door is a bare socket.
        self._door: socket.socket | None = None
        self._entering: set[asyncio.Task[None]] = set()
        self._refusing: asyncio.Task[None] | None = None

    def open(self, host: str, port: int) -> str:
        """Listen, and return the base URL.

        Raises:
            OSError: The address cannot be had.
        """
        self._address = host, port
        door = self._listen()
        self._address = host, door.getsockname()[1]
        self._faults.watch(self._refuse_scripted)
        shown = f"[{host}]" if ":" in host else host
        return f"http://{shown}:{self._address[1]}"

    async def close(self) -> None:
        """Stop listening and end every request under way at once."""
        self._faults.watch(None)
        self._shut()
        if self._refusing is not None:
            self._refusing.cancel()
            await asyncio.wait([self._refusing])
        await asyncio.gather(*self._entering)
        for connection in self._web.connections:
            if connection in self._handling.busy and connection.transport is not None:
                connection.transport.abort()
        await self._handling.close()
        await self._web.shutdown(CLOSING_SECONDS)

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        door = socket.create_server(self._address, family=family, backlog=BACKLOG)
        door.settimeout(0)
        self._loop.add_reader(door, self._accept, door)
        self._door = door
        self._handling.closing = False
        return door

    def _shut(self) -> None:
        self._handling.closing = True
        if self._door is not None:
            self._loop.remove_reader(self._door)
            self._door.close()
            self._door = None

    def _accept(self, door: socket.socket) -> None:
        try:
            connection, _ = door.accept()
        except OSError:
            # Gone again, or no file handle is free: the loop asks again.
            return
        connection.settimeout(0)
        task = self._loop.create_task(self._enter(connection))
        self._entering.add(task)
        task.add_done_callback(self._entering.discard)

    async def _enter(self, connection: socket.socket) -> None:
        transport, _ = await self._loop.connect_accepted_socket(self._web, connection)
        if self._door is None:
            transport.abort()

    def _refuse_scripted(self) -> bool:
        """Shut the door for a script, in whatever thread it was written."""
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            here = False
        if not here:
            self._loop.call_soon_threadsafe(self._faults.settle)
            return False
        if not self._refuse():
            return False
        self._books.faults["refuse"] += 1
        return True

    def _refuse(self) -> bool:
        """Shut the door for a moment, unless it is shut already."""
        if self._door is None:
            return False
        self._shut()
        for connection in self._web.connections:
            if connection not in self._handling.busy:
                connection.force_close()
        self._refusing = self._loop.create_task(self._reopen())
        return True

    async def _reopen(self) -> None:
        while self._door is None:
            await asyncio.sleep(self._faults.refuse_seconds)
            # Somebody else may have got the port meanwhile; they may leave again.
            with suppress(OSError):
                self._listen()
        self._faults.settle()
