"""A script: what one case of the attack does, as a list that can be shrunk.

Every part of a script can be left out, and what is left is a script too: a call that
has no act meets an honest server.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TypeAlias

FOREVER = 99
"""The last request of an act that never ends."""


@dataclass(frozen=True)
class Option:
    """Something of the whole case that is not as usual."""

    name: str
    value: float | str = 1


@dataclass(frozen=True)
class Given:
    """A refund: what it is at the start, and how its texts hide an e-mail address."""

    refund: int
    status: str = "requires_action"
    spelling: int = 0


@dataclass(frozen=True)
class Move:
    """A refund changes its state at Stripe without any call of ours."""

    refund: int
    at: float
    status: str


@dataclass(frozen=True)
class Call:
    """One `cancel`, or a `retrieve`, and what happens to the task that awaits it."""

    number: int
    refund: int
    at: float = 0.0
    """Seconds after the start of the case."""
    own_key: bool = False
    timeout: float = 0.0
    """Seconds; 0 is the policy's deadline."""
    already_canceled_ok: bool = False
    cancel_after: float = -1.0
    """Seconds after which its task is cancelled, if not negative."""
    cancel_step: int = -1
    """Turns of the event loop after which its task is cancelled, if not negative."""
    frames: int = 0
    """How many frames of the stack are free for it, if not 0."""
    ask_again: bool = False
    """Whether an unknown outcome is followed by a call with the error's key."""
    reads: bool = False
    """Whether it is a `retrieve`."""


@dataclass(frozen=True)
class Act:
    """What the server does with some of the requests for a refund."""

    refund: int
    method: str
    first: int
    last: int
    api: str = "run"
    """What Stripe does."""
    wire: str = "plain"
    """What becomes of the answer on its way."""
    value: int = 0
    """Which one of several, or where to cut: each kind takes from it what it needs."""


@dataclass(frozen=True)
class Damage:
    """What happens to a journal's files before a run, or in the middle of it."""

    run: int
    kind: str
    file: str = ""
    value: int = 0
    request: int = 0
    """The request of the run at which it happens; 0 is before the run."""


@dataclass(frozen=True)
class Kill:
    """A run gets a signal, at a request of its batch or a little later."""

    run: int
    request: int
    phase: str = "before"
    """Whether Stripe has carried the request out and answered it."""
    delay: float = 0.0
    signal: str = "SIGKILL"


Part: TypeAlias = Option | Given | Move | Call | Act | Damage | Kill
Script: TypeAlias = tuple[Part, ...]


def shown(script: Script) -> str:
    """Return the parts, one a line, without what is as usual."""
    return "\n".join(f"  {_part(part)}" for part in script)


def _part(part: Part) -> str:
    shown: list[str] = []
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if field.default is dataclasses.MISSING or value != field.default:
            shown.append(f"{field.name}={value!r}")
    return f"{type(part).__name__}({', '.join(shown)})"
