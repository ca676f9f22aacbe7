"""One HTTP request: the service's answer, or the damage its fault does to it."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.http import HttpProcessingError

from . import errors
from .visit import Incoming

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from .errors import StripeError
    from .faults import Faults
    from .service import Service
    from .visit import Visit

# The longest body that is read. The largest form of these endpoints is a few
# expand[] lines.
LONGEST_BODY = 64 * 1024

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


def _refusal(name: str, visit: Visit) -> StripeError | None:
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


class Handling:
    """Handles every request of one server.

    Args:
        service: Answers.
        faults: Says what goes wrong.
        log: Gets a record of each request.
        refuse: Shuts the server's door for a moment.
    """

    def __init__(
        self,
        service: Service,
        faults: Faults,
        log: Callable[[Visit], None],
        refuse: Callable[[], object],
    ) -> None:
        self.closing = False
        self._service = service
        self._faults = faults
        self._log = log
        self._refuse = refuse
        self._busy: set[web.RequestHandler] = set()
        self._late: dict[asyncio.Future[None], tuple[Visit, asyncio.TimerHandle]] = {}
        self._damage: Mapping[
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

    @property
    def busy(self) -> set[web.RequestHandler]:
        """The connections with a request under way."""
        return self._busy

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        connection = request.protocol
        self._busy.add(connection)
        try:
            response = await self._respond(request)
            self._faults.settle()
            if self.closing:
                response.force_close()
            return response
        finally:
            self._busy.discard(connection)

    def finish_late(self) -> None:
        """End at once what ``slow`` holds back."""
        for ended in list(self._late):
            self._end_late(ended)

    async def _respond(self, request: web.BaseRequest) -> web.StreamResponse:
        visit = self._service.visit(await self._read(request))
        self._log(visit)
        name = self._faults.draw()
        if name is None:
            return self._answer(visit)
        visit.record.fault = name
        self._service.books.faults[name] += 1
        refusal = _refusal(name, visit)
        if refusal is not None:
            visit.refuse(refusal)
            return self._send(visit)
        return await self._damage[name](request, visit)

    async def _read(self, request: web.BaseRequest) -> Incoming:
        url = request.rel_url
        body = b""
        malformed: StripeError | None = None
        if request.body_exists:
            if request.headers.get("Expect", "").lower() == "100-continue":
                await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                # What was sent is no part of the answer.
                request.writer.output_size = 0
            try:
                body = await request.read()
            except web.HTTPRequestEntityTooLarge:
                malformed = errors.too_large()
            except (web.RequestPayloadError, HttpProcessingError):
                malformed = errors.not_a_form()
        if len(body) > LONGEST_BODY:
            body, malformed = b"", errors.too_large()
        return Incoming(
            request.method,
            url.raw_path,
            url.raw_query_string,
            request.headers,
            body,
            malformed,
        )

    def _execute(self, visit: Visit, *, broken: bool = False) -> None:
        visit.admit()
        visit.execute(broken=broken)
        visit.finish()

    def _answer(self, visit: Visit) -> web.Response:
        self._execute(visit)
        return self._send(visit)

    def _send(self, visit: Visit, **changes: str) -> web.Response:
        headers = visit.answer_headers()
        headers.update(changes)
        visit.record.status = visit.status
        return web.Response(status=visit.status, body=visit.body, headers=headers)

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
        self._execute(visit)
        reset(request)
        return web.Response()

    async def _stall(
        self, _request: web.BaseRequest, visit: Visit
    ) -> web.StreamResponse:
        visit.admit()
        never: asyncio.Future[web.Response] = asyncio.get_running_loop().create_future()
        try:
            return await never
        finally:
            # The client has hung up, or the server closes: aiohttp cancels.
            visit.finish()

    async def _slow(
        self, _request: web.BaseRequest, visit: Visit
    ) -> web.StreamResponse:
        visit.admit()
        visit.execute()
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        # The work goes on when the client hangs up, and so does the timer.
        timer = loop.call_later(self._faults.slow_seconds, self._end_late, ended)
        self._late[ended] = visit, timer
        await ended
        return self._send(visit)

    def _end_late(self, ended: asyncio.Future[None]) -> None:
        visit, timer = self._late.pop(ended)
        timer.cancel()
        visit.finish()
        if not ended.done():
            ended.set_result(None)

    async def _cut_body(
        self, request: web.BaseRequest, visit: Visit
    ) -> web.StreamResponse:
        self._execute(visit)
        body = visit.body
        visit.record.status = visit.status
        response = web.StreamResponse(
            status=visit.status, headers=visit.answer_headers()
        )
        response.content_length = len(body)
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
        # Said after the headers: they have promised to keep the connection.
        response.force_close()
        return response

    async def _garbage(
        self, _request: web.BaseRequest, visit: Visit
    ) -> web.StreamResponse:
        self._execute(visit)
        visit.status, visit.body = 200, GARBAGE
        return self._send(visit)

    async def _empty(
        self, _request: web.BaseRequest, visit: Visit
    ) -> web.StreamResponse:
        self._execute(visit)
        visit.status, visit.body = 200, b""
        return self._send(visit)

    async def _bad_gzip(
        self, _request: web.BaseRequest, visit: Visit
    ) -> web.StreamResponse:
        self._execute(visit)
        visit.body = GARBAGE
        return self._send(visit, **{"Content-Encoding": "gzip"})

    async def _html_502(
        self, _request: web.BaseRequest, visit: Visit
    ) -> web.StreamResponse:
        self._execute(visit)
        visit.record.status = 502
        return web.Response(
            status=502, body=BAD_GATEWAY, headers={"Content-Type": "text/html"}
        )

    async def _saved_500(
        self, _request: web.BaseRequest, visit: Visit
    ) -> web.StreamResponse:
        self._execute(visit, broken=True)
        return self._send(visit)

    async def _redirect(
        self, request: web.BaseRequest, visit: Visit
    ) -> web.StreamResponse:
        visit.status = 302
        return self._send(visit, Location=f"{ELSEWHERE}{request.rel_url.raw_path}")
