"""The statements on items, and on the run of a journal.

A lease's token is checked with each write, under a lock that lets no other worker take
the account over before the commit. Leases are locked in the order of their accounts, so
that no two statements wait for each other in a circle. Each may be repeated when its
commit is in doubt, without a second effect.
"""

from __future__ import annotations

from .history import HISTORY, PERHAPS_SENT
from .run_states import CLOSING, WORKED_ON, given_up

# Which accounts a statement writes for. Not more, and none without its lock.
_HELD = """held AS MATERIALIZED (
    SELECT l.account, l.token
    FROM unnest(%(accounts)s::text[], %(tokens)s::uuid[]) AS given (account, token)
    JOIN async_refunds.leases l ON l.scope = %(scope)s AND l.account = given.account
        AND l.token = given.token
    ORDER BY l.account
    FOR SHARE OF l
)"""
_CLAIMED = """i.run_id::text, i.refund_id, i.number, i.generation,
    extract(epoch FROM i.claimed_at)::float8,
    extract(epoch FROM i.sent_before)::float8, i.credentials IS NOT NULL"""
_OPEN = f"""i.run_id = r.run_id AND i.account = w.account AND NOT i.settled
    AND NOT i.dead AND i.claimed_by IS DISTINCT FROM w.token
    AND (i.known_at IS NULL OR w.retry_at <= w.at)
    AND (i.maybe_sent OR i.outcome IS NULL OR w.may_make_keys)
    AND (r.state = 'open' OR {PERHAPS_SENT})"""
_FAILED = "(i.outcome = 'failed' AND i.attempts > 0) IS TRUE"


def _next(phase: int, condition: str) -> str:
    return f"""(SELECT i.ctid, i.run_id, i.number, r.priority, {phase} AS phase
        FROM async_refunds.runs r CROSS JOIN LATERAL (
            SELECT i.ctid, i.run_id, i.number FROM async_refunds.items i
            WHERE {_OPEN} AND {condition}
            ORDER BY i.number LIMIT w.most
        ) i WHERE r.scope = %(scope)s AND r.{WORKED_ON}
            AND (%(run_id)s::uuid IS NULL OR r.run_id = %(run_id)s::uuid)
        ORDER BY r.priority, i.number LIMIT w.most)"""  # noqa: S608 - our own text


