"""Where people run it: proxies, environment variables, quiet and verbose."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trustme

from tests.support.terminal import emulator_of, run, run_each

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

HOST = "api.example.test"  # which no resolver knows: https://www.rfc-editor.org/rfc/rfc6761


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


class Proxy:
    """A proxy for CONNECT that leads every host to one port of this one."""

    def __init__(self, port: int) -> None:
        self.connects: list[str] = []
        self._port = port
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def serve(self) -> AsyncGenerator[str]:
        server = await asyncio.start_server(self._enter, "127.0.0.1", 0)
        try:
            yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _enter(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._tasks.add(asyncio.create_task(self._connect(reader, writer)))

    async def _connect(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.connects.append(head)
        answers, requests = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(pump(reader, requests), pump(answers, writer))


@asynccontextmanager
async def with_tls(port: int, certificate: trustme.LeafCert) -> AsyncGenerator[int]:
    """Put TLS in front of a port."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(tls)  # pyright: ignore[reportUnknownMemberType]  # trustme's types leave pyOpenSSL unknown
    tasks: set[asyncio.Task[None]] = set()

    async def connect(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        answers, requests = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, requests), pump(answers, writer))

    def enter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(connect(reader, writer)))

    server = await asyncio.start_server(enter, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
async def test_proxy_of_the_environment_is_used_and_shown_without_its_password(
    variable: str, tmp_path: Path
) -> None:
    emulator, ids = emulator_of(2)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with (
        emulator.serve() as behind,
        with_tls(int(behind.rpartition(":")[2]), authority.issue_cert(HOST)) as port,
    ):
        proxy = Proxy(port)
        async with proxy.serve() as address:
            command = ("cancel", *ids, "--base-url", f"https://{HOST}", "--verbose")
            environment = {
                variable: f"http://jenny:secret@{address}",
                "SSL_CERT_FILE": str(tmp_path / "ca.pem"),
            }
            ended = await run(*command, environment=environment)
            assert len(proxy.connects) in (1, 2)
            direct = await run(
                *command,
                *("--patience", "0.1"),
                environment={**environment, "NO_PROXY": f"other.test,{HOST}"},
            )
    assert ended.code == 0
    assert emulator.books.cancellations == dict.fromkeys(ids, 1)
    head = proxy.connects[0]
    assert head.startswith(f"CONNECT {HOST}:443 HTTP/1.1\r\n")
    assert "Proxy-Authorization: Basic " in head
    assert "Bearer" not in head
    assert ended.err.startswith(
        f"https://{HOST} with a test key, proxy http://{address} (from the environment)"
    )
    assert "secret" not in ended.err
    assert direct.code == 1
    assert "no proxy" in direct.err
    assert "no connection" in direct.lines[0]["error"]


async def test_proxy_never_stands_before_a_loopback_address() -> None:
    emulator, ids = emulator_of(1)
    async with emulator.serve() as base_url:
        ended = await run(
            *("cancel", *ids, "--base-url", base_url),
            environment={
                "HTTP_PROXY": "http://127.0.0.1:9",
                "ALL_PROXY": "127.0.0.1:9",
            },
        )
    assert ended.code == 0


async def test_proxy_that_cannot_be_used_is_refused() -> None:
    for url in ("socks5://127.0.0.1:9", "http://", "http://[", "://"):
        ended = await run("cancel", "re_1", environment={"HTTPS_PROXY": url})
        assert (ended.code, ended.out) == (2, "")
        assert "the proxy that the environment names" in ended.err
    plain = await run(
        *("cancel", "re_1", "--base-url", "http://emulator.test"),
        environment={"ALL_PROXY": "http://127.0.0.1:9"},
    )
    assert plain.code == 2
    assert "plain http" in plain.err


async def test_each_option_may_come_from_the_environment() -> None:
    emulator, ids = emulator_of(3)
    theirs = emulator.add_refund(account="acct_1Them")
    async with emulator.serve() as base_url:
        variables = {"ASYNC_REFUNDS_BASE_URL": base_url}
        dry, given, wrong = await asyncio.gather(
            run(
                "cancel", *ids, environment={**variables, "ASYNC_REFUNDS_DRY_RUN": "1"}
            ),
            run(
                *("retrieve", theirs),
                environment={**variables, "ASYNC_REFUNDS_ACCOUNT": "acct_1Them"},
            ),
            run("cancel", "re_1", environment={"ASYNC_REFUNDS_RATE": "fast"}),
        )
        listed = await run(
            "list", "--max", "1", environment={**variables, "ASYNC_REFUNDS_MAX": "2"}
        )
    assert dry.code == given.code == 0
    assert "3 of 3 refunds can be canceled" in dry.err
    assert given.lines[0]["id"] == theirs
    assert wrong.code == 2
    assert len(listed.lines) == 1
    assert not emulator.books.cancel_requests


async def test_quiet_leaves_results_and_errors() -> None:
    emulator, ids = emulator_of(2)
    emulator.set_status(ids[0], "succeeded")
    async with emulator.serve() as base_url:
        ended, missing = await run_each(
            ("cancel", *ids, "--quiet", "--base-url", base_url),
            ("retrieve", "re_missing", "-q", "--base-url", base_url),
        )
    assert (ended.code, ended.err) == (1, "")
    assert len(ended.lines) == 2
    assert missing.code == 1
    assert missing.err.startswith("async-refunds: re_missing could not be read")


async def test_verbose_shows_each_retry() -> None:
    emulator, ids = emulator_of(1)
    emulator.faults.script("503")
    async with emulator.serve() as base_url:
        ended = await run("cancel", *ids, "-v", "--base-url", base_url)
    assert ended.code == 0
    first, retry = ended.err.splitlines()
    assert first == f"{base_url} with a test key, no proxy"
    assert "503" in retry


async def test_log_that_the_client_is_asked_for_is_not_set_up_twice() -> None:
    emulator, ids = emulator_of(1)
    async with emulator.serve() as base_url:
        ended = await run(
            *("retrieve", *ids, "--base-url", base_url),
            environment={"ASYNC_REFUNDS_LOG": "debug"},
        )
    assert ended.code == 0
    (line,) = ended.err.splitlines()
    assert "GET" in line


async def test_context_of_an_organization_is_sent_and_kept_in_the_journal(
    tmp_path: Path,
) -> None:
    emulator, _ = emulator_of(0)
    ids = [emulator.add_refund(account="acct_1Them", livemode=True) for _ in range(2)]
    async with emulator.serve() as base_url:
        how = ("--context", "acct_1Them", "--base-url", base_url)
        part = await run(
            *("cancel", *ids, "--max", "1", "--journal", "run.sqlite3", "-v", *how),
            "--live",
            key="sk_org_live_1",
            folder=tmp_path,
        )
        rest = await run(
            *("resume", "run.sqlite3", "--live"), key="sk_org_live_1", folder=tmp_path
        )
        wrong = await run("list", "--context", "a b", "--base-url", base_url)
    assert part.code == 0
    assert " with a live key, context acct_1Them" in part.err
    assert rest.code == 0
    assert emulator.books.cancellations == dict.fromkeys(ids, 1)
    assert wrong.code == 2
    assert "--context" in wrong.err


@pytest.mark.parametrize("variables", [{"FORCE_COLOR": "1"}, {"NO_COLOR": "1"}])
async def test_nothing_is_in_color(variables: dict[str, str]) -> None:
    for words in (("--help",), ("cancel", "--nosuch"), ("cancel",)):
        ended = await run(*words, environment=variables)
        assert "\x1b" not in ended.out + ended.err


async def test_variable_that_would_hold_back_is_not_passed_over(tmp_path: Path) -> None:
    """Who exports it for safety may forget about it; see the next test too."""
    emulator, ids = emulator_of(2)
    async with emulator.serve() as base_url:
        kept = ("--journal", "run.sqlite3", "--base-url", base_url)
        first = await run("cancel", *ids, "--max", "1", *kept, folder=tmp_path)
        *held_back, off = [
            await run(
                "resume",
                "run.sqlite3",
                folder=tmp_path,
                environment={"ASYNC_REFUNDS_DRY_RUN": value},
            )
            for value in ("1", "yes", "0")
        ]
    assert first.code == 0
    for ended in held_back:
        assert [line["cancelable"] for line in ended.lines] == [True]
        assert "nothing was canceled" in ended.err
    assert off.code == 0
    assert emulator.books.cancellations == dict.fromkeys(ids, 1)


async def test_fleet_is_held_back_too() -> None:
    pytest.importorskip("psycopg")
    enqueue = ("enqueue", "re_1", "--run", "tonight")
    commands = (
        ("worker",),
        ("retry", "tonight", "--outcome", "failed"),
        ("resume", "tonight"),
    )
    for variable, option, those in (
        ("ASYNC_REFUNDS_DRY_RUN", "--dry-run", commands),
        ("ASYNC_REFUNDS_MAX", "--max", (*commands, enqueue)),
    ):
        for command in those:
            ended = await run("fleet", *command, environment={variable: "1"})
            assert ended.code == 2
            said = f"{variable} is set, and this command has no {option}: unset it"
            assert said in ended.err
        shown = await run(
            "fleet", "status", key=None, environment={variable: "1", "PGHOST": "/none"}
        )
        assert "unset it" not in shown.err
