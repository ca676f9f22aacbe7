"""As little HTTP as gets an answer from the canned server, and no more."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

_LENGTH = re.compile(rb"\r\nContent-Length: (\d+)\r\n")


@contextlib.asynccontextmanager
async def pool(
    base_url: str, size: int
) -> AsyncGenerator[Callable[[str], Awaitable[bytes]], None]:
    """Open so many connections, and give a function from a request to a body.

    At most ``size`` calls may be under way at once.
    """
    parts = urlsplit(base_url)
    idle = [
        await asyncio.open_connection(parts.hostname, parts.port) for _ in range(size)
    ]

    async def exchange(request: str) -> bytes:
        connection = idle.pop()
        reader, writer = connection
        writer.write(request.encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if length is None or not head.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError("the canned server did not give its answer")
        body = await reader.readexactly(int(length[1]))
        idle.append(connection)
        return body

    try:
        yield exchange
    finally:
        for _, writer in idle:
            writer.close()
            await writer.wait_closed()
