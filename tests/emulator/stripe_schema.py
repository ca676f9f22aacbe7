"""Whether an answer is one that Stripe's own description allows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeAlias

import jsonschema  # type: ignore[import-untyped]  # it comes without types

# Whatever JSON holds: the tests look into it freely.
Json: TypeAlias = Any

STRIPE = Path(__file__).parent.parent / "stripe"


def _translate(schema: dict[str, Json]) -> dict[str, Json]:
    """Turn OpenAPI's ``nullable`` into what JSON Schema has for it."""
    if schema.get("nullable") is not True:
        return schema
    plain = {name: item for name, item in schema.items() if name != "nullable"}
    return {"anyOf": [plain, {"type": "null"}]}


_DOCUMENT = json.loads(
    (STRIPE / "refunds.openapi.json").read_text(), object_hook=_translate
)
_OBJECT = json.loads((STRIPE / "refund.schema.json").read_text())["schemas"]
_ERROR_FIELDS = set(_OBJECT["api_errors"]["properties"])
_REFUND_FIELDS = set(_OBJECT["refund"]["properties"])
_LIST = _DOCUMENT["paths"]["/v1/refunds"]["get"]["responses"]["200"]["content"][
    "application/json"
]["schema"]


def _validate(item: Json, schema: dict[str, Json]) -> None:
    jsonschema.validate(item, {**schema, "components": _DOCUMENT["components"]})


def check_refund(item: Json) -> None:
    """Fail unless it is a refund, with no field that Stripe does not have."""
    _validate(item, {"$ref": "#/components/schemas/refund"})
    assert set(item) <= _REFUND_FIELDS
    assert None not in [
        item.get(name, "")
        for name in (
            "description",
            "failure_reason",
            "instructions_email",
            "next_action",
            "presentment_details",
            "failure_balance_transaction",
        )
    ]


def check_answer(item: Json, status: int) -> None:
    """Fail unless it is a refund, a list of refunds or an error."""
    if status != 200:
        _validate(item, {"$ref": "#/components/schemas/error"})
        assert set(item) == {"error"}
        assert set(item["error"]) <= _ERROR_FIELDS
        assert item["error"]["message"]
    elif item["object"] == "list":
        _validate(item, _LIST)
        for refund in item["data"]:
            check_refund(refund)
    else:
        check_refund(item)
