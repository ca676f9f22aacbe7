"""The network of these tests: what it cuts is cut, however far it had come."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.support.tcp_proxy import TcpProxy

if TYPE_CHECKING:
    from pathlib import Path

# Turns of the loop: at the first a connection is accepted, at the last it carries.
TURNS = range(12)


async def turn(times: int) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


@pytest.mark.parametrize("turns", TURNS)
@pytest.mark.parametrize("closes", [False, True])
async def test_connection_of_a_moment_ago_is_cut_too(
    tmp_path: Path, turns: int, *, closes: bool
) -> None:
    target = tmp_path / "target"
    open_ = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_
        open_ += 1
        await reader.read()
        writer.close()
        open_ -= 1

    proxy = TcpProxy(target)
    async with await asyncio.start_unix_server(serve, target):
        await proxy.accept()
        with socket.create_connection(("127.0.0.1", proxy.port)) as client:
            client.setblocking(False)  # noqa: FBT003 - its name for it
            await turn(turns)
            if closes:
                proxy.close()
            else:
                proxy.refuse()
                proxy.cut()
            await turn(len(TURNS))
            assert not proxy.ends
            assert not open_
            with suppress(ConnectionResetError):
                assert client.recv(1) == b""
        proxy.close()
