"""A server that always gives the same answer, in a process of its own.

What it costs is spent elsewhere than in the process under measurement, and is the same
for every client. It answers ``POST /v1/refunds/{id}/cancel`` with the refund canceled,
and anything else with a 404; nothing is kept, so any number of calls is alike.

A cancel of an id that begins with `HELD` is never answered: that is how calls are held
in flight. ``GET /held/{count}`` is answered once so many of them have come.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from typing import TYPE_CHECKING

from benchmarks import child

if TYPE_CHECKING:
    from collections.abc import Generator

HOST = "127.0.0.1"
HELD = "re_held"

_REQUEST = re.compile(rb"POST /v1/refunds/([A-Za-z0-9_]+)/cancel HTTP/1\.1\r\n")
_HELD_CANCEL = f"POST /v1/refunds/{HELD}".encode()
_HELD_COUNT = re.compile(rb"GET /held/(\d+) HTTP/1\.1\r\n")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_KEY = re.compile(rb"\r\nidempotency-key: *([!-~]+)", re.IGNORECASE)

# The only parts of the answer that follow the request: clients compare the id, and
# Stripe repeats the key.
_ID_MARK, _KEY_MARK, _LENGTH_MARK = b"{id}", b"{key}", b"{length}"

# The fields and the indentation of Stripe's own answer, for a refund by Japanese bank
# transfer whose customer never gave bank details.
_BODY = json.dumps(
    {
        "id": _ID_MARK.decode(),
        "object": "refund",
        "amount": 4980,
        "balance_transaction": "txn_3OcLzR2eZvKYlo2C1pQ8bTsA",
        "charge": "py_3OcLzR2eZvKYlo2C1kd9LmFj",
        "created": 1763769600,
        "currency": "jpy",
        "destination_details": {
            "jp_bank_transfer": {
                "reference": None,
                "reference_status": "pending",
            },
            "type": "jp_bank_transfer",
        },
        "failure_balance_transaction": "txn_3OcLzR2eZvKYlo2C1wXn4RkE",
        "failure_reason": "merchant_request",
        "instructions_email": "customer@example.com",
        "metadata": {"order_id": "6735", "reason_code": "stock"},
        "payment_intent": "pi_3OcLzR2eZvKYlo2C1mPq7VbN",
        "reason": "requested_by_customer",
        "receipt_number": None,
        "source_transfer_reversal": None,
        "status": "canceled",
        "transfer_reversal": None,
    },
    indent=2,
).encode()

# In Stripe's order. Parsing them is part of every client's work, so they are as many
# and as long as those of api.stripe.com.
_HEAD = "\r\n".join(
    (
        "HTTP/1.1 200 OK",
        "Server: nginx",
        "Date: Sun, 22 Nov 2026 00:00:00 GMT",
        "Content-Type: application/json",
        "Content-Length: {length}",
        "Connection: keep-alive",
        "access-control-allow-credentials: true",
        "access-control-allow-methods: GET, HEAD, PUT, PATCH, POST, DELETE",
        "access-control-allow-origin: *",
        "access-control-expose-headers: Request-Id, Stripe-Manage-Version",
        "access-control-max-age: 300",
        "cache-control: no-cache, no-store",
        "Idempotency-Key: {key}",
        "Original-Request: req_8fXcT0sQm2kLwA",
        "Request-Id: req_8fXcT0sQm2kLwA",
        "Stripe-Should-Retry: false",
        "Stripe-Version: 2026-10-28.endive",
        "Vary: Origin",
        "Strict-Transport-Security: max-age=63072000; includeSubDomains; preload",
        "\r\n",
    )
).encode()

_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def body(refund_id: bytes) -> bytes:
    """Return a canceled refund with this id, as Stripe writes it."""
    return _BODY.replace(_ID_MARK, refund_id)


def answer(head: bytes) -> bytes:
    """Return the whole answer to a request with this head."""
    request = _REQUEST.match(head)
    if request is None:
        return _NOT_FOUND
    refund = body(request[1])
    key = _KEY.search(head)
    return (
        _HEAD.replace(_LENGTH_MARK, b"%d" % len(refund)).replace(
            _KEY_MARK, b"none" if key is None else key[1]
        )
        + refund
    )


class _Held:
    """The cancels that are not answered, and who waits for how many of them."""

    def __init__(self) -> None:
        self._count = 0
        self._waiting: dict[int, asyncio.Transport] = {}

    def took(self, head: bytes, transport: asyncio.Transport) -> bool:
        """Tell whether this request is not to be answered now."""
        if head.startswith(_HELD_CANCEL):
            self._count += 1
        elif (asked := _HELD_COUNT.match(head)) is not None:
            self._waiting[int(asked[1])] = transport
        else:
            return False
        if (waiting := self._waiting.get(self._count)) is not None:
            waiting.write(_OK)
        return True


class _Connection(asyncio.Protocol):
    """One connection, kept alive until the client closes it."""

    def __init__(self, held: _Held) -> None:
        self._held = held
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - TCP has these
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None  # noqa: S101 - connected before any data
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = self._received[:end]
            length = _LENGTH.search(head)
            whole = end + 4 + (int(length[1]) if length is not None else 0)
            if len(self._received) < whole:
                return
            self._received = self._received[whole:]
            if not self._held.took(head, self._transport):
                self._transport.write(answer(head))


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    held = _Held()
    # Thousands of clients connect at once; asyncio's default backlog is 100.
    server = await loop.create_server(lambda: _Connection(held), HOST, 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await child.until_left()


@contextlib.contextmanager
def canned_server() -> Generator[str, None, None]:
    """Run the server for a ``with`` block, which gets its base URL."""
    with child.started("benchmarks.canned") as port:
        yield f"http://{HOST}:{port}"


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve())
    # At once, whatever connections are open still: nothing here wants tidying up.
    os._exit(0)
