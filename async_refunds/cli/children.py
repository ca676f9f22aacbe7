"""Processes that end with this one, also when it is killed and can end nothing."""

from __future__ import annotations

import ctypes
import sys
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable

_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of linux/prctl.h


def end_with_us(number: signal.Signals) -> Callable[[], object] | None:
    """Return a ``preexec_fn``: the kernel then sends the child a signal at our end.

    Start the child from the main thread: the end of the thread is what counts.

    Args:
        number: The signal.

    Returns:
        ``None`` where the kernel does not do that: other than on Linux.
    """
    if sys.platform != "linux":
        return None
    # Looked up before the fork: after it another thread may hold the loader's lock.
    return partial(ctypes.CDLL(None).prctl, _SET_DEATH_SIGNAL, int(number))