_AFTER = "coalesce((w.after ->> r.run_id::text)::bigint, 0)"
# A row for each account that is held, and one for each item, none of which is joined to
# another: a thousand items of a hundred accounts would be compared a hundred million
# times.
# First what comes after the last claim, then what was added by a transaction that began
# before that, then what an earlier holder asked for in vain. The index has the open
# items by number: the first part does not read again what is under way, or was just
# settled.
CLAIM = f"""
WITH {HISTORY},
held AS MATERIALIZED (
    SELECT l.account, l.token, l.retry_at, l.no_new_key_until
    FROM unnest(%(accounts)s::text[], %(tokens)s::uuid[]) AS given (account, token)
    JOIN async_refunds.leases l ON l.scope = %(scope)s AND l.account = given.account
        AND l.token = given.token
    ORDER BY l.account
    FOR SHARE OF l
),
wanted AS MATERIALIZED (
    SELECT held.account, held.token, held.retry_at, history.at,
        (given ->> 1)::integer AS most, given -> 2 AS after,
        history.at >= greatest(held.no_new_key_until,
            history.seen_at + make_interval(secs => %(grace)s)) AS may_make_keys
    FROM held CROSS JOIN history
    JOIN json_array_elements(%(wanted)s::json) AS given
        ON given ->> 0 = held.account
),
next AS MATERIALIZED (
    SELECT i.ctid, i.priority, i.phase, w.account, w.token
    FROM wanted w CROSS JOIN LATERAL (
        {_next(0, f"i.number > {_AFTER} AND NOT {_FAILED}")}
        UNION ALL
        {_next(1, f"i.number <= {_AFTER} AND NOT {_FAILED}")}
        UNION ALL
        {_next(2, _FAILED)}
        LIMIT w.most
    ) i
),
claimed AS (
    UPDATE async_refunds.items i SET
        generation = i.generation + (i.generation = 0
            OR (NOT i.maybe_sent AND i.outcome IS NOT NULL))::integer,
        sent_before = CASE WHEN i.number <= history.last_number
                AND i.timeline IS DISTINCT FROM history.timeline
            THEN greatest(i.added_at, i.claimed_at, history.seen_at)
            WHEN i.maybe_sent
            THEN coalesce(i.claimed_at, i.known_at, history.at) END,
        credentials = CASE WHEN i.number <= history.last_number
                AND i.timeline IS DISTINCT FROM history.timeline
            THEN NULL  -- who may have claimed it is lost
            WHEN NOT i.maybe_sent
                OR i.credentials = %(credentials)s::text || ' ' || i.claimed_by
            THEN %(credentials)s::text || ' ' || next.token END,
        uncounted = i.uncounted OR i.maybe_sent AND i.claim_number IS NOT NULL,
        claimed_at = history.at,
        maybe_sent = true,
        dead = i.claims >= %(most_claims)s,
        claims = i.claims + 1,
        claimed_by = next.token,
        claim_number = %(claim_number)s,
        timeline = history.timeline
    FROM next, history
    -- Of the row as it is by now: another transaction may have settled it meanwhile. Of
    -- what is joined, some servers (16.2) look at the row as it was.
    WHERE i.ctid = next.ctid AND NOT i.settled AND NOT i.dead
    RETURNING next.account, {_CLAIMED}, i.dead, next.phase, next.priority
)
SELECT account, run_id, refund_id, number, generation, claimed_at, sent_before,
    same_credentials, dead
FROM (
    SELECT account, NULL, NULL, NULL::bigint, NULL::integer, NULL::float8, NULL::float8,
        NULL::boolean, NULL::boolean, NULL::integer, NULL::integer FROM held
    UNION ALL SELECT * FROM claimed
) AS found (account, run_id, refund_id, number, generation, claimed_at, sent_before,
    same_credentials, dead, phase, priority)
ORDER BY phase, priority, number"""  # noqa: S608 - our own text

# The answer of a claim that was committed and whose answer was lost; nothing if it was
# not, or found nothing.
CLAIMED = f"""
WITH held AS (
    SELECT l.account, l.token
    FROM unnest(%(accounts)s::text[], %(tokens)s::uuid[]) AS given (account, token)
    JOIN async_refunds.leases l ON l.scope = %(scope)s AND l.account = given.account
        AND l.token = given.token
),
claimed AS MATERIALIZED (
    SELECT i.*, r.priority FROM held CROSS JOIN async_refunds.runs r
    JOIN async_refunds.items i ON i.run_id = r.run_id AND i.account = held.account
        AND NOT i.settled AND NOT i.dead
    WHERE r.scope = %(scope)s AND i.claimed_by = held.token
        AND i.claim_number = %(claim_number)s
)
SELECT held.account, {_CLAIMED}, i.dead
FROM held LEFT JOIN claimed i USING (account)
WHERE EXISTS (SELECT FROM claimed)
ORDER BY {_FAILED}, i.priority, i.number"""  # noqa: S608 - our own text

