"""``retrieve`` and ``list``: refunds as they are now."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from async_refunds.errors import RefundNotFoundError, RefundsError
from async_refunds.protocol import validation

from . import connect, options
from .output import Output, OutputLostError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from async_refunds.models import Refund

REFUND_COLUMNS = ("id", "status", "amount", "currency", "created", "failure_reason")


def retrieve(
    refund_ids: Annotated[
        list[str], typer.Argument(metavar="REFUND", help="re_... or pyr_...")
    ],
    *,
    live: options.Live = False,
    base_url: options.BaseUrl = connect.BASE_URL,
    account: options.Account = None,
    as_json: options.Json = False,
) -> None:
    """Show refunds as they are now.

    Exit codes: 0 all are shown, 1 some could not be read, 2 a wrong call.
    """
    try:
        wanted = [validation.refund_id(each) for each in refund_ids]
    except ValueError as error:
        connect.refuse(str(error))
    output = Output(as_json=as_json)

    async def run() -> bool:
        found = True
        async with connect.client(
            live=live, base_url=base_url, account=account
        ) as refunds:
            for refund_id in wanted:
                try:
                    show(output, await refunds.retrieve(refund_id))
                except RefundNotFoundError as error:  # which the others may be spared
                    output.say(f"async-refunds: {error}")
                    found = False
        return found

    _read(output, run())


def list_(
    *,
    status: Annotated[
        str | None,
        typer.Option(help="Only these; Stripe sends all, the choice is made here."),
    ] = None,
    charge: Annotated[
        str | None, typer.Option(metavar="CH", help="Only those of this charge.")
    ] = None,
    payment_intent: Annotated[
        str | None, typer.Option(metavar="PI", help="Only those of this payment.")
    ] = None,
    most: Annotated[
        int | None, typer.Option("--max", min=1, help="Stop after so many.")
    ] = None,
    live: options.Live = False,
    base_url: options.BaseUrl = connect.BASE_URL,
    account: options.Account = None,
    as_json: options.Json = False,
) -> None:
    """List refunds, newest first, a hundred per request.

    Exit codes: 0 listed, 1 a page could not be read, 2 a wrong call.
    """
    output = Output(as_json=as_json)

    async def run() -> bool:
        shown = 0
        async with connect.client(
            live=live, base_url=base_url, account=account
        ) as refunds:
            try:
                pages = refunds.list(charge=charge, payment_intent=payment_intent)
            except ValueError as error:
                connect.refuse(str(error))
            async for refund in pages:
                if status is None or refund.status == status:
                    show(output, refund)
                    shown += 1
                if shown == most:
                    break
        return True

    _read(output, run())


def show(output: Output, refund: Refund) -> None:
    """Write a refund as Stripe sent it.

    Raises:
        OutputLostError: stdout broke.
    """
    output.record(msgspec.to_builtins(refund))


def _read(output: Output, reading: Coroutine[None, None, bool]) -> None:
    """Carry a read through, and end with its exit code: 0 if it found everything."""
    found = False
    try:
        found = asyncio.run(reading)
    except RefundsError as error:
        output.say(f"async-refunds: {error}")
    except OutputLostError as error:
        if not error.unread:  # as with `| head`: whoever read has enough
            output.say(f"async-refunds: {error}")
    output.table(REFUND_COLUMNS)
    raise typer.Exit(0 if found and not output.lost else 1)
