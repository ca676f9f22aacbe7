"""``backup``: copy a journal, also while its run is going on."""

from __future__ import annotations

from typing import Annotated

import typer

from async_refunds.errors import JournalError
from async_refunds.journal import JournalReader

from . import options
from .output import Output, interruptible, refuse
from .tables import counted

HELP = """Copy a journal to a new file, also while its run is going on.

Do not copy a journal that is in use with cp: the copy may lack the latest
results. A run can be resumed from the copy, with the same idempotency keys;
resume one of the two, not both. FILE must not exist yet.

Exit codes: 0 copied, 2 no such journal, or the file cannot be written, 130
interrupted."""


@options.with_options
def backup(
    journal: options.JournalArgument,
    path: Annotated[str, typer.Argument(metavar="FILE", help="The new file.")],
    *,
    quiet: options.Quiet = False,
) -> None:
    """Copy a journal to a new file."""
    try:
        reader = JournalReader(journal)
        with interruptible(lambda: f"{path} was not written"):
            reader.backup(path)
        total = JournalReader(path).tally().total
    except JournalError as error:
        refuse(str(error))
    done = f"copied {counted(total, 'refund')} of {journal} to {path}"
    Output(options.Format(quiet=quiet)).say(done)
