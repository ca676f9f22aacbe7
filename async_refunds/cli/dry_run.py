"""``--dry-run``: read the refunds, and show what would happen."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING

import typer

from async_refunds.errors import AuthenticationError, JournalError

from . import preview
from .exit_codes import DONE, NOT_ALL
from .output import interruptible, print_error
from .paced_reads import PacedReads
from .tables import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from async_refunds.results import CancelRequest

    from .config import Connection
    from .options import BatchOptions
    from .output import Output


def show_preview(
    api: Connection,
    requests: Iterable[CancelRequest],
    batch: BatchOptions,
    output: Output,
    *,
    given: int,
    limit: int | None,
    repeatable: bool = True,
    notes: Sequence[str] = (),
    perhaps_sent: set[CancelRequest] | None = None,
) -> int:
    """Show what a cancel would do, and return the exit code.

    Args:
        api: Where the refunds are read.
        requests: Those to cancel.
        batch: How fast they are read.
        output: Where everything is written.
        given: How many they are.
        limit: How many of them are canceled at most.
        repeatable: Whether the list can be read again; stdin cannot.
        notes: Lines for the end.
        perhaps_sent: Those of the requests that the run has perhaps canceled, each from
            when it is yielded.
    """
    writer = preview.PreviewWriter(output, perhaps_sent)
    total = min(given, limit or given)

    def so_far() -> str:
        done = writer.preview.looked_up
        return f"{done:,} of {counted(total, 'refund')} read; nothing was canceled"

    async def read() -> None:
        async with api.client(output) as refunds:
            await PacedReads(batch, writer.write).run(
                refunds, islice(requests, total), total=total, output=output
            )

    with interruptible(so_far):
        try:
            asyncio.run(read())
        except (AuthenticationError, JournalError) as error:
            print_error(f"{error}; {so_far()}")
            raise typer.Exit(NOT_ALL) from None
        finally:
            output.table(preview.PREVIEW_COLUMNS)
    if total < given:
        output.say(f"--max left out {counted(given - total, 'refund')}")
    for note in notes:
        output.say(note)
    for line in preview.preview_lines(writer.preview, repeatable=repeatable):
        output.say(line)
    return DONE if writer.preview.all_read else NOT_ALL
