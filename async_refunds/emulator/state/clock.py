"""The emulator's time: a clock that can be moved forward, and durations to set."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock:
    """Tells the emulator's time.

    Args:
        source: Returns seconds since the Unix epoch. A test may pass another function,
            such as the ``time`` of an event loop.

    Attributes:
        on_advance: Called after the clock has been moved.
    """

    def __init__(self, source: Callable[[], float] = time.time) -> None:
        self._source = source
        self._ahead = 0.0
        self.on_advance: Callable[[], None] | None = None

    def time(self) -> float:
        """Return the emulator's time, in seconds since the Unix epoch."""
        return self._source() + self._ahead

    def advance(self, seconds: float) -> None:
        """Move the clock forward at once: keys and refunds expire, limiters refill.

        Raises:
            ValueError: ``seconds`` is negative.
        """
        if not seconds >= 0:
            raise ValueError(f"seconds must be 0 or more, not {seconds!r}")
        self._ahead += seconds
        if self.on_advance is not None:
            self.on_advance()


class Seconds:
    """An attribute that holds a duration.

    Assigning a negative or an infinite number raises `ValueError`.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> float:
        seconds: float = vars(instance)[self._name]
        return seconds

    def __set__(self, instance: object, value: float) -> None:
        if not (math.isfinite(value) and value >= 0):
            msg = f"{self._name} must be a number of seconds, 0 or more, not {value!r}"
            raise ValueError(msg)
        vars(instance)[self._name] = value
