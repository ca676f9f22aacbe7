-- The tables as they are made today: a change needs an upgrade_N.sql beside it. All stand
-- in the schema async_refunds, beside the tables of others. Only the database's clock
-- counts; the clocks of the machines may differ.

CREATE SCHEMA IF NOT EXISTS async_refunds;

-- One row. An older worker may go on with newer tables while its own version is at least
-- min_worker_version. The salt makes the keys of one database differ from those of
-- another with a run of the same name.
CREATE TABLE async_refunds.meta (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    schema_version integer NOT NULL,
    min_worker_version integer NOT NULL,
    salt bytea NOT NULL DEFAULT
        uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
);

-- The histories of the database that it knows, see async_refunds.timeline(). Items up to
-- last_number may have been claimed in commits that a failover lost.
CREATE TABLE async_refunds.timelines (
    timeline text PRIMARY KEY,
    last_number bigint NOT NULL,
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE async_refunds.runs (
    -- Random: a number would be given out twice if a failover lost the first.
    run_id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name text NOT NULL UNIQUE CHECK (name <> ''),
    tenant text COLLATE "C" NOT NULL CHECK (tenant ~ '^\S+$'),
    base_url text COLLATE "C" NOT NULL CHECK (base_url ~ '^https?://[^/?#@\s]+$'),
    livemode boolean NOT NULL,
    -- Whose limits and whose key: one worker at a time holds an account of a scope.
    scope text COLLATE "C" NOT NULL GENERATED ALWAYS AS (
        tenant || ' ' || base_url || CASE WHEN livemode THEN ' live' ELSE ' test' END
    ) STORED,
    options jsonb NOT NULL DEFAULT '{}',
    seed bytea NOT NULL,  -- of its keys, see async_refunds.new_seed()
    derivation integer NOT NULL DEFAULT 1,
    -- Of one that is closing no refund gets a new key: only what was perhaps sent is
    -- asked for. Once all of it is settled, that is as good as closed.
    state text NOT NULL DEFAULT 'open'
        CHECK (state IN ('open', 'paused', 'closing', 'closed')),
    -- The items of the smallest number go first.
    priority integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX runs_of_scope ON async_refunds.runs (scope)
    WHERE state IN ('open', 'closing');

-- Who works on an account. One without a token is free.
CREATE TABLE async_refunds.leases (
    scope text COLLATE "C" NOT NULL,
    account text COLLATE "C" NOT NULL,  -- '' is the key's own
    token uuid,
    owner text,
    until timestamptz NOT NULL DEFAULT '-infinity',
    acquired_at timestamptz,
    renewed_at timestamptz,
    timeline text,
    -- Until then nobody takes it: its key was refused, or Stripe could not be reached.
    not_before timestamptz NOT NULL DEFAULT '-infinity',
    -- Digest of the credentials that were refused: who has others takes it at once.
    refused text COLLATE "C",
    -- Until then what was left open with a result is not asked for again, and how often
    -- in turn something was left.
    retry_at timestamptz NOT NULL DEFAULT '-infinity',
    retries integer NOT NULL DEFAULT 0,
    -- How often in turn it was taken from a holder that had not released it.
    takeovers integer NOT NULL DEFAULT 0,
    all_takeovers bigint NOT NULL DEFAULT 0,
    -- A former holder may have requests under way until then: no refund gets a new key.
    no_new_key_until timestamptz NOT NULL DEFAULT '-infinity',
    -- Requests a second. Where the next holder begins; or, negative, what this one was
    -- told to keep to (--rate), which says nothing of Stripe's limit.
    pace double precision,
    PRIMARY KEY (scope, account)
) WITH (fillfactor = 50);

CREATE SEQUENCE async_refunds.item_numbers;

CREATE TABLE async_refunds.items (
    run_id uuid NOT NULL,
    account text COLLATE "C" NOT NULL,
    refund_id text COLLATE "C" NOT NULL,
    number bigint NOT NULL DEFAULT nextval('async_refunds.item_numbers'),
    added_at timestamptz NOT NULL DEFAULT now(),
    settled boolean NOT NULL DEFAULT false,
    dead boolean NOT NULL DEFAULT false,  -- claimed too often without a result
    maybe_sent boolean NOT NULL DEFAULT false,
    generation integer NOT NULL DEFAULT 0,  -- of the key, which is derived from it
    claims integer NOT NULL DEFAULT 0,  -- since its last result
    claimed_by uuid,  -- the lease's token
    claim_number bigint,  -- of the claims with that token; NULL once that has ended
    claimed_at timestamptz,  -- no request with its key is younger than what follows
    sent_before timestamptz,  -- claimed_at of the claim before, if that may have sent it
    timeline text,  -- as of the claim
    -- Digest of those that every claim with this key had, and claimed_by: a worker of
    -- before, which goes on until it connects again, claims without noting its own.
    credentials text COLLATE "C",
    attempts integer NOT NULL DEFAULT 0,
    rate_limited integer NOT NULL DEFAULT 0,
    -- Whether there were more: a holder that ended has not told of its own.
    uncounted boolean NOT NULL DEFAULT false,
    outcome text,
    status text,
    idempotency_key text COLLATE "C",  -- of the last result
    amount bigint,
    currency text,
    created bigint,
    charge text,
    payment_intent text,
    failure_balance_transaction text,
    request_id text,
    error text,
    seconds double precision,
    known_at timestamptz,
    PRIMARY KEY (run_id, account, refund_id)
) WITH (
    fillfactor = 70,  -- a claim changes no index and finds room in the page
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_analyze_scale_factor = 0.02
);
CREATE UNIQUE INDEX open_items ON async_refunds.items (run_id, account, number)
    WHERE NOT settled AND NOT dead;
