from __future__ import annotations

import csv
import errno
import io
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from async_refunds.cli import report
from async_refunds.cli.app import app
from async_refunds.cli.progress import SearchProgress
from async_refunds.cli.tables import cell
from async_refunds.errors import OutcomeUnknownError
from async_refunds.journal import Claim, Run, SqliteJournal
from async_refunds.models import Refund
from async_refunds.results import CancelRequest, CancelResult
from tests.support.journals import claimed, journal_with
from tests.support.terminal import (
    LIVE_KEY,
    Screen,
    emulator_of,
    run,
    run_each,
    run_in_shell,
    started,
    there,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_refunds.results import CancelOutcome

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

COLUMNS = [
    *("refund_id", "stripe_account", "outcome", "status", "amount", "currency"),
    *("created", "charge", "payment_intent", "failure_balance_transaction"),
    *("idempotency_key", "attempts", "request_id", "error", "settled", "seconds"),
    "known_at",
]


async def journal_of(
    path: Path, *outcomes: CancelOutcome, status: str | None = None
) -> None:
    """Make a journal with a refund of each outcome, and an open one."""
    failure = OutcomeUnknownError(
        "no answer", refund=None, idempotency_key=None, attempts=()
    )
    seen = Refund("re_0", "refund", 500, "jpy", 0, status)
    async with SqliteJournal.open(
        path, Run("https://a.example", livemode=True)
    ) as made:
        await made.add([CancelRequest(f"re_{n}") for n in range(len(outcomes) + 1)])
        settled: list[tuple[Claim, CancelResult]] = []
        for claim, outcome in zip(
            await claimed(made, None, max(1, len(outcomes))), outcomes, strict=False
        ):
            bad = outcome not in ("canceled", "already_canceled")
            result = CancelResult(
                refund_id=claim.refund_id,
                stripe_account=None,
                outcome=outcome,
                refund=seen if status else None,
                error=failure if bad else None,
                idempotency_key=claim.idempotency_key,
                settled=outcome != "unknown",
            )
            settled.append((claim, result))
        await made.settle(settled)


async def test_report_has_every_refund_in_the_order_of_the_input(
    tmp_path: Path,
) -> None:
    await journal_of(
        tmp_path / "run.sqlite3", "canceled", "unknown", "already_canceled"
    )
    as_json, as_csv = await run_each(
        *(("report", "run.sqlite3", how) for how in ("--json", "--csv")),
        key=None,
        folder=tmp_path,
    )
    assert as_json.code == as_csv.code == 3
    assert as_json.err == as_csv.err == ""
    assert all(list(line) == COLUMNS for line in as_json.lines)
    assert [line["outcome"] for line in as_json.lines] == [
        *("canceled", "unknown", "already_canceled", None)
    ]
    _, unknown, _, last = as_json.lines
    assert unknown["error"].endswith("no answer")
    assert unknown["settled"] is False
    assert unknown["attempts"] == 0
    assert len(unknown["idempotency_key"]) == 32
    assert last == {**dict.fromkeys(COLUMNS), **last}
    assert as_csv.out.startswith("\ufeff")  # or Excel takes it for another encoding
    rows = list(csv.DictReader(io.StringIO(as_csv.out[1:], newline="")))
    times = {"created": "created_utc", "known_at": "known_at_utc"}
    assert list(rows[0]) == [times.get(name, name) for name in COLUMNS]
    for row, line in zip(rows, as_json.lines, strict=True):
        assert re.fullmatch(r"|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", row.pop("known_at_utc"))
        del line["known_at"]
        settled = "yes" if line.pop("settled") else "no"
        assert row.pop("settled") == settled
        if (seconds := line.pop("seconds")) is not None:
            assert seconds == 0.0
        assert row.pop("seconds") == ("" if seconds is None else "0.000")
        assert row == {
            times.get(name, name): "" if value is None else str(value)
            for name, value in line.items()
        }


async def test_report_changes_nothing_and_is_the_journal_s_only(tmp_path: Path) -> None:
    await journal_of(tmp_path / "run.sqlite3", "canceled")
    before = (tmp_path / "run.sqlite3").read_bytes()
    wrong = {
        ("missing.sqlite3",): "there is no journal",
        (".",): "is a folder or a device, not a file",
        ("run.sqlite3", "--csv", "--json"): "give one of --csv, --json and --html",
    }
    good, *refused = await run_each(
        ("report", "run.sqlite3"),
        *(("report", *words) for words in wrong),
        key=None,
        folder=tmp_path,
    )
    assert good.code == 1
    assert (tmp_path / "run.sqlite3").read_bytes() == before
    for said, ended in zip(wrong.values(), refused, strict=True):
        assert said in ended.err
        assert (ended.code, ended.out) == (2, "")


async def test_page_that_is_there_is_replaced_only_when_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await journal_of(tmp_path / "run.sqlite3", "canceled")
    page = tmp_path / "page.html"
    page.write_text("of last night")
    command = ["report", str(tmp_path / "run.sqlite3"), "--html"]

    def reported(*words: str) -> str:
        ended = CliRunner().invoke(app, [*command, *words])
        assert ended.exit_code == (1 if "written" in ended.stderr else 2)
        return ended.stderr

    assert "is there already: add --force to replace it" in reported(str(page))
    assert page.read_text() == "of last night"
    assert reported(str(page), "--force") == f"written to {page}\n"
    assert page.read_text().startswith("<!")

    def half_a_page(*_: object) -> Iterator[str]:
        yield "<!doctype html>"
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(report, "html_page", half_a_page)
    assert "No space left on device" in reported(str(page), "--force")
    assert not page.exists()
    assert "No space left on device" in reported(os.devnull, "--force")
    assert there(Path("/dev"), "null")  # a device is not removed


@pytest.mark.parametrize("status", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1\r\n=2"])
async def test_spreadsheet_finds_no_formula_in_the_csv(
    tmp_path: Path, status: str
) -> None:
    await journal_of(tmp_path / "run.sqlite3", "unknown", status=status)
    ended = await run("report", "run.sqlite3", "--csv", key=None, folder=tmp_path)
    _, row, _ = csv.reader(io.StringIO(ended.out, newline=""))
    shown = {"@SUM(A1)": "[e-mail]", "\t=1\r\n=2": r"\t=1\r\n=2"}  # the journal scrubs
    assert row[3] == shown.get(status, f"'{status}")


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        ("\uff1d1+1", "'\uff1d1+1"),
        ("\uff0b1", "'\uff0b1"),
        ("\uff0d1", "'\uff0d1"),
        (" =1", "' =1"),
        ("no;=1;+2; -3", "no;'=1;'+2;' -3"),
        ("a=1; b-2", "a=1; b-2"),
    ],
)
async def test_spreadsheet_of_any_language_finds_no_formula_in_the_csv(
    tmp_path: Path, status: str, shown: str
) -> None:
    """Where a list is separated by semicolons, and where letters have full width."""
    await journal_of(tmp_path / "run.sqlite3", "unknown", status=status)
    ended = await run("report", "run.sqlite3", "--csv", key=None, folder=tmp_path)
    _, row, _ = csv.reader(io.StringIO(ended.out, newline=""))
    assert row[3] == shown


