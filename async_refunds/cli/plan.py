"""What a batch is about to cancel, and the question before it does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from . import preview
from .tables import counted

if TYPE_CHECKING:
    from typing import Self

    from .config import Connection
    from .journals import OpenJournal
    from .options import SendOptions
    from .refund_list import RefundList


def must_ask(connection: Connection, total: int, send: SendOptions) -> bool:
    """Tell whether somebody is asked before so many refunds are canceled."""
    return connection.livemode and total > 1 and not send.yes


class Plan(msgspec.Struct):
    """What a batch is about to cancel."""

    given: int = 0
    """The number of refunds that were given, and are canceled."""
    others: int = 0
    """The number of those that are open in the journal, and were not given."""
    added: int = 0
    """How many of those given the journal does not hold."""
    accounts: set[str] = msgspec.field(default_factory=set[str])
    """The connected accounts of all of them."""
    known: preview.Preview = msgspec.field(default_factory=preview.Preview)
    """Those whose amounts the journal knows."""

    @classmethod
    def make(cls, requests: RefundList | None, kept: OpenJournal | None) -> Self:
        """Return what is canceled of a list, and of a journal that it is added to.

        Raises:
            JournalError: It could not be read.
        """
        plan = cls()
        if requests is not None:
            plan.given = plan.added = requests.count
            plan.accounts.update(requests.accounts())
        for record in () if kept is None else kept.journal.records():
            is_given = requests is not None and requests.has(
                record.refund_id, record.stripe_account
            )
            plan.added -= is_given
            if record.settled:
                plan.given -= is_given
                continue
            plan.others += not is_given
            plan.accounts.update(filter(None, [record.stripe_account]))
            plan.known.add_record(record)
        return plan

    def total(self, limit: int | None) -> int:
        """Return how many refunds are canceled with this ``--max``."""
        total = self.given + self.others
        return min(total, limit or total)


class Held(Protocol):
    """What a journal or a run holds, such as a `Tally`."""

    @property
    def total(self) -> int:
        """All refunds."""
        ...

    @property
    def open(self) -> int:
        """Those that are not settled."""
        ...


def before(name: str, held: Held, given: int, added: int) -> str:
    """Return what a journal holds before refunds are added to it.

    Args:
        name: What the line calls it.
        held: What it holds.
        given: The number of refunds that are given.
        added: How many of these it does not hold.
    """
    are = "is" if added == 1 else "are"
    return (
        f"{name} holds {counted(held.total, 'refund')} already, {held.open:,} of them "
        f"open; {added:,} of the {given:,} given {are} added"
    )


def ask(
    connection: Connection,
    requests: RefundList | None,
    kept: OpenJournal | None,
    send: SendOptions,
    *,
    found: bool = False,
) -> bool:
    """Ask before more than one live refund is canceled, unless ``--yes`` was given.

    Args:
        connection: To the API.
        requests: What is to be canceled.
        kept: The journal, whose open refunds are canceled too.
        send: How many are canceled, and whether someone is asked.
        found: Whether the requests are what a search has found. Then their sums were
            just shown, and somebody is always asked.

    Returns:
        Whether somebody was asked.

    Raises:
        JournalError: It could not be read.
    """
    if send.yes or not (connection.livemode or found):
        return False
    plan = Plan.make(requests, kept)
    total = plan.total(send.limit)
    if not (found or must_ask(connection, total, send)):
        return False
    lines: list[str] = []
    held = None if kept is None else kept.journal.tally()
    if kept is not None and held is not None and held.total and requests is not None:
        lines.append(before(kept.path, held, requests.count, plan.added))
    if not found:
        lines += preview.known_sums(plan.known, total)
    # Without others these are the first ones of the list.
    limited = plan.others > 0 and total < plan.given + plan.others
    preview.ask(
        *(connection, plan.given if plan.others else total, plan.others),
        accounts=sorted(plan.accounts),
        sums=lines,
        limit=total if limited else None,
    )
    return True
