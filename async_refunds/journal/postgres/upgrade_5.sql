-- From version 4, which did not name the table in a history.

SET LOCAL lock_timeout = '10s';

UPDATE async_refunds.timelines
    SET timeline = timeline || '/' || 'async_refunds.items'::regclass::oid;
