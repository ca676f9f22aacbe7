"""The chaos's Stripe: sockets in front of the books, and faults drawn by a seed."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import socket
import struct
from collections import Counter
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from aiohttp import web

from .books import Answer, Books, Request, refusal

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

# By name: how often one is drawn, of all faults.
_FAULTS = {
    "reset_before": 3,
    "reset_after": 3,
    "late": 2,
    "500_done": 2,
    "cut_body": 2,
    "proxy_502": 2,
    "503": 2,
    "lock": 1,
    "424": 1,
    "slow": 2,
}
_OF_READS = ("reset_before", "reset_after", "503", "slow", "cut_body", "proxy_502")
# How often a request for one refund may fail: then it is answered, so that chance alone
# gives no refund up.
_MOST_FAULTS = 3
# Answers that say that nothing was carried out, nor will be.
_REFUSALS = frozenset({400, 401, 403, 404, 429})
_RESET = struct.pack("ii", 1, 0)
_KEY_PREFIX = "sk_test_chaos_"
_PAGE = b"<html><h1>502 Bad Gateway</h1></html>"


def api_key(worker: str) -> str:
    """Return the API key of a worker: by it the books know who sent a request."""
    return f"{_KEY_PREFIX}{worker}"


class StripeServer:
    """Answers requests from the books, or spoils the answer.

    Args:
        books: What is behind it.
        seed: Of the faults: which one the n-th request for a refund meets does not
            depend on when it comes, or who sends it.
        share: Of the requests that meet a fault.
    """

    def __init__(self, books: Books, *, seed: str, share: float) -> None:
        self.books = books
        self.faults_met: Counter[str] = Counter()
        self._seed = seed
        self._share = share
        self._counts: Counter[tuple[str, str]] = Counter()
        self._late: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def serve(self) -> AsyncGenerator[str]:
        """Listen on a free port until the end of the block; give the base URL."""
        server = web.Server(self._handle, access_log=None)
        listener = await asyncio.get_running_loop().create_server(
            server, "127.0.0.1", 0, backlog=512
        )
        try:
            port = listener.sockets[0].getsockname()[1]
            yield f"http://127.0.0.1:{port}"
        finally:
            listener.close()
            await server.shutdown(0)
            await asyncio.gather(*self._late)

    async def _handle(self, received: web.BaseRequest) -> web.StreamResponse:
        request, books = self._noted(received), self.books
        refused = False
        try:
            response = await self._answered(received, request)
            refused = response.status in _REFUSALS and not _is_cut_off(received)
        finally:
            if request.key and not refused:
                books.doubtful.add(request.key)
            books.answered[request.account, request.worker] = books.clock()
        return response

    async def _answered(
        self, received: web.BaseRequest, request: Request
    ) -> web.StreamResponse:
        books = self.books
        if books.is_limited(request):
            reason = ("Stripe-Rate-Limited-Reason", "endpoint-rate")
            limited = refusal(429, "rate_limit", headers=(reason,))
            return _plain(self._signed(request, limited))
        fault = self._drawn(request)
        answer: Answer | None = None
        if fault == "503":
            answer = refusal(503)
        elif fault != "reset_before":
            answer = await self._carried_out(request, fault)
        if answer is None:
            return _reset(received)
        answer = self._signed(request, answer)
        return await _delivered(received, answer, fault)

    async def _carried_out(self, request: Request, fault: str | None) -> Answer | None:
        """Return the answer to a request; None if its sender is cut off before."""
        books, place = self.books, (request.account, request.key)
        if request.method == "GET":
            return books.retrieve(request)
        if fault == "lock":
            return refusal(429, "lock_timeout")
        if fault == "424":
            return refusal(424)
        if (saved := books.saved(request)) is not None:
            return saved
        if fault == "late":
            self._land_later(request)
            return None
        if fault == "slow":
            books.in_flight.add(place)
            try:
                await asyncio.sleep(self._seconds(request, "slow"))
            finally:
                books.in_flight.discard(place)
        return books.cancel(request, fails=fault == "500_done")

    def _signed(self, request: Request, answer: Answer) -> Answer:
        """Add what tells Stripe's own answer from that of a proxy."""
        headers = [("Request-Id", f"req_{len(self.books.requests):014d}")]
        if request.key:
            headers.append(("Idempotency-Key", request.key))
        return dataclasses.replace(answer, headers=(*answer.headers, *headers))

    def _noted(self, received: web.BaseRequest) -> Request:
        books, headers = self.books, received.headers
        parts = received.path.split("/")
        request = Request(
            at=books.clock(),
            worker=headers.get("Authorization", "").removeprefix(
                f"Bearer {_KEY_PREFIX}"
            ),
            method=received.method,
            account=headers.get("Stripe-Account", ""),
            refund_id=parts[3] if len(parts) > 3 else "",
            key=headers.get("Idempotency-Key", ""),
        )
        if request.account not in books.rates:
            books.faults.append(f"a request of no account: {request}")
            books.rates[request.account] = 25.0
        if (request.method == "POST") != bool(request.key):
            books.faults.append(f"a key where none belongs, or none: {request}")
        books.requests.append(request)
        return request

    def _drawn(self, request: Request) -> str | None:
        """Return the fault of a request, if it meets one."""
        place = request.refund_id, request.method
        number = self._counts[place]
        self._counts[place] += 1
        chance = random.Random(f"{self._seed} {place} {number}")  # noqa: S311 - no secret
        if number >= _MOST_FAULTS or chance.random() >= self._share:
            return None
        names = [
            name for name in _FAULTS if request.method == "POST" or name in _OF_READS
        ]
        (fault,) = chance.choices(names, [_FAULTS[name] for name in names])
        self.faults_met[fault] += 1
        return fault

    def _seconds(self, request: Request, what: str) -> float:
        chance = random.Random(f"{self._seed} {request.refund_id} {what}")  # noqa: S311 - no secret
        return chance.uniform(0.1, 1.5)

    def _land_later(self, request: Request) -> None:
        """Carry a request out when its sender has long been cut off."""
        place = request.account, request.key

        async def land() -> None:
            await asyncio.sleep(self._seconds(request, "late"))
            self.books.in_flight.discard(place)
            self.books.cancel(request)

        self.books.in_flight.add(place)
        task = asyncio.create_task(land())
        self._late.add(task)
        task.add_done_callback(self._late.discard)


def _is_cut_off(received: web.BaseRequest) -> bool:
    return received.transport is None or received.transport.is_closing()


def _plain(answer: Answer) -> web.Response:
    return web.Response(
        status=answer.status,
        body=answer.body,
        content_type="application/json",
        headers=answer.headers,
    )


def _reset(received: web.BaseRequest) -> web.Response:
    if received.transport is not None:
        found = received.transport.get_extra_info("socket")
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        received.transport.abort()
    return web.Response()


async def _delivered(
    received: web.BaseRequest, answer: Answer, fault: str | None
) -> web.StreamResponse:
    if fault == "reset_after":
        return _reset(received)
    if fault == "proxy_502":
        return web.Response(status=502, body=_PAGE, content_type="text/html")
    if fault == "cut_body":
        response = web.StreamResponse(status=answer.status, headers=answer.headers)
        response.content_type = "application/json"
        response.content_length = len(answer.body)
        with suppress(ConnectionError):  # the client may have hung up
            await response.prepare(received)
            await response.write(answer.body[: len(answer.body) // 2])
        response.force_close()
        return response
    return _plain(answer)
