"""What each endpoint does: the API itself, with no socket in sight."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

import msgspec

from . import errors
from .errors import StripeError
from .objects import refund_object
from .params import (
    read_created,
    read_expand,
    read_limit,
    read_text,
    refuse_unknown,
)
from .refunds import ListQuery
from .state import State
from .visit import Visit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from random import Random

    from .clock import Clock
    from .incoming import Incoming
    from .ledger import Ledger
    from .limiter import Limiter
    from .refunds import Refund
    from .timing import Timing

REFUNDS = "/v1/refunds"
BELOW = REFUNDS + "/"
HELPERS = "/v1/test_helpers/refunds"

_LIST_PARAMS = frozenset(
    {
        "charge",
        "created",
        "created[gt]",
        "created[gte]",
        "created[lt]",
        "created[lte]",
        "ending_before",
        "expand[]",
        "limit",
        "payment_intent",
        "starting_after",
    }
)
_EXPAND_ONLY = frozenset({"expand[]"})

# Whose requests the books count by refund.
_COUNTED = frozenset({"cancel", "retrieve"})


# One that is kept is quicker than one for each answer.
_encode = msgspec.json.Encoder().encode


def route(method: str, path: str) -> tuple[str, str]:
    """Return the endpoint (``other`` if there is none) and the id in the path."""
    if path == REFUNDS:
        return ("list" if method == "GET" else "other"), ""
    if path.startswith(BELOW):
        refund_id, slash, action = path[len(BELOW) :].partition("/")
        if "%" in refund_id:
            refund_id = unquote(refund_id)
        if refund_id and method == "GET" and not slash:
            return "retrieve", refund_id
        if refund_id and method == "POST" and slash and action == "cancel":
            return "cancel", refund_id
    elif method == "POST" and path.startswith(HELPERS + "/"):
        refund_id, _, action = path[len(HELPERS) + 1 :].partition("/")
        if refund_id and action == "expire":
            return "expire", unquote(refund_id)
    return "other", ""


class Service(State):
    """The API itself, over the emulator's state.

    Args:
        clock: Tells the time.
        random: Draws the request ids.
        ledger: Holds the refunds.
        limiter: Lets requests in.
        timing: How long things take.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        random: Random,
        ledger: Ledger,
        limiter: Limiter,
        timing: Timing,
    ) -> None:
        super().__init__(clock=clock, ledger=ledger, limiter=limiter, timing=timing)
        # Drawn once and counted from there: a draw for each request costs more.
        self._request_number = random.getrandbits(52)
        self.endpoints: Mapping[str, Callable[[Visit], Callable[[], bytes]]] = {
            "cancel": self._cancel,
            "expire": self._expire,
            "retrieve": self._retrieve,
            "list": self._list,
        }

    def visit(self, incoming: Incoming) -> Visit:
        """Take note of a request. Nothing is decided until the visit goes on."""
        self._request_number += 1
        endpoint, refund_id = route(incoming.method, incoming.path)
        self.books.requests[endpoint] += 1
        named = self.ledger.look(refund_id) if refund_id else None
        if named is not None and endpoint in _COUNTED:
            counts = self.books.cancel_requests
            if endpoint == "retrieve":
                counts = self.books.retrieve_requests
            # Quicker than += for what a Counter does not know yet, as most are not.
            counts[refund_id] = counts.get(refund_id, 0) + 1
        return Visit(
            self,
            incoming,
            run=self.endpoints.get(endpoint),
            endpoint=endpoint,
            refund_id=refund_id,
            named=named,
            number=self._request_number,
        )

    def _cancel(self, visit: Visit) -> Callable[[], bytes]:
        refuse_unknown(visit.params, _EXPAND_ONLY)
        expand = read_expand(visit.params)
        visit.writes = True

        def execute() -> bytes:
            refund = self._named(visit, param="refund")
            if not self.ledger.cancel(refund):
                raise errors.not_cancelable()
            done = self.books.cancellations
            done[refund.id] = done.get(refund.id, 0) + 1
            return _encode(refund_object(refund, expand))

        return execute

    def _expire(self, visit: Visit) -> Callable[[], bytes]:
        if visit.shelf.livemode:
            raise errors.not_in_livemode()
        refuse_unknown(visit.params, _EXPAND_ONLY)
        expand = read_expand(visit.params)
        visit.writes = True

        def execute() -> bytes:
            refund = self._named(visit, param="refund")
            if not self.ledger.step(refund, "expire"):
                raise errors.not_expirable(refund.status)
            return _encode(refund_object(refund, expand))

        return execute

    def _retrieve(self, visit: Visit) -> Callable[[], bytes]:
        refuse_unknown(visit.params, _EXPAND_ONLY)
        expand = read_expand(visit.params)

        def execute() -> bytes:
            refund = self._named(visit, param="id")
            return _encode(refund_object(refund, expand))

        return execute

    def _list(self, visit: Visit) -> Callable[[], bytes]:
        params = visit.params
        refuse_unknown(params, _LIST_PARAMS)
        expand = read_expand(params, listed=True)
        query = self._list_query(visit)

        def execute() -> bytes:
            found, more = self.ledger.page(visit.shelf, query)
            return _encode(
                {
                    "object": "list",
                    "data": [refund_object(refund, expand) for refund in found],
                    "has_more": more,
                    "url": REFUNDS,
                }
            )

        return execute

    def _list_query(self, visit: Visit) -> ListQuery:
        params, shelf = visit.params, visit.shelf
        first, last = read_created(params)
        charge = read_text(params, "charge")
        if charge is not None and not self.ledger.charged(shelf, charge):
            raise _missing_param("charge", charge, "charge")
        intent = read_text(params, "payment_intent")
        if intent is not None and not self.ledger.intended(shelf, intent):
            raise _missing_param("payment_intent", intent, "payment_intent")
        after = self._cursor(visit, "starting_after")
        before = self._cursor(visit, "ending_before")
        if after is not None and before is not None:
            raise StripeError(
                400, "Only one of starting_after and ending_before can be given."
            )
        return ListQuery(
            limit=read_limit(params),
            charge=charge,
            payment_intent=intent,
            created_from=first,
            created_to=last,
            starting_after=after,
            ending_before=before,
        )

    def _cursor(self, visit: Visit, name: str) -> Refund | None:
        refund_id = read_text(visit.params, name)
        if refund_id is None:
            return None
        refund = self.ledger.find(visit.shelf, refund_id)
        if refund is None:
            raise _missing_param("refund", refund_id, name)
        return refund

    def _named(self, visit: Visit, *, param: str) -> Refund:
        """Return the refund in the path as it is now, if the caller may see it."""
        refund, shelf = visit.named, visit.shelf
        if refund is not None and refund.shelf is shelf:
            return self.ledger.as_of_now(refund)
        other = self.ledger.shelf(shelf.account, livemode=not shelf.livemode)
        hint = ""
        if refund is not None and refund.shelf is other:
            modes = ("test", "live") if shelf.livemode else ("live", "test")
            hint = (
                f"; a similar object exists in {modes[0]} mode, but a {modes[1]} mode"
                " key was used to make this request."
            )
        raise errors.no_such(
            "refund", visit.refund_id, status=404, param=param, hint=hint
        )


def _missing_param(kind: str, name: str, param: str) -> StripeError:
    return errors.no_such(kind, name, status=400, param=param, hint="")
