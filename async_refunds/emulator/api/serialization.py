"""The JSON of a refund and of the objects that can be expanded in it.

Which fields exist, and which are left out while they have no value:
https://docs.stripe.com/api/refunds/object
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from async_refunds.emulator.state.refunds import MARKETS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from async_refunds.emulator.state.refunds import Refund

Json: TypeAlias = dict[str, object]

# What to expand, as a tree: {"charge": {"balance_transaction": {}}}.
Expansion: TypeAlias = dict[str, "Expansion"]

# Which fields of each object can be expanded, and the kind of object they name.
# https://docs.stripe.com/api/expanding_objects
EXPANDABLE: Mapping[str, Mapping[str, str]] = {
    "refund": {
        "balance_transaction": "balance_transaction",
        "charge": "charge",
        "customer": "customer",
        "failure_balance_transaction": "balance_transaction",
        "payment_intent": "payment_intent",
        "payment_method": "payment_method",
        "source_transfer_reversal": "transfer_reversal",
        "transfer_reversal": "transfer_reversal",
    },
    "charge": {
        "balance_transaction": "balance_transaction",
        "payment_intent": "payment_intent",
    },
    "payment_intent": {"latest_charge": "charge"},
    "balance_transaction": {"source": "refund"},
}

# The ``failure_reason`` of a refund that did not repay the customer, by its status.
# https://docs.stripe.com/refunds#failed-refunds
FAILURE_REASONS: Mapping[str, str] = {
    "canceled": "merchant_request",
    "failed": "unknown",
}


def refund_object(refund: Refund, expand: Expansion | None = None) -> Json:
    """Return the refund as the JSON object that Stripe shows."""
    status, suffix = refund.status, refund.suffix
    item: Json = {
        "id": refund.id,
        "object": "refund",
        "amount": refund.amount,
        "balance_transaction": f"txn_{suffix}",
        "charge": refund.charge or f"ch_{suffix}",
        "created": refund.created,
        "currency": refund.currency,
        "customer": None,
        "customer_account": None,
        "metadata": refund.metadata or {},
        "payment_intent": refund.payment_intent or f"pi_{suffix}",
        "payment_method": None,
        "reason": None,
        "receipt_number": None,
        "source_transfer_reversal": None,
        "status": status,
        "transfer_reversal": None,
    }
    market = MARKETS.get(refund.currency)
    if market is not None:
        item["destination_details"] = {
            market.destination: {"reference": None, "reference_status": None},
            "type": market.destination,
        }
    if refund.instructions_email is not None:
        item["instructions_email"] = refund.instructions_email
    if status == "requires_action":
        item["next_action"] = _next_action(refund)
    elif status == "pending":
        item["pending_reason"] = "processing"
    elif status in FAILURE_REASONS:
        item["failure_reason"] = FAILURE_REASONS[status]
        item["failure_balance_transaction"] = refund.failure_transaction
    return _expanded(item, refund, expand) if expand else item


def _next_action(refund: Refund) -> Json:
    return {
        "type": "display_details",
        "display_details": {
            "email_sent": {
                "email_sent_at": refund.email_sent_at,
                "email_sent_to": refund.instructions_email,
            },
            "expires_at": refund.deadline,
        },
    }


def _charge(refund: Refund, expand: Expansion) -> Json:
    siblings = refund.siblings
    amount = sum(each.amount for each in siblings)
    refunded = sum(
        each.amount for each in siblings if each.status not in FAILURE_REASONS
    )
    item: Json = {
        "id": refund.charge_id,
        "object": "charge",
        "amount": amount,
        "amount_captured": amount,
        "amount_refunded": refunded,
        "balance_transaction": _charge_transaction(refund),
        "captured": True,
        "created": refund.created,
        "currency": refund.currency,
        "livemode": refund.partition.livemode,
        "metadata": {},
        "paid": True,
        "payment_intent": refund.payment_intent_id,
        "refunded": refunded == amount,
        "status": "succeeded",
    }
    return _expanded(item, refund, expand)


def _payment_intent(refund: Refund, expand: Expansion) -> Json:
    amount = sum(each.amount for each in refund.siblings)
    item: Json = {
        "id": refund.payment_intent_id,
        "object": "payment_intent",
        "amount": amount,
        "amount_received": amount,
        "created": refund.created,
        "currency": refund.currency,
        "latest_charge": refund.charge_id,
        "livemode": refund.partition.livemode,
        "metadata": {},
        "status": "succeeded",
    }
    return _expanded(item, refund, expand)


def _transaction(refund: Refund, name: str, expand: Expansion) -> Json:
    if name == _charge_transaction(refund):
        amount, kind = sum(each.amount for each in refund.siblings), "charge"
    elif name == refund.failure_transaction:
        # The money returns to the balance.
        amount, kind = refund.amount, "refund_failure"
    else:
        amount, kind = -refund.amount, "refund"
    item: Json = {
        "id": name,
        "object": "balance_transaction",
        "amount": amount,
        "created": refund.created,
        "currency": refund.currency,
        "fee": 0,
        "net": amount,
        "source": refund.charge_id if kind == "charge" else refund.id,
        "status": "available",
        "type": kind,
    }
    if kind != "charge":
        return _expanded(item, refund, expand)
    if "source" in expand:
        item["source"] = _charge(refund, {})
    return item


def _charge_transaction(refund: Refund) -> str:
    return f"txn_{refund.charge_id.partition('_')[2]}Charge"


_MAKERS: Mapping[str, Callable[[Refund, Expansion], Json]] = {
    "charge": _charge,
    "payment_intent": _payment_intent,
    "refund": refund_object,
}


def _expanded(item: Json, refund: Refund, expand: Expansion) -> Json:
    """Put objects in the place of ids; a field without a value stays as it is."""
    kinds = EXPANDABLE[str(item["object"])]
    for name, below in expand.items():
        object_id = item.get(name)
        if isinstance(object_id, str):
            kind = kinds[name]
            item[name] = (
                _transaction(refund, object_id, below)
                if kind == "balance_transaction"
                else _MAKERS[kind](refund, below)
            )
    return item
