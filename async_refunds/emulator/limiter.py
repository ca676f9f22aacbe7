"""Stripe's limiters: so many requests a second, so many at once.

https://docs.stripe.com/rate-limits
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable


@dataclass(slots=True)
class Limits:
    """What one account may ask for in one mode; None is no limit.

    Args:
        global_rate: Requests a second; Stripe's own figure in live mode.
        endpoint_rate: Requests a second of one endpoint, all ids together.
        global_concurrency: Requests under way at once.
        endpoint_concurrency: Requests of one endpoint under way at once.
    """

    global_rate: float | None = 100
    endpoint_rate: float | None = 25
    global_concurrency: int | None = None
    endpoint_concurrency: int | None = None


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float


class Limiter:
    """Decides whether a request is let in.

    Args:
        limits: May be replaced, or changed in place, at any time; None lets
            everything in.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits
        self._buckets: dict[tuple[Hashable, str | None], _Bucket] = {}
        self._under_way: Counter[tuple[Hashable, str | None]] = Counter()

    def enter(
        self, limits: Limits, scope: Hashable, endpoint: str, *, now: float
    ) -> str | None:
        """Let a request in, or return why not, as Stripe's header says it.

        A request let in must `leave`. One kept out uses up nothing. While there are no
        limits nobody asks.
        """
        everything = (scope, None)
        alike = (scope, endpoint)
        if _full(self._under_way[everything], limits.global_concurrency):
            return "global-concurrency"
        if _full(self._under_way[alike], limits.endpoint_concurrency):
            return "endpoint-concurrency"
        overall = self._bucket(everything, limits.global_rate, now)
        if overall is not None and overall.tokens < 1:
            return "global-rate"
        own = self._bucket(alike, limits.endpoint_rate, now)
        if own is not None and own.tokens < 1:
            return "endpoint-rate"
        for bucket in (overall, own):
            if bucket is not None:
                bucket.tokens -= 1
        self._under_way[everything] += 1
        self._under_way[alike] += 1
        return None

    def leave(self, scope: Hashable, endpoint: str) -> None:
        """Count a request that was let in as done."""
        self._under_way[scope, None] -= 1
        self._under_way[scope, endpoint] -= 1

    def _bucket(
        self, key: tuple[Hashable, str | None], rate: float | None, now: float
    ) -> _Bucket | None:
        """Return the bucket as it stands now; it holds one second's requests."""
        if rate is None:
            return None
        size = max(1.0, rate)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(size, now)
        # A clock set back by the system must not empty the bucket.
        waited = max(0.0, now - bucket.filled_at)
        bucket.tokens = min(size, bucket.tokens + waited * rate)
        bucket.filled_at = now
        return bucket


def _full(under_way: int, most: int | None) -> bool:
    return most is not None and under_way >= most
