"""The runs of a fleet by their names, as an operator has them."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Any

import msgspec
from psycopg.rows import class_row

from async_refunds.errors import JournalError
from async_refunds.journal.base import Run

from .reader import KNOWN, FleetReader
from .run_states import STATE, WORKED_ON

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg import Connection

    from async_refunds.journal.base import Record, Tally

    from .connection import Database

_RUN = f"""
SELECT run_id::text, base_url, livemode, options, {STATE}
    FROM async_refunds.runs r WHERE name = %s
"""  # noqa: S608 - our own text
_IN_USE = f"""
SELECT EXISTS (
    SELECT FROM async_refunds.items i
        JOIN async_refunds.runs r USING (run_id)
        JOIN async_refunds.leases l ON (l.scope, l.account) = (r.scope, i.account)
        WHERE r.name = %s AND r.{WORKED_ON} AND NOT i.settled AND NOT i.dead
            AND l.token IS NOT NULL AND l.until > clock_timestamp()
)
"""  # noqa: S608 - our own text
_DEAD = f"""
SELECT {KNOWN}, count(*) FROM async_refunds.items i
    WHERE i.run_id = %s::uuid AND i.dead GROUP BY 1
"""  # noqa: S608 - our own text
_RUNS = """
SELECT r.name, r.scope, r.state, count(i.*) AS refunds,
        count(i.*) FILTER (WHERE i.settled) AS settled,
        count(i.*) FILTER (WHERE i.dead) AS dead,
        count(i.*) FILTER (WHERE NOT i.settled AND NOT i.dead
            AND i.known_at IS NOT NULL) AS tried
    FROM async_refunds.runs r LEFT JOIN async_refunds.items i USING (run_id)
    WHERE r.state <> 'closed'
    GROUP BY r.run_id
    HAVING r.state <> 'closing' OR count(i.*) FILTER (WHERE NOT i.settled) > 0
    ORDER BY r.created_at
"""

# Asked for in vain, and not again before some time; nobody has it in hand. `l` is the
# lease of its account.
_WAITS = """(i.known_at IS NOT NULL AND i.claim_number IS NULL
    AND l.retry_at > clock_timestamp())"""
_NOT_BEFORE = """(l.not_before > clock_timestamp()
    AND (l.token IS NULL OR l.until <= clock_timestamp()))"""
_NO_NEW_KEY = """(i.known_at IS NOT NULL AND NOT i.maybe_sent
    AND l.no_new_key_until > clock_timestamp())"""
# By the index of what is open: nothing of what is settled, which may be nearly all.
_LEFT = """FROM async_refunds.items i JOIN async_refunds.leases l
    ON (l.scope, l.account) = (r.scope, i.account)
    WHERE i.run_id = r.run_id AND NOT i.settled AND NOT i.dead"""
_PROGRESS = f"""
SELECT r.state, i.* FROM async_refunds.runs r CROSS JOIN LATERAL (
    SELECT count(*) AS open, count(*) FILTER (WHERE i.known_at IS NOT NULL) AS tried,
            count(*) FILTER (WHERE {_WAITS}) AS waiting,
            count(*) FILTER (WHERE NOT {_WAITS} AND ({_NOT_BEFORE} OR {_NO_NEW_KEY}))
                AS held_back
        {_LEFT}
) i WHERE r.name = %s
"""  # noqa: S608 - our own text
_WAITING = f"""
SELECT i.refund_id, nullif(i.account, '') AS stripe_account,
        coalesce(i.error, i.outcome, '') AS error, i.waits AS seconds
    FROM async_refunds.runs r CROSS JOIN LATERAL (
        SELECT i.*, extract(epoch FROM l.retry_at - clock_timestamp())::float8
                AS waits
            {_LEFT} AND {_WAITS}
            ORDER BY l.retry_at, i.number LIMIT %s
    ) i WHERE r.name = %s
"""  # noqa: S608 - our own text
_TOTAL = """
SELECT count(*) FROM async_refunds.items JOIN async_refunds.runs r USING (run_id)
    WHERE r.name = %s
