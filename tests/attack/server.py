"""The attack's own server: sockets, and for each request what the script says."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from . import wire
from .canaries import KEY
from .script import Act
from .stripe import Answer, Books, Post, refund_id
from .wire import End, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_HONEST = Act(0, "", 0, 0)
_NEVER_REACHED = frozenset({"skip", "late"})
_MISPLACED = frozenset({"extra_now", "extra_soon", "extra_next"})


@dataclass
class Received:
    """A request as it came in."""

    method: str
    path: str
    headers: dict[str, str]

    @property
    def refund_id(self) -> str:
        return (self.path.partition("?")[0].split("/") + [""] * 4)[3]

    @property
    def key(self) -> str:
        return self.headers.get("idempotency-key", "")


@dataclass
class Server:
    """A listening socket, and what its script makes of each request.

    Args:
        books: What is behind it.
        acts: Of the script.
        scale: Real seconds for each second of the script.
    """

    books: Books
    acts: Iterable[Act]
    scale: float = 1.0
    greets: int = -1
    """The foreign answer that a new connection begins with, if not negative."""
    on_request: Callable[[int, str, Received], None] = lambda _n, _phase, _got: None
    """Called with each request's number, and how far it has come."""
    connections: int = 0
    requests: int = 0
    misplaced: int = 0
    """Answers that nobody asked for."""
    hung_up: bool = False
    """Whether it ended a connection, or listens no more."""
    faults: list[str] = field(default_factory=list[str])
    """What the client sent that no client should."""
    lines: list[str] = field(default_factory=list[str])
    """What happened, for people."""
    _counts: dict[tuple[str, str], int] = field(
        default_factory=dict[tuple[str, str], int]
    )
    open: set[_Connection] = field(default_factory=set["_Connection"])
    """Its connections."""

    def __post_init__(self) -> None:
        self._acts: dict[tuple[str, str], list[Act]] = {}
        for act in self.acts:
            name = refund_id(act.refund)
            self._acts.setdefault((name, act.method), []).append(act)
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._port: int = self._socket.getsockname()[1]
        # Only now: a port that is drawn must be nobody's. See `deafen`.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener: asyncio.Server | None = None
        self._keeper: socket.socket | None = None

    @property
    def url(self) -> str:
        """Where it is, also while it refuses connections."""
        return f"http://127.0.0.1:{self._port}"

    async def listen(self) -> None:
        """Accept connections; until then they are refused."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            lambda: _Connection(self), sock=self._socket, backlog=512
        )

    def deafen(self) -> None:
        """Refuse connections from now on, and keep those there are."""
        self.hung_up = True
        if self._listener is None or self._keeper is not None:
            return
        self._listener.close()
        # Its client goes on with this address: no other case may get it.
        self._keeper = socket.socket()
        self._keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._keeper.bind(("127.0.0.1", self._port))

    def close(self) -> None:
        """End everything."""
        self.deafen()
        self._socket.close()
        if self._keeper is not None:
            self._keeper.close()
        for connection in list(self.open):
            connection.end(End.RST)

    # ----------------------------------------------------------------------- a request

    def act(self, received: Received) -> Act:
        """Return what the script says of a request, and count it."""
        place = (received.refund_id, received.method)
        number = self._counts.get(place, 0)
        self._counts[place] = number + 1
        for act in self._acts.get(place, ()):
            if act.first <= number <= act.last:
                return act
        return _HONEST

    def handle(self, connection: _Connection, received: Received) -> None:
        """Carry out a request, or not, and answer it, or not."""
        self.requests += 1
        number = self.requests
        self._check(received)
        self.on_request(number, "before", received)
        act = self.act(received)
        post: Post | None = None
        if received.method == "POST":
            now = self.books.clock()
            post = Post(received.refund_id, received.key, now)
            self.books.posts.append(post)
        answer: Answer | None = None
        if act.api == "late":
            asyncio.get_running_loop().call_later(
                (act.value % 50) * self.scale, self._land, received
            )
        if act.api not in _NEVER_REACHED:
            answer = self._answer(received, act.api)
            self.on_request(number, "executed", received)
            if post is not None and answer.is_refusal:
                post.nameless = "Idempotency-Key" not in dict(answer.headers)
        steps = self._steps(act, answer, received, post)
        self.lines.append(
            f"t={self.books.clock() - 1000:8.3f} {received.method} "
            f"{received.refund_id} key={received.key[:8]} {act.api}/{act.wire}"
            f"({act.value}) -> {answer.status if answer else None}"
        )
        connection.play(steps, number, received)

    def _answer(self, received: Received, api: str) -> Answer:
        if received.method == "POST":
            return self.books.cancel(received.refund_id, received.key, api)
        return self.books.retrieve(received.refund_id, api)

    def _land(self, received: Received) -> None:
        self.lines.append(f"         late {received.method} {received.refund_id}")
        self._answer(received, "run")

    def _steps(
        self, act: Act, answer: Answer | None, received: Received, post: Post | None
    ) -> list[Step]:
        if answer is None:
            if act.wire in ("proxy", "proxy_close", "rst", "garbage", "stall"):
                answer = Answer(0, (), b"")
            else:
                return [End.HELD if act.api == "late" else End.FIN]
        if act.wire in _MISPLACED:
            self.misplaced += 1
            if post is not None:
                post.refused = answer.is_refusal
            other = wire.foreign(act.value, faithful=self.books.faithful)
            whole, more = wire.written(answer), wire.written(other)
            if act.wire == "extra_now":
                return [whole + more]
            if act.wire == "extra_soon":
                return [whole, 0.05, more]
            return [whole, more, End.EXTRA]
        if post is not None and act.wire in wire.INTACT:
            post.refused = answer.is_refusal
            post.final = act.wire == "no_retry"
        return wire.KINDS[act.wire](answer, act.value)

    def _check(self, received: Received) -> None:
        if received.headers.get("authorization") != f"Bearer {KEY}":
            self.faults.append("a request without the key")
        if received.method == "POST" and not received.key:
            self.faults.append("a cancel without an idempotency key")
        if received.method == "GET" and received.key:
            self.faults.append("a read with an idempotency key")


class _Connection(asyncio.Protocol):
    """One connection of the client."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._buffer = b""
        self._withheld = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._server.connections += 1
        self._server.open.add(self)
        # What has a name of Stripe's came late, and once. A proxy greets every time.
        greets = self._server.greets
        if greets >= 0 and (self._server.connections == 1 or greets in wire.NAMELESS):
            greeting = wire.foreign(self._server.greets, faithful=True)
            self._transport.write(wire.written(greeting))

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.open.discard(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
            headers = {
                name.lower(): value.strip()
                for name, _, value in (line.partition(":") for line in lines)
            }
            whole = end + 4 + int(headers.get("content-length", "0"))
            if len(self._buffer) < whole:
                return
            self._buffer = self._buffer[whole:]
            method, path, _ = first.split(" ")
            if self._withheld:
                self._transport.write(self._withheld)
                self._withheld = b""
            self._server.handle(self, Received(method, path, headers))

    def play(self, steps: list[Step], number: int, received: Received) -> None:
        """Send, wait, and end as the script says."""
        loop = asyncio.get_running_loop()
        if len(steps) > 1 and steps[-1] is End.EXTRA:
            withheld = steps[-2]
            assert isinstance(withheld, bytes)
            self._withheld = withheld
            steps = steps[:-2]
        for at, step in enumerate(steps):
            if isinstance(step, bytes):
                if not self._transport.is_closing():
                    self._transport.write(step)
            elif isinstance(step, End):
                self.end(step)
            else:
                rest, seconds = steps[at + 1 :], step * self._server.scale
                loop.call_later(seconds, self.play, rest, number, received)
                return
        self._server.on_request(number, "answered", received)

    def end(self, how: End) -> None:
        """End the connection, or hold it without a word."""
        self._server.hung_up = True
        if how is End.RST:
            found = self._transport.get_extra_info("socket")
            if found is not None and not self._transport.is_closing():
                linger = struct.pack("ii", 1, 0)
                found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._transport.abort()
        elif how is End.FIN:
            self._transport.close()
