"""The command and its subcommands."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from async_refunds.version import __version__

from . import cancel, demo, emulator, report, resume, show, sweep

HELP = """Cancel Stripe refunds, and know what happened.

The API key is read from STRIPE_API_KEY, and from nowhere else. Results go to
stdout: a table on a terminal, one JSON object a line otherwise. What is for
people goes to stderr.

Exit codes: 0 done (cancel: all are canceled), 1 some not, 2 wrong usage
(nothing was sent), 3 the outcome of some is unknown, 130 interrupted."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    # Plain text, the same in every terminal, and no locals in a traceback.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help=HELP,
)


# Without a handler, Python writes warnings of the client between the results.
logging.getLogger("async_refunds").addHandler(logging.NullHandler())


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it so
    if wanted:
        typer.echo(f"async-refunds {__version__}")
        raise typer.Exit


@app.callback()
def main(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, help="Show the version."),
    ] = False,
) -> None:
    """Carry the options of the command itself."""


# Each help text is a string of its own: `python -OO` drops docstrings.
for name, help_text, command in (
    ("cancel", cancel.HELP, cancel.cancel),
    ("resume", resume.HELP, resume.resume),
    ("report", report.HELP, report.report),
    ("sweep", sweep.HELP, sweep.sweep),
    ("retrieve", show.RETRIEVE_HELP, show.retrieve),
    ("list", show.LIST_HELP, show.list_),
    ("emulator", emulator.HELP, emulator.emulator),
    ("demo", demo.HELP, demo.demo),
):
    app.command(name, help=help_text)(command)
