"""The answers kept under idempotency keys.

https://docs.stripe.com/api/idempotent_requests
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from .params import Params

# Stripe removes a key once it is at least 24 hours old.
KEPT_SECONDS = 24 * 3600

# The longest key Stripe takes.
LONGEST_KEY = 255

# What most answers carry besides every answer's headers.
NOTHING: Mapping[str, str] = {}


class Standing(enum.Enum):
    """How a key stands when a request comes with it."""

    FRESH = enum.auto()
    IN_FLIGHT = enum.auto()
    ANSWERED = enum.auto()
    OTHER_PATH = enum.auto()
    OTHER_PARAMETERS = enum.auto()


class Entry:
    """A key, the request that took it first, and its answer once there is one."""

    __slots__ = ("begun", "body", "headers", "params", "path", "request_id", "status")

    def __init__(self, path: str, params: Params, begun: float) -> None:
        self.path = path
        self.params = params
        self.begun = begun
        self.status = 0
        self.body = b""
        self.request_id = ""
        self.headers = NOTHING

    def save(
        self, status: int, body: bytes, request_id: str, headers: Mapping[str, str]
    ) -> None:
        """Keep the answer of the request that took the key."""
        self.status = status
        self.body = body
        self.request_id = request_id
        self.headers = headers


class IdempotencyKeys:
    """What is known of each key of each account and mode."""

    def __init__(self) -> None:
        self._scopes: dict[Hashable, dict[str, Entry]] = {}

    def begin(
        self, scope: Hashable, key: str, path: str, params: Params, *, now: float
    ) -> tuple[Standing, Entry]:
        """Take the key for a request that starts now, or say how it stands.

        The path and the parameters are what must be the same for a key to be the same.
        A key that is ``FRESH`` is in flight until its answer is saved, or until
        `release`.
        """
        entries = self._scopes.get(scope)
        if entries is None:
            entries = self._scopes[scope] = {}
        if entries:
            _forget(entries, now)
        entry = entries.get(key)
        if entry is None:
            entry = entries[key] = Entry(path, params, now)
            return Standing.FRESH, entry
        if entry.path != path:
            return Standing.OTHER_PATH, entry
        if entry.params != params:
            return Standing.OTHER_PARAMETERS, entry
        return (Standing.ANSWERED if entry.status else Standing.IN_FLIGHT), entry

    def release(self, scope: Hashable, key: str) -> None:
        """Forget a key whose request did not begin to execute."""
        del self._scopes[scope][key]


def _forget(entries: dict[str, Entry], now: float) -> None:
    # Entries stand in the order they began, so the expired ones come first; one still
    # in flight holds back those behind it until it ends.
    while entries:
        oldest = next(iter(entries))
        entry = entries[oldest]
        if not entry.status or now - entry.begun < KEPT_SECONDS:
            return
        del entries[oldest]
