"""A script: what befalls a fleet in one run, as a list that can be shrunk."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Collection

LEASE = 3.0
"""Seconds that a lease of the chaos lasts: short, so that a run is."""

DEADLINE = 10.0
"""Seconds that a call of a worker may take."""


@dataclass(frozen=True)
class Option:
    """Something of the whole run that is not as usual."""

    name: str
    value: float


@dataclass(frozen=True)
class Disaster:
    """Something that befalls a worker or the database."""

    kind: str
    """One of `KINDS`."""
    at: float = 0.3
    """The share of the refunds that are canceled when it comes."""
    worker: int = 0
    """Which one of those that are there, for what befalls a worker."""
    seconds: float = 0.5
    """How long it lasts."""


Part: TypeAlias = Option | Disaster
Script: TypeAlias = tuple[Part, ...]

# A rate of 0 gives each account a limit of its own.
OPTIONS = {
    "workers": 3.0,
    "accounts": 20.0,
    "refunds": 400.0,
    "faults": 0.2,
    "rate": 0.0,
}

# By name: how often it is drawn, and the seconds it lasts: for a worker that ends,
# until another one is started.
KINDS: dict[str, tuple[float, tuple[float, float]]] = {
    "kill": (6, (0.0, 3.0)),
    "end": (3, (0.0, 1.0)),
    "freeze": (4, (0.5, 3.0 * LEASE)),
    "database killed": (2, (0.0, 2.0)),
    "database ended": (2, (0.0, 2.0)),
    "database away": (2, (0.5, 2.5 * LEASE)),
    "database silent": (2, (0.5, 2.5 * LEASE)),
    "database frozen": (1, (0.5, 2.0 * LEASE)),
    "connections cut": (3, (0.0, 0.0)),
    "failover": (4, (0.0, 0.0)),
}
_MOST_DISASTERS = 5
_ALONE = 3
"""Each so many-th run has one disaster."""


def drawn(seed: int, number: int, without: Collection[str] = ()) -> Script:
    """Return the script of a run: always the same one.

    Args:
        seed: Of all runs.
        number: Of this one.
        without: Kinds that are left out.
    """
    chance = random.Random(f"chaos {seed} {number}")  # noqa: S311 - no secret
    if number % _ALONE == 0:
        return _one_worker(chance, without)
    kinds = [kind for kind in KINDS if kind not in without]
    weights = [KINDS[kind][0] for kind in kinds]
    parts: list[Part] = []
    for _ in range(chance.randint(1, _MOST_DISASTERS)):
        (kind,) = chance.choices(kinds, weights)
        seconds = round(chance.uniform(*KINDS[kind][1]), 2)
        at = round(chance.uniform(0.02, 0.85), 3)
        parts.append(Disaster(kind, at, chance.randrange(3), seconds))
    return tuple(sorted(parts, key=lambda each: getattr(each, "at", 0.0)))


def _one_worker(chance: random.Random, without: Collection[str]) -> Script:
    """One thing befalls one worker, while all accounts are slow: so it can be timed.

    There is more to do than a freeze lasts: who wakes up has something to do wrong.
    """
    seconds = {"kill": 2 * LEASE, "end": LEASE, "freeze": 10 * LEASE}
    kind = chance.choice([kind for kind in seconds if kind not in without])
    at = round(chance.uniform(0.1, 0.3), 3)
    disaster = Disaster(kind, at, chance.randrange(3), seconds[kind])
    refunds = 1600.0 if kind == "freeze" else 1200.0
    return (Option("rate", 5.0), Option("refunds", refunds), disaster)


def options_of(script: Script) -> dict[str, float]:
    """Return the value of each option by its name."""
    given = {part.name: part.value for part in script if isinstance(part, Option)}
    return OPTIONS | given


def shown(script: Script) -> str:
    """Return the parts, one a line, without what is as usual."""
    return "\n".join(f"  {_part(part)}" for part in script)


def _part(part: Part) -> str:
    fields = {field.name: field.default for field in dataclasses.fields(part)}
    values = {name: getattr(part, name) for name in fields}
    shown = [f"{n}={value!r}" for n, value in values.items() if value != fields[n]]
    return f"{type(part).__name__}({', '.join(shown)})"
