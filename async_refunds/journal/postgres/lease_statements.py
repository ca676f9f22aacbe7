"""The statements that take accounts, renew their leases and release them.

Leases are locked in the order of their accounts, so that no two statements wait for
each other in a circle. Each may be repeated when its commit is in doubt, without a
second effect.
"""

from __future__ import annotations

from .history import HISTORY, NOTED_HISTORY, PERHAPS_SENT
from .run_states import WORKED_ON


def _open(run: str) -> str:
    return f"i.run_id = {run}.run_id AND NOT i.settled AND NOT i.dead"


# The accounts of a run that have something open: from one to the next by the index, so
# that those of which all is settled, which may be nearly all, cost nothing. Ordered by
# the number too, as only the index of what is open is. `r` is the run.
_OPEN_ACCOUNTS = f"""(
    WITH RECURSIVE accounts (account) AS (
        (SELECT i.account FROM async_refunds.items i WHERE {_open("r")}
            ORDER BY i.account, i.number LIMIT 1)
        UNION ALL
        SELECT (SELECT i.account FROM async_refunds.items i WHERE {_open("r")}
                AND i.account > accounts.account
                ORDER BY i.account, i.number LIMIT 1)
            FROM accounts WHERE accounts.account IS NOT NULL
    ) SELECT account FROM accounts WHERE account IS NOT NULL)"""  # noqa: S608 - our own text


# What may be claimed now of what is open; what failed needs a new key. `l`: the lease.
# As in `CLAIM`, or an account would be taken in vain.
_CLAIMABLE = """(i.known_at IS NULL OR l.retry_at <= clock_timestamp()
        AND (i.maybe_sent OR clock_timestamp() >= greatest(l.no_new_key_until, (
            SELECT seen_at + make_interval(secs => %(grace)s) FROM history))))"""


def _has(items: str, runs: str = "true") -> str:
    """Return whether the account of `l` has some item that is claimed from some run.

    Of a run that is closing only what was perhaps sent is.
    """
    # OFFSET 0: asked for each account, and not joined to all items there are.
    return f"""EXISTS (
        SELECT FROM async_refunds.runs o CROSS JOIN LATERAL (
            SELECT FROM async_refunds.items i
            WHERE {_open("o")} AND i.account = l.account AND {items}
                AND (o.state = 'open' OR {PERHAPS_SENT})
            LIMIT 1
        ) i WHERE o.scope = l.scope AND o.{WORKED_ON} AND {runs} OFFSET 0)"""  # noqa: S608 - our own text


# Nobody holds it. What ended while this worker could not renew it lives on.
_NOT_HELD = """l.scope = %(scope)s AND l.until < clock_timestamp()
        AND l.account <> ALL (%(held)s::text[])
        AND (l.timeline IS NOT DISTINCT FROM (SELECT timeline FROM history)
            OR (SELECT forgotten_have_ended FROM history))"""
# Others than those whose credentials were refused need not wait for these.
_NOT_MINE = "l.refused <> %(credentials)s"
_MAY_BE_TAKEN = f"{_NOT_HELD} AND (l.not_before <= clock_timestamp() OR {_NOT_MINE})"
_LOCKED = """SELECT l.account, l.token IS NOT NULL AS taken_over, l.owner AS former
        FROM async_refunds.leases l WHERE"""
# Which way to look for work. Of a few accounts that may be taken, each is asked whether
# it has some. Where many may be taken, nearly all of them may be settled for good: then
# it goes from one account with something open to the next, until there are enough.
_FEW = f"""(SELECT count(*) <= 1000 FROM (
        SELECT FROM async_refunds.leases l WHERE {_MAY_BE_TAKEN} LIMIT 1001) few)"""  # noqa: S608 - our own text
_FREE_OF_FEW = f"""{_LOCKED} {_MAY_BE_TAKEN} AND {_has(_CLAIMABLE)} AND {_FEW}
    LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED"""
