"""Real sockets on fake time: what every test of this suite stands on."""

from __future__ import annotations

import asyncio
import os
import selectors
import signal
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest

from tests.support.measuring import unmeasured

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

# By its place in the package, so that it is measured: the installed one is a copy.
pytest_plugins = [
    "async_refunds.emulator.pytest_plugin",
    "pytester",
    "tests.support.postgres",
]

# In a background job of a script Ctrl-C is ignored. Each process that a test starts
# would inherit that, and not hear the one that it is sent.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Long enough for the kernel to carry a packet over the loopback to a socket of the
# same process, short enough that a suite full of time-outs stays quick.
GRACE = 0.002

# Fixtures that work in another thread or process.
WORK_ELSEWHERE = {"stripe_emulator", "stripe_emulator_session", "postgres_server"}


class JumpingSelector(selectors.DefaultSelector):
    """Wait for no clock: when no socket is ready, time jumps to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self.jumped = 0.0

    def select(
        self, timeout: float | None = None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        ready = super().select(min(timeout, GRACE))
        if not ready:
            self.jumped += timeout
        return ready


class JumpingEventLoop(asyncio.SelectorEventLoop):
    """An event loop on real sockets whose clock goes on only where it would wait.

    What a test computes takes none of its time, however busy the machine is.

    Work in another thread or process is invisible to it, and a deadline passes while
    the test waits for it: such a test asks for the plain loop
    (``@pytest.mark.asyncio(loop_factories=["real"])``). One whose fixtures work there
    gets it unasked.
    """

    def __init__(self) -> None:
        self._jumping = JumpingSelector()
        self._began = time.monotonic()
        super().__init__(self._jumping)

    def jump(self, seconds: float) -> None:
        """Let time pass as if something had blocked the loop."""
        self._jumping.jumped += seconds

    def time(self) -> float:
        return self._began + self._jumping.jumped


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Give a test the jumping loop unless it needs the real one."""
    del config
    if WORK_ELSEWHERE & {*getattr(item, "fixturenames", ())}:
        return {"real": asyncio.SelectorEventLoop}
    marker = item.get_closest_marker("asyncio")
    if marker is not None and "loop_factories" in marker.kwargs:
        return {"fake": JumpingEventLoop, "real": asyncio.SelectorEventLoop}
    return {"fake": JumpingEventLoop}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Put coverage aside for a test that is marked so, and for its fixtures."""
    marked = item.get_closest_marker("unmeasured") is not None
    with unmeasured() if marked else nullcontext():
        return (yield)


def pytest_xdist_auto_num_workers() -> int:
    """Run two tests per processor: many wait for another process, or for a lock."""
    return 2 * (os.cpu_count() or 1)
