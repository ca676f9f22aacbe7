"""Ctrl-C before a command has begun: one line, and no traceback.

The command installs this before its long imports, so this module imports next to
nothing.
"""

from __future__ import annotations

import os
import signal

from .exit_codes import INTERRUPTED

TYPE_CHECKING = False  # as type checkers know it, without the import of `typing`
if TYPE_CHECKING:
    from types import FrameType

NOTHING_SENT = "interrupted; nothing was sent"


def end_at_once() -> None:
    """Let Ctrl-C end the process, until `raise_as_usual` is called.

    Where Ctrl-C is ignored, as in a background job of a script, it stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raise_as_usual() -> None:
    """Let Ctrl-C raise `KeyboardInterrupt` again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    del number, frame
    # Not by an exception, which an import may wrap or swallow.
    os.write(2, f"async-refunds: {NOTHING_SENT}\n".encode())
    os._exit(INTERRUPTED)
