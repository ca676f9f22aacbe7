-- Made again by each upgrade. What CREATE OR REPLACE cannot change (the arguments and the
-- result of a function, the columns of a view) an upgrade_N.sql drops before.

-- The history that the database is in, or NULL if it may not tell. A promoted standby
-- and a restored backup of the server begin a new timeline. A dump that is restored makes
-- the tables anew, perhaps in the timeline of before.
CREATE OR REPLACE FUNCTION async_refunds.timeline() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    RETURN (SELECT system_identifier FROM pg_control_system())
        || '/' || left(pg_walfile_name(pg_current_wal_lsn()), 8)
        || '/' || to_regclass('async_refunds.items')::oid;
EXCEPTION WHEN insufficient_privilege OR undefined_function OR feature_not_supported
        OR object_not_in_prerequisite_state THEN
    RETURN NULL;
END $$;

-- Note the history that the database is in. The first one has no commits lost.
CREATE OR REPLACE FUNCTION async_refunds.note_timeline() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    found text := async_refunds.timeline();
BEGIN
    IF found IS NOT NULL AND NOT EXISTS (
        SELECT FROM async_refunds.timelines WHERE timeline = found
    ) THEN
        INSERT INTO async_refunds.timelines (timeline, last_number)
        SELECT found, CASE WHEN EXISTS (SELECT FROM async_refunds.timelines)
                THEN last_value ELSE 0 END
            FROM async_refunds.item_numbers
        ON CONFLICT DO NOTHING;
    END IF;
    RETURN found;
END $$;

-- The seed of a new run's keys follows from what the run is. So one that a failover lost,
-- or that a restored backup has not got, has the same keys when it is made again. The
-- checks of the table would tell what is wrong with the whole row, and so with the seed.
-- No backslash: where a database sets standard_conforming_strings off, it is none here.
CREATE OR REPLACE FUNCTION async_refunds.new_seed(
    name text, base_url text, livemode boolean, tenant text
) RETURNS bytea LANGUAGE plpgsql STABLE AS $$
DECLARE
    wrong text := CASE
        WHEN coalesce($1, '') = '' THEN 'a run needs a name'
        WHEN ($2 ~ '^https?://[^/?#@[:space:]]+$') IS NOT TRUE
            THEN 'base_url must be like https://api.stripe.com, with nothing behind it'
        WHEN $3 IS NULL THEN 'livemode must be true or false'
        WHEN ($4 ~ '^[^[:space:]]+$') IS NOT TRUE THEN 'a tenant needs a name without spaces' END;
BEGIN
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION '%', wrong USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN (SELECT sha256(salt || convert_to($4 || ' ' || $2
            || CASE WHEN $3 THEN ' live ' ELSE ' test ' END || $1, 'UTF8'))
        FROM async_refunds.meta);
END $$;

CREATE OR REPLACE FUNCTION async_refunds.create_run(
    name text,
    base_url text,
    livemode boolean,
    tenant text DEFAULT 'default',
    options jsonb DEFAULT '{}',
    priority integer DEFAULT 0
) RETURNS uuid LANGUAGE sql AS $$
    INSERT INTO async_refunds.runs
            (name, base_url, livemode, tenant, options, priority, seed)
        VALUES ($1, $2, $3, $4, $5, $6, async_refunds.new_seed($1, $2, $3, $4))
        RETURNING run_id
$$;

-- Return the run of this name; make it if there is none.
CREATE OR REPLACE FUNCTION async_refunds.ensure_run(
    name text,
    base_url text,
    livemode boolean,
    tenant text DEFAULT 'default',
    options jsonb DEFAULT '{}',
    priority integer DEFAULT 0
) RETURNS uuid LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    found async_refunds.runs;
BEGIN
    INSERT INTO async_refunds.runs
            (name, base_url, livemode, tenant, options, priority, seed)
        VALUES ($1, $2, $3, $4, $5, $6, async_refunds.new_seed($1, $2, $3, $4))
        ON CONFLICT (name) DO NOTHING;
    SELECT * INTO STRICT found FROM async_refunds.runs WHERE name = $1;
    IF (found.base_url, found.livemode, found.tenant) <> ($2, $3, $4) THEN
        RAISE EXCEPTION 'the run % is on %, and this one is on %: give another name',
            quote_literal($1), quote_literal(found.scope),
            quote_literal($4 || ' ' || $2 || CASE WHEN $3 THEN ' live' ELSE ' test' END)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN found.run_id;
END $$;

