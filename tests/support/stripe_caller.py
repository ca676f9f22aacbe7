"""A plain HTTP client for the emulator: it sends each request once."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, TypedDict, Unpack

import aiohttp

from tests.support.stripe_schema import Json, check_answer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Mapping

    from async_refunds.emulator import Emulator

TEST_KEY = "sk_test_51Emulator"
LIVE_KEY = "sk_live_51Emulator"


class How(TypedDict, total=False):
    """What a request has besides its method and path.

    ``key`` is the API key, or None. ``checked=False`` accepts an answer that Stripe
    would not give.
    """

    key: str | None
    headers: Mapping[str, str]
    data: bytes | str | BinaryIO
    timeout: float
    checked: bool


@dataclass
class Answer:
    """An answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Json:
        return json.loads(self.body)

    @property
    def error(self) -> Json:
        return self.json["error"]

    @property
    def refusal(self) -> tuple[int, str | None]:
        """The status and the code of an error."""
        return self.status, self.error.get("code")

    @property
    def replayed(self) -> bool:
        return "Idempotent-Replayed" in self.headers


class Caller:
    """Calls one emulator, and checks every JSON answer against Stripe's schemas."""

    def __init__(
        self, session: aiohttp.ClientSession, base_url: str, emulator: Emulator
    ) -> None:
        self.session = session
        self.base_url = base_url
        self.emulator = emulator

    async def send(self, method: str, path: str, **how: Unpack[How]) -> Answer:
        """Send one request."""
        sent = dict(how.get("headers", {}))
        key = how.get("key", TEST_KEY)
        if key is not None:
            sent["Authorization"] = f"Bearer {key}"
        async with self.session.request(
            method,
            self.base_url + path,
            headers=sent,
            data=how.get("data"),
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=how.get("timeout", 30)),
        ) as response:
            answer = Answer(response.status, response.headers, await response.read())
        if how.get("checked", True):
            assert answer.headers["Content-Type"] == "application/json"
            assert answer.headers["Request-Id"].startswith("req_")
            assert answer.headers["Stripe-Version"]
            plain = path.partition("?")[0]
            check_answer(method, plain, answer.status, answer.body)
        return answer

    async def raw(self, data: bytes) -> bytes:
        """Send bytes on a connection of their own, and return all that comes back."""
        reader, writer = await connect(self.base_url)
        writer.write(data)
        try:
            return await reader.read()
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def get(self, path: str, **how: Unpack[How]) -> Answer:
        """Send a GET to a path below ``/v1/refunds``."""
        return await self.send("GET", "/v1/refunds" + path, **how)

    async def cancel(
        self,
        refund_id: str,
        idempotency_key: str | None = None,
        expand: Iterable[str] = (),
        **how: Unpack[How],
    ) -> Answer:
        """Cancel as the official clients do."""
        sent = {"Content-Type": "application/x-www-form-urlencoded"}
        if idempotency_key is not None:
            sent["Idempotency-Key"] = idempotency_key
        sent.update(how.get("headers", {}))
        form = "&".join(f"expand[{n}]={path}" for n, path in enumerate(expand))
        how = {"data": form, **how, "headers": sent}
        return await self.send("POST", f"/v1/refunds/{refund_id}/cancel", **how)


async def connect(
    base_url: str,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection to a server on the loopback."""
    return await asyncio.open_connection("127.0.0.1", int(base_url.rpartition(":")[2]))


@asynccontextmanager
async def serving(emulator: Emulator) -> AsyncGenerator[Caller]:
    """Serve the emulator, and give a caller with a session of its own."""
    async with (
        emulator.serve() as base_url,
        aiohttp.ClientSession(auto_decompress=True) as session,
    ):
        yield Caller(session, base_url, emulator)
