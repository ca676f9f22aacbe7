"""How late the machine itself is: what a timer of the harness's own process tells."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_TICK = 0.02
_NOTEWORTHY = 0.01
"""Seconds. Timers of a machine that has nothing to do are late by less."""


@dataclass(frozen=True)
class Stall:
    """A timer that came late: for so long nothing of the harness could run."""

    at: float
    """When it came, in monotonic seconds."""
    seconds: float


async def note_stalls(clock: Callable[[], float], stalls: list[Stall]) -> None:
    """Note each stall until the task is cancelled."""
    while True:
        due = clock() + _TICK
        await asyncio.sleep(_TICK)
        now = clock()
        if now - due >= _NOTEWORTHY:
            stalls.append(Stall(now, now - due))


def stalled(stalls: Iterable[Stall], since: float, until: float) -> float:
    """Return the seconds of the stalls between two times."""
    return sum(each.seconds for each in stalls if since < each.at <= until)
