"""A process that is stopped past its deadlines, by a real signal."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest

from tests.support.scripted import CANCELED, scripted

CALLS = 5
# Of each call; the process is stopped for longer than that. More by hand:
# STOPPED_SECONDS=20 python -m pytest tests/behaviour/test_stopped_process.py
SECONDS = float(os.environ.get("STOPPED_SECONDS", "2.0"))


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGSTOP")
@pytest.mark.asyncio(loop_factories=["real"])
async def test_answer_that_came_while_the_process_was_stopped_counts() -> None:
    """As a suspended laptop, a paused container or a debugger stops it."""
    async with scripted("stall") as server:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.support.canceling_child"),
            *(server.url, str(CALLS), str(SECONDS)),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            await server.received_at_least(CALLS)
            os.kill(child.pid, signal.SIGSTOP)
            server.say(CANCELED)
            await asyncio.sleep(SECONDS + 0.5)
            os.kill(child.pid, signal.SIGCONT)
            told, _ = await child.communicate()
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
    assert told.decode().split() == ["canceled"] * CALLS
    assert len(server.received) == CALLS
