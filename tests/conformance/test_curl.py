"""curl, as Stripe's own pages write it, takes the emulator for Stripe."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.on_tap import hanging, on_tap

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.support.on_tap import Stripe

CURL = shutil.which("curl")
pytestmark = pytest.mark.skipif(CURL is None, reason="there is no curl")


@pytest.fixture
def stripe() -> Generator[Stripe]:
    with on_tap() as made:
        yield made


def curl(
    stripe: Stripe, path: str, *arguments: str
) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Return the status, the headers and the body of the answer."""
    assert CURL is not None
    ran = subprocess.run(  # noqa: S603 - curl, to our own address
        [
            *(CURL, "--silent", "--show-error", "--include", "--globoff"),
            *("--noproxy", "*", "--max-time", "60"),
            f"{stripe.base_url}/v1/refunds{path}",
            *arguments,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    head, _, body = ran.stdout.partition("\n\n")
    first, *lines = head.splitlines()
    headers = {
        name.lower(): value
        for name, _, value in (line.partition(": ") for line in lines)
    }
    return int(first.split(" ")[1]), headers, json.loads(body)


KEY = ("-u", "sk_test_51Curl:")


def test_refund_is_canceled_as_the_pages_write_it(stripe: Stripe) -> None:
    refund_id = stripe.emulator.add_refund()
    status, headers, refund = curl(stripe, f"/{refund_id}/cancel", "-X", "POST", *KEY)
    assert status == 200
    assert refund == stripe.emulator.refund(refund_id)
    assert refund["status"] == "canceled"
    assert headers["content-type"] == "application/json"


def test_parameters_and_key_go_as_a_form(stripe: Stripe) -> None:
    refund_id = stripe.emulator.add_refund()
    form = (*KEY, "-H", "Idempotency-Key: k", "-d", "expand[]=charge")
    status, headers, refund = curl(stripe, f"/{refund_id}/cancel", *form)
    assert status == 200
    assert refund["charge"]["object"] == "charge"
    assert "idempotent-replayed" not in headers
    _, headers, again = curl(stripe, f"/{refund_id}/cancel", *form)
    assert headers["idempotent-replayed"] == "true"
    assert again == refund
    numbered = (*KEY, "-H", "Idempotency-Key: k", "-d", "expand[0]=charge")
    _, headers, _ = curl(stripe, f"/{refund_id}/cancel", *numbered)
    assert headers["idempotent-replayed"] == "true"
    other = (*KEY, "-H", "Idempotency-Key: k")
    status, _, error = curl(stripe, f"/{refund_id}/cancel", "-X", "POST", *other)
    assert (status, error["error"]["type"]) == (400, "idempotency_error")


def test_list_has_a_query(stripe: Stripe) -> None:
    seeded = stripe.emulator.seed_refunds(5)
    since = stripe.emulator.refund(seeded[3])["created"]
    query = ("-G", "-d", f"created[gte]={since}", "-d", "limit=3")
    status, _, page = curl(stripe, "", *KEY, *query)
    assert status == 200
    assert [refund["id"] for refund in page["data"]] == [seeded[4], seeded[3]]
    _, _, page = curl(stripe, "", *KEY, "-G", "-d", f"starting_after={seeded[3]}")
    assert [refund["id"] for refund in page["data"]] == seeded[2::-1]


def test_key_goes_as_a_bearer_for_a_connected_account(stripe: Stripe) -> None:
    refund_id = stripe.emulator.add_refund(account="acct_1")
    bearer = ("-H", "Authorization: Bearer sk_test_51Curl")
    account = ("-H", "Stripe-Account: acct_1")
    assert curl(stripe, f"/{refund_id}", *bearer)[0] == 404
    status, headers, _ = curl(stripe, f"/{refund_id}", *bearer, *account)
    assert (status, headers["stripe-account"]) == (200, "acct_1")


def test_errors_come_in_the_envelope(stripe: Stripe) -> None:
    refund_id = stripe.emulator.add_refund(status="succeeded")
    status, headers, error = curl(stripe, f"/{refund_id}")
    assert status == 401
    assert headers["www-authenticate"] == 'Basic realm="Stripe"'
    assert set(error) == {"error"}
    status, _, error = curl(stripe, f"/{refund_id}/cancel", "-X", "POST", *KEY)
    assert (status, error["error"]["type"]) == (400, "invalid_request_error")
    assert "code" not in error["error"]
    status, _, error = curl(stripe, "/re_missing", *KEY)
    assert (status, error["error"]["code"]) == (404, "resource_missing")
    as_json = ("-H", "Content-Type: application/json", "-d", '{"expand": []}')
    status, _, error = curl(stripe, f"/{refund_id}/cancel", *KEY, *as_json)
    assert status == 400
    assert "application/x-www-form-urlencoded" in error["error"]["message"]
    stripe.emulator.faults.script("503")
    status, _, error = curl(stripe, f"/{refund_id}", *KEY)
    assert (status, error["error"]["type"]) == (503, "api_error")
    with hanging(stripe.emulator, stripe.emulator.add_refund(charge="ch_1"), "k"):
        other = stripe.emulator.add_refund(charge="ch_1")
        path = f"/{other}/cancel"
        status, _, error = curl(stripe, path, "-X", "POST", *KEY)
        assert (status, error["error"]["code"]) == (429, "lock_timeout")


def test_lost_answer_is_retried(stripe: Stripe) -> None:
    refund_id = stripe.emulator.add_refund()
    stripe.emulator.faults.script("reset_after")
    again = ("--retry", "1", "--retry-delay", "0", "--retry-all-errors")
    key = (*KEY, "-X", "POST", "-H", "Idempotency-Key: k")
    status, headers, refund = curl(stripe, f"/{refund_id}/cancel", *key, *again)
    assert (status, refund["status"]) == (200, "canceled")
    assert headers["idempotent-replayed"] == "true"
    assert stripe.emulator.books.cancellations == {refund_id: 1}
