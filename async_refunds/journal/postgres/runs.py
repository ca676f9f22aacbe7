"""Read what a fleet knows, while its workers go on, and change nothing.

Each takes a synchronous connection in autocommit mode, as a command line has it.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
from psycopg.rows import class_row, dict_row

from async_refunds.errors import JournalError
from async_refunds.journal.base import Record, Run, Tally
from async_refunds.journal.keys import derive_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg import Connection

    from async_refunds.results import CancelOutcome

    Database = Connection[Any]

_PAGE = 1000  # rows that are fetched at a time

_RUN = """
SELECT run_id, base_url, livemode, options, seed FROM async_refunds.runs WHERE name = %s
"""
# What was sent since its last result, or may have been, is unknown: see `sqlite.rows`.
_KNOWN = """
CASE WHEN maybe_sent AND (outcome IS NULL OR outcome = 'failed') THEN 'unknown'
    ELSE outcome END
"""
_TALLY = f"""
SELECT {_KNOWN} AS outcome, count(*) AS refunds,
        count(*) FILTER (WHERE NOT settled) AS open,
        coalesce(sum(attempts), 0)::bigint AS requests,
        coalesce(sum(rate_limited), 0)::bigint AS rate_limited,
        extract(epoch FROM min(added_at))::float8 AS began,
        extract(epoch FROM max(known_at))::float8 AS ended
    FROM async_refunds.items WHERE run_id = %s GROUP BY 1
"""  # noqa: S608 - our own text
_RECORDS = f"""
SELECT row_number() OVER (ORDER BY number) AS number, refund_id,
        nullif(account, '') AS stripe_account, {_KNOWN} AS outcome, status,
        idempotency_key, attempts, request_id,
        CASE WHEN dead THEN 'given up: ' || claims
            || ' workers in turn took it and ended without a result' ELSE error END
            AS error,
        seconds, settled, amount, currency, created, charge, payment_intent,
        failure_balance_transaction,
        extract(epoch FROM known_at)::float8 AS known_at, generation
    FROM async_refunds.items WHERE run_id = %s ORDER BY number
"""  # noqa: S608 - our own text
_IN_USE = """
SELECT EXISTS (
    SELECT FROM async_refunds.items i
        JOIN async_refunds.runs r USING (run_id)
        JOIN async_refunds.leases l ON (l.scope, l.account) = (r.scope, i.account)
        WHERE r.run_id = %s AND NOT i.settled AND NOT i.dead
            AND l.token IS NOT NULL AND l.until > clock_timestamp()
)
"""
_STATUS = """
SELECT m.scope, nullif(m.account, '') AS stripe_account,
        CASE WHEN m.held THEN m.owner END AS owner,
        CASE WHEN m.held THEN m.lease_age_seconds END AS lease_age,
        m.pace, m.open, m.dead, m.oldest_open_seconds AS oldest, m.takeovers,
        CASE WHEN NOT m.held AND l.not_before > clock_timestamp()
            THEN extract(epoch FROM l.not_before - clock_timestamp())::float8 END
            AS waits,
        word.last_word
    FROM async_refunds.metrics m
    JOIN async_refunds.leases l USING (scope, account)
    LEFT JOIN LATERAL (
        SELECT coalesce(i.error, i.outcome) AS last_word
            FROM async_refunds.items i JOIN async_refunds.runs r USING (run_id)
            WHERE r.scope = m.scope AND i.account = m.account AND NOT i.settled
                AND i.known_at IS NOT NULL
            ORDER BY i.known_at DESC LIMIT 1
    ) word ON true
    WHERE m.open > 0 OR m.dead > 0 OR m.held
    ORDER BY m.scope, m.account
"""
_RUNS = """
SELECT r.name, r.scope, r.state,
        count(i.*) AS refunds, count(i.*) FILTER (WHERE i.settled) AS settled,
        count(i.*) FILTER (WHERE i.dead) AS dead
    FROM async_refunds.runs r LEFT JOIN async_refunds.items i USING (run_id)
    WHERE r.state <> 'closed'
    GROUP BY r.run_id ORDER BY r.created_at
