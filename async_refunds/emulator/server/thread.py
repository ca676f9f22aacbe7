"""Serves from a thread of its own, for code that has no event loop to share."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator
    from contextlib import AbstractAsyncContextManager


@contextmanager
def in_thread(serving: AbstractAsyncContextManager[str]) -> Generator[str]:
    """Enter a context in a new event loop in a new thread.

    Exceptions from entering and leaving it are raised here.
    """
    loop = asyncio.new_event_loop()
    # A daemon: a test run that is killed must not wait for it.
    thread = threading.Thread(target=loop.run_forever, name="emulator", daemon=True)
    thread.start()

    async def enter() -> str:
        return await serving.__aenter__()

    async def leave() -> None:
        await serving.__aexit__(None, None, None)

    try:
        base_url = asyncio.run_coroutine_threadsafe(enter(), loop).result()
        try:
            yield base_url
        finally:
            asyncio.run_coroutine_threadsafe(leave(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
