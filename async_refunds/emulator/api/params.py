"""Form parameters: Stripe's nested names, and what each endpoint accepts.

What cannot be accepted raises `StripeError` with status 400.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from .errors import StripeError
from .serialization import EXPANDABLE

if TYPE_CHECKING:
    from collections.abc import Collection

    from async_refunds.emulator.state.idempotency import Params

    from .serialization import Expansion

# The largest page: https://docs.stripe.com/api/pagination
LARGEST_PAGE = 100

# How deep objects may be expanded: https://docs.stripe.com/api/expanding_objects
DEEPEST = 4

# Both ways in which clients write a list: expand[]=a and expand[0]=a.
_EXPAND = re.compile(r"expand\[[0-9]*\]", re.ASCII)

# Larger than any amount or time; more digits would be slow to convert.
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)

# How far a bound moves when it is made inclusive.
_BOUNDS = {"gt": 1, "gte": 0, "lt": -1, "lte": 0}


def parse_form(text: str) -> Params:
    """Return names and values in order; ``expand[0]`` becomes ``expand[]``.

    Raises:
        ValueError: The percent-encoded bytes are not UTF-8.
    """
    if not text:
        return ()
    pairs = parse_qsl(text, keep_blank_values=True, errors="strict")
    return tuple(
        ("expand[]" if _EXPAND.fullmatch(name) else name, value)
        for name, value in pairs
    )


def refuse_unknown(params: Params, known: Collection[str]) -> None:
    """Refuse parameters that the endpoint does not accept."""
    names = list(dict.fromkeys(name for name, _ in params if name not in known))
    if not names:
        return
    if names[0] == "expand" or names[0].startswith("expand["):
        raise StripeError(400, "Invalid array", param="expand")
    raise StripeError(
        400,
        f"Received unknown parameter{'s' * (len(names) > 1)}: {', '.join(names)}",
        code="parameter_unknown",
        param=names[0],
    )


def read_expand(params: Params, *, listed: bool = False) -> Expansion:
    """Return the tree of what to expand in a refund.

    Args:
        params: The request's parameters.
        listed: Whether the answer is a list: each path then starts with ``data``.
    """
    tree: Expansion = {}
    for name, path in params:
        if name != "expand[]":
            continue
        fields = path.split(".")
        if listed and fields[0] == "data":
            del fields[0]
        elif listed:
            raise _unexpandable(path, "data." if _expandable(fields) else "")
        if not _expandable(fields):
            raise _unexpandable(path)
        if path.count(".") >= DEEPEST:
            raise StripeError(
                400,
                f"You cannot expand more than {DEEPEST} levels of a property ({path}).",
            )
        branch = tree
        for field in fields:
            branch = branch.setdefault(field, {})
    return tree


def _expandable(fields: list[str]) -> bool:
    """Return whether each field can be expanded in the object of the one before."""
    kind: str | None = "refund"
    for field in fields:
        kind = EXPANDABLE.get(kind, {}).get(field) if kind else None
    return bool(fields) and kind is not None


def _unexpandable(path: str, prefix: str = "") -> StripeError:
    hint = f" You may want to try expanding '{prefix}{path}' instead." if prefix else ""
    return StripeError(400, f"This property cannot be expanded ({path}).{hint}")


def read_text(params: Params, name: str) -> str | None:
    """Return the last value of a parameter."""
    value = dict(params).get(name)
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
    """Return the last value of a parameter as a number."""
    text = read_text(params, name)
    if text is None:
        return None
    if not _INTEGER.fullmatch(text):
        raise _invalid(name, f"Invalid integer: {text}")
    return int(text)


def read_limit(params: Params) -> int:
    """Return the size of a page, 10 by default."""
    limit = read_integer(params, "limit")
    if limit is None:
        return 10
    if limit < 1:
        raise _invalid("limit", "This value must be greater than or equal to 1.")
    if limit > LARGEST_PAGE:
        message = f"This value must be less than or equal to {LARGEST_PAGE}."
        raise _invalid("limit", message)
    return limit


def read_created(params: Params) -> tuple[int | None, int | None]:
    """Return the first and the last second of ``created``, both inclusive."""
    exact = read_integer(params, "created")
    lows = [] if exact is None else [exact]
    highs = lows.copy()
    for bound, step in _BOUNDS.items():
        value = read_integer(params, f"created[{bound}]")
        if value is not None:
            (lows if bound.startswith("g") else highs).append(value + step)
    return max(lows, default=None), min(highs, default=None)


def _invalid(name: str, message: str) -> StripeError:
    return StripeError(400, message, code="parameter_invalid_integer", param=name)