# A row that this holder has settled or given back already is left alone. After a
# failover it may have forgotten the claim: then the claim's key counts. In a run that
# is closing a definite no is the end.
SETTLE = f"""
WITH {_HELD},
known AS MATERIALIZED (
    SELECT * FROM json_to_recordset(%(rows)s::json) AS known (
        run_id uuid, account text, refund_id text, token uuid, generation integer,
        settled boolean, maybe_sent boolean, attempts integer, rate_limited integer,
        outcome text, status text, idempotency_key text, amount bigint, currency text,
        created bigint, charge text, payment_intent text,
        failure_balance_transaction text, request_id text, error text, seconds float8)
),
{CLOSING},
settled AS (
    UPDATE async_refunds.items i SET
        settled = known.settled OR closing.run_id IS NOT NULL,
        maybe_sent = known.maybe_sent,
        generation = greatest(i.generation, known.generation),
        claims = 0,
        claimed_at = CASE WHEN i.claimed_by IS NOT DISTINCT FROM held.token
            THEN i.claimed_at ELSE clock_timestamp() END,
        claimed_by = held.token,
        claim_number = NULL,
        attempts = i.attempts + known.attempts,
        rate_limited = i.rate_limited + known.rate_limited,
        outcome = known.outcome,
        status = coalesce(known.status, i.status),
        idempotency_key = known.idempotency_key,
        amount = coalesce(known.amount, i.amount),
        currency = coalesce(known.currency, i.currency),
        created = coalesce(known.created, i.created),
        charge = coalesce(known.charge, i.charge),
        payment_intent = coalesce(known.payment_intent, i.payment_intent),
        failure_balance_transaction = coalesce(
            known.failure_balance_transaction, i.failure_balance_transaction),
        request_id = coalesce(known.request_id, i.request_id),
        error = CASE WHEN closing.run_id IS NULL THEN known.error
            ELSE {given_up("known.error")} END,
        seconds = known.seconds,
        known_at = clock_timestamp()
    FROM known JOIN held USING (account, token)
    LEFT JOIN closing ON closing.run_id = known.run_id
        AND NOT known.settled AND NOT known.maybe_sent
    WHERE i.run_id = known.run_id AND i.account = known.account
        AND i.refund_id = known.refund_id AND NOT i.settled
        AND NOT (i.claimed_by IS NOT DISTINCT FROM held.token
            AND i.claim_number IS NULL)
)
SELECT account, token::text FROM held"""  # noqa: S608 - our own text

# Never sent: as before the claim. A run that is closing gives up on it, which is no
# result of its holder's.
_GIVEN_UP = "(closing.run_id IS NOT NULL AND i.sent_before IS NULL)"
GIVE_BACK = f"""
WITH {_HELD},
{CLOSING},
given_back AS (
    UPDATE async_refunds.items i SET
        settled = {_GIVEN_UP},
        outcome = CASE WHEN {_GIVEN_UP} THEN 'failed' ELSE i.outcome END,
        error = CASE WHEN {_GIVEN_UP} THEN {given_up("i.error")} ELSE i.error END,
        known_at = CASE WHEN {_GIVEN_UP} THEN clock_timestamp() ELSE i.known_at END,
        claimed_by = CASE WHEN NOT {_GIVEN_UP} THEN i.claimed_by END,
        maybe_sent = i.sent_before IS NOT NULL,
        claimed_at = coalesce(i.sent_before, i.claimed_at),
        claims = greatest(0, i.claims - 1),
        claim_number = NULL
    FROM json_to_recordset(%(rows)s::json) AS claim (
        run_id uuid, account text, refund_id text, token uuid, claim_number bigint)
    JOIN held USING (account, token) LEFT JOIN closing USING (run_id)
    WHERE i.run_id = claim.run_id AND i.account = claim.account
        AND i.refund_id = claim.refund_id AND NOT i.settled
        AND i.claimed_by = held.token AND i.claim_number = claim.claim_number
)
SELECT account, token::text FROM held"""  # noqa: S608 - our own text

# Still claimed, which says that it may have been sent; without a result, which would
# make it wait.
HAND_OVER = f"""
WITH {_HELD},
handed_over AS (
    UPDATE async_refunds.items i SET
        generation = greatest(i.generation, known.generation),
        claims = greatest(0, i.claims - 1),
        claim_number = NULL,
        attempts = i.attempts + known.attempts,
        rate_limited = i.rate_limited + known.rate_limited,
        uncounted = true,  -- the one that was broken off, if any
        request_id = coalesce(known.request_id, i.request_id)
    FROM json_to_recordset(%(rows)s::json) AS known (
        run_id uuid, account text, refund_id text, token uuid, generation integer,
        attempts integer, rate_limited integer, request_id text)
    JOIN held USING (account, token)
    WHERE i.run_id = known.run_id AND i.account = known.account
        AND i.refund_id = known.refund_id AND NOT i.settled
        AND i.claimed_by = held.token AND i.claim_number IS NOT NULL
)
SELECT account, token::text FROM held"""  # noqa: S608 - our own text

