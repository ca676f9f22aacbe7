"""A server on a real socket that answers each request with the next act of a script."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from async_refunds import RefundsClient

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Mapping

KEY = "sk_test_scripted"
RE = "re_1Pgc72B7WZ01zgkWqPvrRrPE"

_FIXTURE = Path(__file__).parent / "stripe" / "refund.fixture.json"

Act = bytes | Literal["reset", "close", "stall", "trickle"]
"""What to answer, or what to do instead; a ``bytes`` keeps the connection."""


def refund_json(status: str | None = "canceled", **fields: object) -> bytes:
    """Return a real refund, as Stripe would send it, in another state."""
    refund: dict[str, Any] = json.loads(_FIXTURE.read_text())
    return json.dumps({**refund, "id": RE, "status": status, **fields}).encode()


def error_json(**fields: object) -> bytes:
    """Return Stripe's error envelope."""
    return json.dumps(
        {"error": {"type": "invalid_request_error", "message": "No.", **fields}}
    ).encode()


def answer(
    status: int = 200,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """Return a whole HTTP answer, of a canceled refund unless told otherwise."""
    body = refund_json() if body is None else body
    lines = [
        f"HTTP/1.1 {status} Whatever",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


CANCELED = answer(headers={"Request-Id": "req_canceled"})


@dataclass
class Received:
    """A request as it came over the wire."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int
    header_lines: list[str]
    """As they came: in their order, with their case, and each as often."""


@dataclass
class Scripted:
    """The script, and what was received."""

    cancels: list[Act] = field(default_factory=list[Act])
    """For each POST in turn; the last act stays."""
    reads: list[Act] = field(default_factory=list[Act])
    """For each GET in turn; the last act stays."""
    received: list[Received] = field(default_factory=list[Received])
    connections: int = 0
    open: int = 0
    """Connections that neither side has closed."""
    url: str = ""
    greeting: bytes = b""
    """Said on each connection before anything was asked."""
    writers: set[asyncio.StreamWriter] = field(
        default_factory=set[asyncio.StreamWriter]
    )

    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    """Set with each request."""

    @property
    def cancel_keys(self) -> set[str | None]:
        """Return the idempotency keys of all cancels."""
        return {
            request.headers.get("idempotency-key")
            for request in self.received
            if request.method == "POST"
        }

    def methods(self) -> str:
        """Return the methods received, as ``"POST POST GET"``."""
        return " ".join(request.method for request in self.received)

    def client(self, **options: Any) -> RefundsClient:  # noqa: ANN401 - passed on
        """Return a client of this server."""
        return RefundsClient(options.pop("api_key", KEY), base_url=self.url, **options)

    async def received_at_least(self, count: int) -> None:
        """Wait until so many requests have arrived."""
        while len(self.received) < count:
            self.arrived.clear()
            await self.arrived.wait()

    def act_for(self, request: Received) -> Act:
        """Return what to do with a request: the next act of its kind."""
        acts = self.cancels if request.method == "POST" else self.reads
        return acts.pop(0) if len(acts) > 1 else acts[0]

    def say(self, stray: bytes) -> None:
        """Write on every open connection what nobody asked for."""
        for writer in self.writers:
            writer.write(stray)

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.connections += 1
        self.open += 1
        self.writers.add(writer)
        writer.write(self.greeting)
        try:
            await self._converse(reader, writer, self.connections)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client hung up
        finally:
            self.open -= 1
            self.writers.discard(writer)
            writer.close()

    async def _converse(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        connection: int,
    ) -> None:
        while True:
            request = await _read_request(reader, connection)
            self.received.append(request)
            self.arrived.set()
            act = self.act_for(request)
            if act == "stall":
                await reader.read()  # ends when the client hangs up
                return
            if act == "reset":
                sock: socket.socket = writer.get_extra_info("socket")
                linger = struct.pack("ii", 1, 0)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
                return
            if act == "close":
                return
            if act == "trickle":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n")
                while True:
                    writer.write(b" ")
                    await writer.drain()
                    await asyncio.sleep(1.0)
            assert isinstance(act, bytes)
            key = request.headers.get("idempotency-key", "")
            writer.write(act.replace(ECHO.encode(), key.encode()))
            await writer.drain()
            if act.endswith(CUT):
                return


ECHO = "<the key of the request>"
"""A header's value that the server replaces by the key that it received."""


def refusal(
    status: int,
    headers: Mapping[str, str] | None = None,
    *,
    echo: bool = True,
    **fields: object,
) -> bytes:
    """Return a refusal as Stripe gives it: with its name, and the request's key."""
    named = {"Request-Id": "req_refused", **({"Idempotency-Key": ECHO} if echo else {})}
    return answer(status, error_json(**fields), {**named, **(headers or {})})


S = TypeVar("S", bound=Scripted)

CUT = b"...cut"
"""An answer that ends in this ends the connection too."""


async def _read_request(reader: asyncio.StreamReader, connection: int) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.rstrip().split("\r\n")
    method, target, _ = first.split(" ")
    headers = {
        name.lower(): value.strip()
        for name, _, value in (line.partition(":") for line in lines)
    }
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(method, target, headers, body, connection, lines)


@asynccontextmanager
async def scripted(
    *cancels: Act,
    reads: list[Act] | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncGenerator[Scripted]:
    """Serve a script: the acts of the cancels, then those of the reads."""
    async with served(Scripted(list(cancels), list(reads or [])), tls) as script:
        yield script


@asynccontextmanager
async def served(script: S, tls: ssl.SSLContext | None = None) -> AsyncGenerator[S]:
    """Serve a script, also one of a kind of its own."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        await script.serve(reader, writer)
        tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    script.url = f"http{'s' if tls else ''}://127.0.0.1:{port}"
    try:
        yield script
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)


def seen(status: str | None, **fields: object) -> bytes:
    """Return the answer to a read of a refund in that state."""
    return answer(
        body=refund_json(status, **fields), headers={"Request-Id": "req_seen"}
    )
