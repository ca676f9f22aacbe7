"""``/_emulator/ui`` as a person sees it, and as another page would like to."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiohttp import web
from playwright.async_api import expect

from async_refunds.emulator import Emulator
from tests.support.browser import REBOUND, needs_browser
from tests.support.stripe_caller import TEST_KEY, Caller

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from playwright.async_api import Browser, Request, Route

pytestmark = [
    needs_browser,
    pytest.mark.asyncio(loop_scope="module", loop_factories=["real"]),
]


def asks_for(path: str) -> Callable[[Request], bool]:
    return lambda request: request.method == "GET" and request.url.endswith(path)


MARKUP = "<img src=x onerror=alert(1)>"


async def test_page_shows_what_happens_and_drives_it(browser: Browser) -> None:
    emulator = Emulator(clock=lambda: 1_800_000_000.0)
    refund_id = emulator.add_refund(amount=700, currency="jpy")
    page = await browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    async with emulator.serve() as base_url, aiohttp.ClientSession() as session:
        await page.goto(f"{base_url}/_emulator/ui")
        await expect(page.locator("#now")).to_have_text("2027-01-15 08:00:00 UTC")
        refunds = page.locator("#refunds tbody tr")
        await expect(refunds).to_have_text([re.compile(rf"{refund_id}requires_action")])

        # It follows what others do.
        api = Caller(session, base_url, emulator)
        emulator.faults.script("503")
        await api.cancel(refund_id, MARKUP)
        await api.cancel(refund_id, MARKUP)
        await api.cancel(refund_id, MARKUP)
        await api.get(f"/{TEST_KEY}")
        requests = page.locator("#requests tbody tr")
        await expect(requests).to_have_count(4)
        replay, _, failed = [
            await requests.nth(place).locator("td").all_inner_texts()
            for place in (1, 2, 3)
        ]
        assert replay[1:4] == [
            "POST",
            f"/v1/refunds/{refund_id}/cancel",
            "200 replayed",
        ]
        assert re.fullmatch(r"\d+\.\d", replay[4])
        assert (failed[3], failed[5], failed[6]) == ("503", "503", MARKUP)
        await expect(refunds).to_have_text([re.compile(rf"{refund_id}canceled700jpy")])
        books = page.locator("#books tbody tr")
        await expect(books.nth(0)).to_have_text("refunds canceled1")
        await expect(books.nth(1)).to_have_text("of them more than once0")

        # And others follow what it does.
        await page.get_by_role("button", name="Add one").click()
        await expect(refunds).to_have_count(2)
        await page.get_by_role("button", name="give_details").click()
        await page.get_by_role("button", name="succeed").click()
        await expect(refunds.nth(0)).to_contain_text("succeeded")
        await page.get_by_role("button", name="+ 1 day").click()
        await expect(page.locator("#now")).to_have_text("2027-01-16 08:00:00 UTC")
        await page.get_by_label("Faults").fill("503=0.5")
        await page.get_by_role("button", name="Set").click()
        await expect(page.locator("#faults")).to_have_text("storm: 503 0.5")
        assert emulator.faults.storming == {"503": 0.5}
        await page.get_by_role("button", name="Clear").click()
        await expect(page.locator("#faults")).to_have_text("none")
        assert said == []
        assert TEST_KEY not in await page.content()
        assert not await page.locator("img").count()
        assert emulator.books.requests == {"cancel": 3, "retrieve": 1}
    await expect(page.get_by_role("alert")).to_contain_text("No answer")
    await page.close()


async def test_what_went_wrong_is_shown_until_something_else_is_done(
    browser: Browser,
) -> None:
    page = await browser.new_page()
    alert = page.get_by_role("alert")
    async with Emulator().serve() as base_url:
        await page.goto(f"{base_url}/_emulator/ui")
        await page.get_by_label("Faults").fill("bogus=1")
        await page.get_by_role("button", name="Set").click()
        await expect(alert).to_contain_text("no fault 'bogus'")
        for _ in range(2):  # however often the page has asked since
            await page.wait_for_event("requestfinished", asks_for("/books"))
        await expect(alert).to_contain_text("no fault 'bogus'")
        await page.get_by_role("button", name="Clear").click()
        await expect(alert).to_be_empty()
    await page.close()


async def test_older_answer_is_not_shown_over_a_newer_one(browser: Browser) -> None:
    emulator = Emulator()
    held = asyncio.Event()
    page = await browser.new_page()
    released = asyncio.Event()

    async def hold_first(route: Route) -> None:
        older = await route.fetch()
        held.set()
        await released.wait()
        await route.fulfill(response=older)

    async with emulator.serve() as base_url:
        await page.route("**/_emulator/refunds", hold_first, times=1)
        await page.goto(f"{base_url}/_emulator/ui")
        await held.wait()
        await page.get_by_role("button", name="Add one").click()
        refunds = page.locator("#refunds tbody tr")
        await expect(refunds).to_have_count(1)
        async with page.expect_event("requestfinished", asks_for("/refunds")):
            released.set()
        await page.evaluate("new Promise(requestAnimationFrame)")
        assert await refunds.count() == 1
    await page.close()


@asynccontextmanager
async def serving_a_shop() -> AsyncGenerator[int]:
    """Serve another page, and give its port."""

    async def greet(_request: web.Request) -> web.Response:
        return web.Response(text="<title>shop</title>", content_type="text/html")

    shop = web.Application()
    shop.router.add_get("/", greet)
    runner = web.AppRunner(shop)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


# What a page can try without asking the other side first.
ATTACK = """async (url) => {
    const tried = [];
    const post = { method: "POST", mode: "no-cors" };
    for (const path of ["/refunds", "/clock", "/faults/load"]) {
        const body = path === "/clock" ? '{"advance": 9}' : '{"spec": "storm:1"}';
        const sent = fetch(url + path, { ...post, body });
        tried.push(await sent.then((r) => r.type, String));
    }
    tried.push(await fetch(`${url}/requests`).then((r) => r.json(), String));
    const image = (src) => new Promise((done) => Object.assign(new Image(), {
        src, onload: () => done("shown"), onerror: () => done("refused") }));
    tried.push(await image(`${url}/books`));
    for (const [tag, target] of [["iframe", "src"], ["form", "action"]]) {
        const made = document.createElement(tag);
        made[target] = `${url}/ui`;
        if (tag === "form") Object.assign(made, { method: "post", target: "into" });
        else made.name = "into";
        document.body.append(made);
        if (tag === "iframe") await new Promise((done) => { made.onload = done; });
        if (tag === "form") {
            made.action = `${url}/refunds`;
            made.submit();
            await new Promise((done) => { frames.into && setTimeout(done, 0); });
        }
    }
    return tried;
}"""


async def test_another_page_neither_reads_nor_drives(browser: Browser) -> None:
    emulator = Emulator()
    statuses: dict[str, set[int]] = {}
    async with emulator.serve() as base_url, serving_a_shop() as port:
        before = emulator.clock.time()
        for host in ("127.0.0.1", "localhost", REBOUND):
            page = await browser.new_page()
            page.on(
                "response",
                lambda response: statuses.setdefault(
                    response.url.removeprefix(base_url), set()
                ).add(response.status),
            )
            await page.goto(f"http://{host}:{port}/")
            async with page.expect_response(f"{base_url}/_emulator/refunds"):
                tried = await page.evaluate(ATTACK, f"{base_url}/_emulator")
            assert tried == ["TypeError: Failed to fetch"] * 4 + ["refused"]
            await page.close()
        # A name of the attacker's that leads to the emulator itself.
        page = await browser.new_page()
        rebound = base_url.replace("127.0.0.1", REBOUND)
        answer = await page.goto(f"{rebound}/_emulator/ui")
        assert answer is not None
        assert answer.status == 403
        own = "async (path) => (await fetch(path)).status"
        assert await page.evaluate(own, "/_emulator/requests") == 403
        await page.close()
        assert emulator.clock.time() - before < 9
    attacked = {
        path: seen for path, seen in statuses.items() if path.startswith("/_emulator")
    }
    assert set(attacked) == {"/_emulator/refunds", "/_emulator/ui"}
    assert all(seen == {403} for seen in attacked.values())
    assert emulator.latest_refunds() == []
    assert emulator.faults.storming == {}
