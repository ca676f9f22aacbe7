"""Form parameters: Stripe's nested names, and what each endpoint takes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import parse_qsl

from .errors import StripeError
from .objects import EXPANDABLE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from .objects import Expansion

Params: TypeAlias = tuple[tuple[str, str], ...]

# How many a page may hold: https://docs.stripe.com/api/pagination
MOST_PER_PAGE = 100

# How deep objects may be expanded: https://docs.stripe.com/api/expanding_objects
DEEPEST = 4

# Both ways clients write a list: expand[]=a and expand[0]=a.
_EXPAND = re.compile(r"expand\[[0-9]*\]", re.ASCII)

# Far beyond any amount or time; longer digits are slow to read.
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)

# By how much a bound moves when it is made inclusive.
_BOUNDS = {"gt": 1, "gte": 0, "lt": -1, "lte": 0}


def parse_form(text: str) -> Params:
    """Return names and values in order; `expand[0]` becomes `expand[]`.

    Raises:
        ValueError: The percent signs stand for no UTF-8.
    """
    if not text:
        return ()
    pairs = parse_qsl(text, keep_blank_values=True, errors="strict")
    return tuple(
        ("expand[]" if _EXPAND.fullmatch(name) else name, value)
        for name, value in pairs
    )


def refuse_unknown(params: Params, known: Collection[str]) -> None:
    """Refuse what the endpoint does not take.

    Raises:
        StripeError: 400 with the first such parameter as its ``param``.
    """
    if not params:
        return
    unknown = [name for name, _ in params if name not in known]
    if not unknown:
        return
    if unknown[0] == "expand" or unknown[0].startswith("expand["):
        raise StripeError(400, "Invalid array", param="expand")
    names = list(dict.fromkeys(unknown))
    plural = "s" if len(names) > 1 else ""
    raise StripeError(
        400,
        f"Received unknown parameter{plural}: {', '.join(names)}",
        code="parameter_unknown",
        param=names[0],
    )


def read_expand(params: Params, *, listed: bool = False) -> Expansion:
    """Return the tree of what to expand in a refund.

    Args:
        params: Those of the request.
        listed: The answer is a list, so that each path starts with ``data``.

    Raises:
        StripeError: 400, a path leads to nothing that can be expanded.
    """
    tree: Expansion = {}
    for name, path in params:
        if name != "expand[]":
            continue
        steps = path.split(".")
        if listed and steps[0] == "data":
            del steps[0]
        elif listed:
            raise _unexpandable(path, "" if _branches(steps) is None else "data.")
        branches = _branches(steps)
        if branches is None:
            raise _unexpandable(path, "")
        if path.count(".") >= DEEPEST:
            raise StripeError(
                400,
                f"You cannot expand more than {DEEPEST} levels of a property ({path}).",
            )
        _graft(tree, branches)
    return tree


def _branches(steps: list[str]) -> list[str] | None:
    """Return the steps if each can be expanded in what the one before holds."""
    kind = "refund"
    for step in steps:
        held = EXPANDABLE.get(kind, {}).get(step)
        if held is None:
            return None
        kind = held
    return steps or None


def _graft(tree: Expansion, branches: Iterable[str]) -> None:
    for branch in branches:
        tree = tree.setdefault(branch, {})


def _unexpandable(path: str, prefix: str) -> StripeError:
    hint = f" You may want to try expanding '{prefix}{path}' instead." if prefix else ""
    return StripeError(400, f"This property cannot be expanded ({path}).{hint}")


def read_text(params: Params, name: str) -> str | None:
    """Return the last value of a parameter.

    Raises:
        StripeError: 400, it is empty.
    """
    value = None
    for given, text in params:
        if given == name:
            value = text
    if value == "":
        raise StripeError(
            400,
            f"You passed an empty string for '{name}'. We assume empty values are an"
            f" attempt to unset a parameter; however '{name}' cannot be unset. You"
            f" should remove '{name}' from your request or supply a non-empty value.",
            code="parameter_invalid_empty",
            param=name,
        )
    return value


def read_integer(params: Params, name: str) -> int | None:
    """Return the last value of a parameter as a number.

    Raises:
        StripeError: 400, it is none.
    """
    text = read_text(params, name)
    if text is None:
        return None
    if not _INTEGER.fullmatch(text):
        raise StripeError(
            400,
            f"Invalid integer: {text}",
            code="parameter_invalid_integer",
            param=name,
        )
    return int(text)


def read_limit(params: Params) -> int:
    """Return how many a page may hold; 10 unless asked for otherwise.

    Raises:
        StripeError: 400, it is not from 1 to 100.
    """
    limit = read_integer(params, "limit")
    if limit is None:
        return 10
    if 1 <= limit <= MOST_PER_PAGE:
        return limit
    bound = (
        "greater than or equal to 1"
        if limit < 1
        else f"less than or equal to {MOST_PER_PAGE}"
    )
    raise StripeError(
        400,
        f"This value must be {bound}.",
        code="parameter_invalid_integer",
        param="limit",
    )


def read_created(params: Params) -> tuple[int | None, int | None]:
    """Return the first and the last second, inclusive, that are asked for.

    Raises:
        StripeError: 400, a bound is no number.
    """
    exact = read_integer(params, "created")
    lows = [] if exact is None else [exact]
    highs = lows.copy()
    for bound, step in _BOUNDS.items():
        value = read_integer(params, f"created[{bound}]")
        if value is not None:
            (lows if bound.startswith("g") else highs).append(value + step)
    return max(lows, default=None), min(highs, default=None)
