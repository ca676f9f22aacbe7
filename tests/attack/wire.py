"""What becomes of an answer on its way: each kind as bytes, waits and ends."""

from __future__ import annotations

import enum
import gzip
import json
from typing import TYPE_CHECKING, TypeAlias

from .canaries import KEY, address
from .stripe import Answer, Entry, refund

if TYPE_CHECKING:
    from collections.abc import Callable


class End(enum.Enum):
    """How a connection ends."""

    FIN = "fin"
    RST = "rst"
    HELD = "held"
    """Not at all: nothing more comes."""
    EXTRA = "extra"
    """It stays open; the bytes before this come when the next request does."""


Step: TypeAlias = bytes | float | End
"""Bytes to send, seconds to wait, or the end."""

_REASONS = {200: "OK", 304: "Not Modified", 404: "Not Found", 502: "Bad Gateway"}


def written(answer: Answer, *extra: tuple[str, str], length: int | None = -1) -> bytes:
    """Return an answer as HTTP; ``length`` in place of the right one, or none."""
    head = [f"HTTP/1.1 {answer.status} {_REASONS.get(answer.status, 'Said')}"]
    head += [f"{name}: {value}" for name, value in (*answer.headers, *extra)]
    if length is not None and not (answer.status in (204, 304) and length == -1):
        head.append(f"Content-Length: {len(answer.body) if length == -1 else length}")
    return ("\r\n".join(head) + "\r\n\r\n").encode() + answer.body


# ------------------------------------------------ answers of what stands before Stripe

PROXY_STATUSES = (
    *(300, 301, 302, 303, 304, 305, 307, 308, 400, 401, 402, 403, 404, 405, 406, 407),
    *(408, 410, 411, 412, 413, 414, 415, 416, 417, 418, 421, 422, 423, 424, 425, 426),
    *(428, 429, 431, 444, 451, 494, 499, 500, 501, 502, 503, 504, 505, 507, 511, 520),
    *(521, 524, 525, 530, 598, 599, 600, 999),
)


def proxy(value: int) -> Answer:
    """Return a proxy's own answer, with a page of one kind or another."""
    status = PROXY_STATUSES[value % len(PROXY_STATUSES)]
    kind = value // len(PROXY_STATUSES)
    type_, body = _PAGES[kind % len(_PAGES)]
    headers = [("Content-Type", type_), ("Server", "squid/6.6"), ("Via", "1.1 proxy")]
    if 300 <= status < 400:
        headers.append(("Location", f"https://sso.example.com/?who={address(kind)}"))
    if status == 429 and kind % 2:
        headers.append(("Retry-After", "1"))
    if status in (204, 304):
        body = b""
    return Answer(status, tuple(headers), body)


_PAGE = f"<html>Not with {KEY}, {address(3)} and {address(12)}</html>".encode()
_PAGES: tuple[tuple[str, bytes], ...] = (
    ("text/html", _PAGE),
    ("text/html", b""),
    ("text/plain", b"upstream connect error or disconnect/reset before headers"),
    ("application/json", b'{"message": "Forbidden"}'),
    ("application/json", b'{"error": "access_denied"}'),
    (
        "application/json",
        b'{"error": {"code": 403, "message": "no", "status": "PERMISSION_DENIED"}}',
    ),
    ("application/json", b'{"error": {}}'),
    ("application/json", b'{"errors": [{"code": "1020"}]}'),
    ("text/html", b"<!doctype html>" + b"x" * 70_000),
    ("application/json", b"null"),
)


# -------------------------------------------- what answers something that nobody asked


