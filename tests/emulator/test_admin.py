"""The admin API under ``/_emulator/``."""

from __future__ import annotations

import pytest

from async_refunds.emulator import FAULTS, Emulator, Limits
from tests.support.stripe_caller import Caller, serving
from tests.support.stripe_schema import Json, check_refund

NOW = 1_800_000_000.0


async def call(
    api: Caller, method: str, path: str, data: str | None = None
) -> tuple[int, Json]:
    """Call the admin API, which needs no key."""
    answer = await api.send(
        method, f"/_emulator{path}", key=None, data=data or b"", checked=False
    )
    assert answer.headers["Content-Type"].startswith("application/json")
    return answer.status, answer.json


async def good(api: Caller, method: str, path: str, data: str | None = None) -> Json:
    status, answer = await call(api, method, path, data)
    assert status == 200, answer
    return answer


async def test_books_and_requests_show_what_happened() -> None:
    emulator = Emulator(clock=lambda: NOW)
    refund_id = emulator.add_refund()
    emulator.faults.script("503", "reset_before")
    async with serving(emulator) as api:
        await api.cancel(refund_id, "k")
        with pytest.raises(OSError, match=r"."):
            await api.cancel(refund_id, "k")
        await api.cancel(refund_id, "k")
        await api.cancel(refund_id, "k")
        books = await good(api, "GET", "/books")
        requests = await good(api, "GET", "/requests")
    assert books == {
        "cancellations": {refund_id: 1},
        "requests": {"cancel": 4},
        "cancel_requests": {refund_id: 4},
        "retrieve_requests": {},
        "replays": 1,
        "faults": {"503": 1, "reset_before": 1},
        "rate_limited": {},
    }
    assert [entry["fault"] for entry in requests] == ["503", "reset_before", None, None]
    assert [entry["status"] for entry in requests] == [503, None, 200, 200]
    assert requests[-1]["replayed"] is True
    assert requests[0]["idempotency_key"] == "k"
    assert requests[0]["received_at"] == NOW


async def test_admin_api_meets_no_fault_no_limit_and_no_log() -> None:
    emulator = Emulator(limits=Limits(global_rate=1), latency=1000)
    emulator.faults.storm(1, names=["503"])
    async with serving(emulator) as api:
        for _ in range(5):
            await good(api, "GET", "/books")
    assert not emulator.requests
    assert not emulator.books.requests
    assert not emulator.books.faults


async def test_faults_are_set_and_cleared() -> None:
    emulator = Emulator(seed=1)
    async with serving(emulator) as api:
        script = '{"names": ["reset_after", "ok"]}'
        shown = await good(api, "POST", "/faults/script", script)
        assert shown["script"] == ["reset_after", "ok"]
        assert shown["known"] == dict(FAULTS)
        storm = '{"probability": 0.3, "seed": 7}'
        shown = await good(api, "POST", "/faults/storm", storm)
        assert sum(shown["storm"].values()) == pytest.approx(0.3)
        named = '{"probability": 0.5, "names": ["424", "503"]}'
        shown = await good(api, "POST", "/faults/storm", named)
        assert shown["storm"] == {"424": 0.25, "503": 0.25}
        shown = await good(api, "POST", "/faults/load", '{"spec": "503=0.1"}')
        assert shown["storm"] == {"503": 0.1}
        assert await good(api, "GET", "/faults") == shown
        shown = await good(api, "POST", "/faults/clear")
        assert (shown["script"], shown["storm"]) == ([], {})
        await good(api, "POST", "/faults/script", '{"names": ["503"]}')
        assert (await api.get("")).status == 503
        assert (await api.get("")).status == 200


async def test_storm_over_http_is_the_same_as_in_python() -> None:
    called, served = Emulator(seed=1), Emulator(seed=2)
    called.faults.storm(0.3, seed=7)
    async with serving(served) as api:
        storm = '{"probability": 0.3, "seed": 7}'
        await good(api, "POST", "/faults/storm", storm)
    for _ in range(200):
        assert called.faults.draw() == served.faults.draw()


