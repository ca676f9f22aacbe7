"""``sweep``: find the refunds that have waited too long, and cancel them as a batch."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from async_refunds.errors import RefundsError
from async_refunds.results import CancelRequest

from . import connect, money, options
from .ids import Ids
from .many import begun, carry_out, written
from .output import Output, OutputLostError, aligned
from .reads import REFUND_COLUMNS, show
from .run import FEW

if TYPE_CHECKING:
    from async_refunds.client import RefundsClient
    from async_refunds.models import Refund
    from async_refunds.protocol.requests import CreatedRange

_SPAN = re.compile(r"(\d{1,5})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_CURRENCY = re.compile(r"[a-z]{3}")

# Refunds. How often a person is told that the search goes on: every 100 pages.
_STILL_LOOKING = 10_000


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which refunds to cancel, in times that do not move while they are looked for."""

    created: CreatedRange
    expires_by: float | None
    """Unix seconds."""
    currencies: frozenset[str]
    """None in it is all of them."""

    def has(self, refund: Refund) -> bool:
        """Tell whether it is one of them."""
        if refund.status != "requires_action":
            return False
        if self.currencies and refund.currency not in self.currencies:
            return False
        if self.expires_by is None:
            return True
        action = refund.next_action
        details = None if action is None else action.display_details
        return details is not None and details.expires_at <= self.expires_by


class Found(msgspec.Struct):
    """What a search has found."""

    looked_at: int = 0
    counts: Counter[str] = msgspec.field(default_factory=Counter[str])
    """Refunds by currency."""
    sums: Counter[str] = msgspec.field(default_factory=Counter[str])
    """Their amounts, in the smallest unit."""


class Search:
    """Goes through the list, and sets aside what is wanted.

    Args:
        wanted: Which refunds.
        ids: Where they go.
        output: Where a person is told how far it is.
        most: Stop at so many.
        rows: Where each is shown, if at all.
    """

    def __init__(
        self,
        wanted: Wanted,
        ids: Ids,
        output: Output,
        *,
        most: int | None,
        rows: Output | None,
    ) -> None:
        self._wanted = wanted
        self._ids = ids
        self._output = output
        self._most = most
        self._rows = rows

    async def run(self, refunds: RefundsClient) -> Found:
        """Search.

        Raises:
            RefundsError: A page could not be read.
            OutputLostError: What is found could not be shown.
        """
        found, ids, rows = Found(), self._ids, self._rows
        async with refunds:
            async for refund in refunds.list(created=self._wanted.created):
                found.looked_at += 1
                if self._wanted.has(refund):
                    ids.add(CancelRequest(refund.id))
                    found.counts[refund.currency] += 1
                    found.sums[refund.currency] += refund.amount
                    if rows is not None and (not rows.as_table or ids.count <= FEW):
                        show(rows, refund)
                if ids.count == self._most:
                    break
                if not found.looked_at % _STILL_LOOKING:
                    self._output.say(
                        f"{found.looked_at:,} looked at, {ids.count:,} match"
                    )
        return found


