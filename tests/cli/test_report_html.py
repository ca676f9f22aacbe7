"""The page of a run: what is in it, and that nothing in it comes alive."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest

from async_refunds.errors import OutcomeUnknownError
from async_refunds.journal import Run, SqliteJournal
from async_refunds.models import Refund
from async_refunds.results import CancelRequest, CancelResult
from tests.support.terminal import Gate, emulator_of, run, started

if TYPE_CHECKING:
    from pathlib import Path

    from async_refunds.results import CancelOutcome

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

HOSTILE = "</script><script>alert(1)</script><!-- \x1b[31m & \u2028"


class Page(HTMLParser):
    """A page as a browser reads it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self.links: list[str] = []
        self._in_script = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._in_script = tag == "script"
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        (self.scripts if self._in_script else self.texts).append(data)

    @property
    def rows(self) -> list[list[str | None]]:
        """The data of the table to search."""
        found: list[list[str | None]] = json.loads(self.scripts[0])
        return found


async def journal_with(
    path: Path, *results: tuple[CancelOutcome, Refund | None, str]
) -> None:
    run_of = Run("https://a.example", livemode=False)
    async with SqliteJournal.open(path, run_of) as journal:
        await journal.add([CancelRequest(f"re_{n}") for n in range(len(results) + 1)])
        claims = await journal.claim(None, len(results)) if results else []
        for claim, (outcome, refund, error) in zip(claims, results, strict=True):
            failure = OutcomeUnknownError(
                error, refund=None, idempotency_key=None, attempts=()
            )
            result = CancelResult(
                refund_id=claim.refund_id,
                stripe_account=None,
                outcome=outcome,
                refund=refund,
                error=failure if error else None,
                idempotency_key=claim.idempotency_key,
            )
            await journal.settle([(claim, result)])


def refund(number: int, amount: int, currency: str, status: str = "canceled") -> Refund:
    return Refund(f"re_{number}", "refund", amount, currency, 1_767_323_040, status)


async def test_page_has_what_came_back_and_what_needs_attention(
    tmp_path: Path,
) -> None:
    await journal_with(
        tmp_path / "run.sqlite3",
        ("canceled", refund(0, 105_600, "eur"), ""),
        ("not_cancelable", refund(1, 5, "eur", "succeeded"), "it is succeeded"),
        ("unknown", None, "the answer was lost"),
        ("already_canceled", refund(3, 500, "jpy"), ""),
        ("canceled", None, ""),
    )
    ended = await run(
        *("report", "run.sqlite3", "--html", "run.html"), key=None, folder=tmp_path
    )
    assert (ended.code, ended.out, ended.err) == (3, "", "written to run.html\n")
    page = Page((tmp_path / "run.html").read_text())
    text = "\n".join(page.texts)
    assert "A run at https://a.example in test mode: 6 refunds." in text
    assert "eur\n1\n1,056.00\njpy\n1\n500" in text
    assert "The amounts of 1 more are not known." in text
    assert text.index("the answer was lost") < text.index("it is succeeded")
    assert "`async-refunds resume run.sqlite3`" in text
    assert page.rows[0] == [
        *("re_0", None, "canceled", "canceled", "1,056.00", "eur"),
        *("2026-01-02 03:04:00Z", page.rows[0][7], None),
    ]
    assert page.rows[5] == ["re_5", *[None] * 8]
    assert page.tags.count("rect") >= 1
    assert not page.links


async def test_page_of_a_run_without_results_says_so(tmp_path: Path) -> None:
    await journal_with(tmp_path / "run.sqlite3")
    ended = await run(
        *("report", "run.sqlite3", "--html", "run.html"), key=None, folder=tmp_path
    )
    assert ended.code == 1
    text = "\n".join(Page((tmp_path / "run.html").read_text()).texts)
    for said in ("No amount is known.", "There is no result yet.", "Nothing does."):
        assert said in text


async def test_nothing_in_the_page_comes_alive(tmp_path: Path) -> None:
    odd = Refund("re_0", "refund", 5, "<b>", 0, HOSTILE)
    await journal_with(tmp_path / "run.sqlite3", ("unknown", odd, HOSTILE))
    await run("report", "run.sqlite3", "--html", "run.html", key=None, folder=tmp_path)
    text = (tmp_path / "run.html").read_text()
    page = Page(text)
    assert page.tags.count("script") == 2
    assert "b" not in page.tags
    assert page.rows[0][3] == HOSTILE
    assert "\x1b" not in text
    assert "default-src 'none'" in text
    assert not re.search(r"https?://(?!a\.example)", text)


