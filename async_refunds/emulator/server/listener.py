"""The listening socket, which can refuse connections for a while."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from aiohttp import web

from .handler import Handler
from .webhooks import WebhookSender

if TYPE_CHECKING:
    from async_refunds.emulator.state.stripe_state import StripeState

    from .admin import AdminApi

# How many connections may wait to be accepted. A client that opens hundreds at once
# must meet only the refusals that a fault makes.
BACKLOG = 1024

# The longest request line. Beyond aiohttp's default of 8 KiB, a long list of expand[]
# would get an answer that is not Stripe's.
LONGEST_LINE = 2**20

# How long closing may take, in seconds. Everything that takes time has ended before.
CLOSING_SECONDS = 5.0


class Listener:
    """Serves on one address, within one event loop.

    The loop must have ``add_reader``, which the default loop of Windows lacks.

    Args:
        state: What the API works on.
        admin: Answers the requests that are for the emulator itself.
    """

    def __init__(self, state: StripeState, admin: AdminApi) -> None:
        self._loop = asyncio.get_running_loop()
        self._faults = state.faults
        self._books = state.books
        self._handler = Handler(state, admin, self._refuse)
        self._webhooks = WebhookSender(state.webhooks)
        self._web = web.Server(
            self._handler.handle,
            # A stalled request must notice that its client has hung up.
            handler_cancellation=True,
            access_log=None,
            # The API answers long lines in Stripe's words.
            max_line_size=LONGEST_LINE,
            # A compressed body is not a form: it is refused, not decompressed.
            auto_decompress=False,
        )
        self._address: tuple[str, int] = ("", 0)
        # A bare socket: an asyncio.Server fails on a connection that it accepted just
        # before it was closed, and `refuse` closes all the time.
        self._socket: socket.socket | None = None
        self._accepting: set[asyncio.Task[None]] = set()
        self._reopening: asyncio.Task[None] | None = None

    def open(self, host: str, port: int) -> str:
        """Listen, and return the base URL.

        Raises:
            OSError: The address cannot be used.
        """
        self._address = host, port
        listening = self._listen()
        self._address = host, listening.getsockname()[1]
        self._faults.connect_listener(self._refuse_scripted)
        self._webhooks.open()
        shown = f"[{host}]" if ":" in host else host
        return f"http://{shown}:{self._address[1]}"

    async def close(self) -> None:
        """Stop listening and end every request in flight at once."""
        self._faults.connect_listener(None)
        self._stop_listening()
        if self._reopening is not None:
            self._reopening.cancel()
            await asyncio.wait([self._reopening])
        await asyncio.gather(*self._accepting)
        for connection in self._web.connections:
            if connection in self._handler.busy and connection.transport is not None:
                connection.transport.abort()
        await self._handler.close()
        await self._webhooks.close()
        # Connections without a request would be waited for as long as possible.
        self._web.pre_shutdown()
        await self._web.shutdown(CLOSING_SECONDS)

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        listening = socket.create_server(self._address, family=family, backlog=BACKLOG)
        listening.settimeout(0)
        self._loop.add_reader(listening, self._accept, listening)
        self._socket = listening
        self._handler.closing = False
        return listening

    def _stop_listening(self) -> None:
        self._handler.closing = True
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _accept(self, listening: socket.socket) -> None:
        try:
            connection, _ = listening.accept()
        except OSError:
            # The client has left, or no file handle is free: the loop calls again.
            return
        connection.settimeout(0)
        task = self._loop.create_task(self._connect(connection))
        self._accepting.add(task)
        task.add_done_callback(self._accepting.discard)

    async def _connect(self, connection: socket.socket) -> None:
        transport, _ = await self._loop.connect_accepted_socket(self._web, connection)
        if self._socket is None:
            transport.abort()

    def _refuse_scripted(self) -> bool:
        """Refuse connections because the script says so, in whatever thread."""
        try:
            same_loop = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            same_loop = False
        if not same_loop:
            self._loop.call_soon_threadsafe(self._faults.refuse_if_next)
            return False
        if not self._refuse():
            return False
        self._books.faults["refuse"] += 1
        return True

    def _refuse(self) -> bool:
        """Refuse connections for a moment, unless they are refused already."""
        if self._socket is None:
            return False
        self._stop_listening()
        for connection in self._web.connections:
            if connection not in self._handler.busy:
                connection.force_close()
        self._reopening = self._loop.create_task(self._reopen())
        return True

    async def _reopen(self) -> None:
        while self._socket is None:
            await asyncio.sleep(self._faults.refuse_seconds)
            # Another process may have taken the port; it may also leave again.
            with suppress(OSError):
                self._listen()
        self._faults.refuse_if_next()
