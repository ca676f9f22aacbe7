"""The services of `bench_storm`: ``python -m benchmarks.storm_services NAME URL FD``.

Each is the README's handler with what lets `bench_storm` look at the process: FastAPI
on uvicorn, where a client that hangs up changes nothing for the handler, and
aiohttp.web with ``handler_cancellation=True``, where it cancels the handler.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import AsyncGenerator  # noqa: TC003 - FastAPI reads annotations
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import uvicorn
from aiohttp import web
from fastapi import FastAPI, Response

from async_refunds import (
    APIConnectionError,
    CallRecord,
    OutcomeUnknownError,
    RateLimitError,
    RefundNotCancelableError,
    RefundsClient,
    RefundsError,
)
from benchmarks import memory

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

KEY = "sk_test_storm"
# As the README's handler has it: somebody waits for the answer.
TIMEOUT = 10.0

Told: TypeAlias = "tuple[int, bytes]"
"""Status and body of an answer."""


class State(msgspec.Struct, frozen=True):
    """What the process of a service holds, after a garbage collection."""

    files: int
    """Open file descriptors, sockets among them."""
    tasks: int
    resident: int
    """Bytes."""
    in_progress: int
    connections: int
    waiting: int
    """Calls, connections in use and waits for one, as the client counts them."""


class Service:
    """What the servers have in common: a client, and what its calls ended with.

    Args:
        base_url: Where Stripe is.
    """

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url
        self._ended: dict[str, str] = {}
        self.refunds = self._client()

    def _client(self) -> RefundsClient:
        return RefundsClient(KEY, base_url=self._base_url, on_call=self._note)

    def _note(self, record: CallRecord) -> None:
        assert record.idempotency_key is not None  # noqa: S101 - every cancel has one
        self._ended[record.idempotency_key] = record.outcome

    def begin(self) -> None:
        """Prepare the event loop."""
        # `-X dev` would tell of each turn of the loop that took 0.1 s, which only says
        # that the machine is busy.
        asyncio.get_running_loop().slow_callback_duration = float("inf")

    async def cancel(self, refund_id: str, key: str) -> Told:
        """Cancel, and return what to answer."""
        try:
            refund = await self.refunds.cancel(
                refund_id,
                idempotency_key=key,
                timeout=TIMEOUT,
                already_canceled_ok=True,
            )
        except OutcomeUnknownError as error:
            return 202, str(error.idempotency_key).encode()
        except RefundNotCancelableError as error:
            return 409, str(error.refund.status).encode()
        except (RateLimitError, APIConnectionError):
            return 503, b"overloaded"
        except RefundsError as error:
            return 500, type(error).__name__.encode()
        return 200, str(refund.status).encode()

    async def renew(self) -> Told:
        """Let the calls end, and go on with another client: the old one is shut."""
        await self.refunds.close(drain=2 * TIMEOUT)
        self.refunds = self._client()
        return 200, b""

    async def take_ended(self) -> Told:
        """Return what calls ended with since the last time, by their keys."""
        ended, self._ended = self._ended, {}
        return 200, msgspec.json.encode(ended)

    async def state(self) -> Told:
        """Return what this process holds."""
        resident = memory.resident()
        return 200, msgspec.json.encode(
            State(
                files=len(os.listdir("/dev/fd")),  # noqa: PTH208 - only their number
                tasks=len(asyncio.all_tasks()),
                resident=resident,
                in_progress=self.refunds.calls_in_progress,
                connections=self.refunds.connections_in_use,
                waiting=self.refunds.waiting_for_connection,
            )
        )

    def views(self) -> dict[str, Callable[[], Awaitable[Told]]]:
        """Return what is asked of it by path, besides cancels."""
        return {
            "/renew": self.renew,
            "/ended": self.take_ended,
            "/state": self.state,
        }


def fastapi(service: Service, listener: socket.socket) -> None:
    """Serve by FastAPI on uvicorn."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        del app
        service.begin()
        yield
        await service.refunds.close(drain=TIMEOUT)

    app = FastAPI(lifespan=lifespan)

    @app.post("/refunds/{refund_id}/cancel")
    async def cancel(refund_id: str, request_key: str) -> Response:
        status, body = await service.cancel(refund_id, request_key)
        return Response(body, status)

    def add(path: str, view: Callable[[], Awaitable[Told]]) -> None:
        async def answer() -> Response:
            status, body = await view()
            return Response(body, status)

        app.add_api_route(path, answer, methods=["POST"])

    for path, view in service.views().items():
        add(path, view)
    uvicorn.run(app, fd=listener.fileno(), log_level="warning", loop="asyncio")


def aiohttp(service: Service, listener: socket.socket) -> None:
    """Serve by aiohttp.web; a client that hangs up cancels the handler."""

    async def lifespan(app: web.Application) -> AsyncGenerator[None]:
        del app
        service.begin()
        yield
        await service.refunds.close(drain=TIMEOUT)

    async def cancel(request: web.Request) -> web.Response:
        status, body = await service.cancel(
            request.match_info["refund_id"], request.query["request_key"]
        )
        return web.Response(status=status, body=body)

    def add(path: str, view: Callable[[], Awaitable[Told]]) -> None:
        async def answer(request: web.Request) -> web.Response:
            del request
            status, body = await view()
            return web.Response(status=status, body=body)

        app.router.add_post(path, answer)

    app = web.Application()
    app.cleanup_ctx.append(lifespan)
    app.router.add_post("/refunds/{refund_id}/cancel", cancel)
    for path, view in service.views().items():
        add(path, view)
    web.run_app(
        app, sock=listener, handler_cancellation=True, print=None, access_log=None
    )


SERVERS = {"fastapi": fastapi, "aiohttp": aiohttp}

if __name__ == "__main__":
    # Its lines on unknown outcomes are no faults of the process.
    logging.getLogger("async_refunds").addHandler(logging.NullHandler())
    name, base_url, fd = sys.argv[1:]
    with socket.socket(fileno=int(fd)) as listener:
        SERVERS[name](Service(base_url), listener)