def sweep(
    *,
    older_than: Annotated[
        str | None,
        typer.Option(metavar="SPAN", help="Those created before: 14d, 36h, 2w ago."),
    ] = None,
    expiring_within: Annotated[
        str | None,
        typer.Option(metavar="SPAN", help="Those that expire within: 3d, 12h."),
    ] = None,
    since: Annotated[
        str, typer.Option(metavar="SPAN", help="How far back to look.")
    ] = "180d",
    currency: Annotated[
        str | None, typer.Option(metavar="CUR,...", help="Only these: jpy,eur.")
    ] = None,
    most: Annotated[
        int | None, typer.Option("--max", min=1, help="Stop at so many, newest first.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show them; nothing is canceled.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    journal: options.JournalFile = None,
    output: options.OutputFile = None,
    live: options.Live = False,
    base_url: options.BaseUrl = connect.BASE_URL,
    account: options.Account = None,
    rate: options.Rate = None,
    concurrency: options.Concurrency = None,
    timeout: options.Timeout = None,
    patience: options.Patience = None,
    as_json: options.Json = False,
) -> None:
    """Cancel the refunds in requires_action that are old, or about to expire.

    Goes through the list once, newest first, a hundred per request, since Stripe
    has no list by status. Then shows how many there are and their sum in each
    currency, and asks.

    A refund waits 45 days for the customer, but one whose money the bank has
    returned waits again, long after it was made. So the search goes back 180
    days; --since takes it further, at a request per hundred refunds.

    Exit codes: 0 all are canceled, or there is none, 1 some are not, or the answer
    was no, 2 a wrong call, 3 the outcome of some is unknown.
    """
    chosen = options.checked(
        options.Options(
            rate=rate,
            concurrency=concurrency,
            timeout=timeout,
            patience=patience,
            account=account,
        )
    )
    wanted = _wanted(older_than, expiring_within, since, currency)
    if not (yes or dry_run) and (sys.stdin is None or not sys.stdin.isatty()):
        connect.refuse(
            "nobody can be asked here: add --yes, or --dry-run to see what there is; "
            "nothing was sent"
        )
    with ExitStack() as stack:
        ids = stack.enter_context(Ids())
        into = written(stack, output, None, journal, as_json=as_json)
        refunds = connect.client(live=live, base_url=base_url, account=account)
        rows = into if dry_run else None
        search = Search(wanted, ids, into, most=most, rows=rows)
        found = _searched(search, refunds, into)
        _tell(into, found, ids)
        if dry_run or not ids.count:
            raise typer.Exit(int(into.lost))
        refunds = connect.client(live=live, base_url=base_url, account=None)
        kept = None if journal is None else begun(stack, journal, refunds, chosen)
        others = 0 if kept is None else kept.journal.tally().open
        if not yes:
            _ask(ids.count, others, live=refunds.livemode)
        code = carry_out(refunds, ids, chosen, into, kept)
    raise typer.Exit(code)


def _wanted(
    older_than: str | None,
    expiring_within: str | None,
    since: str,
    currency: str | None,
) -> Wanted:
    """Return which refunds are meant, or refuse."""
    if (older_than is None) == (expiring_within is None):
        connect.refuse("give --older-than or --expiring-within; nothing was sent")
    now = time.time()
    back = _seconds("--since", since)
    created: CreatedRange = {"gte": int(now - back)}
    if older_than is not None:
        age = _seconds("--older-than", older_than)
        if age >= back:
            connect.refuse(
                f"--older-than {older_than} is not within --since {since}; nothing was "
                "sent"
            )
        created["lt"] = int(now - age)
    currencies: frozenset[str] = frozenset()
    if currency is not None:
        currencies = _currencies(currency)
    return Wanted(
        created=created,
        expires_by=(
            None
            if expiring_within is None
            else now + _seconds("--expiring-within", expiring_within)
        ),
        currencies=currencies,
    )


def _seconds(option: str, text: str) -> int:
    span = _SPAN.fullmatch(text)
    if span is None:
        connect.refuse(
            f"{option} must be a number with s, m, h, d or w, such as 14d, not "
            f"{text!r}; nothing was sent"
        )
    return int(span[1]) * _SECONDS[span[2]]


def _currencies(text: str) -> frozenset[str]:
    names = [each.strip().lower() for each in text.split(",")]
    for each in names:
        if not _CURRENCY.fullmatch(each):
            connect.refuse(
                f"--currency must be three letters each, such as jpy,eur, not "
                f"{each!r}; nothing was sent"
            )
    return frozenset(names)


def _searched(search: Search, refunds: RefundsClient, output: Output) -> Found:
    """Search, and end if the list cannot be read or nobody reads what is found."""
    try:
        return asyncio.run(search.run(refunds))
    except RefundsError as error:
        output.say(f"async-refunds: {error}; nothing was canceled")
    except OutputLostError as error:
        if not error.unread:  # as with `| head`: whoever read has enough
            output.say(f"async-refunds: {error}")
    raise typer.Exit(1)


def _tell(output: Output, found: Found, ids: Ids) -> None:
    output.table(REFUND_COLUMNS)
    if output.as_table and ids.count > FEW:
        output.say(f"the first {FEW}; --json has all")
    output.say(
        f"{ids.count:,} of {found.looked_at:,} refunds match"
        + (":" if ids.count else "; nothing to cancel")
    )
    if ids.count:
        rows = [
            [currency, f"{count:,}", money.shown(found.sums[currency], currency)]
            for currency, count in sorted(found.counts.items())
        ]
        for line in aligned([["currency", "refunds", "sum"], *rows]):
            output.say(line)


def _ask(count: int, others: int, *, live: bool) -> None:
    """Ask, and end if the answer is no."""
    them = "this refund" if count == 1 else f"these {count:,} refunds"
    more = f", and {others:,} more that are open in the journal" if others else ""
    money_moves = " Real money moves." if live else ""
    if not typer.confirm(f"Cancel {them}{more}?{money_moves}", err=True):
        connect.tell("nothing was canceled")
        raise typer.Exit(1)
