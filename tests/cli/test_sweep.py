from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, TypedDict, Unpack

import pytest
from typer.testing import CliRunner

from async_refunds import RefundsClient
from async_refunds.cli import money
from async_refunds.cli.app import app
from async_refunds.cli.output import Output
from async_refunds.cli.refund_list import RefundList
from async_refunds.cli.sweep import Filter, Found, search
from tests.support.scripted import answer, refund_json, scripted
from tests.support.terminal import (
    LIVE_KEY,
    Screen,
    emulator_of,
    run,
    run_each,
    run_in_shell,
    started,
)

if TYPE_CHECKING:
    from pathlib import Path

    from async_refunds.emulator import Emulator

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

DAY = 86_400


class Fields(TypedDict, total=False):
    status: str
    currency: str
    account: str
    livemode: bool


def days_old(emulator: Emulator, *ages: float, **fields: Unpack[Fields]) -> list[str]:
    now = time.time()
    return [emulator.add_refund(created=int(now - age * DAY), **fields) for age in ages]


@pytest.mark.parametrize(
    ("amount", "currency", "shown"),
    [
        (1234567, "eur", "12,345.67"),
        (5, "usd", "0.05"),
        (1234567, "jpy", "1,234,567"),
        (1234567, "kwd", "1,234.567"),
        (500, "isk", "5.00"),
        (10**20, "krw", "100,000,000,000,000,000,000"),
        (10**40 + 7, "eur", f"100{12 * ',000'}.07"),
        (-1234567, "kwd", "-1,234.567"),
        (-5, "usd", "-0.05"),
        (0, "kwd", "0.000"),
    ],
)
async def test_sum_is_in_the_currency_s_own_unit(
    amount: int, currency: str, shown: str
) -> None:
    assert money.in_major_units(amount, currency) == shown


async def test_old_refunds_are_canceled_and_the_others_are_not() -> None:
    emulator, _ = emulator_of(0)
    old = days_old(emulator, 15, 170)
    days_old(emulator, 13, 181)
    days_old(emulator, 20, status="succeeded")
    async with emulator.serve() as base_url:
        ended = await run(
            "sweep", "--older-than", "14d", "--yes", "--base-url", base_url
        )
    assert ended.code == 0
    assert {line["refund_id"] for line in ended.lines} == {*old}
    assert emulator.books.cancellations == dict.fromkeys(old, 1)
    assert "currency  refunds  sum\njpy       2        10,000\n" in ended.err
    assert ended.said == [
        "2 of 3 refunds match:",  # Stripe left out those out of bounds
        "currency  refunds  sum",
        "outcome   refunds  what to do",
        "canceled  2",
    ]


async def test_refunds_about_to_expire_are_canceled() -> None:
    emulator, _ = emulator_of(0)
    soon = days_old(emulator, 42.5, 44)  # of 45 days
    days_old(emulator, 41, 1)
    async with emulator.serve() as base_url:
        ended = await run(
            "sweep", "--expiring-within", "72h", "--yes", "--base-url", base_url
        )
    assert ended.code == 0
    assert emulator.books.cancellations == dict.fromkeys(soon, 1)


async def test_dry_run_shows_them_and_cancels_nothing() -> None:
    emulator, _ = emulator_of(0)
    yen = days_old(emulator, 20, 21)
    days_old(emulator, 22, currency="thb")
    euro = days_old(emulator, 23, currency="eur")
    async with emulator.serve() as base_url:
        command = ("sweep", "--older-than", "2w", "--dry-run", "--base-url", base_url)
        ended, one, none = await run_each(
            (*command, "--currency", "jpy, EUR"),
            (*command, "--max", "1"),
            (*command, "--currency", "gbp"),
        )
        screen = Screen()
        async with started(*command, stdout=screen.terminal) as running:
            looked, shown = await screen.shows(running)
    assert ended.code == one.code == none.code == looked.code == 0
    assert [line["id"] for line in ended.lines] == [*yen, *euro]
    *said, last = ended.err.splitlines()
    assert said == [
        "3 of 4 refunds match:",
        "currency  refunds  sum",
        "eur       1        50.00",
        "jpy       2        10,000",
    ]
    assert last == (
        "nothing was canceled; to cancel them: async-refunds sweep --older-than 2w "
        f"--base-url {base_url} --currency 'jpy, EUR'"
    )
    assert [line["id"] for line in one.lines] == yen[:1]
    assert one.err.startswith("--max ended the search after 1 refund; 1 match:\n")
    assert (none.out, none.err) == ("", "0 of 4 refunds match; nothing to cancel\n")
    assert len(shown.splitlines()) == 5
    assert not emulator.books.cancel_requests
    assert emulator.books.requests == {"list": 4}


