"""The input of a batch: any iterable of ids, read no faster than it is taken in."""

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

# Seconds that an asynchronous input has to end after its task is cancelled.
_PATIENCE = 1.0

# Characters of what is no id that its result shows: a line.
_SHOWN = 80


class Chunk(msgspec.Struct, frozen=True):
    """Some of the input."""

    requests: list[str | CancelRequest]
    error: BaseException | None = None
    """What the input raised after them; no chunk follows."""
    last: bool = False
    """Whether the input has ended."""


async def read_chunks(requests: Requests) -> AsyncGenerator[Chunk]:
    """Yield the input in chunks, none of which waits for a later one.

    Only KeyboardInterrupt and SystemExit pass through; any other exception of the
    input is part of the last chunk.
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
        await asyncio.sleep(0)  # an input that is always ready starves no other task


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
    """Read in a task of its own, so that a chunk goes out while the next is awaited."""
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
            task.exception()  # seen, also if nothing asks for it any more

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
        # An input that swallows its cancellation is left behind.
        await asyncio.wait([reading], timeout=_PATIENCE)


def presentable(error: BaseException) -> BaseException:
    """Return an error of the caller's code as one that means nothing else to asyncio.

    A CancelledError or a GeneratorExit would pass for the end of the caller's own task
    or of our generator.
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
    """Return the result of what cannot be a refund's id; nothing is sent for it."""
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
