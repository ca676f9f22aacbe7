from __future__ import annotations

import pytest

from async_refunds.emulator import Emulator
from tests.support.stripe_caller import Caller, serving
from tests.support.stripe_schema import Json, check_refund

NOW = 1_800_000_000.0
DAY = 24 * 3600


def ids(page: Json) -> list[str]:
    return [refund["id"] for refund in page["data"]]


async def listed(api: Caller, query: str = "") -> list[str]:
    answer = await api.get(f"?{query}" if query else "")
    assert answer.status == 200
    return ids(answer.json)


async def test_retrieved_refund_waits_for_the_customer_45_days() -> None:
    emulator = Emulator(clock=lambda: NOW)
    refund_id = emulator.add_refund(
        amount=1234, currency="brl", instructions_email="a@b.c", metadata={"order": "6"}
    )
    async with serving(emulator) as api:
        refund = (await api.get(f"/{refund_id}")).json
    assert refund["amount"] == 1234
    assert refund["currency"] == "brl"
    assert refund["destination_details"]["type"] == "br_bank_transfer"
    assert refund["metadata"] == {"order": "6"}
    assert refund["created"] == NOW
    assert refund["instructions_email"] == "a@b.c"
    assert refund["next_action"] == {
        "type": "display_details",
        "display_details": {
            "email_sent": {"email_sent_at": NOW, "email_sent_to": "a@b.c"},
            "expires_at": NOW + 45 * DAY,
        },
    }
    assert emulator.books.retrieve_requests == {refund_id: 1}


async def test_fields_without_a_value_are_left_out(api: Caller) -> None:
    refund_id = api.emulator.add_refund(
        status="succeeded", currency="chf", instructions_email=None
    )
    refund = (await api.get(f"/{refund_id}")).json
    assert not {
        "description",
        "failure_reason",
        "failure_balance_transaction",
        "instructions_email",
        "next_action",
        "presentment_details",
        "destination_details",
    } & set(refund)


async def test_expanded_objects_take_the_place_of_their_ids(api: Caller) -> None:
    refund_id = api.emulator.add_refund(amount=99, charge="ch_a", payment_intent="pi_a")
    plain = api.emulator.refund(refund_id)
    expanded = (
        await api.get(
            f"/{refund_id}?expand[]=charge&expand[]=payment_intent.latest_charge"
            "&expand[2]=balance_transaction.source&expand[]=transfer_reversal"
        )
    ).json
    assert (plain["charge"], plain["payment_intent"]) == ("ch_a", "pi_a")
    assert expanded["charge"]["object"] == "charge"
    assert expanded["charge"]["id"] == "ch_a"
    assert expanded["charge"]["amount"] == 99
    assert expanded["payment_intent"]["object"] == "payment_intent"
    assert expanded["payment_intent"]["latest_charge"]["id"] == "ch_a"
    assert expanded["balance_transaction"]["object"] == "balance_transaction"
    assert expanded["balance_transaction"]["id"] == plain["balance_transaction"]
    assert expanded["balance_transaction"]["amount"] == -99
    assert expanded["balance_transaction"]["source"]["id"] == refund_id
    assert expanded["transfer_reversal"] is None


async def test_cancel_expands_what_the_form_asks_for(api: Caller) -> None:
    refund_id = api.emulator.add_refund(amount=99)
    refund = (
        await api.cancel(
            refund_id,
            expand=[
                "failure_balance_transaction",
                "charge.balance_transaction.source",
                "charge.payment_intent",
                "payment_intent.latest_charge.balance_transaction",
            ],
        )
    ).json
    assert refund["failure_balance_transaction"]["type"] == "refund_failure"
    assert refund["failure_balance_transaction"]["amount"] == 99
    charge = refund["charge"]
    assert charge["refunded"] is False
    assert charge["payment_intent"]["object"] == "payment_intent"
    assert charge["balance_transaction"]["type"] == "charge"
    assert charge["balance_transaction"]["source"]["id"] == charge["id"]
    inner = refund["payment_intent"]["latest_charge"]["balance_transaction"]
    assert inner["source"] == charge["id"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/{id}?expand[]=bogus", "This property cannot be expanded (bogus)."),
        ("/{id}?expand[]=", "This property cannot be expanded ()."),
        ("/{id}?expand[]=data.charge", "cannot be expanded (data.charge)."),
        ("?expand[]=charge", "may want to try expanding 'data.charge' instead."),
        ("?expand[]=bogus", "This property cannot be expanded (bogus)."),
        ("?expand[]=data.bogus", "cannot be expanded (data.bogus)."),
        ("?expand[]=data", "cannot be expanded (data)."),
        (
            (
                "/{id}?expand[]=charge.payment_intent.latest_charge.payment_intent"
                ".latest_charge"
            ),
            "more than 4 levels",
        ),
    ],
)
async def test_what_cannot_be_expanded_is_400(
    path: str, message: str, api: Caller, refund_id: str
) -> None:
    answer = await api.get(path.format(id=refund_id))
    assert answer.status == 400
    assert message in answer.error["message"]


