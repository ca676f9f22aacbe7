"""``cancel --dry-run``: what a cancel would do, and the question before real money."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

import msgspec
import typer

from async_refunds.errors import RefundNotFoundError, RefundsError
from async_refunds.protocol.redaction import scrub

from .exit_codes import INTERRUPTED, NOT_ALL
from .money import in_major_units
from .output import print_error, refuse, to_stderr
from .paced_reads import STRIPE_RATE, cause
from .tables import aligned, counted, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from async_refunds.journal import Record
    from async_refunds.models import Refund
    from async_refunds.results import CancelRequest

    from .output import Output

PREVIEW_COLUMNS = ("refund_id", "status", "amount", "currency", "error")

_ACCOUNTS_SHOWN = 3
_CAUSES_SHOWN = 3

CANCELABLE = "requires_action"
NOT_FOUND = "not found"
NOT_READ = "not read"
PERHAPS_OURS = "canceled already, perhaps by this run"


class Preview(msgspec.Struct):
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
    causes: Counter[str] = msgspec.field(default_factory=Counter[str])
    """Refunds that could not be read, by why."""

    def add(
        self, request: CancelRequest, refund: Refund, *, status: str | None = None
    ) -> None:
        """Count a refund that was read, in place of its status as of another one."""
        self.statuses[status or str(refund.status)] += 1
        if refund.status == CANCELABLE:
            place = request.stripe_account or "", refund.currency
            self.counts[place] += 1
            self.sums[place] += refund.amount

    def add_record(self, record: Record) -> None:
        """Count a refund of a journal, if its amount is known."""
        if record.amount is not None and record.currency is not None:
            place = record.stripe_account or "", record.currency
            self.counts[place] += 1
            self.sums[place] += record.amount

    @property
    def cancelable(self) -> int:
        """The number of refunds that can be canceled."""
        return self.statuses[CANCELABLE]

    @property
    def looked_up(self) -> int:
        """The number of refunds of which it is known what a cancel would do."""
        return self.statuses.total() - self.statuses[NOT_READ]

    @property
    def all_read(self) -> bool:
        """Whether each refund was found and read."""
        return not (self.statuses[NOT_FOUND] or self.statuses[NOT_READ])

    @property
    def seconds(self) -> float:
        """How long the cancels take at Stripe's limit; accounts go side by side."""
        accounts: Counter[str] = Counter()
        for (account, _), count in self.counts.items():
            accounts[account] += count
        return max(accounts.values(), default=0) / STRIPE_RATE


class PreviewWriter:
    """Counts what is read, and writes each refund.

    Args:
        output: On a terminal it gets those that cannot be canceled.
        perhaps_sent: Those that the run has perhaps canceled; each is taken from it.
    """

    def __init__(
        self, output: Output, perhaps_sent: set[CancelRequest] | None = None
    ) -> None:
        self.preview = Preview()
        self._output = output
        self._perhaps_sent: set[CancelRequest] = (
            set() if perhaps_sent is None else perhaps_sent  # filled while it is read
        )

    def write(self, request: CancelRequest, found: Refund | RefundsError) -> None:
        """Count a refund, or what kept it from us, and write it.

        Raises:
            OutputLostError: It could not be written.
        """
        refund, error = None, None
        if isinstance(found, RefundsError):
            error = str(found)
            missing = isinstance(found, RefundNotFoundError)
            self.preview.statuses[NOT_FOUND if missing else NOT_READ] += 1
            if not missing:
                what = "could not be read" if found.attempts else "not asked for"
                self.preview.causes[f"{what}: {cause(request, error)}"] += 1
        else:
            refund = found
            ours = request in self._perhaps_sent and refund.status == "canceled"
            status = PERHAPS_OURS if ours else None
            self.preview.add(request, refund, status=status)
        self._perhaps_sent.discard(request)
        not_read = refund is None and not isinstance(found, RefundNotFoundError)
        cancelable = refund is not None and refund.status == CANCELABLE
        # What was given up without a request is counted with its reason.
        given_up = isinstance(found, RefundsError) and not found.attempts
        if self._output.as_table and (cancelable or given_up):
            return
        self._output.record(
            {
                "refund_id": request.refund_id,
                "stripe_account": request.stripe_account,
                "cancelable": None if not_read else cancelable,
                "status": None if refund is None else refund.status,
                "amount": None if refund is None else refund.amount,
                "currency": None if refund is None else refund.currency,
                "created": None if refund is None else refund.created,
                "error": error,
            }
        )