async def test_money_is_in_major_units_but_in_json(tmp_path: Path) -> None:
    emulator, _ = emulator_of(0)
    ids = [
        emulator.add_refund(amount=105_600, currency="eur"),
        emulator.add_refund(amount=105_600, currency="jpy"),
        emulator.add_refund(amount=99, currency="eur"),
        emulator.add_refund(amount=1, currency="eur", status="succeeded"),
    ]
    async with emulator.serve() as base_url:
        canceled = await run(
            *("cancel", *ids, "--journal", "run.sqlite3", "--base-url", base_url),
            folder=tmp_path,
        )
        plain = await run("cancel", *ids[:1], "re_none", "--base-url", base_url)
    as_json, as_csv = await run_each(
        *(("report", "run.sqlite3", how) for how in ("--json", "--csv")),
        key=None,
        folder=tmp_path,
    )
    screen = Screen()
    async with started(
        "report", "run.sqlite3", stdout=screen.terminal, key=None, folder=tmp_path
    ) as running:
        _, shown = await screen.shows(running)
    money = ["came back  refunds  sum", "eur        2        1,056.99"]
    money.append("jpy        1        105,600")
    for text in (canceled.err, shown):
        lines = text.splitlines()
        start = lines.index(money[0])
        assert lines[start : start + 3] == money
        assert re.fullmatch(r"5 requests in 0:00:\d\d", lines[start + 3])
    before = "canceled before  refunds  sum\neur              1        1,056.00\n"
    assert before in plain.err
    assert [line["amount"] for line in as_json.lines] == [105_600, 105_600, 99, 1]
    refund = emulator.refund(ids[0])
    for name in ("charge", "payment_intent", "created", "failure_balance_transaction"):
        assert as_json.lines[0][name] == refund[name]
    rows = list(csv.DictReader(io.StringIO(as_csv.out[1:], newline="")))
    assert [row["amount"] for row in rows] == ["1056.00", "105600", "0.99", "0.01"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", rows[0]["created_utc"])


async def test_money_of_two_runs_over_the_same_refunds_came_back_once(
    tmp_path: Path,
) -> None:
    emulator, _ = emulator_of(0)
    ids = [emulator.add_refund() for _ in range(3)]
    async with emulator.serve() as base_url:
        first = await run(
            *("cancel", *ids[:2], "--journal", "1.sqlite3", "--base-url", base_url),
            folder=tmp_path,
        )
        second = await run(
            *("cancel", *ids, "--journal", "2.sqlite3", "--base-url", base_url),
            folder=tmp_path,
        )
        third = await run("cancel", *ids, "re_none", "--base-url", base_url)
    screen = Screen()
    async with started(
        "report", "2.sqlite3", stdout=screen.terminal, key=None, folder=tmp_path
    ) as running:
        _, shown = await screen.shows(running)
    once = "came back  refunds  sum\njpy        2        10,000\n"
    assert once in first.err
    assert "canceled before" not in first.err
    for text in (second.err, shown):
        assert (
            "came back  refunds  sum\njpy        1        5,000\n"
            "canceled before  refunds  sum\njpy              2        10,000\n"
        ) in text
    assert "came back" not in third.err
    assert "canceled before  refunds  sum\njpy              3        15,000\n" in (
        third.err
    )


async def test_amount_that_is_not_known_is_in_no_sum(tmp_path: Path) -> None:
    await journal_of(tmp_path / "run.sqlite3", "canceled", "canceled")
    run_of = ("--live", "--base-url", "https://a.example", "--patience", "0.01")
    ended = await run("resume", "run.sqlite3", *run_of, key=LIVE_KEY, folder=tmp_path)
    assert ended.code == 1  # one was open, and there is no such host
    assert "canceled  2" in ended.err
    assert "came back" not in ended.err


async def test_rate_limits_are_counted_at_the_end(tmp_path: Path) -> None:
    emulator, ids = emulator_of(2)
    emulator.faults.script("rate_429")
    async with emulator.serve() as base_url:
        ended = await run(
            *("cancel", *ids, "--journal", "run.sqlite3", "--base-url", base_url),
            folder=tmp_path,
        )
        emulator.faults.script("rate_429")
        again = await run("cancel", ids[0], "re_none", "--base-url", base_url)
    assert ended.code == 0
    assert re.search(r"\n3 requests in .*, 1 of them answered 429\n", ended.err)
    assert ", 1 of them answered 429\n" in again.err


async def test_report_on_a_terminal_is_what_wants_attention(tmp_path: Path) -> None:
    await journal_of(
        tmp_path / "run.sqlite3", "canceled", "not_cancelable", "unknown", "canceled"
    )
    screen = Screen()
    async with started(
        "report", "run.sqlite3", stdout=screen.terminal, key=None, folder=tmp_path
    ) as running:
        ended, shown = await screen.shows(running)
    assert (ended.code, ended.err) == (3, "")
    lines = shown.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["outcome", "refunds"],
        ["canceled", "2"],
        ["not_cancelable", "1"],
        ["unknown", "1"],
        ["open", "1"],
        ["refund", "id"],
        ["re_1", "not_cancelable"],
        ["re_2", "unknown"],
    ]
    resume = "resume run.sqlite3 --live --base-url https://a.example"
    assert lines[4].endswith(f"`async-refunds {resume}`")


