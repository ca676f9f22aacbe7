"""Whether an answer is one that Stripe's own description allows.

`openapi_core` holds it against ``stripe/refunds.openapi.json``; what a schema cannot
say is asserted beside it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from openapi_core import OpenAPI
from openapi_core.datatypes import RequestParameters
from openapi_core.templating.paths.exceptions import PathError

if TYPE_CHECKING:
    from collections.abc import Mapping

# Whatever JSON holds: the tests look into it freely.
Json: TypeAlias = Any

STRIPE = Path(__file__).parent / "stripe"
HOST = "https://api.stripe.com"
EXPIRE = "/v1/test_helpers/refunds/{refund}/expire"


def read_document() -> dict[str, Json]:
    """Return Stripe's description, with the test helper that it leaves out.

    What that takes and gives is what a cancel takes and gives:
    https://docs.stripe.com/api/refunds/expire
    """
    document: dict[str, Json] = json.loads(
        (STRIPE / "refunds.openapi.json").read_text()
    )
    helper = json.loads(json.dumps(document["paths"]["/v1/refunds/{refund}/cancel"]))
    helper["post"]["operationId"] = "PostTestHelpersRefundsRefundExpire"
    document["paths"][EXPIRE] = helper
    return document


def _translate(schema: dict[str, Json]) -> dict[str, Json]:
    """Turn ``nullable`` into what OpenAPI 3.1 has for it.

    In 3.0 it means nothing beside an ``anyOf``, where Stripe writes it all the same.
    """
    if schema.get("nullable") is not True:
        return schema
    plain = {name: item for name, item in schema.items() if name != "nullable"}
    return {"anyOf": [plain, {"type": "null"}]}


_DOCUMENT = json.loads(json.dumps(read_document()), object_hook=_translate)
_DOCUMENT["openapi"] = "3.1.0"
_OPENAPI = OpenAPI.from_dict(_DOCUMENT)
_OBJECT = json.loads((STRIPE / "refund.schema.json").read_text())["schemas"]
_ERROR_FIELDS = set(_OBJECT["api_errors"]["properties"])
_REFUND_FIELDS = set(_OBJECT["refund"]["properties"])


@dataclass
class _Request:
    path: str
    method: str
    host_url: str = HOST
    content_type: str = ""
    body: bytes = b""
    parameters: RequestParameters = field(default_factory=RequestParameters)


@dataclass
class _Response:
    status_code: int
    data: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


def _validate(method: str, path: str, status: int, body: bytes) -> None:
    _OPENAPI.validate_response(_Request(path, method.lower()), _Response(status, body))


def check_refund(item: Json) -> None:
    """Fail unless it is a refund, with no field that Stripe does not have."""
    _validate("GET", "/v1/refunds/re_1", 200, json.dumps(item).encode())
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


def check_answer(method: str, path: str, status: int, body: bytes) -> None:
    """Fail unless it is what Stripe describes as the answer to such a request.

    A path that is not described has an error for its answer, like those that are.
    """
    try:
        _validate(method, path, status, body)
    except PathError:
        assert status != 200
        _validate("GET", "/v1/refunds", status, body)
    item = json.loads(body)
    if status != 200:
        assert set(item) == {"error"}
        assert set(item["error"]) <= _ERROR_FIELDS
        assert item["error"]["message"]
    elif item["object"] == "list":
        for refund in item["data"]:
            check_refund(refund)
    else:
        check_refund(item)
