"""Options that come from environment variables, each by its own name."""

from __future__ import annotations

import difflib
import os
from copy import copy
from typing import TYPE_CHECKING, Annotated, Any

from typer.models import ArgumentInfo, OptionInfo

from async_refunds.telemetry import LOG_VARIABLE

if TYPE_CHECKING:
    import inspect
    from collections.abc import Collection

PREFIX = "ASYNC_REFUNDS_"
"""How the environment variables of the options begin."""

_known = {LOG_VARIABLE}
_RESTRAINTS = ("--dry-run", "--max")
_OFF = frozenset({"", "0", "false", "f", "no", "n", "off"})  # as click reads them


def with_variable(parameter: inspect.Parameter) -> inspect.Parameter:
    """Let an environment variable give an option: ASYNC_REFUNDS_RATE for --rate."""
    annotation: Any = parameter.annotation
    for place, metadata in enumerate(annotation.__metadata__):
        if isinstance(metadata, OptionInfo):
            option = copy(metadata)
            option.envvar = _variable(_long_name(metadata, parameter.name))
            option.show_envvar = False
            _known.add(option.envvar)
            others = [*annotation.__metadata__]
            others[place] = option
            kind = annotation.__origin__
            return parameter.replace(annotation=Annotated[(kind, *others)])
    return parameter


def _variable(option: str) -> str:
    return PREFIX + option.removeprefix("--").replace("-", "_").upper()


def _long_name(option: OptionInfo, parameter: str) -> str:
    """Return the name of an option; one without a name has that of its parameter."""
    # `typer.Option("--max")` within `Annotated` has the first name as its default.
    names = (option.default, *(option.param_decls or ()))
    return next(
        (each for each in names if isinstance(each, str) and each.startswith("--")),
        parameter,
    )


def shown_name(parameter: inspect.Parameter) -> str:
    """Return how the help calls an option or an argument."""
    (shown,) = (
        each
        for each in parameter.annotation.__metadata__
        if isinstance(each, (OptionInfo, ArgumentInfo))
    )
    if isinstance(shown, ArgumentInfo):
        return shown.metavar or parameter.name
    name = _long_name(shown, parameter.name).removeprefix("--")
    return f"--{name.replace('_', '-')}"


def ignored_restraint(options: Collection[str]) -> str | None:
    """Return what is set, and would not hold a command back that cancels.

    Args:
        options: Those that the command has.

    Returns:
        A sentence; ``None`` if nothing is.
    """
    for option in _RESTRAINTS:
        name = _variable(option)
        is_set = os.environ.get(name, "").strip().lower() not in _OFF
        if is_set and option not in options:
            return f"{name} is set, and this command has no {option}: unset it"
    return None


def unknown_variables() -> list[str]:
    """Return the variables that begin as those of options, and are of none."""
    return sorted(
        name for name in os.environ if name.startswith(PREFIX) and name not in _known
    )


def warning(unknown: list[str]) -> str:
    """Return what is said of variables that are of no option.

    A mistyped ASYNC_REFUNDS_MAX would cancel more than was meant.
    """
    names = [
        f"{name} (did you mean {close[0]}?)"
        if (close := difflib.get_close_matches(name, _known, n=1))
        else name
        for name in unknown
    ]
    return f"ignored, since no option has this name: {', '.join(names)}"
