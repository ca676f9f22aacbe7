"""The command and its subcommands."""

from __future__ import annotations

import platform
import sqlite3
import ssl
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated

import typer

from async_refunds.version import __version__

from . import (
    backup,
    cancel,
    close,
    demo,
    emulator,
    environment,
    lookup,
    report,
    resume,
    sweep,
    verify,
)
from .fleet import app as fleet
from .output import Output, print_error
from .usage import Command, RootGroup

if TYPE_CHECKING:
    from collections.abc import Iterator

_LIBRARIES = ("aiohttp", "msgspec", "tenacity", "typer")

HELP = """Cancel Stripe refunds, and know what happened.

The API key is read from STRIPE_API_KEY, and from nowhere else. Results go to
stdout: a table on a terminal, one JSON object a line otherwise. What is for
people goes to stderr. Each option can come from an environment variable, such
as ASYNC_REFUNDS_RATE for --rate. HTTPS_PROXY, ALL_PROXY and NO_PROXY count.

Exit codes: 0 all is done, 1 some is not, the answer was no, or stdout broke
(`| head`), 2 wrong usage and nothing was sent, 3 the outcome of some is
unknown, also after Ctrl-C, 130 interrupted otherwise. The help of each command
has its own."""

app = typer.Typer(
    cls=RootGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    # Plain text, the same in every terminal, and no locals in a traceback.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help=HELP,
)


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it so
    if wanted:
        Output().text(_versions())
        raise typer.Exit


def _versions() -> Iterator[str]:
    """Yield what a bug report needs."""
    yield f"async-refunds {__version__}"
    yield f"{platform.python_implementation()} {platform.python_version()}"
    yield from (f"{name} {version(name)}" for name in _LIBRARIES)
    yield f"SQLite {sqlite3.sqlite_version}"
    yield f"{ssl.OPENSSL_VERSION}"
    yield platform.platform()


@app.callback()
def main(
    *,
    versions: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, help="Show what a bug report needs."
        ),
    ] = False,
) -> None:
    """Carry the options of the command itself, and look at the variables of all."""
    if environment.unknown_variables():
        fleet.load()  # whose options have theirs
        if unknown := environment.unknown_variables():
            print_error(environment.warning(unknown))


# Each help text is a string of its own: `python -OO` drops docstrings. Its first line
# is what the list of commands shows.
for name, help_text, command in (
    ("cancel", cancel.HELP, cancel.cancel),
    ("resume", resume.HELP, resume.resume),
    ("close", close.HELP, close.close),
    ("report", report.HELP, report.report),
    ("backup", backup.HELP, backup.backup),
    ("verify", verify.HELP, verify.verify),
    ("sweep", sweep.HELP, sweep.sweep),
    ("retrieve", lookup.RETRIEVE_HELP, lookup.retrieve),
    ("list", lookup.LIST_HELP, lookup.list_),
    ("emulator", emulator.HELP, emulator.emulator),
    ("demo", demo.HELP, demo.demo),
):
    first_line = help_text.partition("\n")[0]
    app.command(name, cls=Command, help=help_text, short_help=first_line)(command)
app.add_typer(
    fleet.app, name="fleet", help=fleet.HELP, short_help=fleet.HELP.partition("\n")[0]
)
