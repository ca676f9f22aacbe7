"""``retrieve`` and ``list``: refunds as they are now."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from async_refunds.errors import RefundNotFoundError, RefundsError
from async_refunds.protocol import validation

from . import options
from .exit_codes import DONE, NOT_ALL
from .output import Output, interruptible, refuse
from .progress import SearchProgress
from .tables import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from async_refunds.models import Refund

# https://docs.stripe.com/api/refunds/object#refund_object-status
STATUSES = ("pending", "requires_action", "succeeded", "failed", "canceled")

REFUND_COLUMNS = ("id", "status", "amount", "currency", "created", "failure_reason")

RETRIEVE_HELP = """Show refunds as they are now.

Exit codes: 0 all are shown, 1 some could not be read, or stdout broke
(`| head`), 2 wrong usage, 130 interrupted."""


@options.with_options
def retrieve(
    refund_ids: Annotated[
        list[str], typer.Argument(metavar="REFUND", help=options.REFUND_HELP)
    ],
    *,
    connection: options.ConnectionOptions,
    form: options.Format,
) -> None:
    """Show refunds as they are now."""
    try:
        wanted = [validation.refund_id(each) for each in refund_ids]
    except ValueError as error:
        refuse(str(error))
    output = Output(form)
    done = 0

    async def read() -> bool:
        nonlocal done
        all_found = True
        async with options.connect(connection).client(output) as refunds:
            for refund_id in wanted:
                try:
                    show(output, await refunds.retrieve(refund_id))
                except RefundNotFoundError as error:  # the others may be there
                    output.error(str(error))
                    all_found = False
                done += 1
        return all_found

    _read(output, read(), lambda: f"{done:,} of {counted(len(wanted), 'refund')} read")


LIST_HELP = """List refunds, newest first, a hundred per request.

Exit codes: 0 listed, 1 a page could not be read, or stdout broke (`| head`),
2 wrong usage, 130 interrupted."""


@options.with_options
def list_(
    *,
    status: Annotated[
        str | None,
        typer.Option(
            metavar="STATUS",
            help="Only these: requires_action, pending, succeeded, failed or canceled. "
            "Stripe has no such filter: all are read, and the others left out.",
        ),
    ] = None,
    charge: Annotated[
        str | None, typer.Option(metavar="CH", help="Only those of this charge.")
    ] = None,
    payment_intent: Annotated[
        str | None, typer.Option(metavar="PI", help="Only those of this payment.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--max", metavar="N", min=1, help="Stop after this many."),
    ] = None,
    connection: options.ConnectionOptions,
    form: options.Format,
) -> None:
    """List refunds, newest first."""
    if status is not None:
        options.known("--status", status, STATUSES)
    output = Output(form)
    progress = SearchProgress()

    async def read() -> bool:
        async with (
            options.connect(connection).client(output) as refunds,
            progress.shown(output),
        ):
            try:
                pages = refunds.list(charge=charge, payment_intent=payment_intent)
            except ValueError as error:
                refuse(str(error))
            async for refund in pages:
                progress.see(refund.created)
                if status is None or refund.status == status:
                    show(output, refund)
                    progress.matches += 1
                if progress.matches == limit:
                    break
        return True

    _read(output, read(), lambda: progress.incomplete)


def show(output: Output, refund: Refund) -> None:
    """Write a refund as Stripe sent it.

    Raises:
        OutputLostError: stdout broke.
    """
    output.record(msgspec.to_builtins(refund))


def _read(
    output: Output, reading: Coroutine[None, None, bool], said: Callable[[], str]
) -> None:
    """Read, show the table, and end with exit code 0 if everything was found.

    Args:
        output: Shows the table.
        reading: Tells whether everything was found.
        said: Returns what was read until an interrupt.
    """
    found = False
    with interruptible(said):
        try:
            found = asyncio.run(reading)
        except RefundsError as error:
            output.error(str(error))
        finally:
            output.table(REFUND_COLUMNS)
    raise typer.Exit(DONE if found else NOT_ALL)
