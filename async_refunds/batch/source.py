"""The input of a batch: whatever yields ids, read no faster than it is taken in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator
from itertools import islice
from typing import TypeAlias

import msgspec

from async_refunds.protocol import validation
from async_refunds.protocol.redaction import scrub
from async_refunds.results import CancelRequest, CancelResult

Requests: TypeAlias = Iterable[str | CancelRequest] | AsyncIterable[str | CancelRequest]
"""What may be canceled: ids, or requests that name the account too."""

CHUNK = 100
"""The most requests that are read at once."""

# Seconds for an input to end when nobody reads it any more.
_PATIENCE = 1.0

# Characters of what is no id, in its result: a line.
_SHOWN = 80


class _End(msgspec.Struct, frozen=True):
    """The end of an input that is waited for."""

    error: Exception | None


async def chunks(requests: Requests) -> AsyncGenerator[list[str | CancelRequest]]:
    """Yield the input in pieces, none of which waits for a later one.

    Raises:
        Exception: Whatever the input raises, after all that it gave before.
    """
    if not isinstance(requests, AsyncIterable):
        source, error = iter(requests), None
        while error is None:
            chunk, error = _piece(source)
            if chunk:
                yield chunk
                await asyncio.sleep(0)  # an input that is always ready starves no one
            elif error is None:
                return
        raise error
    read: asyncio.Queue[str | CancelRequest | _End] = asyncio.Queue(CHUNK)
    reading = asyncio.create_task(_read(requests, read))
    try:
        while True:
            pieces = [await read.get()]
            while not read.empty():
                pieces.append(read.get_nowait())
            end = pieces[-1]
            if chunk := [each for each in pieces if not isinstance(each, _End)]:
                yield chunk
            if isinstance(end, _End):
                if end.error is not None:
                    raise end.error
                return
    finally:
        reading.cancel()
        # An input that swallows its cancellation is left behind.
        await asyncio.wait([reading], timeout=_PATIENCE)


def _piece(
    source: Iterator[str | CancelRequest],
) -> tuple[list[str | CancelRequest], Exception | None]:
    """Return the next requests, and the error that broke them off."""
    chunk: list[str | CancelRequest] = []
    try:
        for request in islice(source, CHUNK):
            chunk.append(request)  # noqa: PERF402 - what came before an error stays
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the input's own, raised where it ends
        return chunk, _told(error)
    return chunk, None


async def _read(
    requests: AsyncIterable[str | CancelRequest],
    read: asyncio.Queue[str | CancelRequest | _End],
) -> None:
    error: Exception | None = None
    try:
        async for request in requests:
            await read.put(request)
    except (Exception, asyncio.CancelledError) as broke:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        error = _told(broke)
    await read.put(_End(error))


def _told(error: Exception | asyncio.CancelledError) -> Exception:
    """Return the error of an input as one that does not pass for our own end."""
    if isinstance(error, Exception):
        return error
    told = RuntimeError("the input was cancelled")
    told.__cause__ = error
    return told


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
    # Whatever it is, a key or an address that came in by mistake goes no further.
    shown = scrub(given if isinstance(given, str) else f"<{type(given).__name__}>")
    return CancelResult(
        refund_id=shown[:_SHOWN], stripe_account=None, outcome="failed", error=error
    )
