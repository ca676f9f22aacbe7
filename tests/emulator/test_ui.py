"""``/_emulator/ui``, and who may use the admin API from a browser."""

from __future__ import annotations

import pytest

from async_refunds.emulator import Emulator
from tests.support.stripe_caller import TEST_KEY, Caller, serving


async def status_of(
    api: Caller, headers: dict[str, str], path: str = "/books", method: str = "GET"
) -> int:
    """Send a request as a browser would; ``{host}`` is where the emulator is."""
    host = api.base_url.removeprefix("http://")
    sent = {name: value.format(host=host) for name, value in headers.items()}
    answer = await api.send(
        method, f"/_emulator{path}", key=None, headers=sent, checked=False
    )
    return answer.status


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Host": "localhost:12111"},
        {"Host": "stripe:12111"},  # a service of a compose file
        {"Host": "stripe.shop.internal"},
        {"Host": "192.168.0.7:12111"},
        {"Host": "[::1]:12111"},
        {"Host": "[fe80::1]"},
        {"Host": ""},
        {"Origin": "http://{host}"},
        {"Origin": "http://{host}", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},  # typed into the address bar
    ],
)
async def test_admin_api_is_for_programs_and_its_own_page(
    headers: dict[str, str], api: Caller
) -> None:
    assert await status_of(api, headers) == 200
    assert await status_of(api, headers, "/refunds", "POST") == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example:12111"},
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "evil.localhost.example"},
        {"Host": "127.0.0.1@evil.example"},
        {"Host": "evil.example", "Origin": "http://evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "https://{host}"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "null"},  # a file, a sandboxed frame, a redirect
        {"Origin": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},  # another port of this machine
        {"Sec-Fetch-Site": "anything"},
    ],
)
async def test_other_pages_of_a_browser_neither_read_nor_drive(
    headers: dict[str, str], api: Caller
) -> None:
    for method, path in (
        ("GET", ""),
        ("GET", "/"),
        ("GET", "/ui"),
        ("GET", "/ui.js"),
        ("GET", "/requests"),
        ("POST", "/refunds"),
        ("POST", "/faults/clear"),
        ("OPTIONS", "/refunds"),
        ("POST", "/no_such"),
    ):
        assert await status_of(api, headers, path, method) == 403
    assert api.emulator.latest_refunds() == []


async def test_page_is_for_the_machine_itself(api: Caller) -> None:
    assert await status_of(api, {}, "/ui") == 200
    for host in ("localhost", "LOCALHOST:12111", "127.8.0.1:1", "[::1]:1"):
        assert await status_of(api, {"Host": host}, "/ui") == 200
    for host in ("192.168.0.7", "stripe", "10.0.0.1:12111", ""):
        assert await status_of(api, {"Host": host}, "/ui") == 403
        assert await status_of(api, {"Host": host}, "/books") == 200


async def test_page_is_three_files_that_no_other_page_can_show(api: Caller) -> None:
    types = {"ui": "text/html", "ui.css": "text/css", "ui.js": "text/javascript"}
    for name, kind in types.items():
        answer = await api.send("GET", f"/_emulator/{name}", key=None, checked=False)
        assert answer.headers["Content-Type"] == f"{kind}; charset=utf-8"
        policy = answer.headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert await status_of(api, {}, "/ui", "POST") == 404
    assert await status_of(api, {}, "/ui.html") == 404
    # None of it is a request to Stripe.
    assert not api.emulator.requests


async def test_key_that_a_client_misplaces_is_shown_nowhere() -> None:
    emulator = Emulator()
    async with serving(emulator) as api:
        await api.get(f"/{TEST_KEY}")
        await api.get(f"?charge={TEST_KEY}")
        await api.cancel("re_1", TEST_KEY)
        answer = await api.send("GET", "/_emulator/requests", key=None, checked=False)
    assert TEST_KEY not in answer.body.decode()
    assert [each["path"] for each in answer.json] == [
        "/v1/refunds/sk_test_***",
        "/v1/refunds",
        "/v1/refunds/re_1/cancel",
    ]
    assert TEST_KEY not in "".join(each.line() for each in emulator.requests)


async def test_latest_refunds_are_those_that_changed_and_then_the_newest() -> None:
    now = 1_800_000_000.0
    emulator = Emulator(clock=lambda: now)
    ids = [emulator.add_refund() for _ in range(150)]
    due = emulator.add_refund(expires_at=int(now) + 10, account="acct_1")
    emulator.set_status(ids[3], "pending")
    emulator.give_details(ids[1])
    found = emulator.latest_refunds()
    assert [each["id"] for each in found] == [ids[1], ids[3], due, *ids[:52:-1]]
    assert len(found) == 100
    emulator.clock.advance(11)
    first, *_ = emulator.latest_refunds()
    assert (first["id"], first["status"]) == (due, "failed")
    for each in reversed(ids[:120]):
        emulator.set_status(each, "failed")
    assert [each["id"] for each in emulator.latest_refunds()] == ids[:100]
