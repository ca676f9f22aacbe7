"""``report --html`` as a person sees it."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from async_refunds.cli.report_data import RunReport
from async_refunds.cli.report_html import html_page
from async_refunds.cli.summary import resume_command
from async_refunds.journal import JournalReader
from tests.support.answering import answering
from tests.support.browser import needs_browser
from tests.support.journals import journal_with, refund
from tests.support.scripted import ECHO, answer, error_json, refund_json
from tests.support.terminal import CANARY, TEST_KEY, run

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from pathlib import Path

    from playwright.async_api import Browser, Page

    from async_refunds.models import Refund
    from async_refunds.results import CancelOutcome

    Results = Sequence[tuple[CancelOutcome, Refund | None, str]]

pytestmark = [
    needs_browser,
    pytest.mark.asyncio(loop_scope="module", loop_factories=["real"]),
]

RESULTS: Results = (
    ("canceled", refund(0, 105_600, "eur"), ""),
    ("canceled", refund(1, 99, "eur"), ""),
    ("not_cancelable", refund(2, 700, "jpy", "succeeded"), "it is succeeded"),
    ("unknown", None, "the answer was lost"),
    ("canceled", refund(4, 2**62, "bhd"), ""),
)
MARKUP = '<img src=x onerror="window.alive=1"></script><script>window.alive=1</script>'
FORMULA = '=HYPERLINK("https://evil.example","x")'
EMAIL = "jenny.rosen@canary.example"


@asynccontextmanager
async def opened(
    browser: Browser,
    path: Path,
    **context: Any,  # noqa: ANN401 - the options of a context
) -> AsyncGenerator[Page]:
    """Open a page in which nothing may fail."""
    page = await browser.new_page(**context)
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda message: said.append(message.text))
    await page.goto(path.as_uri())
    yield page
    await page.close()
    assert said == []


async def written(folder: Path, results: Results, **how: Any) -> Path:  # noqa: ANN401 - those of `journal_with`
    """Write the page of a run with these results."""
    journal, path = folder / "run.sqlite3", folder / "run.html"
    await journal_with(journal, *results, **how)
    reader = JournalReader(journal)
    resume = resume_command(journal.name, reader.run)
    report = RunReport(journal.name, reader, resume=resume)
    path.write_text("".join(html_page(report, reader.records())))
    return path


async def shown(page: Page) -> list[str]:
    """Return the refunds in the table."""
    return await page.locator("#all tbody td.id:first-child").all_inner_texts()


async def test_page_loads_nothing_and_shows_what_needs_attention_first(
    browser: Browser, tmp_path: Path
) -> None:
    path = await written(tmp_path, RESULTS)
    page = await browser.new_page()
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    await page.goto(path.as_uri())
    assert requests == [path.as_uri()]
    titles = await page.locator("h2").all_inner_texts()
    assert titles[:2] == ["Needs attention", "What came back"]
    groups = await page.locator(".group h3").all_inner_texts()
    assert groups == ["1 unknown", "1 not_cancelable", "1 open"]
    first = page.locator(".group").first
    assert await first.locator("code").inner_text() == (
        "async-refunds resume run.sqlite3"
    )
    sums = await page.locator(".sums div").all_inner_texts()
    assert [each.split("\n")[0] for each in sums] == [
        *("BHD, 1 refund", "EUR, 2 refunds"),
    ]
    assert "1,056.99" in sums[1]
    await first.get_by_role("button").click()
    assert await shown(page) == ["re_3"]


async def test_table_is_searched_sorted_and_summed(
    browser: Browser, tmp_path: Path
) -> None:
    async with opened(browser, await written(tmp_path, RESULTS)) as page:
        where, sums = page.locator("#where"), page.locator("#sums")
        assert await shown(page) == [f"re_{n}" for n in range(6)]
        assert await where.inner_text() == "1 to 6 of 6"
        search = page.get_by_role("searchbox")
        await search.fill("LOST re_")
        assert await shown(page) == ["re_3"]
        await search.fill("2026-01-02 03:04 eur")
        assert await shown(page) == ["re_0", "re_1"]
        assert "EUR 1,056.99" in await sums.inner_text()
        await search.fill("bhd")
        # Beyond the whole numbers of a browser, and with three decimals.
        assert "BHD 4,611,686,018,427,387.904" in await sums.inner_text()
        await search.fill("nothing")
        assert (await shown(page), await where.inner_text()) == ([], "none")
        await search.fill("")
        assert await sums.inner_text() == ""
        await page.get_by_label("Outcome").select_option("attention")
        assert await shown(page) == ["re_2", "re_3", "re_5"]
        await page.get_by_label("Outcome").select_option("")
        head = page.locator("#all th", has_text="Amount")
        await head.get_by_role("button").press("Enter")
        assert await head.get_attribute("aria-sort") == "ascending"
        assert await shown(page) == ["re_3", "re_5", "re_1", "re_2", "re_0", "re_4"]
        await head.get_by_role("button").press("Enter")
        assert await head.get_attribute("aria-sort") == "descending"
        assert await shown(page) == ["re_4", "re_0", "re_2", "re_1", "re_3", "re_5"]
        await page.locator("#all th", has_text="Refund").get_by_role("button").click()
        assert await shown(page) == [f"re_{n}" for n in range(6)]
        assert await head.get_attribute("aria-sort") == "none"


async def test_long_table_has_pages_and_paper_gets_what_fits(
    browser: Browser, tmp_path: Path
) -> None:
    async with opened(
        browser, await written(tmp_path, RESULTS, never_sent=3001)
    ) as page:
        back, following = (page.get_by_role("button", name=n) for n in ("Back", "Next"))
        assert await back.is_disabled()
        await following.click()
        assert (await shown(page))[0] == "re_100"
        assert await page.locator("#where").inner_text() == "101 to 200 of 3,006"
        await back.click()
        assert (await shown(page))[0] == "re_0"
        counts = """() => {
            addEventListener("beforeprint", () => window.printed = [
                document.querySelectorAll("#all tbody tr").length,
                document.getElementById("paper").textContent,
            ]);
        }"""
        await page.evaluate(counts)
        pages: list[int] = []
        for searched, on_paper, note in (
            ("", 100, "The first 100 only: --csv has all of them."),
            ("re_1", 1111, ""),
        ):
            await page.get_by_role("searchbox").fill(searched)
            pdf = await page.pdf()
            assert await page.evaluate("printed") == [on_paper, note]
            assert len(await shown(page)) == 100
            pages.append(len(re.findall(rb"/Type /Page\b", pdf)))
        assert pages[0] < pages[1]


async def test_looks_right_on_each_screen_and_on_paper(
    browser: Browser, tmp_path: Path
) -> None:
    word = "w" * 400
    account = "acct_1Nispe2eZvKYlo2C"
    odd = msgspec.structs.replace(refund(5, 1, "eur"), created=-(2**62))
    results: Results = [*RESULTS, ("failed", odd, f"{word} {word}")]
    path = await written(tmp_path, results, account=account)
    backgrounds: set[str] = set()
    for width in (400, 800, 1400):
        for scheme in ("light", "dark"):
            async with opened(
                browser,
                path,
                viewport={"width": width, "height": 900},
                color_scheme=scheme,
            ) as page:
                # Nothing is wider than the screen.
                assert (
                    await page.evaluate("document.documentElement.scrollWidth") == width
                )
                assert await page.evaluate(FAINT) == []
                # A time that no calendar has.
                assert await page.get_by_text("-46116860184273").count() == 1
                backgrounds.add(await page.evaluate(BACKGROUND))
                if (width, scheme) == (400, "dark"):
                    await page.emulate_media(media="print")
                    assert await page.evaluate(BACKGROUND) == "rgb(255, 255, 255)"
                    assert await page.evaluate(FAINT) == []
                    assert not await page.get_by_role("searchbox").is_visible()
                    assert await page.locator("#all thead").is_visible()
    assert len(backgrounds) == 2


async def test_summary_is_read_without_javascript(
    browser: Browser, tmp_path: Path
) -> None:
    path = await written(tmp_path, RESULTS)
    async with opened(browser, path, java_script_enabled=False) as page:
        text = await page.locator("body").inner_text()
        assert "1,056.99" in text
        assert "This table needs JavaScript." in text


async def test_what_strangers_wrote_stays_text_and_tells_nobody(
    browser: Browser, tmp_path: Path
) -> None:
    """From the server to the browser, by the commands that people type."""
    name = "<b>run<b>.sqlite3"

    def respond(_method: str, refund_id: str) -> bytes:
        headers = {"Request-Id": "req_1", "Idempotency-Key": ECHO}
        if refund_id == "re_lost":
            text = f"{MARKUP} {FORMULA} of {EMAIL} with {TEST_KEY}"
            return answer(404, error_json(message=text), headers)
        odd = {"failure_balance_transaction": MARKUP, "charge": FORMULA}
        body = refund_json(id=refund_id, currency="<i>", payment_intent=EMAIL, **odd)
        return answer(200, body, headers)

    async with answering(respond) as base_url:
        command = ("cancel", "re_lost", "re_1", "--journal", name)
        await run(*command, "--base-url", base_url, folder=tmp_path)
    await run("report", name, "--html", "run.html", key=None, folder=tmp_path)
    path = tmp_path / "run.html"
    assert not [each for each in (CANARY, EMAIL) if each in path.read_text()]
    async with opened(browser, path) as page:
        text = await page.locator("body").inner_text()
        for said in (f"Refunds of {name}", MARKUP, FORMULA, "<I>", "[e-mail]"):
            assert said in text
        assert not await page.locator("img, i, b").count()
        assert await page.evaluate("window.alive") is None


async def test_script_that_got_in_would_not_run_and_could_not_tell(
    browser: Browser, tmp_path: Path
) -> None:
    path = await written(tmp_path, RESULTS)
    path.write_text(
        path.read_text().replace(
            "</main>", '<script>window.alive = 1</script><img src="x.png"></main>'
        )
    )
    (tmp_path / "x.png").touch()
    page = await browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    await page.goto(path.as_uri())
    assert await page.evaluate("window.alive") is None
    assert len(await shown(page)) == 6
    asked: list[str] = []

    def respond(method: str, _refund_id: str) -> bytes:
        asked.append(method)
        return b""

    async with answering(respond) as base_url:
        told = await page.evaluate(
            "url => fetch(url).then(() => 'told', () => 'blocked')",
            f"{base_url}/v1/a/b",
        )
    assert (told, asked) == ("blocked", [])
    assert all("Content Security Policy" in line for line in said)
    assert len(said) >= 3


BACKGROUND = "getComputedStyle(document.body).backgroundColor"

# The texts whose contrast to the page is below 4.5:
# https://www.w3.org/TR/WCAG22/#contrast-minimum
FAINT = """() => {
    const light = (color) => {
        const parts = color.match(/[\\d.]+/g).slice(0, 3).map((part) => {
            const c = part / 255;
            return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
    };
    const page = light(getComputedStyle(document.body).backgroundColor);
    return [...document.querySelectorAll("body *:not(script)")].filter((each) => {
        const own = [...each.childNodes].some((node) =>
            node.nodeType === Node.TEXT_NODE && node.textContent.trim());
        if (!own || !each.checkVisibility() || each.disabled) return false;
        const text = light(getComputedStyle(each).color);
        return (Math.max(page, text) + 0.05) / (Math.min(page, text) + 0.05) < 4.5;
    }).map((each) => each.outerHTML.slice(0, 99));
}"""
