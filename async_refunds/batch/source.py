"""The input of a batch: any iterable of ids, read only as fast as it is needed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator
from itertools import islice
from typing import TypeAlias

import msgspec

from async_refunds.protocol import validation
from async_refunds.protocol.redaction import scrub
from async_refunds.results import CancelRequest, CancelResult

Requests: TypeAlias = Iterable[str | CancelRequest] | AsyncIterable[str | CancelRequest]
"""What may be canceled: ids, or requests that name the account too."""

CHUNK = 1000
"""The most requests that are read at once: the journal keeps them with one commit."""

# Seconds after which a chunk ends anyway. While it is read, the loop does nothing else.
_CHUNK_SECONDS = 0.005

# Seconds to wait for an asynchronous input to end, after its task was cancelled.
_PATIENCE = 1.0

# The most characters that a result shows of an input that is not an id.
_SHOWN = 80


class Chunk(msgspec.Struct, frozen=True):
    """Some of the input."""

    requests: list[str | CancelRequest]
    error: BaseException | None = None
    """What the input raised after them; no chunk follows."""
    last: bool = False
    """Whether the input has ended."""


async def read_chunks(requests: Requests) -> AsyncGenerator[Chunk]:
    """Yield the input in chunks.

    A slow input gives smaller chunks: what has been read is not held back until a chunk
    is full. KeyboardInterrupt and SystemExit are raised; any other exception of the
    input is told in the last chunk.
    """
    if isinstance(requests, AsyncIterable):
        chunks = _read_async(requests)
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await chunks.aclose()
        return
    try:
        source = iter(requests)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - the input's own
        yield Chunk([], presentable(error))
        return
    while True:
        chunk = _read_some(source)
        if chunk.requests or chunk.error is not None:
            yield chunk
        if chunk.last:
            return
        await asyncio.sleep(0)  # other tasks run, also while the input is always ready


def _read_some(source: Iterator[str | CancelRequest]) -> Chunk:
    """Read until the chunk is full, or the input ends or raises."""
    requests: list[str | CancelRequest] = []
    until = time.monotonic() + _CHUNK_SECONDS
    try:
        for request in islice(source, CHUNK):
            requests.append(request)
            if time.monotonic() > until:
                break
        else:
            return Chunk(requests, last=len(requests) < CHUNK)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - the input's own
        return Chunk(requests, presentable(error), last=True)
    return Chunk(requests)


async def _read_async(
    requests: AsyncIterable[str | CancelRequest],
) -> AsyncGenerator[Chunk]:
    """Read in a task of its own; yield what was read while it waits for more."""
    read: list[str | CancelRequest] = []
    arrived, room = asyncio.Event(), asyncio.Event()

    async def read_all() -> None:
        async for request in requests:
            read.append(request)
            arrived.set()
            while len(read) >= CHUNK:
                room.clear()
                await room.wait()

    def note_end(task: asyncio.Task[None]) -> None:
        arrived.set()
        if not task.cancelled():
            # Marks the exception as retrieved: asyncio logs one that nobody asked for.
            task.exception()

    reading = asyncio.create_task(read_all())
    reading.add_done_callback(note_end)
    try:
        while not reading.done() or read:
            await arrived.wait()
            if not reading.done():
                arrived.clear()
            if read:
                chunk = Chunk(read.copy())
                read.clear()
                room.set()
                yield chunk
        error = asyncio.CancelledError() if reading.cancelled() else reading.exception()
        if error is not None:
            yield Chunk([], presentable(error))
    finally:
        reading.cancel()
        # An input that ignores its cancellation is not waited for any longer.
        await asyncio.wait([reading], timeout=_PATIENCE)


def presentable(error: BaseException) -> BaseException:
    """Return an exception of the input in a form that the caller can be given.

    A CancelledError or a GeneratorExit becomes a RuntimeError. Raised as they are, they
    would look like a cancellation of the caller's own task, or like the end of our
    generator.
    """
    if not isinstance(error, (asyncio.CancelledError, GeneratorExit)):
        return error
    cancelled = isinstance(error, asyncio.CancelledError)
    shown = RuntimeError(
        "the input was cancelled" if cancelled else "GeneratorExit was raised"
    )
    shown.__cause__ = error
    return shown


def checked(request: str | CancelRequest, stripe_account: str | None) -> CancelRequest:
    """Return the request with its account, that of the client if it names none.

    Raises:
        TypeError, ValueError: It cannot be the id of a refund, or of an account.
    """
    if not isinstance(request, CancelRequest):
        request = CancelRequest(request)
    if request.stripe_account is not None:
        stripe_account = validation.account_id(request.stripe_account)
    return CancelRequest(validation.refund_id(request.refund_id), stripe_account)


def refused(request: object, error: Exception) -> CancelResult:
    """Return the result of an input that is not a refund id; nothing is sent for it."""
    given = request.refund_id if isinstance(request, CancelRequest) else request
    # It may be a key or an address that came in by mistake, so only its scrubbed text
    # or its type is shown.
    shown = scrub(given if isinstance(given, str) else f"<{type(given).__name__}>")
    return CancelResult(
        refund_id=shown[:_SHOWN],
        stripe_account=None,
        outcome="failed",
        error=error.with_traceback(None),
    )
