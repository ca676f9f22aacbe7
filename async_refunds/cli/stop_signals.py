"""The signals that ask a command to stop."""

from __future__ import annotations

import asyncio
import signal
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


@contextmanager
def on_stop(callback: Callable[[], object], *, hangup: bool = False) -> Generator[None]:
    """Have the running loop call back at each SIGINT and SIGTERM, within the block.

    A signal that is ignored at the start stays ignored, as Unix programs do it: a shell
    ignores Ctrl-C for a job in the background of a script, `nohup` the end of the
    terminal.

    Args:
        callback: What is called.
        hangup: Also at SIGHUP, when the terminal is closed.
    """
    loop = asyncio.get_running_loop()
    names = ["SIGINT", "SIGTERM", *(["SIGHUP"] if hangup else [])]
    all_of_them = [getattr(signal, name, None) for name in names]  # Windows has no HUP
    heard = [
        number
        for number in all_of_them
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN
    ]
    for number in heard:
        with suppress(NotImplementedError):  # Windows has none
            loop.add_signal_handler(number, callback)
    try:
        yield
    finally:
        for number in heard:
            with suppress(NotImplementedError):
                loop.remove_signal_handler(number)
