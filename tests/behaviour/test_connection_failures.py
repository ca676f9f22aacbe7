"""What provably was not sent says so, and names the right culprit."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import trustme

from async_refunds import (
    APIConnectionError,
    APIError,
    OutcomeUnknownError,
    RefundsClient,
    RetryPolicy,
)
from tests.support.scripted import (
    CANCELED,
    KEY,
    RE,
    answer,
    refund_json,
    scripted,
    seen,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

ONCE = RetryPolicy(max_retries=0)
HOST = "https://api.stripe.invalid"


def answers_of_a_resolver() -> dict[str, Callable[[], object]]:
    def fails(error: BaseException) -> Callable[[], object]:
        def fail() -> object:
            raise error

        return fail

    return {
        "nothing": list,
        "no address": lambda: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ())],
        "unknown family": lambda: [(99, socket.SOCK_STREAM, 6, "", ("1.2.3.4", 443))],
        "no name": fails(socket.gaierror(socket.EAI_NONAME, "Name unknown")),
        "try again": fails(socket.gaierror(socket.EAI_AGAIN, "Try again")),
        "no thread": fails(RuntimeError("can't start new thread")),
        "no memory": fails(MemoryError()),
        "a bug": fails(KeyError("host")),
    }


@pytest.mark.parametrize("name", answers_of_a_resolver())
async def test_look_up_that_goes_wrong_is_not_sent(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = answers_of_a_resolver()[name]

    async def getaddrinfo(*_: object, **__: object) -> object:
        return found()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    async with RefundsClient(KEY, base_url=HOST, retry=ONCE) as refunds:
        with pytest.raises(APIConnectionError) as caught:
            await refunds.cancel(RE)
    assert "Exec format" not in str(caught.value)
    assert "Unknown error" not in str(caught.value)


async def test_thread_that_cannot_be_started_is_not_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    async with RefundsClient(KEY, base_url=HOST, retry=ONCE) as refunds:
        with pytest.raises(APIConnectionError, match="thread"):
            await refunds.cancel(RE)
    monkeypatch.undo()  # the event loop's own end needs one


async def test_unknown_host_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(*_: object, **__: object) -> object:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    async with RefundsClient(KEY, base_url=HOST, retry=ONCE) as refunds:
        with pytest.raises(APIConnectionError, match="host name cannot be resolved"):
            await refunds.cancel(RE)


async def test_server_that_speaks_no_tls_is_named_as_such() -> None:
    async with scripted(CANCELED) as server:
        server.greeting = b"HTTP/1.1 400 Bad Request\r\n\r\n"
        url = server.url.replace("http:", "https:")
        async with RefundsClient(KEY, base_url=url, retry=ONCE) as refunds:
            with pytest.raises(APIConnectionError, match="TLS"):
                await refunds.cancel(RE)


async def test_certificate_that_nobody_trusts_says_how_to_trust_it() -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)  # pyright: ignore[reportUnknownMemberType]  # trustme's types leave pyOpenSSL unknown
    async with (
        scripted(CANCELED, tls=tls) as server,
        server.client() as refunds,
    ):
        with pytest.raises(APIConnectionError, match="SSL_CERT_FILE") as caught:
            await refunds.cancel(RE)
    assert len(caught.value.attempts) == 1


@asynccontextmanager
async def refusing_proxy(
    status: int,
) -> AsyncGenerator[tuple[str, list[bytes]], None]:
    asked: list[bytes] = []

    async def refuse(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode())
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked


@pytest.mark.parametrize(
    ("status", "attempts"), [(407, 1), (403, 4), (500, 4), (502, 4)]
)
async def test_proxy_that_refuses_to_connect_is_named_with_its_status(
    status: int, attempts: int
) -> None:
    words = rf"the proxy refused the connection \(HTTP status {status}\)"
    async with (
        refusing_proxy(status) as (url, asked),
        aiohttp.ClientSession(proxy=url) as session,
    ):
        refunds = RefundsClient(KEY, base_url=HOST, session=session)
        with pytest.raises(APIConnectionError, match=words) as caught:
            await refunds.cancel(RE)
    assert len(caught.value.attempts) == len(asked) == attempts
    assert not any(b"sk_test" in each for each in asked)


@pytest.mark.parametrize("size", [9_000, 60_000, 250_000])
async def test_header_of_a_proxy_does_not_cost_an_outcome(size: int) -> None:
    policy = {"Content-Security-Policy": "x" * size, "Request-Id": "req_1"}
    many = {f"X-Policy-{number}": "y" * 50 for number in range(300)}
    async with (
        scripted(answer(headers=policy), answer(headers=many)) as server,
        server.client() as refunds,
    ):
        for _ in range(2):
            assert (await refunds.cancel(RE)).status == "canceled"
    assert server.methods() == "POST POST"


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (answer(headers={"X": "x" * 400_000}), "headers are too large"),
        (
            answer(headers={"Content-Encoding": "zstd-2"}, body=b"?"),
            "could not be read|encoding",
        ),
        (answer(body=b"?" * 9, headers={"Content-Encoding": "br"}), "encoding|broke"),
    ],
)
async def test_answer_of_no_use_says_why(act: bytes, words: str) -> None:
    async with (
        scripted(act, reads=[seen("requires_action")]) as server,
        server.client(retry=ONCE) as refunds,
    ):
        with pytest.raises(OutcomeUnknownError, match=words):
            await refunds.cancel(RE)


async def test_interim_answer_leaves_no_late_one_to_the_next_request() -> None:
    """A bare 101 ends aiohttp's wait, and the real answer comes after it."""
    late = b"HTTP/1.1 101 Whatever\r\n\r\n" + answer(
        404, b'{"error": {"type": "invalid_request_error"}}'
    )
    async with (
        scripted(late, CANCELED) as server,
        server.client() as refunds,
    ):
        assert (await refunds.cancel(RE)).status == "canceled"
    assert [each.connection for each in server.received] == [1, 2]


@pytest.mark.parametrize("number", [errno.ECONNREFUSED, errno.EHOSTUNREACH])
async def test_number_of_the_system_is_explained_in_its_words(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sock_connect(*_: object) -> None:
        raise OSError(number, "whatever")

    loop: Any = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "sock_connect", sock_connect)
    async with RefundsClient(KEY, base_url="http://127.0.0.1:9", retry=ONCE) as refunds:
        with pytest.raises(APIConnectionError, match=r"refused|No route") as caught:
            await refunds.cancel(RE)
    assert caught.value.attempts[0].failure == "refused"


async def test_pages_that_go_in_a_circle_end_with_an_error() -> None:
    def page(refund_id: str) -> bytes:
        refund = refund_json("succeeded", id=refund_id)
        return answer(body=b'{"data": [' + refund + b'], "has_more": true}')

    pages = [page("re_1"), page("re_2"), page("re_3"), page("re_1")]
    async with scripted(reads=[*pages]) as server, server.client() as refunds:
        found: list[str] = []

        async def collect() -> None:
            async for refund in refunds.list():
                found.append(refund.id)  # noqa: PERF401 - it raises in the middle

        with pytest.raises(APIError, match="circle"):
            await collect()
    assert found == ["re_1", "re_2", "re_3", "re_1"]