"""


class AccountStatus(msgspec.Struct, frozen=True, kw_only=True):
    """An account that has something left, or is being worked on."""

    scope: str
    """Tenant, address and mode, in words."""
    stripe_account: str | None
    owner: str | None
    """The worker that holds it; ``None`` if nobody does."""
    lease_age: float | None
    """Seconds since the holder was last heard of."""
    pace: float | None
    """Requests a second that the last holder had found."""
    open: int
    """Refunds that are to be canceled."""
    dead: int
    """Those that were given up: workers ended while they had them."""
    oldest: float | None
    """Seconds since the oldest of them was added."""
    waits: float | None
    """Seconds until somebody may go on with it, after a refusal or a failure."""
    takeovers: int
    """How often it was taken from a worker that had ended without a word."""
    last_word: str | None
    """What was last learned of an open refund."""


class RunStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A run that is not closed."""

    name: str
    scope: str
    state: str
    """``open`` or ``paused``."""
    refunds: int
    settled: int
    dead: int


class _Count(msgspec.Struct, frozen=True, kw_only=True):
    """The items of one outcome."""

    outcome: CancelOutcome | None
    refunds: int
    open: int
    requests: int
    rate_limited: int
    began: float
    ended: float | None


def accounts(connection: Database) -> list[AccountStatus]:
    """Return the accounts that have something left, or that a worker holds."""
    with connection.cursor(row_factory=class_row(AccountStatus)) as cursor:
        return cursor.execute(_STATUS).fetchall()


def runs(connection: Database) -> list[RunStatus]:
    """Return the runs that are not closed, oldest first."""
    with connection.cursor(row_factory=class_row(RunStatus)) as cursor:
        return cursor.execute(_RUNS).fetchall()


class RunReader:
    """One run of a fleet.

    Args:
        connection: To the database, for as long as this is used.
        name: Of the run.

    Raises:
        JournalError: There is no such run.
    """

    def __init__(self, connection: Database, name: str) -> None:
        self._connection = connection
        row = connection.execute(_RUN, [name]).fetchone()
        if row is None:
            raise JournalError(f"there is no run {name!r}")
        self._run_id, base_url, livemode, options, self._seed = row
        self.run = Run(base_url, livemode, options)
        """What it is about."""

    @property
    def in_use(self) -> bool:
        """Whether a worker holds an account that has something left of the run."""
        row = self._connection.execute(_IN_USE, [self._run_id]).fetchone()
        return row == (True,)

    def tally(self) -> Tally:
        """Return how far the run is."""
        with self._connection.cursor(row_factory=class_row(_Count)) as cursor:
            counts = cursor.execute(_TALLY, [self._run_id]).fetchall()
        seconds = 0.0
        if ended := [each.ended for each in counts if each.ended is not None]:
            seconds = max(ended) - min(each.began for each in counts)
        return Tally(
            open=sum(each.open for each in counts),
            outcomes=Counter({each.outcome: each.refunds for each in counts}),
            requests=sum(each.requests for each in counts),
            rate_limited=sum(each.rate_limited for each in counts),
            seconds=max(seconds, 0.0),
        )

    def records(self) -> Iterator[Record]:
        """Yield what is known of each item, in input order, as of one moment."""
        # Held beyond its transaction, so that a slow reader keeps no old rows alive.
        with self._connection.cursor(
            "async_refunds_records", row_factory=dict_row, withhold=True
        ) as cursor:
            cursor.itersize = _PAGE
            cursor.execute(_RECORDS, [self._run_id])
            for row in cursor:
                yield self._record(row)

    def _record(self, row: dict[str, Any]) -> Record:
        generation = row.pop("generation")
        if row["outcome"] == "unknown" and generation:
            # It may have been sent since the last result: with this key.
            row["idempotency_key"] = derive_key(
                self._seed, row["stripe_account"], row["refund_id"], generation
            )
        return Record(**row)
