"""Stripe as the attack needs it, and its books: what was really canceled, and how.

Facts: https://docs.stripe.com/api/idempotent_requests, /error-low-level, /rate-limits.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .canaries import KEY, address

if TYPE_CHECKING:
    from collections.abc import Callable


def refund_id(number: int) -> str:
    """Return the id of a script's refund."""
    return f"re_1attack{number:05d}"


@dataclass(frozen=True)
class Answer:
    """What Stripe says."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def is_refusal(self) -> bool:
        """Whether it says that this request canceled nothing, and none with its key."""
        return 400 <= self.status < 500 and self.status not in (409, 424)


@dataclass
class Entry:
    """A refund, and who canceled it."""

    refund_id: str
    status: str
    spelling: int
    canceled_by: list[str] = field(default_factory=list[str])
    """The key of each cancel that was carried out: at most one."""


@dataclass
class Post:
    """A request to cancel, as Stripe or what stands before it received it."""

    refund_id: str
    key: str
    at: float
    refused: bool = False
    """Whether a definite no of Stripe's own went back whole."""
    final: bool = False
    """Whether it went back whole with `Stripe-Should-Retry: false`."""
    nameless: bool = False
    """Whether a refusal went back that does not repeat the key."""


class Books:
    """The state behind one server.

    Args:
        faithful: Whether answers carry `Request-Id` and the key, as Stripe's do.
        clock: The time in seconds.
    """

    def __init__(self, *, faithful: bool, clock: Callable[[], float]) -> None:
        self.faithful = faithful
        self.clock = clock
        self.entries: dict[str, Entry] = {}
        self.posts: list[Post] = []
        self.reads = 0
        self._saved: dict[str, tuple[str, Answer]] = {}
        self._serial = 0

    def give(self, number: int, status: str, spelling: int) -> None:
        """Make a refund."""
        name = refund_id(number)
        self.entries[name] = Entry(name, status, spelling)
        if status == "canceled":
            self.entries[name].canceled_by.append("somebody else")

    def move(self, number: int, status: str) -> None:
        """Change a refund's state by other hands, if Stripe would allow that."""
        entry = self.entries[refund_id(number)]
        if entry.status in ("requires_action", "pending"):
            entry.status = status
            if status == "canceled":
                entry.canceled_by.append("somebody else")

    def forget(self) -> None:
        """Let a day pass: what was saved under a key is forgotten."""
        self._saved.clear()

    def keys(self, name: str) -> list[str]:
        """Return the keys that came for a refund, each once, oldest first."""
        return list(dict.fromkeys(p.key for p in self.posts if p.refund_id == name))

    def first_at(self, name: str, key: str) -> float:
        """Return when a key came for a refund first, on the loop's clock."""
        return min(p.at for p in self.posts if (p.refund_id, p.key) == (name, key))

    # ------------------------------------------------------------------------- the API

    def cancel(self, name: str, key: str, api: str) -> Answer:
        """Answer a cancel that reached Stripe."""
        if api == "lie":
            return self._refund(name, key, status="canceled")
        if api in _UNSAVED:
            return self._refusal(api, name, None)
        if api in ("401", "limit_rate", "limit_concurrency", "limit_global"):
            return self._refusal(api, name, None)
        if key in self._saved:
            saved_for, answer = self._saved[key]
            if saved_for != name:
                return self._refusal("reused", name, key)
            replayed = ("Idempotent-Replayed", "true")
            return Answer(answer.status, (*answer.headers, replayed), answer.body)
        answer = self._executed(name, key, api)
        self._saved[key] = (name, answer)
        return answer

    def _executed(self, name: str, key: str, api: str) -> Answer:
        entry = self.entries.get(name)
        if api in ("403", "404", "500_undone", "odd_status"):
            if api == "odd_status":
                return self._refund(name, key, status=address(3))
            return self._refusal(api, name, key)
        if entry is None:
            return self._refusal("404", name, key)
        if entry.status != "requires_action":
            return self._refusal("state", name, key)
        entry.status = "canceled"
        entry.canceled_by.append(key)
        if api == "500_done":
            return self._refusal("500_done", name, key)
        return self._refund(name, key)

    def retrieve(self, name: str, api: str) -> Answer:
        """Answer a read."""
        self.reads += 1
        if api == "stale" and name in self.entries:
            return self._refund(name, None, status="requires_action")
        if api == "odd_status":
            return self._refund(name, None, status=address(4))
        if api in _REFUSALS:
            return self._refusal(api, name, None)
        if name not in self.entries:
            return self._refusal("404", name, None)
        return self._refund(name, None)

    def _headers(self, key: str | None) -> tuple[tuple[str, str], ...]:
        self._serial += 1
        headers = [("Content-Type", "application/json")]
        if self.faithful:
            headers.append(("Request-Id", f"req_{self._serial:014d}"))
            if key is not None:
                headers.append(("Idempotency-Key", key))
        return tuple(headers)

    def _refusal(self, kind: str, name: str, key: str | None) -> Answer:
        status, type_, code, extra = _REFUSALS[kind]
        mail = address(self.entries[name].spelling if name in self.entries else 0)
        error = {
            "type": type_,
            "message": f"{kind} of {name}: write to {mail}, not with {KEY}",
            "doc_url": f"https://stripe.com/docs?by={mail}",
            **({"code": code} if code else {}),
        }
        headers = self._headers(key)
        return Answer(status, (*headers, *extra), json.dumps({"error": error}).encode())

    def _refund(self, name: str, key: str | None, status: str | None = None) -> Answer:
        entry = self.entries.get(name) or Entry(name, "requires_action", 0)
        body = json.dumps(refund(entry, status or entry.status)).encode()
        return Answer(200, self._headers(key), body)