-- Whether a text is an id of a kind, and no API key: its length is that after its prefix.
CREATE OR REPLACE FUNCTION async_refunds.is_id(id text, pattern text, longest integer)
RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT id IS NOT NULL AND id ~ pattern
        AND length(id) - strpos(id, '_') <= longest
        AND (strpos(lower(id), 'k_') = 0 AND strpos(lower(id), 'whsec_') = 0
            OR id !~* ('(?<![a-z0-9])(?:[srp]k_(?:test|live|org)_|whsec_)[a-z0-9]'
                '|(?:[srp]k_(?:test|live|org)_|whsec_)[a-z0-9]{16}'))
$$;

-- The advisory lock of those that add to a run, so that none does when it is closed.
CREATE OR REPLACE FUNCTION async_refunds.adding_to(run_id uuid) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT hashtextextended('async_refunds ' || run_id, 0)
$$;

-- The runs of a scope that are closing by now, not as of the beginning of a statement
-- that has waited for a lease since: VOLATILE takes a new look.
CREATE OR REPLACE FUNCTION async_refunds.closing_runs(scope text) RETURNS SETOF uuid
LANGUAGE sql VOLATILE STRICT AS $$
    SELECT run_id FROM async_refunds.runs WHERE runs.scope = $1 AND state = 'closing'
$$;