async def test_list_that_passes_over_the_bounds_or_repeats_is_looked_at_again() -> None:
    """Such as that of a cache in between, which does not look at the query."""
    now = int(time.time())
    ages = {"re_new": 1, "re_old": 20, "re_older": 21, "re_ancient": 181}
    listed = [
        json.loads(refund_json("requires_action", created=now - age * DAY, id=name))
        for name, age in [*ages.items(), ("re_old", 20)]
    ]
    page = answer(body=json.dumps({"data": listed, "has_more": False}).encode())
    async with scripted(reads=[page]) as server:
        ended = await run(
            *("sweep", "--older-than", "14d", "--dry-run", "--base-url", server.url)
        )
    assert ended.code == 0
    assert [line["id"] for line in ended.lines] == ["re_old", "re_older"]
    assert ended.err.startswith("2 of 5 refunds match:\n")
    amount = listed[0]["amount"]
    assert f"  2        {money.in_major_units(2 * amount, 'usd')}\n" in ended.err


async def test_span_older_than_the_calendar_of_computers_is_all_time() -> None:
    emulator, _ = emulator_of(0)
    old = days_old(emulator, 15, 6000)
    async with emulator.serve() as base_url:
        command = ("sweep", "--dry-run", "--since", "99999w", "--base-url", base_url)
        ended, none = await run_each(
            (*command, "--older-than", "14d"), (*command, "--older-than", "9999w")
        )
    assert (ended.code, none.code) == (0, 0)
    assert [line["id"] for line in ended.lines] == old
    assert none.err == "0 of 0 refunds match; nothing to cancel\n"


async def test_search_stops_at_the_most_wanted() -> None:
    emulator, _ = emulator_of(0)
    old = days_old(emulator, *(15 + n / 100 for n in range(350)))
    screen = Screen()
    async with emulator.serve() as base_url:
        command = ("sweep", "--older-than", "14d", "--base-url", base_url)
        ended = await run(*command, "--max", "150", "--dry-run")
        pages = emulator.books.requests["list"]
        async with started(*command, "--dry-run", stdout=screen.terminal) as running:
            looked, shown = await screen.shows(running)
    assert [line["id"] for line in ended.lines] == old[:150]
    assert pages == 2
    assert len(shown.splitlines()) == 1 + 300
    assert looked.err.splitlines()[:2] == [
        "the first 300; --json has all",
        "350 of 350 refunds match:",
    ]


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [("y\n", 0, "canceled"), ("n\n", 1, "nothing was canceled"), ("\n", 1, "nothing")],
)
async def test_person_is_asked_first(answer: str, code: int, said: str) -> None:
    emulator, _ = emulator_of(0)
    (old,) = days_old(emulator, 15, livemode=True)
    screen = Screen()
    async with (
        emulator.serve() as base_url,
        started(
            *("sweep", "--older-than", "14d", "--live", "--base-url", base_url),
            key=LIVE_KEY,
            stdin=screen.terminal,
            stderr=screen.terminal,
        ) as running,
    ):
        ended, shown = await screen.answers(running, answer)
    assert ended.code == code
    assert "Cancel this refund? Real money moves. [y/N]:" in shown
    assert any(said in line for line in shown.splitlines()[-4:])
    assert emulator.books.cancellations == ({old: 1} if code == 0 else {})


