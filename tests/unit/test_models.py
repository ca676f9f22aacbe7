"""The refund as Stripe's schema has it, and the errors as their tree promises."""

from __future__ import annotations

import ast
import copy
import json
import pickle
import pydoc
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import msgspec
import pytest

import async_refunds
from async_refunds import (
    Attempt,
    DestinationDetails,
    DisplayDetails,
    EmailSent,
    LastResponse,
    NextAction,
    OutcomeUnknownError,
    PresentmentDetails,
    Refund,
    RefundNotCancelableError,
    RefundsError,
    errors,
    id_of,
)
from async_refunds.models import attach
from tests.support.scripted import CANCELED, RE, refund_json, scripted, seen

if TYPE_CHECKING:
    from collections.abc import Callable

STRIPE = Path(__file__).parents[1] / "support" / "stripe"
SCHEMAS: dict[str, Any] = json.loads((STRIPE / "refund.schema.json").read_text())[
    "schemas"
]
ATTEMPT = Attempt(
    number=1,
    method="POST",
    path="/",
    status=200,
    failure=None,
    request_id="req_1",
    seconds=0.1,
    slept=0.0,
)
LAST = LastResponse(
    status_code=200,
    request_id="req_1",
    idempotency_key="k",
    idempotent_replayed=False,
    attempts=(ATTEMPT,),
    body=b"{}",
)

STRUCTS: dict[str, type[msgspec.Struct]] = {
    "refund": Refund,
    "refund_next_action": NextAction,
    "refund_next_action_display_details": DisplayDetails,
    "email_sent": EmailSent,
    "payment_flows_payment_intent_presentment_details": PresentmentDetails,
    "refund_destination_details": DestinationDetails,
}
for _name, _part in SCHEMAS["refund_destination_details"]["properties"].items():
    if "$ref" in _part:
        _hint = get_type_hints(DestinationDetails)[_name]
        STRUCTS[_part["$ref"].split("/")[-1]] = get_args(_hint)[0]


def decode(body: bytes) -> Refund:
    return msgspec.json.decode(body, type=Refund)


@pytest.mark.parametrize("name", STRUCTS)
def test_struct_has_the_fields_of_stripes_schema(name: str) -> None:
    schema, struct = SCHEMAS[name], STRUCTS[name]
    assert set(struct.__struct_fields__) == set(schema["properties"])
    required = {
        field.encode_name for field in msgspec.structs.fields(struct) if field.required
    }
    assert required == set(schema.get("required", ()))


@pytest.mark.parametrize("name", STRUCTS)
def test_field_takes_what_the_schema_allows(name: str) -> None:
    samples: dict[str, Any] = {
        "integer": 7,
        "string": "later words of Stripe's",
        "boolean": True,
    }

    def sample(schema: dict[str, Any]) -> Any:  # noqa: ANN401 - any JSON
        if "$ref" in schema:
            target = SCHEMAS.get(schema["$ref"].split("/")[-1])
            return {"id": "x_1"} if target is None else sample(target)
        if "anyOf" in schema:
            return sample(schema["anyOf"][-1])
        if schema["type"] == "object":
            properties = schema.get("properties", {})
            return {key: sample(value) for key, value in properties.items()}
        return samples[schema["type"]]

    body = json.dumps(sample(SCHEMAS[name])).encode()
    decoded = msgspec.json.decode(body, type=STRUCTS[name])
    for key, value in msgspec.to_builtins(decoded).items():
        assert value == json.loads(body)[key]


def test_real_object_goes_through_without_loss() -> None:
    fixture = json.loads((STRIPE / "refund.fixture.json").read_text())
    refund = decode(json.dumps(fixture).encode())
    back = msgspec.to_builtins(refund)
    assert back == {key: value for key, value in fixture.items() if value is not None}


def test_what_stripe_adds_later_is_ignored_and_its_new_words_are_kept() -> None:
    refund = decode(refund_json("on_hold", novelty={"a": 1}, reason="whim"))
    assert (refund.status, refund.reason) == ("on_hold", "whim")


def test_expandable_field_gives_its_id_in_both_forms() -> None:
    refund = decode(refund_json(charge="ch_1", payment_intent={"id": "pi_1"}))
    assert (id_of(refund.charge), id_of(refund.payment_intent)) == ("ch_1", "pi_1")
    assert id_of(refund.balance_transaction) is None
    assert id_of({"id": 7}) is None


def test_refund_as_a_dict_is_the_object_that_stripe_sent() -> None:
    sent = refund_json("canceled", metadata={"a": "b"}, charge={"id": "ch_1"})
    refund = decode(sent)
    attach(refund, LAST)
    told = refund.to_dict()
    assert msgspec.convert(json.loads(json.dumps(told)), Refund) == refund
    assert told["charge"] == {"id": "ch_1"}
    assert "last_response" not in told
    assert "pending_reason" not in told, "it has no value"


def test_refund_is_frozen() -> None:
    with pytest.raises(AttributeError):
        decode(refund_json()).status = "succeeded"  # type: ignore[misc]  # the point


