"""The clients of a web service, some of which hang up, and what each was answered."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable
    from random import Random

HUNG_UP = 0
"""In place of a status."""

# Seconds until a client hangs up, at most and at least, evenly by magnitude: before
# the call, during it, and when it is nearly over.
_PATIENCE, _LEAST = 0.5, 0.002
_LINGER = struct.pack("ii", 1, 0)  # close sends a reset


class Answer(msgspec.Struct, frozen=True):
    """What one client got for its refund."""

    refund_id: str
    status: int
    body: bytes = b""


class Browser:
    """One connection to the service, made again when it is gone.

    Args:
        address: Host and port.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def post(self, path: str) -> tuple[int, bytes]:
        """Return status and body of the answer to a POST without a body."""
        reader = await self._send(path)
        head = await reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        body = await reader.readexactly(length)
        if b"\r\nconnection: close" in head.lower():
            await self.close()
        return int(head.split(b" ", 2)[1]), body

    async def _send(self, path: str) -> asyncio.StreamReader:
        if self._reader is None or self._writer is None:
            opened = await asyncio.open_connection(*self._address)
            self._reader, self._writer = opened
        head = f"POST {path} HTTP/1.1\r\nHost: service\r\nContent-Length: 0\r\n\r\n"
        self._writer.write(head.encode())
        return self._reader

    async def close(self, *, reset: bool = False) -> None:
        """Close the connection, by a FIN or a reset."""
        writer, self._reader, self._writer = self._writer, None, None
        if writer is None:
            return
        if reset:
            own: socket.socket = writer.get_extra_info("socket")
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
        writer.close()
        await writer.wait_closed()


def path_of(refund_id: str) -> str:
    """Return the path and query of a cancel; the key stays the same for a refund."""
    return f"/refunds/{refund_id}/cancel?request_key=intent-{refund_id}"


async def storm(
    address: tuple[str, int],
    refund_ids: Iterable[str],
    *,
    in_flight: int,
    hang_ups: float,
    random: Random,
) -> list[Answer]:
    """Ask for each refund once, so many at a time; return what was answered.

    Args:
        address: Of the service.
        refund_ids: What to cancel.
        in_flight: How many clients there are.
        hang_ups: The probability that a client does not wait for the answer.
        random: Draws who hangs up, when and how.
    """
    waiting = iter(refund_ids)
    answers: list[Answer] = []

    async def client() -> None:
        browser = Browser(address)
        for refund_id in waiting:
            patience = None
            if random.random() < hang_ups:
                patience = _PATIENCE * (_LEAST / _PATIENCE) ** random.random()
            try:
                async with asyncio.timeout(patience):
                    status, body = await browser.post(path_of(refund_id))
            except TimeoutError:
                await browser.close(reset=random.random() < 0.5)  # noqa: PLR2004 - half of them
                status, body = HUNG_UP, b""
            answers.append(Answer(refund_id, status, body))
        await browser.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(client())
    return answers
