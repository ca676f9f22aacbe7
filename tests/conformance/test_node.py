"""Stripe's own Node client takes the emulator for Stripe.

At the end of each test its answers are checked against Stripe's description.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.official_cases import ERRORS, OFFICIAL_KEY, REQUESTS_BY_FAULT
from tests.support.on_tap import hanging, on_tap

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.support.on_tap import Stripe

VERSION = "23.1.0"
SCRIPT = Path(__file__).parents[1] / "support" / "official_node.mjs"

NODE, NPM = shutil.which("node"), shutil.which("npm")
pytestmark = pytest.mark.skipif(
    NODE is None or NPM is None, reason="the Node client needs node and npm"
)


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest) -> Path:
    """Return the folder of the client, which is kept from one run to the next."""
    cache = request.config.cache
    assert cache is not None
    found = cache.mkdir(f"stripe-node-{VERSION}")
    if not (found / "node_modules" / "stripe" / "package.json").exists():
        assert NPM is not None
        subprocess.run(  # noqa: S603 - npm, with a version of our own
            [
                NPM,
                "install",
                "--silent",
                "--no-audit",
                "--no-fund",
                f"stripe@{VERSION}",
            ],
            cwd=found,
            # No project around the folder may change the installation.
            env={**os.environ, "npm_config_prefix": str(found)},
            check=True,
            timeout=300,
        )
    return found


@pytest.fixture
def stripe() -> Generator[Stripe]:
    with on_tap() as made:
        yield made


class Node:
    """The client, in a process of its own."""

    def __init__(self, folder: Path, base_url: str) -> None:
        self._folder = folder
        self._base_url = base_url

    def calls(
        self, *calls: tuple[Any, ...], key: str = OFFICIAL_KEY, retries: int = 0
    ) -> list[dict[str, Any]]:
        """Make calls, each a name and its arguments; return their outcomes."""
        assert NODE is not None
        job = {
            "folder": str(self._folder),
            "baseUrl": self._base_url,
            "key": key,
            "retries": retries,
            "calls": calls,
        }
        ran = subprocess.run(  # noqa: S603 - our own script
            [NODE, str(SCRIPT)],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        found: list[dict[str, Any]] = json.loads(ran.stdout)
        return found


@pytest.fixture
def node(folder: Path, stripe: Stripe) -> Node:
    return Node(folder, stripe.base_url)


def test_refund_is_canceled_and_read(node: Node, stripe: Stripe) -> None:
    refund_id = stripe.emulator.add_refund(metadata={"order": "6735"})
    options = {"idempotencyKey": "k"}
    before, canceled, after = node.calls(
        ("retrieve", refund_id),
        ("cancel", refund_id, {}, options),
        ("retrieve", refund_id),
    )
    assert before["found"]["status"] == "requires_action"
    assert canceled["found"] == after["found"] == stripe.emulator.refund(refund_id)
    assert canceled["found"]["status"] == "canceled"
    assert canceled["headers"]["idempotency-key"] == "k"
    assert canceled["headers"]["request-id"].startswith("req_")
    assert stripe.emulator.books.cancellations == {refund_id: 1}


def test_list_is_paged_through_and_objects_are_expanded(
    node: Node, stripe: Stripe
) -> None:
    seeded = stripe.emulator.seed_refunds(25)
    everything, page, canceled = node.calls(
        ("everything", {"limit": 10}),
        ("list", {"limit": 2, "expand": ["data.charge"]}),
        ("cancel", seeded[0], {"expand": ["payment_intent"]}),
    )
    assert [refund["id"] for refund in everything["found"]] == seeded[::-1]
    assert page["found"]["data"][1]["charge"]["object"] == "charge"
    assert page["found"]["has_more"] is True
    assert canceled["found"]["payment_intent"]["object"] == "payment_intent"
    assert stripe.emulator.books.requests == {"list": 4, "cancel": 1}


def test_connected_account_has_its_own(node: Node, stripe: Stripe) -> None:
    refund_id = stripe.emulator.add_refund(account="acct_1")
    without, unknown, canceled = node.calls(
        ("cancel", refund_id),
        ("cancel", refund_id, {}, {"stripeAccount": "acct_2"}),
        ("cancel", refund_id, {}, {"stripeAccount": "acct_1"}),
    )
    assert without["code"] == "resource_missing"
    assert unknown["raised"] == "StripePermissionError"
    assert canceled["found"]["status"] == "canceled"
    assert canceled["headers"]["stripe-account"] == "acct_1"


def test_test_helper_expires(node: Node, stripe: Stripe) -> None:
    refund_id = stripe.emulator.add_refund()
    expired, again = node.calls(("expire", refund_id), ("expire", refund_id))
    assert expired["found"]["status"] == "failed"
    assert again["raised"] == "StripeInvalidRequestError"


@pytest.mark.parametrize("case", ERRORS)
def test_error_has_its_class_and_fields(case: str, node: Node, stripe: Stripe) -> None:
    expected = ERRORS[case]
    expected.prepare(stripe.emulator)
    (error,) = node.calls(expected.call)
    assert error["raised"] == expected.node
    fields = (error["status"], error["code"], error["param"])
    assert fields == (expected.status, expected.code, expected.param)
    assert error["requestId"].startswith("req_")
    assert error["message"]
    assert OFFICIAL_KEY not in json.dumps(error)


def test_wrong_key_is_an_authentication_error(node: Node) -> None:
    (error,) = node.calls(("retrieve", "re_1"), key="sk_prod_secret")
    assert (error["raised"], error["status"]) == ("StripeAuthenticationError", 401)


def test_replay_of_a_key_and_its_use_otherwise(node: Node, stripe: Stripe) -> None:
    refund_id, other = stripe.emulator.seed_refunds(2)
    options = {"idempotencyKey": "k"}
    first, again, params, path = node.calls(
        ("cancel", refund_id, {}, options),
        ("cancel", refund_id, {}, options),
        ("cancel", refund_id, {"expand": ["charge"]}, options),
        ("cancel", other, {}, options),
    )
    assert first["found"] == again["found"]
    assert "idempotent-replayed" not in first["headers"]
    assert again["headers"]["idempotent-replayed"] == "true"
    for error in (params, path):
        assert (error["raised"], error["status"]) == ("StripeIdempotencyError", 400)
    assert stripe.emulator.books.cancellations == {refund_id: 1}


@pytest.mark.parametrize("fault", ["reset_after", "reset_before"])
def test_lost_answer_is_retried(fault: str, node: Node, stripe: Stripe) -> None:
    refund_id = stripe.emulator.add_refund()
    stripe.emulator.faults.script(fault)
    (canceled,) = node.calls(("cancel", refund_id), retries=2)
    assert canceled["found"]["status"] == "canceled"
    replayed = "idempotent-replayed" in canceled["headers"]
    assert replayed == (fault == "reset_after")
    assert stripe.emulator.books.cancellations == {refund_id: 1}


@pytest.mark.parametrize(("fault", "requests"), REQUESTS_BY_FAULT.items())
def test_client_retries_where_stripe_lets_it(
    fault: str, requests: int, node: Node, stripe: Stripe
) -> None:
    refund_id = stripe.emulator.add_refund()
    stripe.emulator.faults.script(fault)
    (answer,) = node.calls(("cancel", refund_id), retries=2)
    assert ("found" in answer) == (requests == 2)
    assert len(stripe.emulator.requests) == requests


def test_key_in_flight_and_locked_charge_are_met(node: Node, stripe: Stripe) -> None:
    first, second = (stripe.emulator.add_refund(charge="ch_1") for _ in range(2))
    with hanging(stripe.emulator, first, "k"):
        in_use, locked = node.calls(
            ("cancel", first, {}, {"idempotencyKey": "k"}), ("cancel", second)
        )
    assert (in_use["status"], in_use["code"]) == (409, "idempotency_key_in_use")
    assert (locked["raised"], locked["code"]) == (
        "StripeRateLimitError",
        "lock_timeout",
    )
    assert locked["headers"]["stripe-should-retry"] == "true"
