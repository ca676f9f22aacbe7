"""One HTTP request: the service's answer, or the damage its fault does to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.http import HttpProcessingError

from . import errors
from .control import CONTROL
from .damage import Damage, answer
from .execution import Executions
from .incoming import Incoming

if TYPE_CHECKING:
    from collections.abc import Callable

    from .books import ReceivedRequest
    from .control import Control
    from .errors import StripeError
    from .faults import Faults
    from .service import Service
    from .visit import Visit

# The longest body that is read. The largest form of these endpoints is a few
# expand[] lines.
LONGEST_BODY = 64 * 1024


class Handling:
    """Handles every request of one server.

    Args:
        service: Answers.
        faults: Says what goes wrong.
        control: Answers what is not for Stripe but for the emulator.
        log: Gets a record of each request.
        refuse: Shuts the server's door for a moment.
    """

    def __init__(
        self,
        service: Service,
        faults: Faults,
        control: Control,
        log: Callable[[ReceivedRequest], None],
        refuse: Callable[[], object],
    ) -> None:
        self.closing = False
        self._service = service
        self._faults = faults
        self._control = control
        self._log = log
        self._executions = Executions(service.timing)
        self._damage = Damage(self._executions, faults, refuse)
        self._busy: set[web.RequestHandler] = set()

    @property
    def busy(self) -> set[web.RequestHandler]:
        """The connections with a request under way."""
        return self._busy

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        connection = request.protocol
        self._busy.add(connection)
        try:
            # A coroutine less for all that have no body.
            incoming = (
                await self._read(request)
                if request.body_exists
                else _incoming(request, b"", None)
            )
            if incoming.path.startswith(CONTROL):
                response: web.StreamResponse = self._controlled(incoming)
            else:
                visit = self._service.visit(incoming)
                self._log(visit.record)
                fault = self._faults.draw()
                if fault is not None:
                    response = await self._damaged(fault, request, visit)
                else:
                    if not self._executions.run_at_once(visit):
                        await self._executions.run(visit)
                    response = answer(visit)
            self._faults.settle()
            if self.closing:
                response.force_close()
            return response
        finally:
            self._busy.discard(connection)

    async def close(self) -> None:
        """End at once what takes its time."""
        await self._executions.close()

    def _controlled(self, incoming: Incoming) -> web.Response:
        status, body = self._control.answer(incoming)
        return web.Response(status=status, body=body, content_type="application/json")

    async def _damaged(
        self, fault: str, request: web.BaseRequest, visit: Visit
    ) -> web.StreamResponse:
        visit.record.fault = fault
        self._service.books.faults[fault] += 1
        return await self._damage.do(fault, request, visit)

    async def _read(self, request: web.BaseRequest) -> Incoming:
        body = b""
        malformed: StripeError | None = None
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
        return _incoming(request, body, malformed)


def _incoming(
    request: web.BaseRequest, body: bytes, malformed: StripeError | None
) -> Incoming:
    # As it was sent, and without parsing it as a whole.
    path, _, query = request.raw_path.partition("?")
    if not path.startswith("/"):
        # A proxy's form, with the host in it.
        path, query = request.rel_url.raw_path, request.rel_url.raw_query_string
    return Incoming(request.method, path, query, request.headers, body, malformed)
