"""What each fault does to a request and its answer."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import web

from async_refunds.emulator.api import errors

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from async_refunds.emulator.api.errors import StripeError
    from async_refunds.emulator.api.request import RequestContext
    from async_refunds.emulator.state.faults import Faults

    from .execution import Executor

# The page of a proxy in front of Stripe that gets no answer.
BAD_GATEWAY = (
    b"<html>\n<head><title>502 Bad Gateway</title></head>\n"
    b"<body><h1>502 Bad Gateway</h1><hr>nginx</body>\n</html>\n"
)

# Nobody can own a name under .invalid: https://www.rfc-editor.org/rfc/rfc2606
ELSEWHERE = "https://elsewhere.invalid"

# Neither JSON nor UTF-8 nor gzip.
GARBAGE = b"\x00\xff\xfe{not json"
GZIP = {"Content-Encoding": "gzip"}

# Lingering for no time at all makes a close a reset.
_RESET = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


def respond(
    context: RequestContext, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return the answer of a request as a response, with more headers if given."""
    all_headers = context.response_headers()
    if headers:
        all_headers.update(headers)
    context.record.status = context.status
    return web.Response(status=context.status, body=context.body, headers=all_headers)


async def _answer(
    _request: web.BaseRequest,
    context: RequestContext,
    *,
    status: int | None = None,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> web.StreamResponse:
    """Answer, with parts of the true answer replaced."""
    context.status = context.status if status is None else status
    context.body = context.body if body is None else body
    return respond(context, headers)


async def _reset(
    request: web.BaseRequest, _context: RequestContext
) -> web.StreamResponse:
    transport = request.transport
    # Another request may have closed this connection by a refusal.
    if transport is not None:
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        transport.abort()
    return web.Response()


async def _cut_body(
    request: web.BaseRequest, context: RequestContext
) -> web.StreamResponse:
    response = web.StreamResponse(
        status=context.status, headers=context.response_headers()
    )
    context.record.status = context.status
    response.content_length = len(context.body)
    with suppress(ConnectionError):  # the client may have hung up
        await response.prepare(request)
        await response.write(context.body[: len(context.body) // 2])
    # Only now: the headers have promised to keep the connection.
    response.force_close()
    return response


async def _bad_gateway(
    _request: web.BaseRequest, context: RequestContext
) -> web.StreamResponse:
    context.record.status = 502
    headers = {"Content-Type": "text/html"}
    return web.Response(status=502, body=BAD_GATEWAY, headers=headers)


async def _redirect(
    request: web.BaseRequest, context: RequestContext
) -> web.StreamResponse:
    headers = {"Location": f"{ELSEWHERE}{request.rel_url.raw_path}"}
    return await _answer(request, context, status=302, headers=headers)


class Damage(NamedTuple):
    """What becomes of a request that meets a fault.

    Args:
        deliver: Makes the response, or breaks the connection.
        execute: Whether to execute the request first.
        fail: Whether the execution is answered with a 500.
        late: Whether to answer late.
    """

    deliver: Callable[
        [web.BaseRequest, RequestContext], Awaitable[web.StreamResponse]
    ] = _answer
    execute: bool = True
    fail: bool = False
    late: bool = False


DAMAGE: Mapping[str, Damage] = {
    "reset_before": Damage(_reset, execute=False),
    "reset_after": Damage(_reset),
    "slow": Damage(late=True),
    "cut_body": Damage(_cut_body),
    "garbage": Damage(partial(_answer, status=200, body=GARBAGE)),
    "empty": Damage(partial(_answer, status=200, body=b"")),
    "bad_gzip": Damage(partial(_answer, body=GARBAGE, headers=GZIP)),
    "html_502": Damage(_bad_gateway),
    "saved_500": Damage(fail=True),
    "redirect": Damage(_redirect, execute=False),
}

# Errors that take the place of an execution.
ERRORS: Mapping[str, Callable[[RequestContext], StripeError]] = {
    "unsaved_500": lambda _: errors.server_error(500),
    "503": lambda _: errors.server_error(503),
    "424": lambda _: errors.dependency_failed(),
    "rate_429": lambda _: errors.rate_limited("endpoint-rate"),
    "lock_429": lambda _: errors.lock_timeout(),
    "in_use_409": lambda context: errors.key_in_use(context.idempotency_key or ""),
}


class FaultInjector:
    """Lets requests meet their faults.

    Args:
        executor: Executes the requests.
        faults: Says how late ``slow`` answers.
        refuse: Makes the listener refuse connections for a moment.
    """

    def __init__(
        self, executor: Executor, faults: Faults, refuse: Callable[[], object]
    ) -> None:
        self._executor = executor
        self._faults = faults
        self._refuse = refuse

    async def inject(
        self, fault: str, request: web.BaseRequest, context: RequestContext
    ) -> web.StreamResponse:
        """Return the response of a request that meets the fault of that name."""
        if fault in ERRORS:
            context.refuse(ERRORS[fault](context))
            return respond(context)
        if fault == "stall":
            async with self._executor.hold(context):
                # Until the client hangs up or the server closes: aiohttp cancels it.
                await asyncio.get_running_loop().create_future()
        if fault == "refuse":
            # This request has arrived already, so it is reset; the next are refused.
            self._refuse()
            fault = "reset_before"
        damage = DAMAGE[fault]
        if damage.execute:
            delay = self._faults.slow_seconds if damage.late else 0.0
            await self._executor.run(context, fail=damage.fail, delay=delay)
        return await damage.deliver(request, context)