async def test_expand_that_is_no_list_is_400(api: Caller, refund_id: str) -> None:
    for query in ("expand=charge", "expand[a]=charge"):
        answer = await api.get(f"/{refund_id}?{query}")
        assert answer.status == 400
        assert answer.error["message"] == "Invalid array"
        assert answer.error["param"] == "expand"


async def test_unknown_parameter_is_named(api: Caller, refund_id: str) -> None:
    one = await api.get(f"/{refund_id}?limit=1")
    two = await api.get("?status=pending&limit=1&status=failed&created[eq]=5")
    posted = await api.cancel(refund_id, data="amount=5")
    in_url = await api.send("POST", f"/v1/refunds/{refund_id}/cancel?reason=x")
    for answer in (one, two, posted, in_url):
        assert answer.refusal == (400, "parameter_unknown")
    assert one.error["param"] == "limit"
    assert one.error["message"] == "Received unknown parameter: limit"
    assert two.error["param"] == "status"
    assert two.error["message"] == "Received unknown parameters: status, created[eq]"
    assert posted.error["param"] == "amount"
    assert in_url.error["param"] == "reason"
    assert api.emulator.refund(refund_id)["status"] == "requires_action"


async def test_list_is_newest_first_ten_at_a_time(api: Caller) -> None:
    seeded = api.emulator.seed_refunds(25)
    page = (await api.get("")).json
    assert ids(page) == seeded[:-11:-1]
    assert page["has_more"] is True
    assert page["url"] == "/v1/refunds"
    for limit in (25, 100):
        page = (await api.get(f"?limit={limit}")).json
        assert ids(page) == seeded[::-1]
        assert page["has_more"] is False
    assert api.emulator.books.requests["list"] == 3


async def test_order_is_by_time_whatever_was_added_first(api: Caller) -> None:
    names = {
        created: api.emulator.add_refund(created=created, charge="ch_1")
        for created in (30, 10, 20)
    }
    assert await listed(api) == [names[30], names[20], names[10]]
    assert await listed(api, "charge=ch_1") == [names[30], names[20], names[10]]


