"""The damage that each fault does to one request."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from aiohttp import web

from . import errors

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from .errors import StripeError
    from .execution import Executions
    from .faults import Faults
    from .visit import Visit

# What a proxy in front of Stripe says when it gets no answer.
BAD_GATEWAY = b"""<html>
<head><title>502 Bad Gateway</title></head>
<body>
<center><h1>502 Bad Gateway</h1></center>
<hr><center>nginx</center>
</body>
</html>
"""

# Nobody can own a name under .invalid: https://www.rfc-editor.org/rfc/rfc2606
ELSEWHERE = "https://elsewhere.invalid"

# No JSON, no UTF-8 and no gzip.
GARBAGE = b"\x00\xff\xfe{not json"

# Close with a reset in place of a farewell: linger on, for no time at all.
_RESET = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


def reset(request: web.BaseRequest) -> None:
    """Break the connection with a TCP reset."""
    transport = request.transport
    if transport is not None:  # else the client was faster
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        transport.abort()


def refusal(name: str, visit: Visit) -> StripeError | None:
    """Return the error that a fault answers with, nothing being executed."""
    if name in {"unsaved_500", "503"}:
        return errors.server_error(500 if name == "unsaved_500" else 503)
    if name == "424":
        return errors.dependency_failed()
    if name == "rate_429":
        return errors.rate_limited("endpoint-rate")
    if name == "lock_429":
        return errors.lock_timeout()
    if name == "in_use_409":
        return errors.key_in_use(visit.idempotency_key or "")
    return None


def answer(visit: Visit, **changes: str) -> web.Response:
    """Return what the visit has come to as a response."""
    headers = visit.answer_headers()
    if changes:
        headers.update(changes)
    visit.record.status = visit.status
    return web.Response(status=visit.status, body=visit.body, headers=headers)


class Damage:
    """Every fault that is more than an error in place of an execution.

    Args:
        executions: Carries out what is carried out all the same.
        faults: How long they last.
        refuse: Shuts the server's door for a moment.
    """

    def __init__(
        self, executions: Executions, faults: Faults, refuse: Callable[[], object]
    ) -> None:
        self._executions = executions
        self._faults = faults
        self._refuse = refuse
        self._ways: Mapping[
            str, Callable[[web.BaseRequest, Visit], Awaitable[web.StreamResponse]]
        ] = {
            "refuse": self._refuse_now,
            "reset_before": self._reset_before,
            "reset_after": self._reset_after,
            "stall": self._stall,
            "slow": self._slow,
            "cut_body": self._cut_body,
            "garbage": self._garbage,
            "empty": self._empty,
            "bad_gzip": self._bad_gzip,
            "html_502": self._html_502,
            "saved_500": self._saved_500,
            "redirect": self._redirect,
        }

    async def do(
        self, name: str, request: web.BaseRequest, visit: Visit
    ) -> web.StreamResponse:
        """Let a request meet the fault of that name."""
        error = refusal(name, visit)
        if error is not None:
            visit.refuse(error)
            return answer(visit)
        return await self._ways[name](request, visit)

    async def _refuse_now(
        self, request: web.BaseRequest, visit: Visit
    ) -> web.StreamResponse:
        # The request is here already, so it cannot be refused any more: it is
        # reset unread, and those that would follow are refused.
        self._refuse()
        return await self._reset_before(request, visit)

    async def _reset_before(
        self, request: web.BaseRequest, _visit: Visit
    ) -> web.StreamResponse:
        reset(request)
        return web.Response()

    async def _reset_after(
        self, request: web.BaseRequest, visit: Visit
    ) -> web.StreamResponse:
        await self._executions.run(visit)
        reset(request)
        return web.Response()

    async def _stall(
        self, _request: web.BaseRequest, visit: Visit
    ) -> web.StreamResponse:
        never: asyncio.Future[web.Response] = asyncio.get_running_loop().create_future()
        async with self._executions.holding(visit):
            # Until the client hangs up, or the server closes: aiohttp cancels.
            return await never

    async def _slow(
        self, _request: web.BaseRequest, visit: Visit
    ) -> web.StreamResponse:
        await self._executions.run(visit, late=self._faults.slow_seconds)
        return answer(visit)

    async def _cut_body(
        self, request: web.BaseRequest, visit: Visit
    ) -> web.StreamResponse:
        await self._executions.run(visit)
        body = visit.body
        visit.record.status = visit.status
        response = web.StreamResponse(
            status=visit.status, headers=visit.answer_headers()
        )
        response.content_length = len(body)
        with suppress(ConnectionError):  # the client has left by itself
            await response.prepare(request)
            await response.write(body[: len(body) // 2])
        # Said after the headers: they have promised to keep the connection.
        response.force_close()
        return response

    async def _garbage(
        self, _request: web.BaseRequest, visit: Visit
    ) -> web.StreamResponse:
        await self._executions.run(visit)
        visit.status, visit.body = 200, GARBAGE
        return answer(visit)

    async def _empty(
        self, _request: web.BaseRequest, visit: Visit
    ) -> web.StreamResponse:
        await self._executions.run(visit)
        visit.status, visit.body = 200, b""
        return answer(visit)

    async def _bad_gzip(
        self, _request: web.BaseRequest, visit: Visit
    ) -> web.StreamResponse:
        await self._executions.run(visit)
        visit.body = GARBAGE
        return answer(visit, **{"Content-Encoding": "gzip"})

    async def _html_502(
        self, _request: web.BaseRequest, visit: Visit
    ) -> web.StreamResponse:
        await self._executions.run(visit)
        visit.record.status = 502
        return web.Response(
            status=502, body=BAD_GATEWAY, headers={"Content-Type": "text/html"}
        )

    async def _saved_500(
        self, _request: web.BaseRequest, visit: Visit
    ) -> web.StreamResponse:
        await self._executions.run(visit, broken=True)
        return answer(visit)

    async def _redirect(
        self, request: web.BaseRequest, visit: Visit
    ) -> web.StreamResponse:
        visit.status = 302
        return answer(visit, Location=f"{ELSEWHERE}{request.rel_url.raw_path}")
