"""Makes a script that finds something as small as it can be.

Delta debugging (Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing
Input", 2002), then each part that is left is made as usual as it can be.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from _typeshed import DataclassInstance

Part = TypeVar("Part", bound="DataclassInstance")
"""What a script is made of: this one's parts, or those of `tests.chaos`."""

# Fields that say what a part is about: another value would be another part.
_IDENTITY = frozenset({"refund", "number", "method", "name", "run", "kind"})


def shrunk(
    script: tuple[Part, ...],
    fails: Callable[[tuple[Part, ...]], bool],
    *,
    tries: int = 400,
) -> tuple[Part, ...]:
    """Return a small script that still fails.

    Args:
        script: One that fails.
        fails: Plays a script, and tells whether it finds the same.
        tries: The most scripts that are played.
    """
    left = [tries]

    def still_fails(smaller: tuple[Part, ...]) -> bool:
        if not left[0]:
            return False
        left[0] -= 1
        return fails(smaller)

    before: tuple[Part, ...] = ()
    while before != script and left[0]:
        before = script
        script = _fewer(script, still_fails)
        script = _simpler(script, still_fails)
    return script


def _fewer(
    script: tuple[Part, ...], fails: Callable[[tuple[Part, ...]], bool]
) -> tuple[Part, ...]:
    pieces = 2
    while len(script) > 1:
        size = max(1, len(script) // pieces)
        for at in range(0, len(script), size):
            rest = script[:at] + script[at + size :]
            if fails(rest):
                script, pieces = rest, max(pieces - 1, 2)
                break
        else:
            if size == 1:
                break
            pieces = min(pieces * 2, len(script))
    return script


def _simpler(
    script: tuple[Part, ...], fails: Callable[[tuple[Part, ...]], bool]
) -> tuple[Part, ...]:
    for at in range(len(script)):
        for part in _plainer(script[at]):
            if part == script[at]:
                continue
            changed = (*script[:at], part, *script[at + 1 :])
            if fails(changed):
                script = changed
    return script


def _plainer(part: Part) -> Iterator[Part]:
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        default = field.default
        if field.name in _IDENTITY or default is dataclasses.MISSING:
            continue
        if value != default:
            yield dataclasses.replace(part, **{field.name: default})