# Each lease is looked up by itself. An account with work in several runs comes once,
# with the first of these: a plan that goes from one to the next passes over what it has
# taken already, and another one would not.
_FREE_OF_MANY = f"""SELECT l.* FROM (
        SELECT run_id FROM async_refunds.runs
        WHERE scope = %(scope)s AND {WORKED_ON} ORDER BY run_id OFFSET 0
    ) r CROSS JOIN LATERAL {_OPEN_ACCOUNTS} a CROSS JOIN LATERAL (
        {_LOCKED} {_MAY_BE_TAKEN} AND l.account = a.account
        AND {_has(_CLAIMABLE, "o.run_id = r.run_id")}
        AND NOT {_has(_CLAIMABLE, "o.run_id < r.run_id")}
        FOR NO KEY UPDATE SKIP LOCKED
    ) l WHERE NOT {_FEW} LIMIT %(limit)s"""  # noqa: S608 - our own text
_FREE = f"""SELECT * FROM ({_FREE_OF_FEW}) few
    UNION ALL SELECT * FROM ({_FREE_OF_MANY}) many"""  # noqa: S608 - our own text
# How much is open of an account: for people, so not beyond a thousand.
_LEFT = f"""(SELECT count(*) FROM async_refunds.runs o CROSS JOIN LATERAL (
        SELECT FROM async_refunds.items i
        WHERE {_open("o")} AND i.account = l.account LIMIT 1000
    ) i WHERE o.scope = l.scope AND o.{WORKED_ON})"""  # noqa: S608 - our own text
_FREE_OF_THESE = f"""{_LOCKED} {_NOT_HELD} AND l.account = ANY (%(accounts)s::text[])
        AND {_has("true")}
    LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED"""


# Where a new holder begins: not with what the last one was told to keep to.
_FOUND_PACE = "CASE WHEN l.pace > 0 THEN l.pace END"


def _acquire(free: str, retry_at: str) -> str:
    return f"""
WITH {NOTED_HISTORY},
free AS (
    {free}
)
UPDATE async_refunds.leases l SET
    token = %(token)s,
    owner = %(owner)s,
    until = clock_timestamp() + make_interval(secs => %(ttl)s),
    acquired_at = clock_timestamp(),
    renewed_at = clock_timestamp(),
    timeline = history.timeline,
    not_before = CASE WHEN {_NOT_MINE} THEN l.not_before ELSE '-infinity' END,
    refused = CASE WHEN {_NOT_MINE} THEN l.refused END,
    retry_at = {retry_at},
    takeovers = l.takeovers + (l.token IS NOT NULL)::integer,
    all_takeovers = l.all_takeovers + (l.token IS NOT NULL)::integer,
    no_new_key_until = CASE WHEN l.token IS NULL THEN l.no_new_key_until
        ELSE clock_timestamp() + make_interval(secs => %(grace)s) END
FROM free, history WHERE l.scope = %(scope)s AND l.account = free.account
RETURNING l.account, {_FOUND_PACE}, l.takeovers, free.taken_over, free.former,
    CASE WHEN free.taken_over THEN {_LEFT} ELSE 0 END"""  # noqa: S608 - our own text


ACQUIRE = _acquire(_FREE, "l.retry_at")
# For whoever asks for certain accounts: they do not wait.
ACQUIRE_THESE = _acquire(_FREE_OF_THESE, "'-infinity'")
ACQUIRED = f"""SELECT l.account, {_FOUND_PACE}, l.takeovers, l.takeovers > 0, NULL, 0
    FROM async_refunds.leases l
    WHERE l.scope = %(scope)s AND l.token = %(token)s"""  # noqa: S608 - our own text