async def test_report_on_a_terminal_ends_before_it_floods(tmp_path: Path) -> None:
    await journal_of(tmp_path / "run.sqlite3", *301 * ("unknown",))
    screen = Screen()
    async with started(
        "report", "run.sqlite3", stdout=screen.terminal, key=None, folder=tmp_path
    ) as running:
        ended, shown = await screen.shows(running)
    assert ended.err == "the first 300 that need attention; --json has all\n"
    assert len(shown.splitlines()) == 3 + 1 + 300


async def test_report_that_nobody_reads_to_its_end_ends_without_a_word(
    tmp_path: Path,
) -> None:
    await journal_of(tmp_path / "run.sqlite3", *1500 * ("canceled",))
    ended = await run_in_shell(
        "{ refunds report run.sqlite3; echo code $? >&2; } | head -1", folder=tmp_path
    )
    assert [line["refund_id"] for line in ended.lines] == ["re_0"]
    assert ended.err == "code 1\n"


async def test_full_disk_under_a_report_is_told(tmp_path: Path) -> None:
    await journal_of(tmp_path / "run.sqlite3", "canceled")
    with Path("/dev/full").open("wb") as full:  # noqa: ASYNC230 - it never waits
        ended = await run(
            "report", "run.sqlite3", stdout=full.fileno(), key=None, folder=tmp_path
        )
    assert ended.code == 1
    assert ended.err == "async-refunds: stdout broke (No space left on device)\n"


async def test_time_that_no_calendar_has_is_shown_as_its_number(
    tmp_path: Path,
) -> None:
    odd = -(2**62)
    sent = Refund("re_0", "refund", 2**62, "kwd", odd, "requires_action")
    await journal_with(tmp_path / "run.sqlite3", ("unknown", sent, ""))
    ended = await run("report", "run.sqlite3", "--csv", key=None, folder=tmp_path)
    (row, _) = csv.DictReader(io.StringIO(ended.out.removeprefix("\ufeff")))
    assert (row["created_utc"], row["amount"]) == (str(odd), "4611686018427387.904")
    assert cell({"created": odd}, "created") == str(odd)
    progress = SearchProgress()
    progress.see(odd)
    assert f"back to {odd}" in progress.incomplete