async def test_page_shows_the_attention_that_fits_and_counts_the_rest(
    tmp_path: Path,
) -> None:
    results: list[tuple[CancelOutcome, Refund | None, str]]
    results = [("unknown", None, "lost")] * 203
    await journal_with(tmp_path / "run.sqlite3", *results)
    await run("report", "run.sqlite3", "--html", "run.html", key=None, folder=tmp_path)
    assert "And 3 more." in (tmp_path / "run.html").read_text()


async def test_page_of_a_run_that_is_going_on_blames_nothing_in_flight(
    tmp_path: Path,
) -> None:
    emulator, ids = emulator_of(2)
    async with emulator.serve() as behind:
        gate = Gate(behind)
        async with (
            gate.serve() as base_url,
            started(
                *("cancel", *ids, "--journal", "run.sqlite3", "--base-url", base_url),
                folder=tmp_path,
            ) as running,
        ):
            await gate.holds(2)
            await run(
                *("report", "run.sqlite3", "--html", "a.html"),
                key=None,
                folder=tmp_path,
            )
            gate.open()
            await running.ended()
    text = "\n".join(Page((tmp_path / "a.html").read_text()).texts)
    assert "It is going on." in text
    assert "in flight\n2\nnothing yet: the run is going on" in text
    assert "Nothing does." in text


async def test_page_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    await journal_with(tmp_path / "run.sqlite3", ("canceled", None, ""))
    before = (tmp_path / "run.sqlite3").read_bytes()
    for path, said in (
        ("run.sqlite3", "is the journal itself"),
        ("no/where.html", "--html 'no/where.html': No such file or directory"),
    ):
        ended = await run(
            "report", "run.sqlite3", "--html", path, key=None, folder=tmp_path
        )
        assert (ended.code, ended.out) == (2, "")
        assert said in ended.err
    assert (tmp_path / "run.sqlite3").read_bytes() == before


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")
async def test_script_searches_and_sorts(tmp_path: Path) -> None:
    await journal_with(
        tmp_path / "run.sqlite3",
        ("canceled", refund(0, 105_600, "eur"), ""),
        ("canceled", refund(1, 99, "eur"), ""),
        ("unknown", None, "lost"),
    )
    await run("report", "run.sqlite3", "--html", "run.html", key=None, folder=tmp_path)
    page = Page((tmp_path / "run.html").read_text())
    (tmp_path / "page.js").write_text(
        DOM.replace("DATA", json.dumps(page.scripts[0])) + page.scripts[1] + DRIVE
    )
    shown = subprocess.run(  # noqa: ASYNC221, S603 - it takes no time
        ["node", str(tmp_path / "page.js")],  # noqa: S607 - wherever it is
        capture_output=True,
        check=True,
        text=True,
    )
    assert shown.stdout.splitlines() == [
        "re_0 re_1 re_2 re_3 | 1 to 4 of 4",
        "re_2 | 1 to 1 of 1",
        "| none",
        "re_2 re_3 re_1 re_0 | 1 to 4 of 4",
        "re_0 re_1 re_3 re_2 | 1 to 4 of 4",
    ]


# As much of a browser as the script uses.
DOM = """
const listeners = {}, elements = {};
const element = (name) => elements[name] ??= {
  value: "", textContent: name === "data" ? DATA : "",
  addEventListener: (_, call) => { listeners[name] = call; },
};
const shown = { rows: [], replaceChildren(...rows) { this.rows = rows; } };
const heads = Array.from({ length: 9 }, (_, n) => element(`head ${n}`));
globalThis.document = {
  getElementById: element,
  querySelector: () => shown,
  querySelectorAll: () => heads,
  createElement: () => ({
    cells: [],
    insertCell() { const cell = {}; this.cells.push(cell); return cell; },
  }),
};
"""
DRIVE = """
const tell = () => console.log([
  ...shown.rows.map((row) => row.cells[0].textContent), "|",
  element("where").textContent,
].join(" "));
tell();
element("search").value = "LOST re_"; listeners.search(); tell();
element("search").value = "nothing"; listeners.search(); tell();
element("search").value = ""; listeners.search();
listeners["head 4"](); tell();
listeners["head 4"](); tell();
listeners.next(); listeners.back();
"""
