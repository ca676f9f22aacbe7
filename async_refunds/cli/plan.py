"""``cancel --dry-run``: what a cancel would do, and the question before real money."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec
import typer

from async_refunds.errors import (
    AuthenticationError,
    RefundNotFoundError,
    RefundsError,
)
from async_refunds.protocol.redaction import scrub

from .money import in_major_units
from .output import refuse, to_stderr
from .progress import ReadProgress, shown
from .tables import aligned

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_refunds.client import RefundsClient
    from async_refunds.models import Refund
    from async_refunds.results import CancelRequest

    from .output import Output

# Requests per second of an account to one endpoint, by https://docs.stripe.com/rate-limits.
STRIPE_RATE = 25.0
# Below that limit, since other programs read too.
_READ_RATE = 20.0
_READS_IN_FLIGHT = 25

PLAN_COLUMNS = ("refund_id", "status", "amount", "currency", "error")

_ACCOUNTS_SHOWN = 3

CANCELABLE = "requires_action"
NOT_FOUND = "not found"
NOT_READ = "not read"


class Plan(msgspec.Struct):
    """What a cancel would do."""

    statuses: Counter[str] = msgspec.field(default_factory=Counter[str])
    """Refunds by status, or by why there is none."""
    counts: Counter[tuple[str, str]] = msgspec.field(
        default_factory=Counter[tuple[str, str]]
    )
    """Refunds that can be canceled, by account and currency."""
    sums: Counter[tuple[str, str]] = msgspec.field(
        default_factory=Counter[tuple[str, str]]
    )
    """Their amounts in the smallest unit."""

    def add(self, request: CancelRequest, refund: Refund) -> None:
        """Count a refund that was read."""
        self.statuses[str(refund.status)] += 1
        if refund.status == CANCELABLE:
            place = request.stripe_account or "", refund.currency
            self.counts[place] += 1
            self.sums[place] += refund.amount

    @property
    def cancelable(self) -> int:
        """The number of refunds that can be canceled."""
        return self.statuses[CANCELABLE]

    @property
    def seconds(self) -> float:
        """How long the cancels take at Stripe's limit; accounts go side by side."""
        accounts: Counter[str] = Counter()
        for (account, _), count in self.counts.items():
            accounts[account] += count
        return max(accounts.values(), default=0) / STRIPE_RATE


class PlanReader:
    """Reads each refund once, at the pace of Stripe's limit for reads.

    Args:
        output: Where each refund is written; on a terminal those that cannot be
            canceled.
        rate: Reads per second of each account.
        timeout: Seconds for each read; None: the client's default.
    """

    def __init__(
        self, output: Output, *, rate: float | None, timeout: float | None
    ) -> None:
        self.plan = Plan()
        self._output = output
        self._interval = 1 / min(rate or _READ_RATE, STRIPE_RATE)
        self._timeout = timeout
        self._next: dict[str | None, float] = {}

    async def run(
        self, refunds: RefundsClient, requests: Iterator[CancelRequest], total: int
    ) -> None:
        """Read them all.

        Raises:
            AuthenticationError: The key is refused, so every read would be.
            OutputLostError: A refund could not be written.
        """
        clock = asyncio.get_running_loop().time
        progress = ReadProgress(self.plan.statuses, total=total, clock=clock)
        async with shown(self._output, progress.line):
            try:
                async with asyncio.TaskGroup() as readers:
                    for _ in range(min(total, _READS_IN_FLIGHT)):
                        readers.create_task(self._read(refunds, requests))
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None

    async def _read(
        self, refunds: RefundsClient, requests: Iterator[CancelRequest]
    ) -> None:
        for request in requests:
            await self._wait_for_turn(request.stripe_account)
            refund, error = None, None
            try:
                refund = await refunds.retrieve(
                    request.refund_id,
                    stripe_account=request.stripe_account,
                    timeout=self._timeout,
                )
                self.plan.add(request, refund)
            except AuthenticationError:
                raise
            except RefundsError as failure:
                error = str(failure)
                found = isinstance(failure, RefundNotFoundError)
                self.plan.statuses[NOT_FOUND if found else NOT_READ] += 1
            self._write(request, refund, error)

    async def _wait_for_turn(self, account: str | None) -> None:
        now = asyncio.get_running_loop().time()
        turn = max(now, self._next.get(account, now))
        self._next[account] = turn + self._interval
        await asyncio.sleep(turn - now)

    def _write(
        self, request: CancelRequest, refund: Refund | None, error: str | None
    ) -> None:
        cancelable = refund is not None and refund.status == CANCELABLE
        if self._output.as_table and cancelable:
            return
        self._output.record(
            {
                "refund_id": request.refund_id,
                "stripe_account": request.stripe_account,
                "cancelable": cancelable,
                "status": None if refund is None else refund.status,
                "amount": None if refund is None else refund.amount,
                "currency": None if refund is None else refund.currency,
                "created": None if refund is None else refund.created,
                "error": error,
            }
        )


