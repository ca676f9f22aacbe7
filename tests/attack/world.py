"""What a case of calls or of a batch stands in: a server, a client, odd hooks."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from async_refunds import RefundsClient, RetryPolicy

from .canaries import KEY, shows_secret
from .script import Act, Call, Given, Move, Option, Script
from .server import Server
from .stripe import Books

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncGenerator, Generator

DEADLINE = 80.0
"""Seconds: the policy's own default, which the attack relies on."""


class OddError(BaseException):
    """What a test framework raises, and no `except Exception` sees."""


@dataclass(frozen=True)
class Finding:
    """A promise that did not hold."""

    kind: str
    """What was told, or what happened, in a few words: the same for the same fault."""
    text: str
    """What was told and what was true."""


@dataclass
class Report:
    """What came of a case."""

    findings: list[Finding] = field(default_factory=list[Finding])
    calls: int = 0
    requests: int = 0
    damages: frozenset[str] = frozenset()
    """What was done to a journal's files."""
    told: Counter[str] = field(default_factory=Counter[str])
    done: Counter[str] = field(default_factory=Counter[str])
    """How often a journal was damaged, and a process killed, in which way."""
    lines: list[str] = field(default_factory=list[str])
    """What the server saw, for people."""

    def add(self, kind: str, text: str) -> None:
        """Note a finding, each kind once for a case."""
        if kind not in {finding.kind for finding in self.findings}:
            self.findings.append(Finding(kind, text))


def options_of(script: Script) -> dict[str, Any]:
    """Return the values of a script's options by name."""
    return {part.name: part.value for part in script if isinstance(part, Option)}


def given_by(script: Script) -> list[Given]:
    """Return the refunds of a script, those too that are only called or moved."""
    given = {part.refund: part for part in script if isinstance(part, Given)}
    for part in script:
        if isinstance(part, (Act, Call, Move)):
            given.setdefault(part.refund, Given(part.refund))
    return list(given.values())


# ------------------------------------------------------------------ chance and the log

_CHANCE: ContextVar[random.Random] = ContextVar("_CHANCE")


@contextmanager
def fixed_chance() -> Generator[None]:
    """Have each case draw its own numbers, whatever runs beside it."""
    before = random.random
    fallback = random.Random(0)  # noqa: S311 - no secret

    def drawn() -> float:
        return _CHANCE.get(fallback).random()

    random.random = drawn
    try:
        yield
    finally:
        random.random = before


_REPORT: ContextVar[Report] = ContextVar("_REPORT")


class LeakFinder(logging.Handler):
    """Looks for secrets in what the package logs."""

    def emit(self, record: logging.LogRecord) -> None:
        report = _REPORT.get(None)
        if report is not None and shows_secret(self.format(record)):
            report.add("secret in the log", self.format(record)[:300])


@contextmanager
def watched_log(least: int) -> Generator[None]:
    """Look at what the package logs from a level on, and show none of it."""
    logger = logging.getLogger("async_refunds")
    finder, level, passes_on = LeakFinder(), logger.level, logger.propagate
    logger.addHandler(finder)
    logger.setLevel(least)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(finder)
        logger.setLevel(level)
        logger.propagate = passes_on


# ------------------------------------------------------------- exceptions from outside

_ODD: tuple[type[BaseException], ...] = (
    *(OddError, GeneratorExit, asyncio.CancelledError, MemoryError, RecursionError),
    *(ValueError, OSError, KeyError, TimeoutError, aiohttp.ClientError),
)


def _raising(value: float) -> BaseException:
    return _ODD[int(value) % len(_ODD)]("an odd one")


def _hook(value: float) -> Any:  # noqa: ANN401 - a hook, or none
    def raising(_: object) -> None:
        raise _raising(value - 1)

    return raising if value else None


_EVENTS = (
    *("on_request_start", "on_connection_queued_start", "on_connection_create_start"),
    *("on_connection_create_end", "on_connection_reuseconn"),
    *("on_request_headers_sent", "on_request_end", "on_response_chunk_received"),
)
# An exception there may come before anything is sent or after: it looks like a canned
# answer, or there is a connection already.
_DOUBTFUL = frozenset({"on_request_start", "on_request_headers_sent"})


def _event(value: float) -> str:
    return _EVENTS[int(value) % len(_EVENTS)]


