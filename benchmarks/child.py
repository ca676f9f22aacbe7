"""A server in a process of its own, for as long as a ``with`` block."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

ROOT = Path(__file__).resolve().parent.parent

# Seconds that it may take to end when it is told to.
_GRACE = 5.0


@contextlib.contextmanager
def started(module: str) -> Generator[str, None, None]:
    """Run a module as a program, and yield the first line that it prints.

    Raises:
        RuntimeError: It ended without a word.
    """
    process = subprocess.Popen(  # noqa: S603 - ours, by this interpreter
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    with process:
        assert process.stdin is not None  # noqa: S101 - asked for above
        assert process.stdout is not None  # noqa: S101 - asked for above
        try:
            told = process.stdout.readline().strip()
            if not told:
                raise RuntimeError(f"{module} did not start")
            yield told
        finally:
            process.stdin.close()
            try:
                process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                process.kill()


async def until_left() -> None:
    """Return, in the child, when the block is left, or its process ends somehow."""
    ended = asyncio.Event()
    # Standard input ends then: no server is left over.
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
    await ended.wait()
