-- From version 4, where a run that was being closed was paused, and then open again. Its
-- workers take nothing of one that is closing.

SET LOCAL lock_timeout = '10s';

ALTER TABLE async_refunds.runs DROP CONSTRAINT runs_state_check,
    ADD CONSTRAINT runs_state_check
        CHECK (state IN ('open', 'paused', 'closing', 'closed'));
DROP INDEX async_refunds.runs_of_scope;
CREATE INDEX runs_of_scope ON async_refunds.runs (scope)
    WHERE state IN ('open', 'closing');

-- A history did not name the table. What was claimed in one that had lost commits before
-- would seem to be of those, and so perhaps sent.
UPDATE async_refunds.items i
    SET timeline = i.timeline || '/' || 'async_refunds.items'::regclass::oid
    FROM async_refunds.timelines t
    WHERE t.timeline = i.timeline AND i.number <= t.last_number AND NOT i.settled;
UPDATE async_refunds.timelines
    SET timeline = timeline || '/' || 'async_refunds.items'::regclass::oid;