async def test_cursors_walk_over_every_refund_once(api: Caller) -> None:
    # Many in one second, so that the time alone does not tell them apart.
    everything = [api.emulator.add_refund(created=100 + n // 5) for n in range(23)][
        ::-1
    ]
    forth: list[str] = []
    query = "limit=4"
    while True:
        page = (await api.get(f"?{query}")).json
        forth += ids(page)
        if not page["has_more"]:
            break
        query = f"limit=4&starting_after={forth[-1]}"
    assert forth == everything
    back = [everything[-1]]
    more = True
    while more:
        page = (await api.get(f"?limit=4&ending_before={back[0]}")).json
        back = ids(page) + back
        more = page["has_more"]
    assert back == everything
    assert await listed(api, f"starting_after={everything[-1]}") == []


async def test_created_bounds_choose_the_seconds(api: Caller) -> None:
    first, second, third = (api.emulator.add_refund(created=n) for n in (100, 200, 300))
    expected = {
        "created=200": [second],
        "created=199": [],
        "created[gt]=100": [third, second],
        "created[gte]=100": [third, second, first],
        "created[lt]=300": [second, first],
        "created[lte]=300": [third, second, first],
        "created[gt]=100&created[lt]=300": [second],
        "created[gte]=300&created[lte]=100": [],
        f"created[lt]=300&starting_after={second}": [first],
        f"created[gt]=100&ending_before={second}": [third],
        f"created[gt]=200&starting_after={second}": [],
        f"created[lt]=200&ending_before={second}": [],
    }
    for query, found in expected.items():
        assert await listed(api, query) == found, query


async def test_charge_and_payment_intent_choose_their_refunds(api: Caller) -> None:
    emulator = api.emulator
    own = emulator.add_refund(created=1)
    other = emulator.add_refund(created=3, charge="ch_2", payment_intent="pi_2")
    charge = str(emulator.refund(own)["charge"])
    intent = str(emulator.refund(own)["payment_intent"])
    same = emulator.add_refund(created=2, charge=charge, payment_intent="pi_2")
    assert await listed(api, f"charge={charge}") == [same, own]
    assert await listed(api, f"payment_intent={intent}") == [own]
    assert await listed(api, "payment_intent=pi_2") == [other, same]
    both = f"charge={charge}&payment_intent=pi_2"
    assert await listed(api, both) == [same]
    assert await listed(api, f"charge={charge}&starting_after={same}") == [own]


async def test_charge_id_is_told_by_its_prefix(api: Caller) -> None:
    api.emulator.add_refund(refund_id="pyr_9")
    assert await listed(api, "charge=ch_9") == ["pyr_9"]
    for query in ("charge=pi_9", "payment_intent=ch_9", "charge=9"):
        assert (await api.get(f"?{query}")).status == 400


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        ("limit=0", "parameter_invalid_integer", "limit"),
        ("limit=101", "parameter_invalid_integer", "limit"),
        ("limit=ten", "parameter_invalid_integer", "limit"),
        ("limit=", "parameter_invalid_empty", "limit"),
        ("limit=" + "9" * 5000, "parameter_invalid_integer", "limit"),
        ("created=yesterday", "parameter_invalid_integer", "created"),
        ("created[gt]=1.5", "parameter_invalid_integer", "created[gt]"),
        ("starting_after=re_missing", "resource_missing", "starting_after"),
        ("ending_before=re_missing", "resource_missing", "ending_before"),
        ("charge=ch_missing", "resource_missing", "charge"),
        ("payment_intent=pi_missing", "resource_missing", "payment_intent"),
        ("charge=", "parameter_invalid_empty", "charge"),
    ],
)
async def test_bad_list_parameter_is_400_and_named(
    query: str, code: str, param: str, api: Caller
) -> None:
    answer = await api.get(f"?{query}")
    assert answer.status == 400
    assert answer.error["code"] == code
    assert answer.error["param"] == param


async def test_both_cursors_at_once_are_400(api: Caller, refund_id: str) -> None:
    answer = await api.get(f"?starting_after={refund_id}&ending_before={refund_id}")
    assert answer.status == 400


async def test_list_expands_below_data(api: Caller) -> None:
    api.emulator.seed_refunds(2)
    page = (await api.get("?expand[]=data.charge")).json
    assert [refund["charge"]["object"] for refund in page["data"]] == ["charge"] * 2


async def test_seeded_refunds_are_spread_over_time_and_currencies() -> None:
    emulator = Emulator(clock=lambda: NOW)
    seeded = [emulator.refund(name) for name in emulator.seed_refunds(500)]
    for refund in seeded:
        check_refund(refund)
    created: list[Json] = [refund["created"] for refund in seeded]
    assert created == sorted(created)
    assert created[0] >= NOW - 40 * DAY
    assert created[-1] <= NOW
    assert {refund["currency"] for refund in seeded} == {
        "brl",
        "eur",
        "gbp",
        "jpy",
        "thb",
        "usd",
    }
    assert {refund["status"] for refund in seeded} == {"requires_action"}
    assert len({refund["instructions_email"] for refund in seeded}) == 500


async def test_same_seed_makes_the_same_refunds() -> None:
    assert Emulator(seed=1).seed_refunds(3) == Emulator(seed=1).seed_refunds(3)
    assert Emulator(seed=1).seed_refunds(3) != Emulator(seed=2).seed_refunds(3)
