"""What an operator does to the runs of a fleet, while its workers go on.

Each takes a synchronous connection in autocommit mode, as a command line has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from psycopg.errors import DeadlockDetected
from psycopg.pq import TransactionStatus

from async_refunds.errors import JournalError

from .history import HISTORY, PERHAPS_SENT
from .run_states import STATE, given_up
from .transactions import read_committed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from psycopg import Connection

    Database = Connection[tuple[object, ...]]

KEY_SECONDS = 86_400.0
"""How long Stripe keeps a key at least, and so how long a result is never pruned:
https://docs.stripe.com/api/idempotent_requests"""
_PAGE = 10_000  # rows of one transaction, so that no worker waits long
_BEFORE_ALL = ("", "")  # an account and an id

_SET_STATE = """
WITH changed AS (
    UPDATE async_refunds.runs SET state = %(state)s
        WHERE name = %(run)s AND state IN ('open', 'paused')
        RETURNING scope
)
SELECT pg_notify('async_refunds', scope) FROM changed
"""
_STATE = f"SELECT {STATE} FROM async_refunds.runs r WHERE name = %s"  # noqa: S608 - our own text
# Those that settle or open refunds of a run do so one after another.
_STATE_FOR_CHANGE = f"{_STATE} FOR NO KEY UPDATE"
# A role that may not tell the history, where others have, cannot know what was sent.
_UNSENT = f"""
    FROM async_refunds.items i
        JOIN async_refunds.runs r USING (run_id) CROSS JOIN history
        WHERE r.name = %(run)s AND NOT i.settled AND NOT {PERHAPS_SENT}
            AND (history.timeline IS NOT NULL
                OR NOT EXISTS (SELECT FROM async_refunds.timelines))
            AND (i.account, i.refund_id) > (%(account)s, %(refund_id)s)
"""
# By the primary key from page to page: what was settled before is not read again.
_NEXT_PAGE = f"""
WITH {HISTORY}, page AS MATERIALIZED (
    SELECT i.account, i.refund_id {_UNSENT}
        ORDER BY i.account, i.refund_id LIMIT %(page)s
)
SELECT array_agg(DISTINCT account), max(account),
    max(refund_id) FILTER (WHERE account = (SELECT max(account) FROM page)) FROM page
"""  # noqa: S608 - our own text
_SETTLE_PAGE = f"""
WITH {HISTORY}, page AS MATERIALIZED (
    SELECT i.ctid {_UNSENT} AND i.account = ANY(%(accounts)s::text[])
        AND (i.account, i.refund_id) <= (%(last_account)s, %(last_refund_id)s)
        FOR UPDATE OF i
)
UPDATE async_refunds.items i SET settled = true, dead = false, outcome = 'failed',
        known_at = clock_timestamp(),
        error = {given_up("i.error")}
    FROM page WHERE i.ctid = page.ctid
"""  # noqa: S608 - our own text
_LEFT = f"""
WITH {HISTORY}
SELECT count(*) FILTER (WHERE {PERHAPS_SENT}), count(*) FILTER (WHERE i.dead),
        count(*) FILTER (WHERE NOT {PERHAPS_SENT})
    FROM async_refunds.items i JOIN async_refunds.runs r USING (run_id)
    WHERE r.name = %s AND NOT i.settled
"""  # noqa: S608 - our own text
# Those that add to it hold the same lock, shared, to the ends of their transactions.
_NO_MORE_ADDED = """
SELECT set_config('lock_timeout', %s, true), pg_advisory_xact_lock(
    async_refunds.adding_to(run_id)) FROM async_refunds.runs WHERE name = %s
"""
ADDED_WITHIN = 5.0
"""Seconds for the transactions that add to a run to end. Later ones wait for it."""
# Workers that wait for a paused run have something to ask for.
_BEGIN_CLOSE = """
WITH changed AS (
    UPDATE async_refunds.runs SET state = 'closing'
        WHERE name = %s AND state IN ('open', 'paused')
        RETURNING scope
)
SELECT pg_notify('async_refunds', scope) FROM changed
"""
_CLOSE = "UPDATE async_refunds.runs SET state = 'closed' WHERE name = %s"
# Leases are locked in the order of their accounts by all, and by those that write what
# workers may write before that: so nobody waits for somebody who waits for him.
_LOCK_LEASES = """
SELECT FROM async_refunds.leases l JOIN async_refunds.runs r USING (scope)
    WHERE r.name = %(run)s AND l.account = ANY(%(accounts)s::text[])
    ORDER BY l.account FOR NO KEY UPDATE OF l
"""
# Waits for those who write what they have in hand of a run. Whoever comes later knows
# that it is closing, see `CLOSING`.
_LOCK_ALL_LEASES = """
SELECT FROM async_refunds.leases l JOIN async_refunds.runs r USING (scope)
    WHERE r.name = %s AND EXISTS (SELECT FROM async_refunds.items i
        WHERE i.run_id = r.run_id AND i.account = l.account AND NOT i.settled)
    ORDER BY l.account FOR NO KEY UPDATE OF l
"""
# Only what nobody has under way is written. In a run that is closing nothing gets a new
# key. Else a definite no of its state may have been
# saved under its key, for a day: the next claim takes a new one.
_OPEN_AGAIN = """
WITH wanted AS MATERIALIZED (
    SELECT i.run_id, i.account, i.refund_id, i.settled, i.dead,
            NOT %(closing)s AND (i.outcome = 'not_cancelable'
                OR i.outcome IS NOT NULL AND NOT i.maybe_sent) AS needs_new_key
        FROM async_refunds.items i JOIN async_refunds.runs r USING (run_id)
        WHERE r.name = %(run)s
            AND (i.dead AND %(dead)s OR NOT i.dead AND i.outcome = ANY(%(outcomes)s))
), opened AS (
    UPDATE async_refunds.items i SET settled = false, dead = false, claims = 0,
            claimed_by = NULL,
            maybe_sent = i.maybe_sent
                AND (%(closing)s OR outcome IS DISTINCT FROM 'not_cancelable')
        FROM wanted w WHERE (i.settled OR i.dead) AND (i.run_id, i.account, i.refund_id)
            = (w.run_id, w.account, w.refund_id)
        RETURNING i.refund_id
)
SELECT (SELECT count(*) FROM opened),
    count(*) FILTER (WHERE NOT settled AND NOT dead),
    coalesce(array_agg(DISTINCT account), '{}'),
    coalesce(array_agg(DISTINCT account) FILTER (WHERE needs_new_key), '{}')
    FROM wanted
"""
_WAKE = """
WITH woken AS (
    UPDATE async_refunds.leases l SET not_before = '-infinity',
            retry_at = '-infinity', retries = 0, takeovers = 0
        FROM async_refunds.runs r WHERE r.name = %(run)s AND l.scope = r.scope
            AND l.account = ANY(%(accounts)s::text[])
        RETURNING l.account, l.no_new_key_until
)
SELECT (
        SELECT extract(epoch FROM max(l.no_new_key_until) - clock_timestamp())::float8
        FROM woken l WHERE l.no_new_key_until > clock_timestamp()
            AND l.account = ANY(%(need_new_key)s::text[])
    ), pg_notify('async_refunds', scope) FROM async_refunds.runs r WHERE name = %(run)s
"""
# What another one has in hand is no old result any more, or is deleted by that one.
_PRUNE = """
DELETE FROM async_refunds.items WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM async_refunds.items
        WHERE settled AND known_at < clock_timestamp() - make_interval(secs => %s)
        LIMIT %s FOR UPDATE SKIP LOCKED
))
"""


