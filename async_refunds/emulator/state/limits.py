"""Stripe's limiters: requests per second, and requests at the same time.

https://docs.stripe.com/rate-limits
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import msgspec

if TYPE_CHECKING:
    from collections.abc import Hashable

# Over the admin API, a limit of nothing is refused: no request would pass again.
Rate = Annotated[float, msgspec.Meta(gt=0)]
Concurrency = Annotated[int, msgspec.Meta(ge=1)]


class Limits(msgspec.Struct, forbid_unknown_fields=True):
    """What one account may send in one mode; None is no limit.

    Args:
        global_rate: Requests per second; Stripe's own figure in live mode.
        endpoint_rate: Requests per second to one endpoint, all ids together.
        global_concurrency: Requests at the same time.
        endpoint_concurrency: Requests to one endpoint at the same time.
    """

    global_rate: Rate | None = 100
    endpoint_rate: Rate | None = 25
    global_concurrency: Concurrency | None = None
    endpoint_concurrency: Concurrency | None = None


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float


class Limiter:
    """Admits requests or refuses them.

    Args:
        limits: May be replaced, or changed in place, at any time; None admits every
            request.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits
        self._buckets: dict[tuple[Hashable, str | None], _Bucket] = {}
        self._in_flight: Counter[tuple[Hashable, str | None]] = Counter()

    def enter(
        self, limits: Limits, scope: Hashable, endpoint: str, *, now: float
    ) -> str | None:
        """Admit a request, or return the reason that Stripe's header gives.

        An admitted request must `leave`. A refused one uses up nothing.
        """
        whole, part = (scope, None), (scope, endpoint)
        if _full(self._in_flight[whole], limits.global_concurrency):
            return "global-concurrency"
        if _full(self._in_flight[part], limits.endpoint_concurrency):
            return "endpoint-concurrency"
        buckets: list[_Bucket] = []
        for key, rate, reason in (
            (whole, limits.global_rate, "global-rate"),
            (part, limits.endpoint_rate, "endpoint-rate"),
        ):
            if rate is not None:
                bucket = self._refill(key, rate, now)
                if bucket.tokens < 1:
                    return reason
                buckets.append(bucket)
        for bucket in buckets:
            bucket.tokens -= 1
        self._in_flight[whole] += 1
        self._in_flight[part] += 1
        return None

    def leave(self, scope: Hashable, endpoint: str) -> None:
        """Count an admitted request as done."""
        self._in_flight[scope, None] -= 1
        self._in_flight[scope, endpoint] -= 1

    def _refill(
        self, key: tuple[Hashable, str | None], rate: float, now: float
    ) -> _Bucket:
        """Return the bucket as it stands now; it holds the requests of one second."""
        size = max(1.0, rate)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(size, now)
        # A system clock that is set back must not empty the bucket.
        waited = max(0.0, now - bucket.filled_at)
        bucket.tokens = min(size, bucket.tokens + waited * rate)
        bucket.filled_at = now
        return bucket


def _full(in_flight: int, most: int | None) -> bool:
    return most is not None and in_flight >= most
