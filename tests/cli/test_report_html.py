"""The page of a run: what is in it, and that nothing in it comes alive."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import msgspec
import pytest

from async_refunds.cli.report_chart import over_time
from async_refunds.cli.tables import printable
from async_refunds.journal import Record
from async_refunds.models import Refund
from tests.support.journals import journal_with, refund
from tests.support.terminal import emulator_of, held, run, there

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
    def rows(self) -> list[dict[str, str | float | None]]:
        """The data of the table to search."""
        data = json.loads(self.scripts[0])
        names = [column["name"] for column in data["columns"]]
        return [dict(zip(names, row, strict=True)) for row in data["rows"]]

    @property
    def text(self) -> str:
        """Each piece of text on a line of its own."""
        return "\n".join(self.texts)


async def test_page_has_what_came_back_and_what_needs_attention(
    tmp_path: Path,
) -> None:
    await journal_with(
        tmp_path / "run.sqlite3",
        ("canceled", refund(0, 105_600, "eur"), ""),
        ("not_cancelable", refund(1, 5, "eur", "succeeded"), "re_1 is succeeded"),
        ("unknown", None, "the answer was lost"),
        ("already_canceled", refund(3, 500, "jpy"), ""),
        ("canceled", None, ""),
    )
    ended = await run(
        *("report", "run.sqlite3", "--html", "run.html"), key=None, folder=tmp_path
    )
    assert (ended.code, ended.out, ended.err) == (3, "", "written to run.html\n")
    piped = await run("report", "run.sqlite3", "--html", "-", key=None, folder=tmp_path)
    assert (piped.code, piped.err) == (3, "")
    assert piped.out.startswith("<!DOCTYPE html>")
    assert "A run at https://a.example in test mode: 6 refunds." in Page(piped.out).text
    assert not there(tmp_path, "-")
    page = Page((tmp_path / "run.html").read_text())
    text = page.text
    assert "A run at https://a.example in test mode: 6 refunds." in text
    assert "3 of 6 are canceled, 1 of them before this run asked. 1 may be" in text
    assert "Came back: EUR 1,056.00. Canceled before: JPY 500." in text
    came_back, before = text.split("What came back\n")[1].split("Canceled before\n")
    assert came_back.startswith("EUR, 1 refund\n1,056.00\nTo the balance;")
    assert "The amounts of 1 more are not known." in came_back
    assert before.startswith("JPY, 1 refund\n500\nNot by this run")
    assert "amounts of" not in before
    assert text.index("the answer was lost") < text.index("is succeeded")
    assert "Maybe canceled: \nasync-refunds resume run.sqlite3\n; nothing" in text
    assert "1 open\nasync-refunds resume run.sqlite3\n" in text
    assert page.rows[0] == {
        "refund": "re_0",
        "outcome": "canceled",
        "amount": "1,056.00",
        "currency": "EUR",
        "created": 1_767_323_040,
        "known_at": page.rows[0]["known_at"],
        "transaction": None,
        "payment": None,
        "details": None,
    }
    assert page.rows[1]["details"] == "is succeeded"
    assert page.rows[5] == dict.fromkeys(page.rows[0]) | {
        "refund": "re_5",
        "outcome": "open",
    }
    assert page.tags.count("rect") >= 1
    assert not page.links


async def test_page_of_a_run_without_results_says_so(tmp_path: Path) -> None:
    await journal_with(tmp_path / "run.sqlite3")
    ended = await run(
        *("report", "run.sqlite3", "--html", "run.html"), key=None, folder=tmp_path
    )
    assert ended.code == 1
    text = Page((tmp_path / "run.html").read_text()).text
    for said in ("No amount is known.", "There is no result yet.", "1 open\n"):
        assert said in text


async def test_page_of_a_run_that_canceled_none_says_that_nothing_came_back(
    tmp_path: Path,
) -> None:
    results: list[tuple[CancelOutcome, Refund | None, str]]
    results = [("already_canceled", refund(n, 500, "jpy"), "") for n in range(2)]
    await journal_with(
        tmp_path / "run.sqlite3", *results, account="acct_1", never_sent=0
    )
    ended = await run(
        *("report", "run.sqlite3", "--html", "run.html"), key=None, folder=tmp_path
    )
    assert ended.code == 0
    text = Page((tmp_path / "run.html").read_text()).text
    assert "All 2 are canceled, 2 of them before this run asked." in text
    assert "Came back:" not in text
    assert "Nothing: this run canceled none.\nCanceled before\nJPY, 2 refunds\n" in text


async def test_page_of_a_run_that_went_well_needs_no_attention(tmp_path: Path) -> None:
    results: list[tuple[CancelOutcome, Refund | None, str]]
    results = [("canceled", None, "")] * 2
    await journal_with(tmp_path / "run.sqlite3", *results, never_sent=0)
    await run("report", "run.sqlite3", "--html", "run.html", key=None, folder=tmp_path)
    text = Page((tmp_path / "run.html").read_text()).text
    assert "All 2 are canceled." in text
    assert "Nothing does." in text


async def test_nothing_in_the_page_comes_alive(tmp_path: Path) -> None:
    odd = Refund("re_0", "refund", 5, "<b>", 0, HOSTILE)
    await journal_with(tmp_path / "run.sqlite3", ("unknown", odd, HOSTILE))
    await run("report", "run.sqlite3", "--html", "run.html", key=None, folder=tmp_path)
    text = (tmp_path / "run.html").read_text()
    page = Page(text)
    assert page.tags.count("script") == 2
    assert "b" not in page.tags
    assert page.rows[0]["currency"] == "<B>"
    assert page.rows[0]["details"] == printable(HOSTILE)
    assert not set("\x1b\u2028") & set(text)
    assert "default-src 'none'" in text
    assert "unsafe" not in text
    assert not re.search(r"https?://(?!a\.example)", text)


async def test_page_shows_the_attention_that_fits_and_counts_the_rest(
    tmp_path: Path,
) -> None:
    results: list[tuple[CancelOutcome, Refund | None, str]]
    results = [("unknown", None, "lost")] * 11
    await journal_with(tmp_path / "run.sqlite3", *results)
    await run("report", "run.sqlite3", "--html", "run.html", key=None, folder=tmp_path)
    assert "And 3 more." in (tmp_path / "run.html").read_text()


async def test_page_of_a_run_that_is_going_on_blames_nothing_in_flight(
    tmp_path: Path,
) -> None:
    emulator, ids = emulator_of(2)
    async with held(
        emulator,
        2,
        *("cancel", *ids, "--journal", "run.sqlite3"),
        folder=tmp_path,
    ) as (gate, running):
        await run(
            *("report", "run.sqlite3", "--html", "a.html"),
            key=None,
            folder=tmp_path,
        )
        gate.open()
        await running.ended()
    text = Page((tmp_path / "a.html").read_text()).text
    assert "It is going on." in text
    assert "in flight\n2\nnothing yet: the run is going on" in text
    assert "Nothing does." in text


async def test_page_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    await journal_with(tmp_path / "run.sqlite3", ("canceled", None, ""))
    before = (tmp_path / "run.sqlite3").read_bytes()
    for path, said in (
        ("no/where.html", "--html 'no/where.html': No such file or directory"),
    ):
        ended = await run(
            "report", "run.sqlite3", "--html", path, key=None, folder=tmp_path
        )
        assert (ended.code, ended.out) == (2, "")
        assert said in ended.err
    assert (tmp_path / "run.sqlite3").read_bytes() == before


async def test_page_has_the_sums_of_each_account(tmp_path: Path) -> None:
    journal = tmp_path / "run.sqlite3"
    await journal_with(journal, ("canceled", refund(0, 500, "jpy"), ""))
    paid = msgspec.structs.replace(
        refund(0, 1, "jpy"), charge="ch_0", payment_intent="pi_0"
    )
    left = refund(1, 5, "jpy", "requires_action")
    results: list[tuple[CancelOutcome, Refund | None, str]]
    results = [("canceled", paid, ""), ("failed", left, "No.")]
    await journal_with(journal, *results, account="acct_1")
    await run("report", "run.sqlite3", "--html", "run.html", key=None, folder=tmp_path)
    page = Page((tmp_path / "run.html").read_text())
    assert "the key's own\nJPY\n1\n500\nacct_1\nJPY\n1\n1\n" in page.text
    assert "Came back: JPY 501." in page.text
    (found,) = (row for row in page.rows if row["payment"])
    assert (found["account"], found["payment"]) == ("acct_1", "pi_0 ch_0")
    (found,) = (row for row in page.rows if row["outcome"] == "failed")
    assert found["details"] == "No.; it is requires_action"


async def test_page_draws_the_requests_beyond_the_first_over_time() -> None:
    def record(known_at: float, attempts: int) -> Record:
        return Record(
            number=1,
            refund_id="re_1",
            stripe_account=None,
            outcome="canceled",
            status=None,
            idempotency_key=None,
            attempts=attempts,
            request_id=None,
            error=None,
            seconds=None,
            settled=True,
            known_at=known_at,
        )

    brief = over_time([record(1_800_000_000, 1), record(1_800_000_030, 1)])
    assert "Results in each 1 s" in brief
    assert "Requests beyond" not in brief
    long = over_time([record(1_800_000_000 + n * 60, n % 3) for n in range(241)])
    assert "Results in each 0:04:00" in long
    assert "Requests beyond the first in each 0:04:00" in long
    assert "80 in all" in long
    assert long.count("2027-01-15 12:00:00 UTC") == 2
