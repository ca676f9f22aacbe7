"""Help and wrong usage: what click writes by itself, written as everything else is.

Some releases of typer have click's types, and others their own, so that they are `Any`.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from async_refunds.protocol.redaction import contains_key, mask_keys

from .exit_codes import NOT_ALL
from .output import Output, OutputLostError, print_error, refuse

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

# What takes away a question or a protection is typed by those who know it.
_NOT_SUGGESTED = frozenset({"--yes", "--live", "--force"})


class Command(TyperCommand):
    """A command whose help survives a broken stdout."""

    def get_help_option(self, ctx: Any) -> Any:  # noqa: ANN401 - see above
        """Return the option that shows the help."""
        return _with_our_output(super().get_help_option(ctx))


class Group(TyperGroup):
    """A group of commands whose help survives a broken stdout."""

    def get_help_option(self, ctx: Any) -> Any:  # noqa: ANN401 - see above
        """Return the option that shows the help."""
        return _with_our_output(super().get_help_option(ctx))


class RootGroup(Group):
    """The command itself: what goes wrong in any part of it ends here."""

    def make_context(self, *given: Any, **more: Any) -> Any:  # noqa: ANN401 - see above
        """Read the options of the command itself."""
        with _told():
            return super().make_context(*given, **more)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - see above
        """Run the subcommand."""
        with _told():
            return super().invoke(ctx)


def _with_our_output(option: Any) -> Any:  # noqa: ANN401 - see above
    if option is not None:
        option.callback = _show_help
    return option


def _show_help(ctx: Any, parameter: object, wanted: bool) -> None:  # noqa: ANN401, FBT001 - click calls it so
    del parameter
    if wanted and not ctx.resilient_parsing:
        Output().help(ctx.get_help())
        raise typer.Exit


@contextmanager
def _told() -> Generator[None]:
    """End the command when its output is lost; keep keys out of click's errors."""
    try:
        yield
    except OutputLostError as error:
        if not error.reader_left:
            print_error(str(error))
        raise typer.Exit(NOT_ALL) from None
    except Exception as error:
        if hasattr(error, "format_message"):  # click's own
            _clean(error)
        raise


def _clean(error: Any) -> None:  # noqa: ANN401 - see above
    error.message = mask_keys(error.message)
    if possibilities := getattr(error, "possibilities", None):
        error.possibilities = [
            each for each in possibilities if each not in _NOT_SUGGESTED
        ]


def refuse_keys(given: Mapping[str, object], shown: Mapping[str, str]) -> None:
    """Refuse an API key in what was typed: it would be stored, or shown.

    Args:
        given: The values of the parameters of a command.
        shown: How each parameter is called.
    """
    for name, value in given.items():
        texts: list[object] = [*value] if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(each, str) and contains_key(each) for each in texts):
            refuse(
                f"{shown[name]} has an API key in it, which belongs in "
                "STRIPE_API_KEY; nothing was done"
            )
