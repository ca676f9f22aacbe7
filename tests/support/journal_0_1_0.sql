-- A journal as release 0.1.0 wrote it (the dump of a real one).
PRAGMA application_id = 1634880049;
PRAGMA user_version = 1;
BEGIN TRANSACTION;
CREATE TABLE items (
        number INTEGER PRIMARY KEY,
        refund_id TEXT NOT NULL,
        stripe_account TEXT,
        settled INTEGER NOT NULL DEFAULT 0,
        asked INTEGER NOT NULL DEFAULT 0,
        attempts INTEGER NOT NULL DEFAULT 0,
        idempotency_key TEXT,
        keyed_at REAL,
        outcome TEXT,
        status TEXT,
        request_id TEXT,
        error TEXT,
        seconds REAL,
        known_at REAL
    );
INSERT INTO "items" VALUES(1,'re_1',NULL,1,1,2,'00000000000000000000000000000001',1790000000.25,'canceled','canceled','req_1',NULL,1.5,1790000000.25);
INSERT INTO "items" VALUES(2,'re_2',NULL,0,1,1,'00000000000000000000000000000002',1790000000.25,'unknown',NULL,'req_0','lost',0.5,1790000000.25);
INSERT INTO "items" VALUES(3,'re_3',NULL,0,0,1,'00000000000000000000000000000003',1790000000.25,'failed',NULL,'req_0','Invalid API Key',0.0,1790000000.25);
INSERT INTO "items" VALUES(4,'re_4',NULL,1,1,1,'00000000000000000000000000000004',1790000000.25,'not_cancelable',NULL,'req_0','no',0.0,1790000000.25);
INSERT INTO "items" VALUES(5,'re_5',NULL,0,1,0,'00000000000000000000000000000005',1790000000.25,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "items" VALUES(6,'re_6',NULL,0,0,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "items" VALUES(7,'re_1','acct_1',0,1,0,'00000000000000000000000000000006',1790000000.25,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "items" VALUES(8,'pyr_8','acct_2',0,0,0,'00000000000000000000000000000007',1790000000.25,NULL,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE run (
        base_url TEXT NOT NULL,
        livemode INTEGER NOT NULL,
        options TEXT NOT NULL
    );
INSERT INTO "run" VALUES('https://api.stripe.com',0,'{"rate":20}');
CREATE UNIQUE INDEX own_items ON items (refund_id)
        WHERE stripe_account IS NULL;
CREATE UNIQUE INDEX connected_items ON items (stripe_account, refund_id)
        WHERE stripe_account IS NOT NULL;
CREATE INDEX open_items ON items (stripe_account, number)
        WHERE settled = 0;
COMMIT;