-- Add refunds to a run, in the caller's transaction, and return how many were not there.
-- No row of the run and no lease that is there is locked, so it waits for no worker.
CREATE OR REPLACE FUNCTION async_refunds.enqueue(
    run text, ids text[], accounts text[] DEFAULT NULL
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    found async_refunds.runs;
    found_state text;
    wrong text;
    added bigint;
    touched text[];
BEGIN
    SELECT * INTO found FROM async_refunds.runs r WHERE r.name = run;
    IF found.run_id IS NULL THEN
        RAISE EXCEPTION 'there is no run %: make it first, SELECT async_refunds.'
            'ensure_run(%, ''https://api.stripe.com'', true), where true is live mode',
            quote_nullable(run), quote_nullable(run)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pg_advisory_xact_lock_shared(async_refunds.adding_to(found.run_id));
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        -- Its snapshot may be of before the run was closed. To meet a row that was
        -- changed since is a serialization failure, after which such callers repeat.
        INSERT INTO async_refunds.runs (run_id, name, tenant, base_url, livemode, seed)
            VALUES (found.run_id, found.name, found.tenant, found.base_url,
                found.livemode, found.seed)
            ON CONFLICT DO NOTHING;
    END IF;
    SELECT state INTO found_state FROM async_refunds.runs r WHERE r.name = run;
    IF found_state IN ('closing', 'closed') THEN
        RAISE EXCEPTION 'the run % is %', quote_literal(run), CASE found_state
            WHEN 'closing' THEN 'closing, and takes no more refunds' ELSE 'closed' END
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF accounts IS NOT NULL AND cardinality(accounts) <> cardinality(ids) THEN
        RAISE EXCEPTION 'there are % ids and % accounts',
            cardinality(ids), cardinality(accounts)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- As strict as Python's `validation`, or a worker could send nothing for it. The text
    -- of a wrong one is not shown: a key may have come in by mistake. A length within the
    -- pattern would make it a hundred times as slow.
    SELECT CASE WHEN async_refunds.is_id(id, '^(?:re|pyr)_[A-Za-z0-9_]+$', 251)
            THEN 'accounts[' || place || '] is not an account id (acct_...)'
            ELSE 'ids[' || place || '] is not a refund id (re_... or pyr_...)' END
            INTO wrong
        FROM unnest(ids, accounts) WITH ORDINALITY AS given (id, account, place)
        WHERE NOT async_refunds.is_id(id, '^(?:re|pyr)_[A-Za-z0-9_]+$', 251)
            OR account <> ''
                AND NOT async_refunds.is_id(account, '^acct_[A-Za-z0-9_]+$', 250)
        LIMIT 1;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION '%: nothing is added', wrong
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- Numbered in the order given; inserted in one order by all, so that two that add
    -- the same refunds wait for each other in no circle.
    WITH numbered AS MATERIALIZED (
        SELECT nextval('async_refunds.item_numbers') AS number, id,
                coalesce(account, '') COLLATE "C" AS account
            FROM unnest(ids, accounts) AS given (id, account)
    ), inserted AS (
        INSERT INTO async_refunds.items (run_id, account, refund_id, number)
            SELECT found.run_id, account, id, number FROM numbered
                ORDER BY account, id COLLATE "C", number
            -- Numbers do not conflict, and to look for that takes a third of the time.
            ON CONFLICT (run_id, account, refund_id) DO NOTHING
            RETURNING account
    )
    SELECT coalesce(sum(count), 0), coalesce(array_agg(account), '{}')
        INTO added, touched
        FROM (SELECT account, count(*) FROM inserted GROUP BY account) AS counted;
    IF added = 0 THEN
        RETURN 0;
    END IF;
    INSERT INTO async_refunds.leases (scope, account)
        SELECT found.scope, account FROM unnest(touched) AS given (account)
            ORDER BY account COLLATE "C"
        ON CONFLICT DO NOTHING;
    PERFORM pg_notify('async_refunds', found.scope);
    PERFORM async_refunds.defer_jobs(found.scope, touched);
    RETURN added;
END $$;

-- Defer a procrastinate job for each account, where procrastinate is on the search path.
-- What a sweep finds anyway must fail no caller, nor make it wait.
CREATE OR REPLACE FUNCTION async_refunds.defer_jobs(scope text, accounts text[]) RETURNS void
LANGUAGE plpgsql SET lock_timeout = '100ms' AS $$
DECLARE
    deferred integer := cardinality(accounts)
        + coalesce(nullif(current_setting('async_refunds.deferred', true), ''), '0')::integer;
BEGIN
    -- Each job takes a lock until the caller's transaction ends, and all transactions
    -- share the room for a few thousand.
    PERFORM set_config('async_refunds.deferred', deferred::text, true);
    IF deferred > 500 OR to_regclass('procrastinate_jobs') IS NULL THEN
        RETURN;
    END IF;
    -- Whoever adds to the same account in an open transaction defers its job.
    INSERT INTO procrastinate_jobs
            (queue_name, task_name, lock, queueing_lock, args)
        SELECT 'async_refunds', 'async_refunds.wake', NULL, queueing_lock,
                jsonb_build_object('scope', defer_jobs.scope, 'account', account)
            FROM (
                SELECT account, 'async_refunds ' || defer_jobs.scope || ' ' || account
                        AS queueing_lock
                    FROM unnest(accounts) AS given (account)
            ) AS jobs
            WHERE pg_try_advisory_xact_lock(hashtextextended(queueing_lock, 0))
        ON CONFLICT DO NOTHING;
EXCEPTION WHEN serialization_failure THEN
    RAISE;  -- its transaction cannot be committed, and is to be repeated
WHEN others THEN  -- also what triggers of that table raise
    RAISE WARNING 'async_refunds: no job deferred: %', SQLERRM;
END $$;

-- What a monitor reads: one row per account that has something left, or a holder.
CREATE OR REPLACE VIEW async_refunds.metrics AS
    SELECT l.scope, l.account, l.owner,
            l.token IS NOT NULL AND l.until > clock_timestamp() AS held,
            extract(epoch FROM clock_timestamp() - l.renewed_at)::float8
                AS lease_age_seconds,
            abs(l.pace) AS pace, l.all_takeovers AS takeovers,
            coalesce(i.open, 0) AS open, coalesce(i.dead, 0) AS dead,
            extract(epoch FROM clock_timestamp() - i.oldest)::float8
                AS oldest_open_seconds,
            CASE WHEN l.not_before > clock_timestamp()
                    AND (l.token IS NULL OR l.until <= clock_timestamp())
                THEN extract(epoch FROM l.not_before - clock_timestamp())::float8
                END AS waits_seconds,
            CASE WHEN l.retry_at > clock_timestamp()
                THEN extract(epoch FROM l.retry_at - clock_timestamp())::float8
                END AS retry_seconds,
            i.last_word,
            extract(epoch FROM clock_timestamp() - i.last_at)::float8
                AS last_at_seconds,
            -- Only where nothing else is left of it: all that is open needs a new key.
            CASE WHEN i.open > 0 AND i.open = i.need_new_key
                    AND l.no_new_key_until > clock_timestamp()
                THEN extract(epoch FROM l.no_new_key_until - clock_timestamp())::float8
                END AS new_key_seconds
        FROM async_refunds.leases l
        LEFT JOIN (
            SELECT r.scope, items.account, count(*) FILTER (WHERE NOT dead) AS open,
                    count(*) FILTER (WHERE dead) AS dead, min(added_at) AS oldest,
                    count(*) FILTER (WHERE NOT dead AND known_at IS NOT NULL
                        AND NOT maybe_sent) AS need_new_key,
                    max(known_at) AS last_at,
                    (array_agg(coalesce(error, outcome) ORDER BY known_at DESC)
                        FILTER (WHERE known_at IS NOT NULL))[1] AS last_word
                FROM async_refunds.items JOIN async_refunds.runs r USING (run_id)
                WHERE NOT settled AND r.state <> 'closed'
                GROUP BY r.scope, items.account
        ) i USING (scope, account);