"""


class RunProgress(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of a run."""

    state: str
    """``open``, ``paused``, ``closing`` or ``closed``."""
    open: int
    """How many refunds workers ask for by themselves, now or later."""
    tried: int
    """Those of them that failed, or are unknown, and are asked for again."""
    waiting: int
    """Those of them that are not asked for again before some time."""
    held_back: int
    """Others that are not asked for now: the key of their account is refused, Stripe
    cannot be reached, or a request of a worker that was killed may be under way."""


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """A refund that failed, or is unknown, and waits to be asked for again."""

    refund_id: str
    stripe_account: str | None
    error: str
    seconds: float
    """Until it is asked for again, by a worker that is there."""


def run_progress(connection: Connection[Any], name: str) -> RunProgress:
    """Return what is left of a run.

    Raises:
        JournalError: There is no such run.
    """
    with closing(connection.cursor(row_factory=class_row(RunProgress))) as cursor:
        found = cursor.execute(_PROGRESS.encode(), [name]).fetchone()
    if found is None:
        raise JournalError(f"there is no run {name!r}")
    return found


def first_waiting(connection: Connection[Any], name: str, most: int) -> list[Waiting]:
    """Return refunds of a run that wait to be asked for again, the next ones first."""
    with closing(connection.cursor(row_factory=class_row(Waiting))) as cursor:
        return cursor.execute(_WAITING.encode(), [most, name]).fetchall()


def run_total(connection: Connection[Any], name: str) -> int:
    """Return how many refunds a run has."""
    ((total,),) = connection.execute(_TOTAL, [name]).fetchall()
    return int(total)


class RunStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A run that is not closed."""

    name: str
    scope: str
    state: str
    """``open``, ``paused`` or ``closing``."""
    refunds: int
    settled: int
    dead: int
    tried: int
    """Those of the open ones that failed, or are unknown, and are asked for again."""

    @property
    def open(self) -> int:
        """How many workers ask for by themselves, now or later."""
        return self.refunds - self.settled - self.dead

    @property
    def shown_state(self) -> str:
        """Its state for people: ``done`` if it has refunds, and all are settled."""
        return "done" if self.settled == self.refunds > 0 else self.state


def runs(connection: Connection[Any]) -> list[RunStatus]:
    """Return the runs that are not closed, oldest first."""
    with closing(connection.cursor(row_factory=class_row(RunStatus))) as cursor:
        return cursor.execute(_RUNS).fetchall()


class RunReader:
    """One run of a fleet, for reading, while workers go on or after.

    Args:
        connection: To the database, in autocommit mode.
        database: The same, for what connects by itself.
        name: Of the run.

    Raises:
        JournalError: There is no such run. From any method: the database cannot be
            read.
    """

    def __init__(
        self, connection: Connection[Any], database: Database, name: str
    ) -> None:
        row = connection.execute(_RUN, [name]).fetchone()
        if row is None:
            raise JournalError(f"there is no run {name!r}")
        run_id, base_url, livemode, options, state = row
        self.name = name
        self.state: str = state
        """``open``, ``paused``, ``closing`` or ``closed``."""
        self.run_closed = state in ("closing", "closed")
        """Whether nothing more of it is sent, but what was perhaps sent."""
        self.run = Run(base_url, livemode, options)
        """What it is about."""
        self.in_use = connection.execute(_IN_USE, [name]).fetchone() == (True,)
        """Whether a worker holds an account of which it asks for something."""
        self.dead: Counter[str | None] = Counter(
            dict(connection.execute(_DEAD.encode(), [run_id]).fetchall())
        )
        """How many refunds of each outcome no worker asks for again by itself."""
        self._reader = FleetReader(database, run_id=run_id)

    def tally(self) -> Tally:
        """Return how far the run is."""
        return self._reader.tally()

    def records(self) -> Iterator[Record]:
        """Yield what is known of each item, in input order, as of one moment."""
        return self._reader.records()
