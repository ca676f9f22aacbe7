"""Requests that Stripe's description allows or forbids get only answers it allows."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from async_refunds.emulator import Emulator
from tests.support.stripe_schema import EXPIRE, Json, check_answer, read_document

if TYPE_CHECKING:
    from collections.abc import Generator

pytestmark = pytest.mark.unmeasured

EXAMPLES = 40
OPERATIONS = (
    ("GET", "/v1/refunds"),
    ("GET", "/v1/refunds/{refund}"),
    ("POST", "/v1/refunds/{refund}/cancel"),
    ("POST", EXPIRE),
)
NAMES = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
REFUNDS = [f"re_{number}" for number in range(4)]


@dataclass
class Schemathesis:
    """What is used of it. Type checkers do not know all its types: some are optional.

    Args:
        modes: How requests are made.
        schema: Stripe's description.
        checks: Of an answer.
    """

    modes: Any
    schema: Any
    checks: Any


@pytest.fixture(scope="module")
def described() -> Schemathesis:
    """The package, which every process would import for a second if it stood above."""
    package, checks = map(import_module, ("schemathesis", "schemathesis.checks"))
    checks.load_all_checks()
    return Schemathesis(
        package.GenerationMode,
        package.openapi.from_dict(read_document()),
        checks.CHECKS.get_by_names(NAMES),
    )


@pytest.fixture(scope="module")
def emulator() -> Generator[Emulator]:
    emulator = Emulator()
    for refund_id in REFUNDS:
        emulator.add_refund(refund_id=refund_id)
    with emulator.serve_in_thread():
        yield emulator


@pytest.fixture(scope="module")
def session() -> Generator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=" ".join)
def test_any_request_has_an_answer_that_stripe_describes(
    operation: tuple[str, str],
    mode: str,
    described: Schemathesis,
    emulator: Emulator,
    session: requests.Session,
) -> None:
    method, path = operation
    assert {each.name for each in described.modes} == {"POSITIVE", "NEGATIVE"}
    operations = described.schema[path]
    cases = operations[method].as_strategy(generation_mode=described.modes[mode])
    statuses: set[int] = set()

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[
            HealthCheck.filter_too_much,
            HealthCheck.large_base_example,
            HealthCheck.too_slow,
        ],
    )
    @given(cases, st.none() | st.sampled_from(REFUNDS))
    def run(case: Json, refund_id: str | None) -> None:
        if refund_id is not None and "{refund}" in path:
            # A generated id never names a refund that exists.
            case.path_parameters = {"refund": refund_id}
            emulator.set_status(refund_id, "requires_action")
        answer = case.call(
            base_url=emulator.base_url,
            session=session,
            headers={"Authorization": "Bearer sk_test_1"},
        )
        statuses.add(answer.status_code)
        case.validate_response(answer, checks=described.checks)
        check_answer(method, case.formatted_path, answer.status_code, answer.content)

    run()
    assert 400 in statuses
    if mode == "POSITIVE":
        assert 200 in statuses
