"""Checks whether Stripe's own description allows an answer.

`openapi_core` validates it by ``stripe/refunds.openapi.json``; assertions add what a
schema cannot say.
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

# Any JSON: the tests look into it freely.
Json: TypeAlias = Any

STRIPE = Path(__file__).parent / "stripe"
HOST = "https://api.stripe.com"
EXPIRE = "/v1/test_helpers/refunds/{refund}/expire"


def read_document() -> dict[str, Json]:
    """Return Stripe's description, with the test helper that is missing there.

    Its parameters and answers are those of a cancel:
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
    """Replace ``nullable`` by its form in OpenAPI 3.1.

    Stripe writes it beside ``anyOf``, where it has no meaning in OpenAPI 3.0.
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
    """Fail unless it is a refund, and has only fields that Stripe has."""
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
    """Fail unless Stripe's description allows this answer to the request.

    For a path that is not described it allows an error only.
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
