"""``backup``: copy a journal, also while its run is going on."""

from __future__ import annotations

from typing import Annotated

import typer

from async_refunds.errors import JournalError
from async_refunds.journal import JournalReader

from . import options
from .output import Output, interruptible, refuse

HELP = """Copy a journal to a new file, also while its run is going on.

A journal that is in use must not be copied with cp: its files belong together.
The copy has the same idempotency keys; a run can be resumed from it.

Exit codes: 0 copied, 2 no such journal, or the file cannot be written."""


@options.with_options
def backup(
    journal: options.JournalArgument,
    path: Annotated[str, typer.Argument(metavar="FILE", help="The new file.")],
    *,
    form: options.Format,
) -> None:
    """Copy a journal to a new file."""
    try:
        reader = JournalReader(journal)
        with interruptible(lambda: f"{path} was not written"):
            reader.backup(path)
        total = JournalReader(path).tally().total
    except JournalError as error:
        refuse(str(error))
    Output(form).say(f"copied {total:,} refunds of {journal} to {path}")
