"""Read what a fleet has done, and change nothing."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import psycopg

from async_refunds.errors import JournalError
from async_refunds.journal.base import Record, Tally
from async_refunds.journal.keys import derive_key

from .connection import BACKEND_QUERY, describe, is_pooled
from .run_states import WORKED_ON
from .schema import check_version

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from async_refunds.results import CancelOutcome

    from .connection import Database

_PAGE = 1000  # records

# What is known of an item: `unknown` if a key may have been sent since its last result,
# also if that was final and it was opened again.
KNOWN = """CASE WHEN i.maybe_sent
        AND (NOT i.settled OR i.outcome IS NULL OR i.outcome = 'failed')
    THEN 'unknown' ELSE i.outcome END"""
# Claimed by whoever holds the account now, without a result yet. `l` is the lease.
_IN_FLIGHT = f"""(r.{WORKED_ON} AND NOT i.settled AND NOT i.dead
    AND i.claim_number IS NOT NULL AND i.claimed_by = l.token
    AND l.until > now()) IS TRUE"""
_ITEMS = "FROM async_refunds.items i JOIN async_refunds.runs r USING (run_id)"
_CHOSEN = """WHERE (%(scope)s::text IS NULL OR r.scope = %(scope)s)
        AND (%(run_id)s::uuid IS NULL OR r.run_id = %(run_id)s::uuid)"""
# Claimed by a holder that has told of no request.
_UNTOLD = "i.maybe_sent AND NOT i.settled AND i.claim_number IS NOT NULL"
_TALLY = f"""SELECT {KNOWN}, count(*), count(*) FILTER (WHERE NOT i.settled),
        coalesce(sum(i.attempts), 0)::bigint, coalesce(sum(i.rate_limited), 0)::bigint,
        bool_or(i.uncounted OR {_UNTOLD}),
        extract(epoch FROM min(i.claimed_at))::float8,
        extract(epoch FROM max(i.known_at))::float8
    {_ITEMS} {_CHOSEN} GROUP BY 1"""  # noqa: S608 - our own text
# The claim that gives an item up is counted, and nobody has it.
_RECORDS = f"""SELECT i.number, i.refund_id, nullif(i.account, ''), {KNOWN}, i.status,
        i.idempotency_key, i.attempts, i.request_id,
        CASE WHEN i.dead THEN 'dead: ' || (i.claims - 1)
            || ' workers in turn took it and ended without a result' ELSE i.error END,
        i.seconds, i.settled,
        i.amount, i.currency, i.created, i.charge, i.payment_intent,
        i.failure_balance_transaction, extract(epoch FROM i.known_at)::float8,
        {_IN_FLIGHT}, r.seed, i.generation
    {_ITEMS} LEFT JOIN async_refunds.leases l
        ON (l.scope, l.account) = (r.scope, i.account)
    {_CHOSEN} ORDER BY i.number"""  # noqa: S608 - our own text
_STATUS = """SELECT scope, nullif(account, ''), owner, held, lease_age_seconds, pace,
        takeovers, open, dead, oldest_open_seconds, waits_seconds, retry_seconds,
        new_key_seconds, last_word, last_at_seconds
    FROM async_refunds.metrics
    WHERE %(scope)s::text IS NULL OR scope = %(scope)s ORDER BY scope, account"""


class AccountStatus(msgspec.Struct, frozen=True):
    """How far the work on one account is. Ages are seconds, by the database's clock."""

    scope: str
    account: str | None
    """The connected account, ``None`` for the key's own."""
    owner: str | None
    """Which worker holds it, or held it last if it ended without releasing it."""
    held: bool
    lease_age: float | None
    """Since its last renewal."""
    rate: float | None
    """Requests a second, as of the last renewal."""
    takeovers: int
    """How often it was taken from a worker that had ended."""
    open: int
    """Items that are still to be canceled."""
    dead: int
    """Items that are not claimed again until somebody asks for it: each worker that had
    them ended."""
    oldest: float | None
    """Since the oldest of both was added."""
    waits: float | None
    """Until somebody may take it: its key was refused. ``None`` if nothing is in the
    way."""
    retries_in: float | None
    """Until what was left open with a result is asked for again."""
    new_keys_in: float | None
    """Until what is open, all of which needs a new key, may get one: a request of a
    worker that was killed may be under way."""
    last_word: str | None
    """The error of the last result that has left an item open."""
    last_word_age: float | None


def account_statuses(
    connection: psycopg.Connection[Any], scope: str | None = None
) -> list[AccountStatus]:
    """Return how far each account is that was ever enqueued, of one scope or of all.

    Raises:
        psycopg.Error: The database cannot be read.
    """
    rows = connection.execute(_STATUS.encode(), {"scope": scope}).fetchall()
    return [AccountStatus(*row) for row in rows]


class FleetReader:
    """A fleet's tables for reading. It connects for each call.

    Args:
        database: Where they are.
        scope: Only of this one.
        run_id: Only of this run.

    Raises:
        JournalError: From any method: the database cannot be read, or its tables are of
            another release.
    """

    def __init__(
        self, database: Database, *, scope: str | None = None, run_id: str | None = None
    ) -> None:
        self._database = database
        self._values = {"scope": scope, "run_id": run_id}

    def tally(self) -> Tally:
        """Count the items."""
        outcomes: Counter[CancelOutcome | None] = Counter()
        left = requests = limited = 0
        began: list[float] = []
        ended: list[float] = []
        uncounted = False
        for outcome, count, unsettled, sent, refused, more, first, last in self._rows(
            _TALLY, self._values
        ):
            uncounted = uncounted or more
            outcomes[outcome] += count
            left, requests, limited = (
                left + unsettled,
                requests + sent,
                limited + refused,
            )
            began += [] if first is None else [first]
            ended += [] if last is None else [last]
        return Tally(
            open=left,
            outcomes=outcomes,
            requests=requests,
            rate_limited=limited,
            uncounted=uncounted,
            seconds=max(0.0, max(ended) - min(began)) if began and ended else 0.0,
        )

    def records(self) -> Iterator[Record]:
        """Yield what is known of each item, by number, all as of one moment.

        They are sorted once by the database, and brought from there a page at a time.
        """
        with self._connected() as connection, ExitStack() as stack:
            row = connection.execute(BACKEND_QUERY).fetchone()
            # Held outside of a transaction: a slow reader is in the way of no vacuum.
            # But another session has no such cursor, or that of somebody else.
            held = not is_pooled(connection, row)
            if not held:
                stack.enter_context(connection.transaction())
            cursor = stack.enter_context(connection.cursor("records", withhold=held))
            cursor.itersize = _PAGE
            cursor.execute(_RECORDS.encode(), self._values)
            for *fields, seed, generation in cursor:
                yield _record(fields, bytes(seed), generation)

    def _rows(self, query: str, values: dict[str, Any]) -> list[Any]:
        with self._connected() as connection:
            return connection.execute(query.encode(), values).fetchall()

    @contextmanager
    def _connected(self) -> Generator[psycopg.Connection[Any]]:
        try:
            with psycopg.connect(
                self._database.conninfo, autocommit=True
            ) as connection:
                check_version(connection)
                yield connection
        except psycopg.Error as error:
            raise JournalError(
                f"the database cannot be read: {describe(error)}"
            ) from None


def _record(fields: list[Any], seed: bytes, generation: int) -> Record:
    record = Record(*fields)
    if not generation or (record.settled and record.idempotency_key is not None):
        return record
    # The key that was claimed last: it is written with its result only.
    key = derive_key(seed, record.stripe_account, record.refund_id, generation)
    return msgspec.structs.replace(record, idempotency_key=key)