_UNSAVED = frozenset({"in_use", "424", "lock", "400_param"})

# By the kind: status, type, code, headers.
_REFUSALS: dict[str, tuple[int, str, str, tuple[tuple[str, str], ...]]] = {
    "state": (400, "invalid_request_error", "", ()),
    "reused": (400, "idempotency_error", "", ()),
    "400_param": (400, "invalid_request_error", "parameter_unknown", ()),
    "401": (401, "invalid_request_error", "", ()),
    "403": (403, "invalid_request_error", "", ()),
    "404": (404, "invalid_request_error", "resource_missing", ()),
    "in_use": (409, "invalid_request_error", "idempotency_key_in_use", ()),
    "424": (424, "api_error", "", ()),
    "lock": (429, "invalid_request_error", "lock_timeout", ()),
    "limit_rate": (
        *(429, "invalid_request_error", "rate_limit"),
        (("Stripe-Rate-Limited-Reason", "endpoint-rate"),),
    ),
    "limit_concurrency": (
        *(429, "invalid_request_error", "rate_limit"),
        (("Stripe-Rate-Limited-Reason", "endpoint-concurrency"),),
    ),
    "limit_global": (
        *(429, "invalid_request_error", "rate_limit"),
        (("Stripe-Rate-Limited-Reason", "global-rate"),),
    ),
    "500_done": (500, "api_error", "", ()),
    "500_undone": (500, "api_error", "", ()),
    "500": (500, "api_error", "", ()),
    "503": (503, "api_error", "", ()),
}


def refund(entry: Entry, status: str) -> dict[str, object]:
    """Return the object of a refund, with a customer's address all over it."""
    mail = address(entry.spelling)
    return {
        "id": entry.refund_id,
        "object": "refund",
        "amount": 1000,
        "currency": "jpy",
        "created": 1_700_000_000,
        "status": status,
        "charge": "ch_1attack",
        "payment_intent": "pi_1attack",
        "description": f"for {mail}",
        "instructions_email": mail,
        "metadata": {mail: mail},
        "reason": mail,
        "receipt_number": mail,
        "next_action": {
            "type": "display_details",
            "display_details": {
                "email_sent": {"email_sent_at": 1_700_000_000, "email_sent_to": mail},
                "expires_at": 1_800_000_000,
            },
        },
    }
