"""A server that answers each request by a function of the test."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tests.support.scripted import ECHO, answer, refund_json

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable


def canceled(refund_id: str) -> bytes:
    """Return the answer to a cancel that succeeded."""
    return answer(200, refund_json(id=refund_id))


@asynccontextmanager
async def answering(respond: Callable[[str, str], bytes]) -> AsyncGenerator[str]:
    """Serve, and yield the base URL.

    Args:
        respond: Returns the whole HTTP answer to a method (``"POST"``) about a refund.
    """
    writers: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                method, path, _ = head.split(" ", 2)
                key = re.search("idempotency-key: (.*)", head, re.IGNORECASE)
                act = respond(method, path.split("/")[3])
                echoed = key[1].strip().encode() if key else b""
                writer.write(act.replace(ECHO.encode(), echoed))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client hung up
        finally:
            writers.discard(writer)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.close()
        for writer in list(writers):
            writer.close()
        await asyncio.sleep(0)
