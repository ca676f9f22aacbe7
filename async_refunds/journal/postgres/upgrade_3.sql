-- From version 2, of whose claims nobody knows with which credentials they were sent.

SET LOCAL lock_timeout = '10s';

ALTER TABLE async_refunds.items ADD COLUMN credentials text COLLATE "C";
