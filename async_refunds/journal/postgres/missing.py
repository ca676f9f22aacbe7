"""Which refunds of its run a batch did not come to a result of, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg

from async_refunds.errors import JournalError

from .connection import Link, describe
from .statements import MISSING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from psycopg.rows import TupleRow

    from .connection import Connection, Database

RUN_DELETED = (
    "the run was deleted from the database meanwhile: what becomes of its refunds that "
    "have no result here is told by nobody; begin another run with them, and none is "
    "canceled twice"
)

_WITHIN = 600.0
"""Seconds for what reads every refund of a run. A million take less than one."""


class MissingItems:
    """What a batch is to come to a result of, by the database's clock.

    Args:
        database: Where the run is.
        run_id: Of the run; ``None`` for a worker, which misses nothing.
    """

    def __init__(self, database: Database, run_id: str | None) -> None:
        self._database, self._run_id = database, run_id
        self.begin()

    def begin(self) -> None:
        """Begin a batch."""
        self._began_at = self._added_until = 0.0
        self._timeline: str | None = None

    def note_found(self, now: float, timeline: str | None) -> None:
        """Note that the batch looked for what is open.

        Args:
            now: Unix seconds of the database.
            timeline: Its history; ``None`` if it does not tell that.
        """
        if not self._began_at:
            self._began_at, self._timeline = now, timeline
        self._added_until = max(now, self._added_until)

    def note_added(self, now: float) -> None:
        """Note that it added items. What others add later is not missed."""
        self._added_until = now

    async def explain(
        self, tokens: Iterable[str], lost: Collection[str | None]
    ) -> str | None:
        """Tell what is missing, and why; ``None`` if nothing is.

        Args:
            tokens: Of the leases that the batch has had.
            lost: The accounts of which it has lost them.

        Raises:
            JournalError: It cannot be read.
        """
        values = {
            "run_id": self._run_id,
            "began_at": self._began_at,
            "added_until": self._added_until,
            "tokens": list(tokens),
        }

        async def read(connection: Connection, _: bool) -> list[TupleRow]:  # noqa: FBT001 - as Link calls it
            return await (await connection.execute(MISSING, values)).fetchall()

        # Not with the journal's own patience: it would take that for an outage.
        link = Link(self._database, patience=_WITHIN)
        try:
            ((timeline, state, *counts, accounts),) = await link.repeat(read)
        except psycopg.Error as error:
            raise JournalError(
                f"whether each refund has a result cannot be read: {describe(error)}"
            ) from None
        finally:
            await link.close(within=0.0)
        before = self._timeline
        if before is not None and timeline is not None and timeline != before:
            return (
                "the database came back without its last commits, perhaps without "
                "refunds that were added: begin again with the same ones, and none is "
                "added twice"
            )
        if state is None:
            return RUN_DELETED  # with its refunds, or without
        taken = set(lost) & {account or None for account in accounts or ()}
        return _explain(state, *counts, lost=taken)


def explain_lost(accounts: Iterable[str | None]) -> str:
    """Say that the leases of accounts were lost.

    Args:
        accounts: ``None`` for the key's own.
    """
    names = sorted(account or "the key's own account" for account in accounts)
    return (
        f"another process has taken over {', '.join(names)}: the journal tells what "
        "becomes of the refunds there"
    )


def _explain(
    state: str, dead: int, settled: int, count: int, *, lost: Collection[str | None]
) -> str | None:
    """Say why refunds have no result; ``None`` if each has one.

    Args:
        state: Of the run.
        dead: How many of them whoever claimed them did not come to an end with.
        settled: How many somebody else has settled meanwhile.
        count: How many there are in all.
        lost: Their accounts of which the leases were lost.
    """
    if not count:
        return None
    reasons: list[str] = []
    waiting = count - dead - settled
    if state != "open":
        reasons.append(f"the run is {state}")
    if lost:
        reasons.append(explain_lost(lost))
    elif waiting and state in ("open", "closing"):
        reasons.append(
            f"{waiting:,} cannot be claimed now: begin again with the journal later"
        )
    if settled:
        reasons.append(f"{settled:,} settled by another process")
    if dead:
        reasons.append(f"{dead:,} dead: see `async-refunds fleet retry --help`")
    have = "refund has" if count == 1 else "refunds have"
    return f"{count:,} {have} no result here ({'; '.join(reasons)})"
