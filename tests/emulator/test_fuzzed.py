"""The emulator answers any request like Stripe, and never with a 500."""

from __future__ import annotations

import asyncio
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from async_refunds.emulator import Emulator
from tests.support.stripe_caller import serving
from tests.support.stripe_schema import check_answer

HELD = "re_1Held"

# Bytes that an HTTP parser lets through, and a few that it may not.
PATH_BYTES = st.binary(max_size=20).map(
    lambda data: bytes(b for b in data if b > 0x20 and b != 0x7F)
)
HEADER_BYTES = st.binary(max_size=30).map(
    lambda data: bytes(b for b in data if b >= 0x20 and b != 0x7F)
)
METHODS = st.sampled_from(
    [b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"PATCH", b"BREW"]
)
PATHS = st.one_of(
    st.sampled_from(
        [
            b"/v1/refunds",
            b"/v1/refunds/",
            b"/v1/refunds/" + HELD.encode(),
            b"/v1/refunds/" + HELD.encode() + b"/cancel",
            b"/v1/refunds/re_missing/cancel",
            b"/v1/refunds/%2F%00%ff/cancel",
            b"/v1/refunds/../refunds",
            b"http://elsewhere/v1/refunds",
        ]
    ),
    PATH_BYTES.map(lambda data: b"/v1/refunds/" + data),
    PATH_BYTES.map(lambda data: b"/" + data),
)
NAMES = st.one_of(
    st.sampled_from(
        [
            "expand[]",
            "expand[0]",
            "expand",
            "limit",
            "created",
            "created[gt]",
            "starting_after",
            "ending_before",
            "charge",
            "payment_intent",
        ]
    ),
    st.text(max_size=8),
)
VALUES = st.one_of(
    st.sampled_from(
        ["charge", "data.charge", "charge.payment_intent", HELD, "0", "1", "-5", ""]
    ),
    st.integers().map(str),
    st.text(max_size=12),
    st.sampled_from(["%ff", "%", "%zz", "&", "=", "a&b", "\x00"]),
)
FORMS = st.one_of(
    st.lists(st.tuples(NAMES, VALUES), max_size=4).map(
        lambda pairs: "&".join(f"{name}={value}" for name, value in pairs).encode()
    ),
    st.binary(max_size=40),
)
AUTHORIZATIONS = st.one_of(
    st.just(b"Bearer sk_test_1"),
    st.just(b"Bearer sk_live_1"),
    st.just(b"Basic c2tfdGVzdF8xOg=="),
    HEADER_BYTES,
    HEADER_BYTES.map(lambda data: b"Bearer " + data),
    HEADER_BYTES.map(lambda data: b"Basic " + data),
)
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                b"Idempotency-Key",
                b"Stripe-Version",
                b"Stripe-Account",
                b"Stripe-Context",
                b"Content-Type",
                b"Content-Encoding",
                b"Expect",
                b"Upgrade",
                b"Cookie",
            ]
        ),
        st.one_of(
            HEADER_BYTES,
            st.sampled_from(
                [
                    b"application/x-www-form-urlencoded; charset=utf-8",
                    b"multipart/form-data",
                    b"gzip",
                    b"100-continue",
                    b"2026-10-28.endive",
                    b"acct_1",
                    b"websocket",
                ]
            ),
        ),
    ),
    max_size=4,
)


async def converse(request: bytes) -> bytes:
    emulator = Emulator()
    emulator.add_refund(refund_id=HELD)
    async with serving(emulator) as api:
        return await api.raw(request)


def check(method: bytes, answer: bytes) -> None:
    head, _, body = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").partition(
        b"\r\n\r\n"
    )
    lines = head.split(b"\r\n")
    status = int(lines[0].split()[1])
    assert status < 500, answer
    headers = dict(line.lower().split(b": ", 1) for line in lines[1:])
    if b"request-id" not in headers:
        # The parser of aiohttp did not take it for HTTP.
        assert status == 400, answer
    elif method != b"HEAD":
        # A refund, a list of refunds, or an error.
        listed = json.loads(body).get("object") == "list"
        path = "/v1/refunds" if listed else "/v1/refunds/re_1"
        check_answer("GET", path, status, body)


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Return a method, and the bytes of a request with it."""
    method, path, body = draw(METHODS), draw(PATHS), draw(FORMS)
    query = bytes(b for b in draw(FORMS) if b > 0x20 and b != 0x7F)
    lines = [
        method + b" " + path + (b"?" + query if query else b"") + b" HTTP/1.1",
        b"Host: a",
        b"Connection: close",
        b"Authorization: " + draw(AUTHORIZATIONS),
        b"Content-Length: %d" % len(body),
        *(name + b": " + value for name, value in draw(HEADERS)),
    ]
    return method, b"\r\n".join(lines) + b"\r\n\r\n" + body


@settings(max_examples=400, deadline=None)
@given(requests())
def test_any_request_has_an_answer(request_sent: tuple[bytes, bytes]) -> None:
    method, request = request_sent
    check(method, asyncio.run(converse(request)))
