-- From version 3, where an account whose key was refused waited for every worker.

SET LOCAL lock_timeout = '10s';

ALTER TABLE async_refunds.leases ADD COLUMN refused text COLLATE "C";