async def test_clock_is_advanced() -> None:
    emulator = Emulator(clock=lambda: NOW)
    refund_id = emulator.add_refund()
    async with serving(emulator) as api:
        assert await good(api, "GET", "/clock") == {"now": NOW}
        later = await good(api, "POST", "/clock", '{"advance": 3888000}')
        assert later == {"now": NOW + 3888000}
        assert (await api.get(f"/{refund_id}")).json["status"] == "failed"


async def test_refunds_are_added_and_shown(api: Caller) -> None:
    plain = await good(api, "POST", "/refunds")
    check_refund(plain)
    assert plain["status"] == "requires_action"
    given = await good(
        api,
        "POST",
        "/refunds",
        '{"refund_id": "re_1", "amount": 7, "currency": "thb", "charge": "ch_1",'
        ' "metadata": {"order": "6"}, "status": "pending"}',
    )
    assert given["id"] == "re_1"
    assert given["amount"] == 7
    assert given["metadata"] == {"order": "6"}
    assert await good(api, "GET", "/refunds/re_1") == given
    assert (await api.get("/re_1")).json == given
    seeded = await good(api, "POST", "/refunds/seed", '{"count": 4, "per_charge": 2}')
    assert len(seeded["ids"]) == 4
    charges = [api.emulator.refund(name)["charge"] for name in seeded["ids"]]
    assert charges[0] == charges[1] != charges[2]


async def test_steps_of_a_refund_happen(api: Caller, refund_id: str) -> None:
    statuses = [
        (await good(api, "POST", f"/refunds/{refund_id}/{step}"))["status"]
        for step in ("give_details", "succeed", "return_money", "expire")
    ]
    assert statuses == ["pending", "succeeded", "requires_action", "failed"]


async def test_timing_is_set_in_part(api: Caller) -> None:
    emulator = api.emulator
    shown = await good(api, "POST", "/timing", '{"latency": 0.5, "slow_seconds": 2.5}')
    assert shown == {
        "latency": 0.5,
        "lock_wait": 0.0,
        "slow_seconds": 2.5,
        "refuse_seconds": 0.05,
    }
    shown = await good(api, "POST", "/timing", '{"lock_wait": 1, "refuse_seconds": 3}')
    assert await good(api, "GET", "/timing") == shown
    assert (emulator.latency, emulator.lock_wait) == (0.5, 1)
    assert (emulator.faults.slow_seconds, emulator.faults.refuse_seconds) == (2.5, 3)


async def test_limits_are_set_and_lifted(api: Caller) -> None:
    assert await good(api, "GET", "/limits") is None
    assert await good(api, "POST", "/limits", '{"endpoint_rate": 1}') == {
        "global_rate": 100,
        "endpoint_rate": 1,
        "global_concurrency": None,
        "endpoint_concurrency": None,
    }
    statuses = {(await api.get("")).status for _ in range(2)}
    assert await good(api, "POST", "/limits") == {
        "global_rate": 100,
        "endpoint_rate": 25,
        "global_concurrency": None,
        "endpoint_concurrency": None,
    }
    assert await good(api, "POST", "/limits", "null") is None
    assert statuses == {200, 429}
    assert api.emulator.limits is None


async def test_accounts_and_keys_are_made_known(api: Caller) -> None:
    headers = {"Stripe-Account": "acct_1"}
    await good(api, "POST", "/accounts", '{"account": "acct_1"}')
    assert (await api.get("", headers=headers)).status == 200
    await good(api, "POST", "/keys/expire", '{"key": "sk_test_old"}')
    assert (await api.get("", key="sk_test_old")).status == 401
    await good(api, "POST", "/keys/restrict", '{"key": "rk_test_1", "allow": ["list"]}')
    assert (await api.get("", key="rk_test_1")).status == 200
    assert (await api.get("/re_1", key="rk_test_1")).status == 403


async def test_index_lists_every_operation(api: Caller, refund_id: str) -> None:
    endpoints = (await good(api, "GET", ""))["endpoints"]
    assert (await good(api, "GET", "/"))["endpoints"] == endpoints
    assert "POST /_emulator/refunds/{id}/return_money" in endpoints
    for endpoint in endpoints:
        method, path = endpoint.replace("{id}", refund_id).split(" ")
        below = path.removeprefix("/_emulator")
        # A list is what none of them takes.
        status, _ = await call(api, method, below, "[]")
        assert status in {200, 400}, endpoint


