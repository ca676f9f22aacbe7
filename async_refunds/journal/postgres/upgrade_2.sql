-- From version 1. A worker of it would begin at a pace that is negative here.

-- It takes a moment, but behind a transaction that does not end all others would wait.
SET LOCAL lock_timeout = '10s';

ALTER TABLE async_refunds.items ADD COLUMN uncounted boolean NOT NULL DEFAULT false;
