"""``close``: send nothing more of a run."""

from __future__ import annotations

from contextlib import ExitStack

import typer

from async_refunds.errors import JournalError

from . import options
from .exit_codes import DONE, NOT_ALL, UNKNOWN
from .output import Output, interruptible, print_error
from .start_batch import open_run
from .summary import given_up
from .tables import counted

HELP = """Send nothing more of a run for good, such as one with a wrong id.

What was never sent, or was refused, is told as failed: not canceled. What was
perhaps sent is unknown, and `async-refunds resume` still asks for it, with the
same key, so that it may yet be canceled; after a day it is only read. A closed
run takes no more refunds, and is not opened again.

Only the journal is changed: nothing is sent, no API key is needed.

Exit codes: 0 it is closed, 1 the journal could not be written, 2 no such
journal, or it is in use, 3 it is closed, and the outcome of some is unknown, 130
interrupted. With 1 and 130 it is closed, or as it was: the same command again
makes sure."""


@options.with_options
def close(journal: options.JournalArgument, *, quiet: options.Quiet = False) -> None:
    """Send nothing more of a run, for good."""
    with (
        interruptible(lambda: _in_doubt(journal)),
        ExitStack() as stack,
    ):
        kept = open_run(stack, journal, None)
        try:
            unsent = kept.journal.close_run()
        except JournalError as error:
            # A disk may be full once that is committed.
            closed = kept.journal.run_closed
            print_error(
                f"{error}; {_in_doubt(journal) if closed else 'nothing was changed'}"
            )
            raise typer.Exit(NOT_ALL) from None
        left = kept.journal.tally().open
        said = f"{journal} is closed; {given_up(unsent)}"
        if left:
            said += f"; {counted(left, 'refund')} perhaps sent: `{kept.resume()}` asks"
        Output(options.Format(quiet=quiet)).say(said)
    raise typer.Exit(UNKNOWN if left else DONE)


def _in_doubt(journal: str) -> str:
    return f"perhaps {journal} is closed: the same command again makes sure"
