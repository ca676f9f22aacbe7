"""How much of the stack must be free before a call begins."""

from __future__ import annotations

import sys

# Frames of the stack that a call needs: a cancel over a new connection takes 22 awaits,
# one with a retry, a read and tracing 26, and hooks and logging come on top. While it
# is traced, each await takes two.
_FRAMES = 60


def need_stack() -> None:
    """Make sure that `_FRAMES` frames of the stack are free; 0.3 microseconds.

    A stack that fills up in the middle of a call breaks more than the call: asyncio
    marks the future of the next request that waits for a connection as done, has no
    room to wake its task, and forgets it.

    Raises:
        RecursionError: They are not free.
    """
    try:
        # In a third of the stack: while it is traced, a frame counts for two.
        sys._getframe(sys.getrecursionlimit() // 3)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # to call so deep costs a microsecond
    except ValueError:  # there are not so many in use
        return
    _take_frames(_FRAMES)


def _take_frames(count: int) -> object:
    return count and _take_frames(count - 1)