class Retried(NamedTuple):
    """How many refunds `retry` has found."""

    opened: int
    """Those that nobody would have asked for again."""
    open_already: int
    """Those that workers would have asked for again by themselves, later."""
    paused: bool
    """Whether the run is paused, so that no worker asks for them yet."""
    seconds: float = 0.0
    """Until the last one is asked for: it needs a new key, and requests of a worker
    that was killed may be under way."""


def set_state(connection: Database, run: str, state: Literal["open", "paused"]) -> None:
    """Pause a run, or open it again.

    A worker claims no more of a paused run. What it has under way it finishes.

    Raises:
        JournalError: There is no such run, or it is closing, or closed.
    """
    if not connection.execute(_SET_STATE, {"run": run, "state": state}).fetchall():
        (found,) = _found(connection, _STATE, run)
        only = ": only what was perhaps sent is asked for" if found == "closing" else ""
        raise JournalError(f"{run!r} is {found}{only}")


def _found(connection: Database, query: str, run: str) -> tuple[object, ...]:
    row = connection.execute(query.encode(), [run]).fetchone()
    if row is None:
        raise JournalError(f"there is no run {run!r}")
    return row


class Closed(NamedTuple):
    """What `close` has made of a run."""

    unsent: int
    """Refunds that are told as failed now, since nothing of them was sent."""
    left: int
    """Refunds that were perhaps sent: with one of them the run is closing."""
    dead: int
    """Those of them that no worker asks for again by itself."""
    untold: int = 0
    """Others, of which this role cannot tell whether they were sent. Nobody asks for
    them; whoever can tell has to close the run."""


