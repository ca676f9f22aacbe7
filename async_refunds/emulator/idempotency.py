"""The answers kept under idempotency keys.

https://docs.stripe.com/api/idempotent_requests
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from .params import Params

# Stripe removes a key once it is at least 24 hours old.
KEPT_SECONDS = 24 * 3600

# The longest key Stripe takes.
LONGEST_KEY = 255


@dataclass(slots=True)
class Saved:
    """The first answer given under a key."""

    status: int
    body: bytes
    request_id: str
    headers: Mapping[str, str]


class Standing(enum.Enum):
    """How a key stands that has no answer to give again."""

    FRESH = enum.auto()
    IN_FLIGHT = enum.auto()
    OTHER_PATH = enum.auto()
    OTHER_PARAMETERS = enum.auto()


@dataclass(slots=True)
class _Entry:
    path: str
    params: Params
    begun: float
    saved: Saved | None = None


class IdempotencyKeys:
    """What is known of each key of each account and mode."""

    def __init__(self) -> None:
        self._scopes: dict[Hashable, dict[str, _Entry]] = {}

    def begin(
        self, scope: Hashable, key: str, path: str, params: Params, *, now: float
    ) -> Saved | Standing:
        """Take the key for a request that starts now.

        The path and the parameters are what must be the same for a key to be the same.

        Returns:
            The saved answer of the same request; or ``FRESH``, and the key is in
            flight until `save` or `release`; or what is wrong with the key.
        """
        entries = self._scopes.get(scope)
        if entries is None:
            entries = self._scopes[scope] = {}
        _forget(entries, now)
        entry = entries.get(key)
        if entry is None:
            entries[key] = _Entry(path, params, now)
            return Standing.FRESH
        if entry.path != path:
            return Standing.OTHER_PATH
        if entry.params != params:
            return Standing.OTHER_PARAMETERS
        return entry.saved or Standing.IN_FLIGHT

    def first_path(self, scope: Hashable, key: str) -> str:
        """Return the path a known key was first used for."""
        return self._scopes[scope][key].path

    def save(self, scope: Hashable, key: str, saved: Saved) -> None:
        """Keep the answer of the request that holds the key."""
        self._scopes[scope][key].saved = saved

    def release(self, scope: Hashable, key: str) -> None:
        """Forget a key whose request did not begin to execute."""
        del self._scopes[scope][key]


def _forget(entries: dict[str, _Entry], now: float) -> None:
    # Entries stand in the order they began, so the expired ones come first; one still
    # in flight holds back those behind it until it ends.
    while entries:
        oldest = next(iter(entries))
        entry = entries[oldest]
        if entry.saved is None or now - entry.begun < KEPT_SECONDS:
            return
        del entries[oldest]