def _trace(value: float) -> aiohttp.TraceConfig:
    config = aiohttp.TraceConfig()

    async def raising(*_: object) -> None:
        raise _raising(value // len(_EVENTS))

    getattr(config, _event(value)).append(raising)
    return config


class _OddResolver(AbstractResolver):
    """A DNS that answers in an odd way."""

    def __init__(self, kind: int) -> None:
        self._kind = kind

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily | int = 0
    ) -> list[ResolveResult]:
        del host, port, family
        errors: dict[int, Exception] = {
            1: OSError("no such host"),
            2: RuntimeError("can't start new thread"),
            3: UnicodeError("label too long"),
            4: IndexError("list index out of range"),
            5: RecursionError("maximum recursion depth exceeded"),
            6: MemoryError(),
        }
        if self._kind in errors:
            raise errors[self._kind]
        return []

    async def close(self) -> None:
        """Nothing is held."""


# --------------------------------------------------------------------------- the world


@dataclass
class World:
    """What a case plays in."""

    server: Server
    books: Books
    refunds: RefundsClient
    report: Report
    options: dict[str, Any]

    def may_have_sent(self, name: str, key: str | None) -> bool:
        """Tell whether a cancel of a refund with this key may have left the client."""
        if key in self.books.keys(name):
            return True
        # A connection that was hung up loses what is sent on it.
        return self.server.hung_up or (
            "trace" in self.options and _event(self.options["trace"]) in _DOUBTFUL
        )


@asynccontextmanager
async def opened(script: Script, seed: str) -> AsyncGenerator[World]:
    """Make the server and the client of a script."""
    loop = asyncio.get_running_loop()
    options = options_of(script)
    report = Report()
    _CHANCE.set(random.Random(seed))  # noqa: S311 - no secret
    _REPORT.set(report)
    books = Books(faithful="poor" not in options, clock=loop.time)
    acts = [part for part in script if isinstance(part, Act)]
    server = Server(books, acts, greets=int(options.get("greets", -1)))
    for given in given_by(script):
        books.give(given.refund, given.status, given.spelling)
    for part in script:
        if isinstance(part, Move):
            loop.call_later(part.at, books.move, part.refund, part.status)
    await _listen(server, options)
    session = _session(options)
    url = server.url
    if session is not None and "resolver" in options:
        url = url.replace("127.0.0.1", "localhost")
    refunds = RefundsClient(
        KEY,
        session=session,
        base_url=url,
        retry=RetryPolicy(
            max_retries=int(options.get("max_retries", 3)),
            deadline=options.get("deadline", DEADLINE),
        ),
        attempt_timeout=options.get("attempt_timeout", 30.0),
        on_attempt=_hook(options.get("hook", 0)),
    )
    try:
        yield World(server, books, refunds, report, options)
    finally:
        await _close(refunds, report)
        if session is not None:
            await session.close()
        server.close()
        report.lines = server.lines
        report.requests = server.requests
        for fault in server.faults:
            report.add("a wrong request", fault)


async def _listen(server: Server, options: dict[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    deaf = options.get("deaf_until", 0.0)
    if not deaf:
        await server.listen()
    elif deaf < DEADLINE:
        loop.call_later(deaf, lambda: loop.create_task(server.listen()))
    if "deaf_from" in options:
        loop.call_later(options["deaf_from"], server.deafen)


async def _close(refunds: RefundsClient, report: Report) -> None:
    task = asyncio.ensure_future(refunds.close())
    await asyncio.wait({task}, timeout=2 * DEADLINE)
    if not task.done():
        report.add("a close that never ends", f"{task.get_stack()}")
        task.cancel()
    elif task.exception() is not None:
        report.add("a close that fails", f"{task.exception()!r}")


def _session(options: dict[str, Any]) -> aiohttp.ClientSession | None:
    if "borrowed" not in options:
        return None
    resolver = _OddResolver(int(options["resolver"])) if "resolver" in options else None
    traces = [_trace(options["trace"])] if "trace" in options else []
    connector = aiohttp.TCPConnector(
        limit=int(options["borrowed"]), resolver=resolver, use_dns_cache=False
    )
    session = aiohttp.ClientSession(connector=connector, trace_configs=traces)
    if "session_close_at" in options:
        loop = asyncio.get_running_loop()
        loop.call_later(
            options["session_close_at"], lambda: loop.create_task(session.close())
        )
    return session
