"""Answers one HTTP request: for Stripe's API, or for the emulator's admin API."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.http import HttpProcessingError

from async_refunds.emulator.api import errors
from async_refunds.emulator.api.endpoints import receive
from async_refunds.emulator.api.request import RawRequest

from .admin import ADMIN
from .execution import Executor
from .fault_injection import FaultInjector, respond

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_refunds.emulator.api.errors import StripeError
    from async_refunds.emulator.api.request import RequestContext
    from async_refunds.emulator.state.stripe_state import StripeState

    from .admin import AdminApi

# The longest body that is read. The largest form of these endpoints has a few lines.
LONGEST_BODY = 64 * 1024


class Handler:
    """Handles every request of one server.

    Args:
        state: What the API works on.
        admin: Answers the requests that are for the emulator itself.
        refuse: Makes the listener refuse connections for a moment.

    Attributes:
        busy: The connections that have a request in flight.
        closing: Whether connections close after their answer.
    """

    def __init__(
        self, state: StripeState, admin: AdminApi, refuse: Callable[[], object]
    ) -> None:
        self.busy: set[web.RequestHandler] = set()
        self.closing = False
        self._state = state
        self._admin = admin
        self._executor = Executor(state)
        self._injector = FaultInjector(self._executor, state.faults, refuse)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        connection = request.protocol
        self.busy.add(connection)
        context: RequestContext | None = None
        began = time.perf_counter()
        try:
            # Most requests have no body: they need one coroutine less.
            raw = (
                await self._read(request)
                if request.body_exists
                else _raw_request(request)
            )
            if raw.path.startswith(ADMIN):
                answer = self._admin.answer(raw)
                response: web.StreamResponse = web.Response(
                    status=answer.status, body=answer.body, headers=answer.headers
                )
            else:
                context = self._receive(raw)
                fault = context.record.fault
                if fault is not None:
                    response = await self._injector.inject(fault, request, context)
                else:
                    # Likewise, most executions take no time.
                    if not self._executor.run_at_once(context):
                        await self._executor.run(context)
                    response = respond(context)
            self._state.faults.refuse_if_next()
            if self.closing:
                response.force_close()
            return response
        finally:
            self.busy.discard(connection)
            if context is not None:
                record = context.record
                record.milliseconds = (time.perf_counter() - began) * 1000
                if self._state.on_request is not None:
                    self._state.on_request(record)

    async def close(self) -> None:
        """Cancel every execution that takes time."""
        await self._executor.close()

    def _receive(self, raw: RawRequest) -> RequestContext:
        """Enter a request into the log and the books, with the fault that it meets."""
        state = self._state
        context = receive(state, raw)
        state.requests.append(context.record)
        fault = state.faults.draw()
        if fault is not None:
            context.record.fault = fault
            state.books.faults[fault] += 1
        return context

    async def _read(self, request: web.BaseRequest) -> RawRequest:
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            # These bytes are not part of the answer.
            request.writer.output_size = 0
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return _raw_request(request, malformed=errors.too_large())
        except (web.RequestPayloadError, HttpProcessingError):
            return _raw_request(request, malformed=errors.not_a_form())
        if len(body) > LONGEST_BODY:
            return _raw_request(request, malformed=errors.too_large())
        return _raw_request(request, body)


def _raw_request(
    request: web.BaseRequest, body: bytes = b"", malformed: StripeError | None = None
) -> RawRequest:
    # The raw path is what was sent, and cheaper than a parsed URL.
    path, _, query = request.raw_path.partition("?")
    if not path.startswith("/"):
        # The form that is sent to proxies, with a host in it.
        path, query = request.rel_url.raw_path, request.rel_url.raw_query_string
    return RawRequest(request.method, path, query, request.headers, body, malformed)
