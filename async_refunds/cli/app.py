"""The command and its subcommands, and what all of them have in common."""

from __future__ import annotations

from typing import Annotated

import typer

from async_refunds.version import __version__

from .local import demo, emulator
from .many import cancel, resume
from .reads import list_, retrieve
from .report import report
from .sweep import sweep

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    # Plain text, the same in every terminal, and no locals in a traceback.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="""Cancel Stripe refunds, and know what happened.

The API key is read from STRIPE_API_KEY, and from nowhere else. Results go to
stdout: a table on a terminal, one JSON object a line otherwise. What is for
people goes to stderr.

Exit codes: 0 done (cancel: all are canceled), 1 some not, 2 a call that cannot
be right (nothing was sent), 3 the outcome of some is unknown.""",
)


def _version(wanted: bool) -> None:  # noqa: FBT001 - typer's own form of a callback
    if wanted:
        typer.echo(f"async-refunds {__version__}")
        raise typer.Exit


@app.callback()
def main(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, help="Show the version.")
    ] = False,
) -> None:
    """Carry the options of the command itself."""


app.command()(cancel)
app.command()(resume)
app.command()(report)
app.command()(sweep)
app.command()(retrieve)
app.command("list")(list_)
app.command()(emulator)
app.command()(demo)