async def test_index_lists_the_fields_of_each_operation(api: Caller) -> None:
    endpoints = (await good(api, "GET", ""))["endpoints"]
    assert endpoints["GET /_emulator/books"] == {}
    assert endpoints["POST /_emulator/refunds/{id}/expire"] == {}
    assert endpoints["POST /_emulator/clock"] == {"advance": "number"}
    assert endpoints["POST /_emulator/faults/script"] == {"names": "array of string"}
    assert endpoints["POST /_emulator/limits"] == {
        "global_rate": "number | null = 100",
        "endpoint_rate": "number | null = 25",
        "global_concurrency": "integer | null = null",
        "endpoint_concurrency": "integer | null = null",
    }
    refunds = endpoints["POST /_emulator/refunds"]
    assert refunds["status"] == 'string = "requires_action"'
    assert refunds["metadata"] == "object | null = null"
    assert refunds["livemode"] == "boolean = false"


@pytest.mark.parametrize(
    ("path", "data", "named"),
    [
        ("/clock", '{"advance": -1}', ">= 0"),
        ("/clock", '{"advance": "1"}', "Expected `float`, got `str` - at `$.advance`"),
        ("/clock", "", "missing required field `advance`"),
        ("/clock", "{", "truncated"),
        ("/clock", "\xff", "malformed"),
        ("/faults/script", '{"names": ["bogus"]}', "no fault 'bogus'; there are: "),
        ("/faults/script", '{"name": ["503"]}', "unknown field `name`"),
        ("/faults/storm", '{"probability": 2}', "'2.0' is no probability"),
        ("/faults/storm", '{"probability": 1, "names": []}', "at least one fault"),
        ("/faults/load", '{"spec": "storm:x"}', "'x' is no probability"),
        ("/timing", '{"latency": -1}', ">= 0"),
        ("/limits", '{"endpoint_rate": 0}', "> 0"),
        ("/limits", '{"endpoint_concurrency": 0}', ">= 1"),
        ("/refunds", '{"refund_id": "re_1"}', "'re_1' already"),
        ("/refunds", '{"instructions_email": null}', "needs an instructions_email"),
        ("/refunds", '{"amount": "5"}', "Expected `int`"),
        ("/refunds/seed", '{"count": 1, "per_charge": 0}', "per_charge must be 1"),
        ("/refunds/seed", '{"count": -1}', ">= 0"),
        ("/refunds/seed", '{"count": 1000001}', "<= 1000000"),
        ("/refunds/re_1/succeed", "", "that is requires_action cannot succeed"),
        ("/keys/restrict", "{}", "missing required field `key`"),
    ],
)
async def test_bad_input_is_400_with_a_sentence(
    path: str, data: str, named: str, api: Caller
) -> None:
    api.emulator.add_refund(refund_id="re_1")
    status, answer = await call(api, "POST", path, data)
    assert status == 400
    assert named in answer["error"]
    assert set(answer) == {"error"}
    assert api.emulator.faults.scripted == []
    assert api.emulator.refund("re_1")["status"] == "requires_action"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/bogus"),
        ("DELETE", "/books"),
        ("POST", "/books"),
        ("GET", "/refunds/re_missing"),
        ("GET", "/refunds/re_1/succeed"),
        ("POST", "/refunds/re_1"),
        ("POST", "/refunds/re_1/explode"),
        ("POST", "/refunds/re_missing/succeed"),
    ],
)
async def test_unknown_path_or_refund_is_404_with_a_sentence(
    method: str, path: str, api: Caller
) -> None:
    api.emulator.add_refund(refund_id="re_1")
    status, answer = await call(api, method, path)
    assert status == 404
    assert answer["error"].startswith("there is no ")


async def test_body_too_large_for_any_request_is_400(api: Caller) -> None:
    status, answer = await call(api, "POST", "/refunds", " " * 70_000)
    assert status == 400
    assert "too large" in answer["error"]