def preview_lines(preview: Preview, *, repeatable: bool) -> Iterator[str]:
    """Yield what a preview says to a person.

    Args:
        preview: What was read.
        repeatable: Whether the list can be read again; stdin cannot.
    """
    total, can = preview.statuses.total(), preview.cancelable
    known = preview.looked_up
    those = "" if known == total else f" that {'was' if known == 1 else 'were'} read"
    if known:
        yield f"{can:,} of {counted(known, 'refund')}{those} can be canceled" + (
            ":" if can else ""
        )
    if can:
        yield from sum_lines(preview.counts, preview.sums)
    yield from _other_lines(preview)
    if preview.statuses[NOT_FOUND] == total:
        yield "is this the key of the right account and mode, test or live?"
    if not can:
        if preview.statuses[NOT_READ]:
            yield "nothing was canceled"
        return
    seconds = timedelta(seconds=max(1, round(preview.seconds)))
    yield (
        f"canceling takes about {seconds} at Stripe's limit of {STRIPE_RATE:.0f} "
        "requests per second for each account"
    )
    yield "the money returns to the balance; the customers are not repaid by it"
    yield f"nothing was canceled; to cancel them: {act_command()}"
    if not repeatable:
        yield "the list came from stdin: give it again"


def _other_lines(preview: Preview) -> Iterator[str]:
    """Yield how many cannot be canceled, or could not be read, and why."""
    for status, count in preview.statuses.most_common():
        if status == NOT_FOUND:
            yield f"{count:,} {'was' if count == 1 else 'were'} {status}"
        elif status == PERHAPS_OURS:
            yield f"{count:,} {'is' if count == 1 else 'are'} {status}"
        elif status not in (CANCELABLE, NOT_READ):
            yield f"{count:,} cannot be canceled: {status}"
    for why, count in preview.causes.most_common(_CAUSES_SHOWN):
        yield f"{counted(count, 'refund')} {why}"
    if (more := len(preview.causes) - _CAUSES_SHOWN) > 0:
        yield f"and {counted(more, 'more reason')} why some could not be read"


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


def known_sums(known: Preview, total: int) -> list[str]:
    """Return what is known of the sums of refunds before they are read.

    Args:
        known: Those whose amounts are known.
        total: How many they are in all.
    """
    count = known.counts.total()
    lines = sum_lines(known.counts, known.sums) if count else []
    if count < total:
        which = f"of {counted(total - count, 'other')} " if count else ""
        lines.append(f"the sums {which}are not known yet: --dry-run shows them")
    return lines


def act_command() -> str:
    """Return the command of this process without ``--dry-run``."""
    words = [scrub(each) for each in sys.argv[1:] if each != "--dry-run"]
    return shlex.join(["async-refunds", *words])


class Target(Protocol):
    """Where refunds are canceled."""

    @property
    def base_url(self) -> str:
        """The address of the API."""
        ...

    @property
    def livemode(self) -> bool:
        """Whether real money moves."""
        ...

    @property
    def mode(self) -> str:
        """``live`` or ``test``."""
        ...


def ask(
    connection: Target,
    count: int,
    others: int,
    *,
    accounts: list[str],
    sums: Sequence[str],
    limit: int | None = None,
) -> None:
    """Ask whether to cancel, and end the command if the answer is no.

    Without a terminal it refuses.

    Args:
        connection: Tells the mode and the address.
        count: The number of refunds that were given.
        others: The number of those that are open in the journal.
        accounts: The connected accounts.
        sums: What is known of the sums, in lines.
        limit: How many of all of these are canceled, if not all are.
    """
    require_terminal()
    for line in (f"{connection.mode} mode, {connection.base_url}", *sums):
        to_stderr(line)
    them = "this refund" if count == 1 else f"these {count:,} refunds"
    are = "is" if others == 1 else "are"
    if limit is not None:
        them = f"{limit:,} of {count + others:,} refunds, {count:,} given"
    if not count:
        those = (
            counted(others, "refund")
            if limit is None
            else f"{limit:,} of {others:,} refunds"
        )
        them = f"{those} that {are} open in the journal"
        others = 0
    if accounts:
        more = len(accounts) - _ACCOUNTS_SHOWN
        rest = f" and {counted(more, 'more account')}" if more > 0 else ""
        them += f" of {', '.join(accounts[:_ACCOUNTS_SHOWN])}{rest}"
    journal = f", and {others:,} more that {are} open in the journal" if others else ""
    warning = " Real money moves." if connection.livemode else ""
    try:
        question = printable(f"Cancel {them}{journal}?{warning}")
        wanted = typer.confirm(question, err=True)
    except typer.Abort as error:
        to_stderr("")  # the answer's line is not ended yet
        if isinstance(error.__context__, KeyboardInterrupt):
            print_error("interrupted: nothing was canceled")
            raise typer.Exit(INTERRUPTED) from None
        wanted = False  # the end of the input
    if not wanted:
        to_stderr("nothing was canceled")
        raise typer.Exit(NOT_ALL)


def require_terminal(*, dry_run: bool = True) -> None:
    """Refuse where no one can be asked.

    Args:
        dry_run: Whether the command can only show what it would do.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        rest = "; nothing was added"
        if dry_run:
            rest = ", or --dry-run to see what matches; nothing was sent"
        refuse(f"there is no terminal to ask on: add --yes{rest}")