async def test_sweep_goes_through_a_journal_and_tells_what_else_is_open_there(
    tmp_path: Path,
) -> None:
    emulator, ids = emulator_of(1)
    theirs = days_old(emulator, 15, 16, account="acct_1Them")
    emulator.expire_key("sk_test_expired")
    screen = Screen()
    async with emulator.serve() as base_url:
        how = ("--journal", "run.sqlite3", "--base-url", base_url)
        left = await run("cancel", *ids, *how, key="sk_test_expired", folder=tmp_path)
        async with started(
            *("sweep", "--older-than", "14d", "--account", "acct_1Them", *how),
            stdin=screen.terminal,
            stderr=screen.terminal,
            folder=tmp_path,
        ) as running:
            ended, shown = await screen.answers(running, "y\n")
    assert left.code == 1
    assert ended.code == 0
    assert (
        "Cancel these 2 refunds of acct_1Them, and 1 more that is open in the journal?"
        in shown
    )
    assert (
        "run.sqlite3 holds 1 refund already, 1 of them open; 2 of the 2 given are added"
        in shown
    )
    accounts = {line["refund_id"]: line["stripe_account"] for line in ended.lines}
    assert accounts == {ids[0]: None, **dict.fromkeys(theirs, "acct_1Them")}


async def test_sweep_that_cannot_be_right_asks_nothing() -> None:
    old = ("--older-than", "14d")
    neither = "give --older-than or --expiring-within; nothing was sent\n"
    wrong = {
        (): neither,
        (*old, "--expiring-within", "3d"): neither,
        ("--older-than", "14"): (
            "must be a number with s, m, h, d or w, such as 14d, not '14'; nothing was "
            "done\n"
        ),
        (*old, "--since", "14d"): (
            "--older-than 14d is not within --since 14d; nothing was sent\n"
        ),
        (*old, "--currency", "jpy,yen!"): (
            "--currency: 'yen!' is unknown; nothing was done\n"
        ),
        (*old, "--currency", "JPN"): (
            "is unknown (did you mean jpy?); nothing was done\n"
        ),
        old: (
            "there is no terminal to ask on: add --yes, or --dry-run to see what "
            "matches; nothing was sent\n"
        ),
    }
    refused = [CliRunner().invoke(app, ["sweep", *words]) for words in wrong]
    for said, ended in zip(wrong.values(), refused, strict=True):
        assert ended.stderr.endswith(said)
        assert (ended.exit_code, ended.stdout) == (2, "")
    closed = await run_in_shell("refunds sweep --older-than 14d <&-")
    assert closed.err == refused[-1].stderr
    assert closed.code == 2


async def test_list_that_cannot_be_read_cancels_nothing() -> None:
    emulator, _ = emulator_of(0)
    days_old(emulator, 15)
    emulator.expire_key("sk_test_expired")
    async with emulator.serve() as base_url:
        ended = await run(
            *("sweep", "--older-than", "14d", "--yes", "--base-url", base_url),
            key="sk_test_expired",
        )
    assert (ended.code, ended.out) == (1, "")
    assert "the list of refunds could not be read" in ended.err
    assert ended.err.endswith("nothing was canceled\n")


@pytest.mark.parametrize("sweep", ["sweep", "fleet sweep --run tonight"])
async def test_dry_run_that_nobody_reads_to_its_end_ends_without_a_word(
    sweep: str,
) -> None:
    emulator, _ = emulator_of(0)
    days_old(emulator, *(15 + n / 100 for n in range(300)))
    async with emulator.serve() as base_url:
        command = f"refunds {sweep} --older-than 14d --dry-run --base-url {base_url}"
        ended = await run_in_shell(f"{{ {command}; echo code $? >&2; }} | head -1")
        full = await run_in_shell(f"{command} >/dev/full")
    assert len(ended.lines) == 1
    assert ended.err == "code 1\n"
    assert full.code == 1
    assert full.err == "async-refunds: stdout broke (No space left on device)\n"


@pytest.mark.asyncio
async def test_long_search_says_how_far_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    emulator, _ = emulator_of(2050)
    emulator.latency = 1.0
    now = int(time.time())
    wanted = Filter(created={"gte": 0}, expires_by=now, currencies=frozenset())
    found = Found()
    with RefundList() as matches:
        async with (
            emulator.serve() as base_url,
            RefundsClient("sk_test_1", base_url=base_url) as refunds,
        ):
            await search(
                *(refunds, wanted, matches, found, Output()),
                account=None,
                limit=None,
                show_rows=False,
            )
    assert found.progress.seen == 2050
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    for number, line in enumerate(lines, 1):
        seen, match, back, speed = line.split("  ")
        assert abs(int(seen.split()[0].replace(",", "")) - 1000 * number) <= 100
        assert match == "0 match"
        assert back.startswith("back to 20")
        assert 80 <= int(speed.removesuffix("/s")) <= 120
