"""Which history the database is in: a failover may forget commits of the last one."""

from __future__ import annotations

# Since when it is in this one, `now.timeline`, if another one was before. `t`: what was
# noted of it.
_SEEN_AT = """CASE WHEN t.last_number > 0 THEN t.seen_at
            WHEN now.timeline IS NULL OR t.last_number = 0 THEN '-infinity'
            ELSE now.at END"""

# And up to which number another one may have claimed items. While the first worker has
# not noted a new one, that is all of them.
_LAST_NUMBER = """CASE WHEN now.timeline IS NULL THEN 0
            ELSE coalesce(t.last_number, 9223372036854775807) END"""
HISTORY = f"""history AS MATERIALIZED (
    SELECT now.at, now.timeline, {_LAST_NUMBER} AS last_number,
        {_SEEN_AT} AS seen_at
    FROM (SELECT clock_timestamp() AS at, async_refunds.timeline() AS timeline
        OFFSET 0) now
    LEFT JOIN async_refunds.timelines t USING (timeline)
)"""  # noqa: S608 - our own text

# For leases. A worker whose lease was forgotten goes by it until it ends: all that were
# given out in another history have ended a TTL after this one began.
NOTED_HISTORY = f"""history AS MATERIALIZED (
    SELECT now.timeline, {_LAST_NUMBER} AS last_number, {_SEEN_AT} AS seen_at,
        {_SEEN_AT} + make_interval(secs => %(ttl)s) <= now.at AS forgotten_have_ended
    FROM (SELECT clock_timestamp() AS at, async_refunds.note_timeline() AS timeline
        OFFSET 0) now
    LEFT JOIN async_refunds.timelines t USING (timeline)
)"""  # noqa: S608 - our own text

# Whether the key of the item `i` was perhaps sent: its row says so, or a failover may
# have lost the commit that did.
PERHAPS_SENT = """(i.maybe_sent OR i.number <= (SELECT last_number FROM history)
    AND i.timeline IS DISTINCT FROM (SELECT timeline FROM history))"""
