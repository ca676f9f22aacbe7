"""What may be done with a run: it is open, paused, closing or closed."""

from __future__ import annotations

WORKED_ON = "state IN ('open', 'closing')"
"""Workers ask for something of it; of one that is closing for what was perhaps sent."""
STATE = """CASE WHEN r.state = 'closing' AND NOT EXISTS (
        SELECT FROM async_refunds.items i WHERE i.run_id = r.run_id AND NOT i.settled)
    THEN 'closed' ELSE r.state END"""
"""Of the run `r`, as people have it: one that is closing is closed, without a word of
theirs, once its last refund is settled."""
# Whoever closes a run says so, and then waits for those who hold its leases: he finds
# what they have written. Those who get a lease after that know that it is closing, also
# if they have waited for it since before.
CLOSING = """closing AS MATERIALIZED (
    SELECT closing.run_id FROM (SELECT min(%(scope)s::text) AS scope FROM held) locked
        CROSS JOIN LATERAL async_refunds.closing_runs(locked.scope) AS closing (run_id)
)"""
"""The runs that are closing once all leases of `held` are locked."""


def given_up(error: str) -> str:
    """Return the error of the item `i` that its run gives up on.

    Args:
        error: What was known of it, in SQL.
    """
    return (
        f"coalesce({error} || '; then', i.refund_id || ' was not canceled:')"
        " || ' its run was closed'"
    )