def foreign(value: int, *, faithful: bool) -> Answer:
    """Return an answer to another request, as it may come late on a connection."""
    name = ("Request-Id", f"req_{value:014d}")
    headers = (("Content-Type", "application/json"), *((name,) if faithful else ()))
    other = Entry("re_1other", "canceled", value)
    canceled = json.dumps(refund(other, "canceled")).encode()
    choices: tuple[Answer, ...] = (
        Answer(401, headers, _error("invalid_request_error")),
        Answer(403, headers, _error("invalid_request_error")),
        Answer(404, headers, _error("invalid_request_error", "resource_missing")),
        Answer(400, headers, _error("invalid_request_error")),
        Answer(400, headers, _error("invalid_request_error", "parameter_missing")),
        Answer(429, headers, _error("invalid_request_error", "rate_limit")),
        Answer(404, (*headers, ("Idempotency-Key", "another")), _error("card_error")),
        Answer(400, (*headers, ("Idempotency-Key", "another")), _error("card_error")),
        Answer(200, headers, canceled),
        Answer(200, (*headers, ("Idempotency-Key", "another")), canceled),
        Answer(200, headers, b'{"object": "list", "data": [], "has_more": false}'),
        Answer(408, (("Content-Type", "text/html"), ("Connection", "close")), b"idle"),
        Answer(413, (("Content-Type", "text/html"),), b"too large"),
        Answer(302, (("Location", "https://example.com"),), b""),
        Answer(400, (("Content-Type", "text/html"),), b"<h1>Bad Request</h1>"),
        Answer(500, headers, _error("api_error")),
    )
    return choices[value % len(choices)]


NAMELESS = frozenset({11, 12, 13, 14})
"""The foreign answers that are a proxy's own, and bear no name of Stripe's."""


def _error(type_: str, code: str = "") -> bytes:
    error = {"type": type_, "message": f"not yours: {address(7)}"}
    return json.dumps({"error": error | ({"code": code} if code else {})}).encode()


# --------------------------------------------------------------------------- the kinds


def _cut(data: bytes, value: int) -> bytes:
    return data[: value % len(data)]


def _head_cut(answer: Answer, value: int) -> list[Step]:
    head = written(answer)[: -len(answer.body) or None]
    return [_cut(head, value), End.FIN]


def _body_cut(answer: Answer, value: int) -> list[Step]:
    whole = written(answer)
    cut = value % len(answer.body) + 1 if answer.body else 0
    return [whole[: len(whole) - cut], End.RST if value % 2 else End.FIN]


def _chunked(answer: Answer, value: int, *, cut: bool) -> list[Step]:
    bare = Answer(answer.status, answer.headers, b"")
    head = written(bare, ("Transfer-Encoding", "chunked"), length=None)
    size = value % 97 + 1
    pieces = [answer.body[at : at + size] for at in range(0, len(answer.body), size)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in pieces)
    if not cut:
        return [head + chunks + b"0\r\n\r\n"]
    return [head + _cut(chunks + b"0\r\n", value), End.FIN]


def _gzip(answer: Answer, value: int, *, damaged: bool) -> list[Step]:
    body = bytearray(gzip.compress(answer.body))
    if damaged:
        body[value % len(body)] ^= 1 << value % 8
    packed = Answer(answer.status, answer.headers, bytes(body))
    return [written(packed, ("Content-Encoding", ("gzip", "deflate")[value % 11 == 0]))]


