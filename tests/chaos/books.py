"""What was really asked of Stripe and really canceled: the books the judge reads.

Facts: https://docs.stripe.com/api/idempotent_requests, /error-low-level, /rate-limits.
They share no code with async_refunds.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def account_id(number: int) -> str:
    """Return the id of a connected account."""
    return f"acct_1chaos{number:04d}"


def refund_id(number: int) -> str:
    """Return the id of a refund."""
    return f"re_1chaos{number:07d}"


@dataclass(frozen=True)
class Answer:
    """What Stripe says."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


@dataclass
class Refund:
    """A refund, and the keys that asked for its cancel."""

    refund_id: str
    account: str
    status: str = "requires_action"
    canceled_by: str | None = None
    """The key whose request was carried out."""
    executed: list[str] = field(default_factory=list[str])
    """The key of each cancel that Stripe began to carry out, replays not counted: a
    second one means that somebody tried to cancel it twice."""


@dataclass(frozen=True)
class Request:
    """A request as it came in."""

    at: float
    """Monotonic seconds, those of every process of this machine."""
    worker: str
    """Which API key it came with: each worker has its own, of the same account."""
    method: str
    account: str
    refund_id: str
    key: str
    """Its idempotency key; empty for a read."""


@dataclass
class Books:
    """The state behind the server.

    Args:
        clock: Monotonic seconds.
        rates: Cancels a second that each account allows, and as many reads.
    """

    clock: Callable[[], float]
    rates: dict[str, float]
    refunds: dict[str, Refund] = field(default_factory=dict[str, Refund])
    requests: list[Request] = field(default_factory=list[Request])
    """Everything that came in, oldest first."""
    answered: dict[tuple[str, str], float] = field(
        default_factory=dict[tuple[str, str], float]
    )
    """When a worker's last request for an account was over."""
    limited: list[Request] = field(default_factory=list[Request])
    """Those that an account's limit refused."""
    faults: list[str] = field(default_factory=list[str])
    """What the client sent that no client should."""
    doubtful: set[str] = field(default_factory=set[str])
    """The keys of requests whose sender got no definite no: Stripe may have carried one
    out, or still do, as far as the sender can tell."""
    in_flight: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    """The keys of requests that are under way, by account."""
    _saved: dict[tuple[str, str], tuple[str, Answer]] = field(
        default_factory=dict[tuple[str, str], tuple[str, Answer]]
    )
    _room: dict[tuple[str, str], tuple[float, float]] = field(
        default_factory=dict[tuple[str, str], tuple[float, float]]
    )

    def give(self, refunds: Iterable[tuple[str, str]]) -> None:
        """Make refunds that wait for the customer, as pairs of id and account."""
        for name, account in refunds:
            self.refunds[name] = Refund(name, account)

    @property
    def canceled(self) -> int:
        """How many refunds are canceled."""
        return sum(each.status == "canceled" for each in self.refunds.values())

    def keys(self) -> dict[str, list[str]]:
        """Return the keys that came for each refund, each once, oldest first."""
        found: dict[str, list[str]] = defaultdict(list)
        for each in self.requests:
            if each.key and each.key not in found[each.refund_id]:
                found[each.refund_id].append(each.key)
        return found

    def second_keys(self) -> dict[str, list[str]]:
        """Return the keys of each refund that got another key too early.

        After a definite no to all that was sent with a key, a new one is right: Stripe
        may have saved the answer to the old one.
        """
        return {
            name: keys
            for name, keys in self.keys().items()
            if any(key in self.doubtful for key in keys[:-1])
        }

    def shared_keys(self) -> list[str]:
        """Return the keys that came for several refunds."""
        pairs = {(each.key, each.refund_id) for each in self.requests if each.key}
        times = Counter(key for key, _ in pairs)
        return [key for key, count in times.items() if count > 1]

    # ------------------------------------------------------------------------- the API

    def is_limited(self, request: Request) -> bool:
        """Count a request against its account's limit, and tell whether it is over.

        A bucket that holds one second's requests, of cancels and of reads each.
        """
        rate = self.rates[request.account]
        place = request.account, request.method
        room, at = self._room.get(place, (max(rate, 1.0), request.at))
        room = min(max(rate, 1.0), room + (request.at - at) * rate)
        over = room < 1.0
        self._room[place] = (room if over else room - 1.0), request.at
        if over:
            self.limited.append(request)
        return over

    def saved(self, request: Request) -> Answer | None:
        """Return what is saved under a request's key, or why the key is not usable."""
        place = request.account, request.key
        if place in self.in_flight:
            return refusal(409, "idempotency_key_in_use")
        if place not in self._saved:
            return None
        saved_for, answer = self._saved[place]
        if saved_for != request.refund_id:
            return refusal(400, type_="idempotency_error")
        replayed = ("Idempotent-Replayed", "true")
        return Answer(answer.status, answer.body, (*answer.headers, replayed))

    def cancel(self, request: Request, *, fails: bool = False) -> Answer:
        """Carry out a cancel, and save its answer.

        Args:
            request: The request.
            fails: Whether a 500 is answered though it is carried out.
        """
        found = self._found(request)
        if found is None:
            answer = refusal(404, "resource_missing")
        else:
            found.executed.append(request.key)
            if found.status != "requires_action":
                answer = refusal(400)
            else:
                found.status, found.canceled_by = "canceled", request.key
                answer = refusal(500) if fails else _shown(found)
        self._saved[request.account, request.key] = request.refund_id, answer
        return answer

    def retrieve(self, request: Request) -> Answer:
        """Answer a read."""
        found = self._found(request)
        return refusal(404, "resource_missing") if found is None else _shown(found)

    def _found(self, request: Request) -> Refund | None:
        found = self.refunds.get(request.refund_id)
        return found if found and found.account == request.account else None


def refusal(
    status: int,
    code: str = "",
    *,
    type_: str = "",
    headers: tuple[tuple[str, str], ...] = (),
) -> Answer:
    """Return an error of Stripe's."""
    usual = "api_error" if status >= 500 else "invalid_request_error"
    error = {"type": type_ or usual, "message": f"no: {code or status}"}
    if code:
        error["code"] = code
    return Answer(status, json.dumps({"error": error}).encode(), headers)


def _shown(refund: Refund) -> Answer:
    body = {
        "id": refund.refund_id,
        "object": "refund",
        "amount": 1000,
        "currency": "jpy",
        "created": 1_700_000_000,
        "status": refund.status,
        "charge": "ch_1chaos",
        "payment_intent": "pi_1chaos",
    }
    return Answer(200, json.dumps(body).encode())
