"""The endpoints: what each checks, does and returns."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

import msgspec

from async_refunds.emulator.state.refunds import ListQuery

from . import errors
from .errors import StripeError
from .params import read_created, read_expand, read_limit, read_text, refuse_unknown
from .request import Endpoint, RequestContext
from .serialization import refund_object

if TYPE_CHECKING:
    from async_refunds.emulator.state.refunds import Refund
    from async_refunds.emulator.state.stripe_state import StripeState

    from .request import RawRequest

REFUNDS = "/v1/refunds"
REFUND = f"{REFUNDS}/"
TEST_HELPER = "/v1/test_helpers/refunds/"

_EXPAND_ONLY = frozenset({"expand[]"})
_LIST_PARAMS = _EXPAND_ONLY | {
    *("charge", "payment_intent", "starting_after", "ending_before", "limit"),
    *("created", "created[gt]", "created[gte]", "created[lt]", "created[lte]"),
}

# Making an encoder for each answer would cost more.
_encode = msgspec.json.Encoder().encode


def receive(state: StripeState, raw: RawRequest) -> RequestContext:
    """Count a request and return its context, which decides everything else."""
    endpoint, refund_id = _route(raw.method, raw.path)
    context = RequestContext(state, raw, endpoint, refund_id)
    books = state.books
    books.requests[context.record.endpoint] += 1
    if context.refund is not None and (endpoint is CANCEL or endpoint is RETRIEVE):
        counts = books.cancel_requests
        if endpoint is RETRIEVE:
            counts = books.retrieve_requests
        # Faster than += for ids that a Counter does not hold yet, as most are.
        counts[refund_id] = counts.get(refund_id, 0) + 1
    return context


def _route(method: str, path: str) -> tuple[Endpoint | None, str]:
    """Return the endpoint, None if there is none, and the id in the path."""
    if path == REFUNDS:
        return (LIST if method == "GET" else None), ""
    if path.startswith(REFUND):
        refund_id, slash, action = path[len(REFUND) :].partition("/")
        if "%" in refund_id:
            refund_id = unquote(refund_id)
        if refund_id and method == "GET" and not slash:
            return RETRIEVE, refund_id
        if refund_id and method == "POST" and slash and action == "cancel":
            return CANCEL, refund_id
    elif method == "POST" and path.startswith(TEST_HELPER):
        refund_id, _, action = path[len(TEST_HELPER) :].partition("/")
        if refund_id and action == "expire":
            return EXPIRE, unquote(refund_id)
    return None, ""


def _prepare_one(context: RequestContext) -> None:
    if context.params:
        refuse_unknown(context.params, _EXPAND_ONLY)
        context.expand = read_expand(context.params)


def _prepare_expire(context: RequestContext) -> None:
    if context.partition.livemode:
        # The words are those of https://docs.stripe.com/api/test_clocks.
        message = (
            "This endpoint is only available in testmode. Try using your test keys"
            " instead."
        )
        raise StripeError(400, message)
    _prepare_one(context)


def _prepare_list(context: RequestContext) -> None:
    params, partition, refunds = (
        context.params,
        context.partition,
        context.state.refunds,
    )
    refuse_unknown(params, _LIST_PARAMS)
    context.expand = read_expand(params, listed=True)
    first, last = read_created(params)
    charge = read_text(params, "charge")
    if charge is not None and not refunds.of_charge(partition, charge):
        raise errors.no_such("charge", charge, param="charge")
    intent = read_text(params, "payment_intent")
    if intent is not None and not refunds.of_payment_intent(partition, intent):
        raise errors.no_such("payment_intent", intent, param="payment_intent")
    after = _cursor(context, "starting_after")
    before = _cursor(context, "ending_before")
    if after is not None and before is not None:
        raise StripeError(
            400, "Only one of starting_after and ending_before can be given."
        )
    context.query = ListQuery(
        limit=read_limit(params),
        charge=charge,
        payment_intent=intent,
        created_from=first,
        created_to=last,
        starting_after=after,
        ending_before=before,
    )


def _cancel(context: RequestContext) -> bytes:
    refund = _named(context)
    # The money returns to the balance; the customer is not repaid.
    if not context.state.refunds.step(refund, "cancel", context.cause):
        raise errors.not_cancelable()
    counts = context.state.books.cancellations
    counts[refund.id] = counts.get(refund.id, 0) + 1
    return _encode(refund_object(refund, context.expand))


def _expire(context: RequestContext) -> bytes:
    refund = _named(context)
    if not context.state.refunds.step(refund, "expire", context.cause):
        message = (
            f"This refund has a status of {refund.status}; only a refund with a status"
            " of requires_action can be expired."
        )
        raise StripeError(400, message)
    return _encode(refund_object(refund, context.expand))


def _retrieve(context: RequestContext) -> bytes:
    return _encode(refund_object(_named(context, param="id"), context.expand))


def _list(context: RequestContext) -> bytes:
    found, more = context.state.refunds.page(context.partition, context.query)
    return _encode(
        {
            "object": "list",
            "data": [refund_object(refund, context.expand) for refund in found],
            "has_more": more,
            "url": REFUNDS,
        }
    )


def _cursor(context: RequestContext, name: str) -> Refund | None:
    refund_id = read_text(context.params, name)
    if refund_id is None:
        return None
    refund = context.state.refunds.find(context.partition, refund_id)
    if refund is None:
        raise errors.no_such("refund", refund_id, param=name)
    return refund


def _named(context: RequestContext, *, param: str = "refund") -> Refund:
    """Return the refund in the path as it is now, if the API key may see it."""
    refund, partition, refunds = (
        context.refund,
        context.partition,
        context.state.refunds,
    )
    if refund is not None and refund.partition is partition:
        return refunds.expire_if_due(refund)
    livemode = partition.livemode
    other = refunds.partition(partition.account, livemode=not livemode)
    hint = ""
    if refund is not None and refund.partition is other:
        theirs, ours = ("test", "live") if livemode else ("live", "test")
        hint = (
            f"; a similar object exists in {theirs} mode, but a {ours} mode key was"
            " used to make this request."
        )
    raise errors.no_such(
        "refund", context.refund_id, param=param, status=404, hint=hint
    )


CANCEL = Endpoint("cancel", _prepare_one, _cancel, writes=True)
EXPIRE = Endpoint("expire", _prepare_expire, _expire, writes=True)
RETRIEVE = Endpoint("retrieve", _prepare_one, _retrieve)
LIST = Endpoint("list", _prepare_list, _list)