def plan_lines(plan: Plan, *, repeatable: bool) -> Iterator[str]:
    """Yield what a plan says to a person.

    Args:
        plan: The plan.
        repeatable: Whether the list can be read again; stdin cannot.
    """
    total, can = plan.statuses.total(), plan.cancelable
    yield f"{can:,} of {total:,} refunds can be canceled" + (":" if can else "")
    if can:
        yield from sum_lines(plan.counts, plan.sums)
    for status, count in plan.statuses.most_common():
        if status in (NOT_FOUND, NOT_READ):
            yield f"{count:,} {'was' if count == 1 else 'were'} {status}"
        elif status != CANCELABLE:
            yield f"{count:,} cannot be canceled: {status}"
    if not can:
        return
    seconds = timedelta(seconds=max(1, round(plan.seconds)))
    yield (
        f"canceling takes about {seconds} at Stripe's limit of {STRIPE_RATE:.0f} "
        "requests per second for each account"
    )
    yield "the money returns to the balance; the customers are not repaid by it"
    yield f"nothing was canceled; to cancel them: {act_command()}"
    if not repeatable:
        yield "the list came from stdin: give it again"


def sum_lines(
    counts: Counter[tuple[str, str]], sums: Counter[tuple[str, str]]
) -> list[str]:
    """Return a table of refunds and sums by account and currency."""
    rows = [
        [
            *([account or "of the key"] if any(each for each, _ in counts) else []),
            currency,
            f"{count:,}",
            in_major_units(sums[account, currency], currency),
        ]
        for (account, currency), count in sorted(counts.items())
    ]
    head = ["account", "currency", "refunds", "sum"][-len(rows[0]) :]
    return aligned([head, *rows])


def act_command() -> str:
    """Return the command of this process without ``--dry-run``."""
    words = [scrub(each) for each in sys.argv[1:] if each != "--dry-run"]
    return shlex.join(["async-refunds", *words])


def ask(count: int, others: int, *, live: bool, accounts: list[str]) -> None:
    """Ask whether to cancel, and end the command if the answer is no.

    Without a terminal it refuses.

    Args:
        count: The number of refunds that were given.
        others: The number of those that are open in the journal.
        live: Whether real money moves.
        accounts: The connected accounts.
    """
    require_terminal()
    them = "this refund" if count == 1 else f"these {count:,} refunds"
    if not count:
        them, others = f"{others:,} refunds that are open in the journal", 0
    if accounts:
        rest = len(accounts) - _ACCOUNTS_SHOWN
        more = f" and {rest:,} more accounts" if rest > 0 else ""
        them += f" of {', '.join(accounts[:_ACCOUNTS_SHOWN])}{more}"
    journal = f", and {others:,} more that are open in the journal" if others else ""
    warning = " Real money moves." if live else ""
    if not typer.confirm(f"Cancel {them}{journal}?{warning}", err=True):
        to_stderr("nothing was canceled")
        raise typer.Exit(1)


def require_terminal() -> None:
    """Refuse where no one can be asked."""
    if sys.stdin is None or not sys.stdin.isatty():
        refuse(
            "there is no terminal to ask on: add --yes, or --dry-run to see what "
            "matches; nothing was sent"
        )
