"""A seeded chaos on the fleet: real workers, a real database, and what befalls them.

`python -m tests.chaos --runs 100 --seed 7 --jobs 2` kills, freezes and ends workers,
ends, cuts off and fails over the database, and judges what became of each refund by the
books of a server of its own that shares no code with async_refunds.

**What counts as two keys.** That a refund has one key is there so that it is canceled
once, whatever was lost. A second key is a fault while a request with the first one may
have been carried out, or may still be: so after anything that its sender got no
definite no to, for as long as the run lasts. After a definite no to all that was sent
with a key, a new one is no fault but needed, since Stripe keeps a refusal under its key
for a day (https://docs.stripe.com/api/idempotent_requests). So "two keys" must be 0,
and "new keys" are counted beside. Here the only definite no is the 429 of a limit or a
lock, which Stripe does not keep: a new key comes only where a refund was given up with
one, and an operator had it tried again. A handover is no such case: what is open then
keeps its key.

**What is late, and what is slow.** Takeovers and handovers are timed where nothing else
befell the fleet. One that is late is a finding in any case; if the harness's own timers
were late by as much meanwhile, the finding says so: then the machine had more to do
than it can, and the run is to be repeated with fewer ``--jobs``.

**What a zombie may do.** A worker that was frozen may do nothing for the accounts that
others have won meanwhile, until it has won them again: no request by the server's
books, and no row with a token of before, by a log that the database itself keeps.
"""