def _drip(answer: Answer, value: int) -> list[Step]:
    whole = written(answer)
    size = max(1, len(whole) // (value % 9 + 1))
    steps: list[Step] = []
    for at in range(0, len(whole), size):
        steps += [whole[at : at + size], float(value % 7)]
    return steps


def _informed(answer: Answer, value: int) -> list[Step]:
    status = (100, 102, 103, 101, 199)[value % 5]
    head = f"HTTP/1.1 {status} Wait\r\nX-By: proxy\r\n\r\n".encode()
    if value % 3 == 0:
        return [head, 0.2, written(answer)]
    return [head * (value % 3), written(answer)]


_GARBAGE = (
    b"\x16\x03\x01\x00\x2e\x01",
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"<html>no head at all</html>",
    b"HTTP/1.1 OK\r\n\r\n",
    b"HTTP/1.1 2000 Fine\r\n\r\n",
    b"HTTP/9.9 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 7\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nX: \x00\xff\xfe\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b; Domain=\xe2\x98\x83\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n\r\n",
    b"\r\n\r\n\r\n",
    b"\x00" * 5000,
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + b"[" * 20_000,
)

_HUGE = (
    ("X-Huge", "x" * 9_000),
    ("X-Huge", "x" * 70_000),
    ("Set-Cookie", "a=" + "y" * 8_000),
)

_BODIES = (
    b"",
    b"{}",
    b"null",
    b"[]",
    b'"canceled"',
    b"[" * 5_000,
    _PAGE,
    b'{"id": "re_1other", "status": "canceled"}',
    b'{"object": "refund", "id": 7, "status": "canceled"}',
    b"\xff\xfe\x00",
    b" " * 1_100_000,
    b'{"error": {"type": "api_error", "message": "in a 200"}}',
)


def _with_body(answer: Answer, value: int) -> list[Step]:
    body = _BODIES[value % len(_BODIES)]
    return [written(Answer(200, answer.headers, body))]


def _rekeyed(answer: Answer, _: int) -> list[Step]:
    others = tuple(
        (name, "another-key" if name == "Idempotency-Key" else text)
        for name, text in answer.headers
    )
    return [written(Answer(answer.status, others, answer.body))]


def _mistaken(answer: Answer, _: int) -> list[Step]:
    body = json.dumps(refund(Entry("re_1other", "canceled", 0), "canceled")).encode()
    return [written(Answer(200, answer.headers, body))]


def _wrong_length(answer: Answer, value: int, more: int) -> list[Step]:
    length = max(0, len(answer.body) + more * (value % 50 + 1))
    return [written(answer, length=length), End.FIN if value % 2 else End.HELD]


def _forged(answer: Answer, value: int) -> list[Step]:
    """A header of the answer is damaged or is there twice."""
    extra = (
        ("Request-Id", f"req_{address(value)}"),
        ("Request-Id", KEY),
        ("Idempotency-Key", "another"),
        ("Stripe-Should-Retry", "maybe"),
        ("Idempotent-Replayed", "TRUE"),
        ("Retry-After", "9999999"),
        ("Connection", "close"),
        ("Stripe-Should-Retry", "true"),
    )
    return [written(answer, extra[value % len(extra)])]


KINDS: dict[str, Callable[[Answer, int], list[Step]]] = {
    "plain": lambda a, _: [written(a)],
    "close": lambda a, _: [written(a, ("Connection", "close")), End.FIN],
    "fin_after": lambda a, _: [written(a), End.FIN],
    "fin_late": lambda a, v: [written(a), float(v % 3), End.FIN],
    "rst_after": lambda a, _: [written(a), End.RST],
    "fin": lambda _, v: [0.1 * (v % 3), End.FIN],
    "rst": lambda _, v: [0.1 * (v % 3), End.RST],
    "stall": lambda _a, _v: [End.HELD],
    "slow": lambda a, v: [float(v % 40), written(a)],
    "stall_in_head": lambda a, v: [_cut(written(a), v), End.HELD],
    "cut_head": _head_cut,
    "cut_body": _body_cut,
    "length_long": lambda a, v: _wrong_length(a, v, 1),
    "length_short": lambda a, v: _wrong_length(a, v, -1),
    "until_close": lambda a, _: [written(a, length=None), End.FIN],
    "chunked": lambda a, v: _chunked(a, v, cut=False),
    "chunked_cut": lambda a, v: _chunked(a, v, cut=True),
    "gzip": lambda a, v: _gzip(a, v, damaged=False),
    "gzip_damaged": lambda a, v: _gzip(a, v, damaged=True),
    "drip": _drip,
    "informed": _informed,
    "garbage": lambda _, v: [_GARBAGE[v % len(_GARBAGE)], End.FIN],
    "garbage_held": lambda _, v: [_GARBAGE[v % len(_GARBAGE)], End.HELD],
    "huge": lambda a, v: [written(a, _HUGE[v % len(_HUGE)])],
    "body": _with_body,
    "no_content": lambda a, _: [written(Answer(204, a.headers, b""))],
    "other_refund": _mistaken,
    "other_key": _rekeyed,
    "forged": _forged,
    "proxy": lambda _, v: [written(proxy(v))],
    "proxy_close": lambda _, v: [written(proxy(v), ("Connection", "close")), End.FIN],
    "no_retry": lambda a, _: [written(a, ("Stripe-Should-Retry", "false"))],
    "retry": lambda a, _: [written(a, ("Stripe-Should-Retry", "true"))],
}
"""By name: from Stripe's answer and a number to what is sent instead."""

INTACT = frozenset(
    {"plain", "close", "fin_after", "fin_late", "until_close", "chunked", "no_retry"}
    | {"retry", "gzip"}
)
"""Those after which the client holds Stripe's answer, if it waits for it."""
