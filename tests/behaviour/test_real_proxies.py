"""Real proxies that put a page of their own in place of the answer to a cancel.

Skipped where squid, haproxy and nginx are not installed. The same bytes come from a
socket in `test_outcomes.py`, so that nothing depends on this being run.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from async_refunds import OutcomeUnknownError, RefundsClient, RetryPolicy
from async_refunds.emulator import Emulator
from tests.support.batches import KEY, canceled_many

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"

# In each, {port} is the proxy's, {stripe} the emulator's, {cutting} a server that
# passes a request on and hangs up in place of the answer, and {folder} an empty folder.
# {posts} stands where cancels alone are meant; without it reads are denied as well.
CONFIGURATIONS: dict[str, tuple[str, str, list[str], str]] = {
    # It has to see the whole answer to know its size: the cancel was executed.
    "squid": (
        """
http_port 127.0.0.1:{port} accel no-vhost defaultsite=127.0.0.1
cache_peer 127.0.0.1 parent {stripe} 0 no-query no-digest originserver login=PASSTHRU
acl posts method POST
http_access allow all
cache deny all
reply_body_max_size 1 bytes {posts}
access_log none
cache_log {folder}/cache.log
cache_store_log none
pid_filename none
coredump_dir {folder}
shutdown_lifetime 0 seconds
""",
        "posts",
        ["squid", "-N", "-f"],
        "",
    ),
    "haproxy": (
        """
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
frontend all
  bind 127.0.0.1:{port}
  http-request set-var(txn.method) method
  default_backend stripe
backend stripe
  http-response deny deny_status 403 {posts}
  server stripe 127.0.0.1:{stripe}
""",
        "if { var(txn.method) -m str POST }",
        ["haproxy", "-db", "-f"],
        "",
    ),
    "nginx": (
        """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ }}
http {{
  access_log off;
  client_body_temp_path {folder}/1;
  proxy_temp_path {folder}/2;
  fastcgi_temp_path {folder}/3;
  uwsgi_temp_path {folder}/4;
  scgi_temp_path {folder}/5;
  server {{
    listen 127.0.0.1:{port};
    error_page 502 504 =403 /denied;
    location = /denied {{ internal; return 403 "<h1>Forbidden</h1>"; }}
    location {posts} {{ proxy_pass http://127.0.0.1:{cutting}; }}
    {reads}
  }}
}}
""",
        "~ /cancel$",
        ["nginx", "-p", "{folder}", "-c"],
        "location / {{ proxy_pass http://127.0.0.1:{stripe}; }}",
    ),
}
EVERYTHING = {"squid": "all", "haproxy": "", "nginx": "/"}


async def cut(
    stripe: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Pass a request on, and hang up when its answer begins."""
    head = await reader.readuntil(b"\r\n\r\n")
    answer, onward = await asyncio.open_connection("127.0.0.1", stripe)
    onward.write(head)
    await answer.read(1)
    onward.close()
    writer.close()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


async def until_up(port: int) -> None:
    """Wait for a program of others, which tells nobody that it listens."""
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


@asynccontextmanager
async def behind(
    name: str, stripe: Emulator, folder: Path, *, reads: bool
) -> AsyncGenerator[RefundsClient]:
    """Give a client of an emulator behind a proxy that denies cancels, or all."""
    text, posts, command, open_reads = CONFIGURATIONS[name]
    program = shutil.which(command[0], path=_PATH)
    if program is None:
        pytest.skip(f"{name} is not installed")
    os.chmod(folder, 0o777)  # noqa: PTH101, S103 - squid gives up its rights
    async with stripe.serve() as url:
        upstream = int(url.rpartition(":")[2])
        cutter = await asyncio.start_server(
            lambda r, w: cut(upstream, r, w), "127.0.0.1", 0
        )
        places = {
            "port": free_port(),
            "stripe": upstream,
            "cutting": cutter.sockets[0].getsockname()[1],
            "folder": folder,
            "posts": posts if reads else EVERYTHING[name],
        }
        places["reads"] = open_reads.format(**places) if reads else ""
        configuration = folder / "proxy.conf"
        configuration.write_text(text.format(**places))
        arguments = [each.format(**places) for each in command[1:]]
        process = await asyncio.create_subprocess_exec(
            *(program, *arguments, str(configuration)),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            await until_up(int(str(places["port"])))
            async with RefundsClient(
                KEY,
                base_url=f"http://127.0.0.1:{places['port']}",
                retry=RetryPolicy(max_retries=1, deadline=10.0),
            ) as refunds:
                yield refunds
        finally:
            process.kill()
            await process.wait()
            cutter.close()


@pytest.mark.parametrize("name", CONFIGURATIONS)
async def test_page_of_a_proxy_in_place_of_the_answer_hides_no_cancel(
    name: str, tmp_path: Path
) -> None:
    stripe = Emulator()
    first, *ids = stripe.seed_refunds(31)
    async with behind(name, stripe, tmp_path, reads=True) as refunds:
        refund = await refunds.cancel(first)
        found = await canceled_many(refunds, ids)
    attempts = refund.last_response.attempts
    assert [each.method for each in attempts] == ["POST", "GET"]
    assert attempts[0].status == 403
    assert {result.outcome for result in found.values()} == {"canceled"}
    for refund_id in (first, *ids):
        assert stripe.books.cancellations[refund_id] == 1


@pytest.mark.parametrize("name", CONFIGURATIONS)
async def test_proxy_that_denies_reads_too_leaves_nothing_but_unknown(
    name: str, tmp_path: Path
) -> None:
    stripe = Emulator()
    first, *ids = stripe.seed_refunds(6)
    async with behind(name, stripe, tmp_path, reads=False) as refunds:
        with pytest.raises(OutcomeUnknownError, match="did not come from Stripe"):
            await refunds.cancel(first)
        found = await canceled_many(refunds, ids, patience=1.0)
    assert {result.outcome for result in found.values()} == {"unknown"}
    for refund_id in (first, *ids):
        assert stripe.books.cancellations[refund_id] == 1