# Conditional on the generation that the claim had. While a former holder may have a
# request under way, it says how many seconds that may take and changes nothing. Nor
# does it change anything in a run that is closing.
REKEY = f"""
WITH {HISTORY},
held AS MATERIALIZED (
    SELECT l.account, l.token, extract(epoch FROM
        -- Before PostgreSQL 17 no infinite time has a difference.
        greatest(l.no_new_key_until, h.seen_at + make_interval(secs => %(grace)s), h.at)
        - h.at)::float8 AS wait
    FROM async_refunds.leases l CROSS JOIN history h
    WHERE l.scope = %(scope)s AND l.account = %(account)s AND l.token = %(token)s
    FOR SHARE OF l
),
{CLOSING},
rekeyed AS (
    UPDATE async_refunds.items i SET
        generation = %(generation)s + 1,
        claimed_at = history.at,
        sent_before = NULL,
        credentials = %(credentials)s::text || ' ' || held.token,
        maybe_sent = true,
        claimed_by = held.token,
        claim_number = %(claim_number)s,
        timeline = history.timeline
    FROM held, history
    WHERE held.wait = 0 AND %(run_id)s::uuid NOT IN (SELECT run_id FROM closing)
        AND i.run_id = %(run_id)s::uuid AND i.account = held.account
        AND i.refund_id = %(refund_id)s AND NOT i.settled
        AND (i.generation <= %(generation)s OR (
            i.generation = %(generation)s + 1 AND i.claimed_by = held.token
            AND i.claim_number = %(claim_number)s))
    RETURNING extract(epoch FROM i.claimed_at)::float8 AS claimed_at
)
SELECT held.wait, rekeyed.claimed_at, %(run_id)s::uuid IN (SELECT run_id FROM closing)
FROM held LEFT JOIN rekeyed ON true"""  # noqa: S608 - our own text

RUNS = """SELECT run_id::text, seed, derivation, extract(epoch FROM created_at)::float8
    FROM async_refunds.runs WHERE run_id = ANY (%(runs)s::uuid[])"""

# No row once the run is deleted.
ADD = """SELECT async_refunds.enqueue(name, %(ids)s::text[], %(given)s::text[]),
        extract(epoch FROM clock_timestamp())::float8
    FROM async_refunds.runs WHERE run_id = %(run_id)s::uuid"""
ENSURE_RUN = """SELECT async_refunds.ensure_run(%(name)s, %(base_url)s, %(livemode)s,
    %(tenant)s, %(options)s::jsonb)::text"""
RUN = """SELECT scope, options FROM async_refunds.runs
    WHERE run_id = %(run_id)s::uuid"""
# From account to account by the index, not over each of their items.
ACCOUNTS = """WITH RECURSIVE names (name) AS (
    SELECT min(account) FROM async_refunds.items
        WHERE run_id = %(run_id)s::uuid AND NOT settled AND NOT dead
    UNION ALL
    SELECT (SELECT min(account) FROM async_refunds.items
            WHERE run_id = %(run_id)s::uuid AND NOT settled AND NOT dead
                AND account > name)
        FROM names WHERE name IS NOT NULL)
    SELECT extract(epoch FROM clock_timestamp())::float8, async_refunds.timeline(),
        ARRAY(SELECT name FROM names WHERE name IS NOT NULL)"""
# What a batch did not come to a result of, though it was there before its input ended:
# each item but those that were settled before, and those that it has settled itself.
# And in which history the database is: another one may lack what was added.
MISSING = """SELECT async_refunds.timeline(),
        (SELECT state FROM async_refunds.runs WHERE run_id = %(run_id)s::uuid),
        count(*) FILTER (WHERE i.dead), count(*) FILTER (WHERE i.settled), count(*),
        array_agg(DISTINCT i.account)
    FROM async_refunds.items i
    WHERE run_id = %(run_id)s::uuid AND i.added_at <= to_timestamp(%(added_until)s)
        AND (NOT i.settled OR i.known_at >= to_timestamp(%(began_at)s))
        AND NOT coalesce(i.claimed_by = ANY (%(tokens)s::uuid[])
            AND i.claim_number IS NULL
            AND i.known_at >= to_timestamp(%(began_at)s), false)"""
