"""How long things take at the emulator."""

from __future__ import annotations

import math


class Timing:
    """How long things take, in seconds; may be changed while serving.

    Attributes:
        latency: How long each execution takes. Meanwhile the request counts for the
            limiters, its idempotency key is in flight and its charge is locked; what
            it does is done at the end of that time.
        lock_wait: For how long a write waits for a charge that another one has
            locked, before it is refused.
    """

    def __init__(self, *, latency: float = 0.0, lock_wait: float = 0.0) -> None:
        self.latency = seconds("latency", latency)
        self.lock_wait = seconds("lock_wait", lock_wait)


def seconds(name: str, value: float) -> float:
    """Return the value if it is a time.

    Raises:
        ValueError: It is negative or endless.
    """
    if not (math.isfinite(value) and value >= 0):
        msg = f"{name} must be a number of seconds from 0 up, not {value!r}"
        raise ValueError(msg)
    return value