def test_last_response_is_beside_the_refund_and_no_part_of_it() -> None:
    refund, same = decode(refund_json()), decode(refund_json())
    attach(refund, LAST)
    assert refund == same
    assert repr(refund) == repr(same)
    assert msgspec.json.encode(refund) == msgspec.json.encode(same)
    with pytest.raises(AttributeError, match="not returned by a client"):
        _ = same.last_response


def pickled(value: object) -> object:
    return pickle.loads(pickle.dumps(value))  # noqa: S301 - bytes of our own


AGAIN: list[Callable[[Any], Any]] = [copy.copy, copy.deepcopy, pickled]


@pytest.mark.parametrize("again", AGAIN)
def test_copy_and_pickle_keep_the_last_response(again: Callable[[Any], Any]) -> None:
    refund = decode(refund_json(metadata={"a": "b"}))
    attach(refund, LAST)
    copied = again(refund)
    assert copied == refund
    assert copied.last_response == LAST


ERRORS = [
    found
    for found in vars(errors).values()
    if isinstance(found, type) and issubclass(found, RefundsError)
]


@pytest.mark.parametrize("cls", ERRORS)
@pytest.mark.parametrize("again", AGAIN)
def test_error_pickles_and_copies_with_all_it_has(
    cls: type[RefundsError], again: Callable[[Any], Any]
) -> None:
    details: dict[str, Any] = {"idempotency_key": "k", "attempts": (ATTEMPT,)}
    if issubclass(cls, errors.APIStatusError):
        details |= {"status_code": 400, "code": "c", "request_id": "req_1"}
    if cls in (OutcomeUnknownError, RefundNotCancelableError):
        details["refund"] = decode(refund_json())
    error = cls("what happened", **details)
    copied = again(error)
    assert type(copied) is cls
    assert str(copied) == str(error) == "what happened"
    assert copied.args == error.args
    assert vars(copied) == vars(error)
    assert {name: vars(error)[name] for name in details} == details


def through_json(error: RefundsError) -> BaseException:
    """Return an error as a job queue with a JSON result backend rebuilds it.

    Celery keeps the name, the module and the arguments (``prepare_exception`` and
    ``exception_to_python`` of its backends).
    """
    cls = type(error)
    kept = json.dumps([cls.__module__, cls.__name__, error.args])
    module, name, args = json.loads(kept)
    rebuilt: BaseException = getattr(sys.modules[module], name)(*args)
    return rebuilt


@pytest.mark.parametrize("cls", ERRORS)
def test_error_is_rebuilt_from_its_arguments(cls: type[RefundsError]) -> None:
    error = cls("what happened", idempotency_key="k")
    for rebuilt in (cls(*error.args), through_json(error)):
        assert type(rebuilt) is cls
        assert str(rebuilt) == "what happened"
        assert rebuilt.args == error.args
    for again in AGAIN:
        assert type(again(cls(*error.args))) is cls


async def test_text_of_an_unknown_outcome_has_the_key() -> None:
    waits = seen("requires_action")
    async with scripted("reset", reads=[waits]) as server, server.client() as refunds:
        with pytest.raises(OutcomeUnknownError) as caught:
            await refunds.cancel(RE, idempotency_key="order-7")
    # What RQ keeps of an error.
    told = "".join(traceback.format_exception(caught.value))
    assert "idempotency_key='order-7'" in told
    rebuilt = through_json(caught.value)
    assert "idempotency_key='order-7'" in str(rebuilt)


def test_tree_of_errors_is_the_one_drawn() -> None:
    drawn = (errors.__doc__ or "").split("From ``cancel``")[0].splitlines()[2:]
    names = {line.split()[0]: len(line) - len(line.lstrip()) for line in drawn if line}
    above: list[str] = []
    for name, depth in names.items():
        level = (depth - 4) // 2
        above[level:] = [name]
        if level:
            assert issubclass(getattr(errors, name), getattr(errors, above[level - 1]))
    assert set(names) == {cls.__name__ for cls in ERRORS}


def test_public_face_is_sorted_complete_and_there() -> None:
    names = async_refunds.__all__
    assert names == sorted(names)
    assert {cls.__name__ for cls in ERRORS} < set(names)
    assert {cls.__name__ for cls in STRUCTS.values()} < set(names)
    for name in names:
        assert getattr(async_refunds, name) is not None
    # What a type checker sees is what is there.
    tree = ast.parse(Path(async_refunds.__path__[0], "__init__.py").read_text())
    typed = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    assert typed == set(names)


def test_help_tells_of_all_of_it() -> None:
    told = pydoc.plain(pydoc.render_doc(async_refunds))
    for name in {*async_refunds.__all__} - {"__version__"}:  # told as a number
        assert name in told
    assert async_refunds.__version__ in told


async def test_error_and_result_compare_the_same_refund() -> None:
    async with scripted(CANCELED) as server, server.client() as refunds:
        refund = await refunds.cancel(RE)
    assert refund == decode(refund.last_response.body)
