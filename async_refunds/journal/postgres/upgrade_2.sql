-- From version 1, whose workers take the negative paces of this one for rates.

-- The change takes a moment. But while it waits for a transaction to end, all that come
-- after wait for it.
SET LOCAL lock_timeout = '10s';

ALTER TABLE async_refunds.items ADD COLUMN uncounted boolean NOT NULL DEFAULT false;
