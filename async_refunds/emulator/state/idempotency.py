"""Idempotency keys and the answers saved under them.

https://docs.stripe.com/api/idempotent_requests
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

# Names and values of a request's parameters.
Params: TypeAlias = tuple[tuple[str, str], ...]

# Stripe removes a key once it is at least 24 hours old.
KEPT_SECONDS = 24 * 3600


@dataclass(slots=True, eq=False)
class KeyUse:
    """The first request with a key, and the answer that is saved for the others.

    Another request may use the key if its path and parameters are the same. One flat
    object, since many are kept and the garbage collector visits each.

    Attributes:
        status: The status of the answer; 0 while the request is in flight.
        request_id: The ``Request-Id`` of the first request.
        headers: Headers that only this answer carries.
    """

    path: str
    params: Params
    began_at: float
    status: int = 0
    body: bytes = b""
    request_id: str = ""
    headers: Mapping[str, str] | None = None


class IdempotencyKeys:
    """The keys of each scope: one account in one mode."""

    def __init__(self) -> None:
        self._scopes: dict[Hashable, dict[str, KeyUse]] = {}

    def find(self, scope: Hashable, key: str, *, now: float) -> KeyUse | None:
        """Return the first request with the key, unless the key has expired."""
        uses = self._scopes.get(scope)
        if not uses:
            return None
        # The oldest stands first. One that is still in flight keeps those behind it.
        while uses:
            oldest, use = next(iter(uses.items()))
            if not use.status or now - use.began_at < KEPT_SECONDS:
                break
            del uses[oldest]
        return uses.get(key)

    def begin(
        self, scope: Hashable, key: str, path: str, params: Params, *, now: float
    ) -> KeyUse:
        """Reserve the key for a request that starts now."""
        use = KeyUse(path, params, now)
        uses = self._scopes.get(scope)
        if uses is None:
            uses = self._scopes[scope] = {}
        uses[key] = use
        return use

    def release(self, scope: Hashable, key: str) -> None:
        """Forget a key whose request did not begin to execute."""
        del self._scopes[scope][key]