def close(
    connection: Database, run: str, *, on_page: Callable[[int], object] | None = None
) -> Closed:
    """Have nothing more of a run sent but what was perhaps sent, and take no more.

    What was never sent is settled as ``failed``. What was perhaps sent goes on to be
    asked for by workers, and gets no new key; when that has an end, the run is closed.
    It is closing from the first moment, also if this does not come to its end: the same
    again goes on. Two at once each go on with what the other one leaves.

    Args:
        connection: To the database.
        run: Its name.
        on_page: Called with how many are settled so far, each time that is certain.

    Raises:
        JournalError: There is no such run.
        psycopg.errors.LockNotAvailable: Somebody adds to it in a transaction that does
            not end.
    """
    with read_committed(connection):
        connection.execute(_BEGIN_CLOSE, [run])
    unsent = 0
    after: tuple[str, str] | None = _BEFORE_ALL
    while after is not None:
        with read_committed(connection):
            _found(connection, _STATE_FOR_CHANGE, run)
            count, after = _settle_unsent(connection, run, after, _PAGE)
        unsent += count
        if count and on_page is not None:
            on_page(unsent)
    with read_committed(connection):
        _found(connection, _STATE_FOR_CHANGE, run)
        connection.execute(_NO_MORE_ADDED, [f"{ADDED_WITHIN}s", run])
        connection.execute("SET LOCAL lock_timeout = 0")
        connection.execute(_LOCK_ALL_LEASES, [run])
        # What was added meanwhile, before what was settled too.
        unsent += _settle_unsent(connection, run, _BEFORE_ALL, None)[0]
        ((left, dead, untold),) = connection.execute(_LEFT.encode(), [run])
        closed = Closed(unsent, *(int(str(count)) for count in (left, dead, untold)))
        if not closed.left + closed.untold:
            connection.execute(_CLOSE, [run])
    return closed


def _settle_unsent(
    connection: Database, run: str, after: tuple[str, str], most: int | None
) -> tuple[int, tuple[str, str] | None]:
    """Settle so many of what was never sent of a run.

    Returns:
        How many were settled, and the account and the id of the last one, after which
        the next page begins; ``None`` if there was none.
    """
    given: dict[str, object] = {"run": run, "page": most}
    given["account"], given["refund_id"] = after
    page = connection.execute(_NEXT_PAGE.encode(), given)
    ((accounts, last_account, last_id),) = page
    if accounts is None:
        return 0, None
    given |= {
        "accounts": accounts,
        "last_account": last_account,
        "last_refund_id": last_id,
    }
    connection.execute(_LOCK_LEASES, given)
    settled = connection.execute(_SETTLE_PAGE.encode(), given).rowcount
    return settled, (str(last_account), str(last_id))


def retry(
    connection: Database, run: str, outcomes: Collection[str], *, dead: bool = False
) -> Retried:
    """Open refunds of a run again, and let their accounts go on at once.

    Args:
        connection: To the database.
        run: Its name.
        outcomes: What became of them: ``failed``, ``not_cancelable`` or ``unknown``.
        dead: Also those that were claimed too often without a result.

    Returns:
        How many of them were opened, and how many were open; and if it is paused.

    Raises:
        JournalError: There is no such run, or it is closed; or it is closing, and they
            would need a new key.
    """
    while True:
        try:
            return _retry(connection, run, outcomes, dead=dead)
        except DeadlockDetected:  # with a claim of what was closed and opened again
            if connection.info.transaction_status != TransactionStatus.IDLE:
                raise  # the caller's own transaction is undone too


def _retry(
    connection: Database, run: str, outcomes: Collection[str], *, dead: bool
) -> Retried:
    given: dict[str, object] = {
        "run": run,
        "outcomes": sorted(outcomes),
        "dead": dead,
    }
    with read_committed(connection):
        (state,) = _found(connection, _STATE_FOR_CHANGE, run)
        if state == "closed":
            raise JournalError(f"{run!r} is closed")
        if state == "closing" and not {"unknown"}.issuperset(outcomes):
            raise JournalError(
                f"{run!r} is closing: only what is unknown or dead is asked for again, "
                "with the same key"
            )
        given["closing"] = state == "closing"
        ((opened, already, accounts, need_new_key),) = connection.execute(
            _OPEN_AGAIN, given
        )
        given |= {"accounts": accounts, "need_new_key": need_new_key}
        connection.execute(_LOCK_LEASES, given)
        ((seconds, _),) = connection.execute(_WAKE, given)
    return Retried(
        int(str(opened)),
        int(str(already)),
        paused=state == "paused",
        seconds=0.0 if seconds is None else float(str(seconds)),
    )


def prune(
    connection: Database,
    older_than: float,
    *,
    on_page: Callable[[int], object] | None = None,
) -> int:
    """Delete the results that are older than so many seconds.

    A run's row stays: its name, and the seed of its keys. Open refunds stay, and what
    became known within a day, since Stripe still knows the keys.

    Args:
        connection: To the database.
        older_than: Seconds.
        on_page: Called with how many are deleted so far, each time that is certain.

    Returns:
        How many were deleted.
    """
    seconds, deleted = max(older_than, KEY_SECONDS), 0
    while True:
        with read_committed(connection):
            count = connection.execute(_PRUNE, [seconds, _PAGE]).rowcount
        if not count:
            return deleted
        deleted += count
        if on_page is not None:
            on_page(deleted)
