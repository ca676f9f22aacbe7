"""The emulator's time: a real clock that can be moved forward."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock:
    """What the emulator takes for now.

    Args:
        source: Gives seconds since the Unix epoch; ``time.time`` unless a test wants
            another, such as an event loop's ``time`` that jumps.
    """

    def __init__(self, source: Callable[[], float] = time.time) -> None:
        self._source = source
        self._ahead = 0.0

    def time(self) -> float:
        """Return the seconds since the Unix epoch, as far as the emulator knows."""
        return self._source() + self._ahead

    def advance(self, seconds: float) -> None:
        """Let time pass at once: keys expire, limiters fill up.

        Raises:
            ValueError: ``seconds`` is negative; time does not run backwards.
        """
        if not seconds >= 0:
            msg = f"seconds must be 0 or more, not {seconds!r}"
            raise ValueError(msg)
        self._ahead += seconds