# One that had ended when a failover came may have been taken by a worker that is
# forgotten: it is not good yet, and not lost.
RENEW = f"""
WITH {NOTED_HISTORY},
held AS MATERIALIZED (
    SELECT l.account, given.pace,
        l.timeline IS NOT DISTINCT FROM history.timeline
            OR history.forgotten_have_ended OR l.until > clock_timestamp() AS good
    FROM history CROSS JOIN async_refunds.leases l
    JOIN unnest(%(accounts)s::text[], %(tokens)s::uuid[], %(paces)s::float8[])
        AS given (account, token, pace)
        ON l.scope = %(scope)s AND l.account = given.account
            AND l.token = given.token
    ORDER BY l.account
    FOR NO KEY UPDATE OF l
),
renewed AS (
    UPDATE async_refunds.leases l SET
        until = clock_timestamp() + make_interval(secs => %(ttl)s),
        renewed_at = clock_timestamp(),
        timeline = history.timeline,
        pace = coalesce(held.pace, l.pace)
    FROM held, history
    WHERE l.scope = %(scope)s AND l.account = held.account AND held.good
)
SELECT account, good FROM held"""  # noqa: S608 - our own text

# What this holder has left with a result waits one minute, then two, up to 15. While an
# item is left that may be what ended the holders before, their number is kept.
RELEASE = f"""
WITH held AS MATERIALIZED (
    SELECT l.account, given.pace, given.not_before, given.refused
    FROM unnest(%(accounts)s::text[], %(tokens)s::uuid[], %(paces)s::float8[],
        %(not_before)s::float8[], %(refused)s::text[])
        AS given (account, token, pace, not_before, refused)
    JOIN async_refunds.leases l ON l.scope = %(scope)s AND l.account = given.account
        AND l.token = given.token
    ORDER BY l.account
    FOR NO KEY UPDATE OF l
),
found AS MATERIALIZED (
    SELECT held.*, %(retry_later)s::boolean AND EXISTS (
        SELECT FROM async_refunds.runs r CROSS JOIN LATERAL (
            SELECT FROM async_refunds.items i
            WHERE i.run_id = r.run_id AND i.account = held.account
                AND NOT i.settled AND NOT i.dead AND i.known_at IS NOT NULL
            LIMIT 1
        ) i WHERE r.scope = %(scope)s AND r.{WORKED_ON}
    ) AS left_open, EXISTS (
        SELECT FROM async_refunds.runs r CROSS JOIN LATERAL (
            SELECT FROM async_refunds.items i
            WHERE i.run_id = r.run_id AND i.account = held.account
                AND NOT i.settled AND NOT i.dead AND i.claims >= %(suspicious)s
            LIMIT 1
        ) i WHERE r.scope = %(scope)s AND r.{WORKED_ON}
    ) AS suspicious
    FROM held
)
UPDATE async_refunds.leases l SET
    token = NULL,
    owner = NULL,
    until = '-infinity',
    takeovers = CASE WHEN l.takeovers >= %(suspicious)s AND found.suspicious
        THEN l.takeovers ELSE 0 END,
    pace = coalesce(found.pace, l.pace),
    not_before = CASE WHEN found.not_before > 0
        THEN clock_timestamp() + make_interval(secs => found.not_before)
        WHEN {_NOT_MINE} THEN l.not_before ELSE '-infinity' END,
    refused = CASE WHEN found.not_before > 0 THEN found.refused
        WHEN {_NOT_MINE} THEN l.refused END,
    retry_at = CASE WHEN l.retry_at > clock_timestamp() THEN l.retry_at WHEN left_open
        THEN clock_timestamp() + make_interval(mins => least(15, 1 << l.retries))
        ELSE '-infinity' END,
    retries = CASE WHEN l.retry_at > clock_timestamp() THEN l.retries WHEN left_open
        THEN least(l.retries + 1, 4) ELSE 0 END
FROM found
WHERE l.scope = %(scope)s AND l.account = found.account
RETURNING l.account, CASE WHEN found.left_open
    THEN extract(epoch FROM l.retry_at - clock_timestamp())::float8 END"""  # noqa: S608 - our own text

# Those that have something to do, and who holds or held each: a lease may have been
# given back by now, or was locked for a moment. And when this history began.
NOT_TAKEN = f"""WITH {HISTORY}
SELECT l.account, coalesce(l.owner, 'another worker'),
        extract(epoch FROM history.seen_at)::float8
    FROM async_refunds.leases l CROSS JOIN history
    WHERE l.scope = %(scope)s AND l.account = ANY (%(accounts)s::text[])
        AND {_has("true")} ORDER BY l.account"""  # noqa: S608 - our own text
