from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import pytest

from async_refunds import RefundsClient
from async_refunds.cli.journals import BoundedJournal
from async_refunds.cli.options import BatchOptions, ReadOptions
from async_refunds.cli.output import Output
from async_refunds.cli.paced_reads import PacedReads
from async_refunds.cli.preview import (
    Preview,
    PreviewWriter,
    known_sums,
    preview_lines,
)
from async_refunds.journal import Run, SqliteJournal
from async_refunds.models import Refund
from async_refunds.results import CancelRequest, CancelResult
from tests.support.journals import claimed
from tests.support.scripted import CANCELED, RE, Act, answer, refund_json, scripted
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
    from pathlib import Path

real = pytest.mark.asyncio(loop_factories=["real"])
THEM = "acct_1Them"
NOBODY = "http://127.0.0.1:9"


@real
async def test_dry_run_shows_what_would_happen_and_ends_with_the_command(
    tmp_path: Path,
) -> None:
    emulator, _ = emulator_of(0)
    ids = [emulator.add_refund() for _ in range(3)]
    theirs = emulator.add_refund(account=THEM, currency="eur", amount=105_600)
    emulator.set_status(ids[2], "succeeded")
    lines = [*(f"{each}," for each in ids), f"{theirs},{THEM}", "re_missing,"]
    (tmp_path / "a list.csv").write_text("\n".join(["id,stripe_account", *lines]))
    async with emulator.serve() as base_url:
        words = ("--base-url", base_url, "--journal", "run.sqlite3")
        ended = await run(
            *("cancel", "--from", "a list.csv", "--dry-run", *words), folder=tmp_path
        )
        *said, last = ended.err.splitlines()
        assert not emulator.books.requests["cancel"]
        command = last.partition("to cancel them: async-refunds ")[2]
        done = await run_in_shell(f"refunds {command}", folder=tmp_path)
    assert ended.code == 1
    *said, limit, money = said
    assert limit == (
        "canceling takes about 0:00:01 at Stripe's limit of 25 requests per second for "
        "each account"
    )
    assert money == (
        "the money returns to the balance; the customers are not repaid by it"
    )
    assert said == [
        "3 of 5 refunds can be canceled:",
        "account     currency  refunds  sum",
        "of the key  jpy       2        10,000",
        "acct_1Them  eur       1        1,056.00",
        "1 cannot be canceled: succeeded",
        "1 was not found",
    ]
    told = {line["refund_id"]: line for line in ended.lines}
    assert [told[each]["cancelable"] for each in (*ids, theirs, "re_missing")] == [
        *(True, True, False, True, False)
    ]
    assert told[theirs]["amount"] == 105_600
    assert told["re_missing"]["status"] is None
    assert "No such refund" in told["re_missing"]["error"]
    assert emulator.books.requests["retrieve"] == 5 + 1  # one settles the succeeded
    assert done.code == 1
    assert emulator.books.cancellations == dict.fromkeys((*ids[:2], theirs), 1)


@real
async def test_dry_run_says_what_it_leaves_out(tmp_path: Path) -> None:
    emulator, ids = emulator_of(3)
    (tmp_path / "ids.txt").write_text("\n".join([*ids, ids[0], "7"]))
    async with emulator.serve() as base_url:
        ended = await run(
            *("cancel", "--from", "ids.txt", "--skip-bad", "--max", "2", "--dry-run"),
            *("--base-url", base_url),
            folder=tmp_path,
        )
    assert ended.code == 0
    assert ended.said[1:5] == [
        "--max left out 1 refund",
        "1 line of ids.txt was skipped",
        "4 refunds given, 1 of them given before; each is canceled once",
        "2 of 2 refunds can be canceled:",
    ]


@real
async def test_dry_run_on_a_terminal_lists_what_cannot_be_canceled() -> None:
    emulator, _ = emulator_of(0)
    ids = [emulator.add_refund(status="succeeded"), emulator.add_refund()]
    screen = Screen()
    async with (
        emulator.serve() as base_url,
        started(
            *("cancel", *ids, "--dry-run", "--base-url", base_url),
            stdout=screen.terminal,
        ) as running,
    ):
        ended, shown = await screen.shows(running)
    assert ended.code == 0
    head, row = shown.splitlines()
    assert head.split() == ["refund", "id", "status", "amount", "currency", "error"]
    assert row.split() == [ids[0], "succeeded", "5,000", "jpy"]


@real
async def test_dry_run_shows_how_far_it_is() -> None:
    emulator, ids = emulator_of(2)
    screen = Screen(40)
    async with (
        emulator.serve() as base_url,
        started(
            *("cancel", *ids, "--dry-run", "--base-url", base_url),
            stderr=screen.terminal,
        ) as running,
    ):
        ended, drawn = await screen.shows(running)
    assert ended.code == 0
    frames = drawn.split("\r\x1b[K")
    assert any(frame.startswith("0/2 read  ") for frame in frames)
    assert any("2/2 read" in frame for frame in frames)


@real
async def test_dry_run_from_stdin_says_that_the_list_is_needed_again() -> None:
    emulator, ids = emulator_of(3)
    async with emulator.serve() as base_url:
        ended = await run_in_shell(
            f"printf '%s\\n' {' '.join(ids)} | refunds cancel --from - --dry-run "
            f"--max 2 --base-url {base_url}"
        )
    assert ended.code == 0
    assert ended.said[:2] == [
        "--max left out 1 refund",
        "2 of 2 refunds can be canceled:",
    ]
    assert ended.err.endswith("the list came from stdin: give it again\n")


@real
async def test_dry_run_that_finds_none_asks_whether_the_key_is_the_right_one() -> None:
    emulator, _ = emulator_of(0)
    ids = [emulator.add_refund(livemode=True) for _ in range(3)]
    async with emulator.serve() as base_url:
        one, all_ = await run_each(
            ("cancel", "re_1", "--dry-run", "--base-url", base_url),
            ("cancel", *ids, "--dry-run", "--base-url", base_url),
        )
        moved = emulator.add_refund(status="succeeded")
        some = await run("cancel", moved, *ids, "--dry-run", "--base-url", base_url)
    asks = "is this the key of the right account and mode, test or live?\n"
    assert one.err == f"0 of 1 refund can be canceled\n1 was not found\n{asks}"
    assert all_.err == f"0 of 3 refunds can be canceled\n3 were not found\n{asks}"
    assert some.err.endswith("3 were not found\n1 cannot be canceled: succeeded\n")
    assert one.code == all_.code == some.code == 1


@real
async def test_dry_run_with_a_refused_key_ends_at_once() -> None:
    emulator, ids = emulator_of(50)
    emulator.expire_key("sk_test_expired")
    async with emulator.serve() as base_url:
        ended = await run(
            *("cancel", *ids, "--dry-run", "--base-url", base_url),
            key="sk_test_expired",
        )
    # Not 2, which says that nothing was sent.
    assert (ended.code, ended.out) == (1, "")
    assert re.fullmatch(
        r"async-refunds: re_\w+ could not be read: Expired API Key provided.*; "
        r"0 of 50 refunds read; nothing was canceled\n",
        ended.err,
    )
    assert emulator.books.requests["retrieve"] < 30


@real
async def test_refund_that_could_not_be_read_is_exit_code_1() -> None:
    emulator, ids = emulator_of(1)
    emulator.faults.load("503=1")
    async with emulator.serve() as base_url:
        ended = await run(
            *("cancel", *ids, "--dry-run", "--timeout", "0.5", "--base-url", base_url)
        )
    assert ended.code == 1
    assert ended.err == (
        "1 refund could not be read: Sorry, there was an error while talking to one of "
        "our backends. If you have any questions, we can help at "
        "https://support.stripe.com/.\nnothing was canceled\n"
    )


@real
async def test_dry_run_tells_what_it_could_not_read_from_what_it_read() -> None:
    reads: list[Act] = [answer(body=refund_json("requires_action")), answer(503, b"")]
    async with scripted(CANCELED, reads=reads) as server:
        ended = await run(
            *("cancel", RE, "re_2", "--dry-run", "--timeout", "0.5"),
            *("--base-url", server.url),
        )
    assert ended.code == 1
    assert ended.err.startswith("1 of 1 refund that was read can be canceled:\n")
    assert "\n1 refund could not be read: HTTP status 503" in ended.err


class Previewed:
    """What reads come to in a time of the test's own, and when they ended."""

    def __init__(self, base_url: str, patience: float | None = None) -> None:
        self._base_url = base_url
        self._options = BatchOptions(patience=patience)
        self._writer = PreviewWriter(Output(path="/dev/null"))
        self.seconds = 0.0

    async def read(self, ids: list[str]) -> list[str]:
        """Read them, and return what is said at the end."""
        clock = asyncio.get_running_loop().time
        began, requests = clock(), [CancelRequest(each) for each in ids]
        async with RefundsClient("sk_test_1", base_url=self._base_url) as client:
            await PacedReads(self._options, self._writer.write).run(
                *(client, iter(requests)),
                total=len(ids),
                output=Output(path="/dev/null"),
            )
        self.seconds = clock() - began
        assert not self._writer.preview.all_read
        return [*preview_lines(self._writer.preview, repeatable=True)]


async def test_dry_run_gives_up_where_nothing_answers() -> None:
    """Nothing is known then of what can be canceled."""
    previewed = Previewed(NOBODY)
    said = await previewed.read([f"re_{number}" for number in range(1000)])
    assert 5 <= previewed.seconds < 12
    why = r"no connection \(Connection refused\)"
    *said, last = said
    assert last == "nothing was canceled"
    left, tried = (re.match(r"(\d+) refunds ", line) for line in said)
    assert left is not None
    assert tried is not None
    assert int(left[1]) + int(tried[1]) == 1000
    assert re.fullmatch(
        rf"not asked for: {NOBODY} could not be reached for [5-9] s: {why}",
        said[0][left.end() :],
    )
    assert re.fullmatch(rf"could not be read: {why}", said[1][tried.end() :])


async def test_dry_run_has_the_patience_of_a_batch_with_what_has_answered() -> None:
    emulator, ids = emulator_of(1000)
    emulator.faults.script(*["ok"] * 20, *["503"] * 9000)
    async with emulator.serve() as base_url:
        previewed = Previewed(base_url, patience=20)
        first, *said = await previewed.read(ids)
    assert 20 <= previewed.seconds < 35
    assert first == "20 of 20 refunds that were read can be canceled:"
    assert any(
        re.match(r"\d+ refunds could not be read: Sorry, ", each) for each in said
    )
    failed = rf"\d+ refunds not asked for: {base_url} failed for 2\d s: Sorry, .*"
    assert any(re.fullmatch(failed, each) for each in said)


async def test_failures_with_answers_between_are_no_outage() -> None:
    """Each answer begins the patience anew."""
    emulator, ids = emulator_of(400)
    emulator.faults.load("503=0.6")
    async with emulator.serve() as base_url:
        said = await Previewed(base_url, patience=10).read(ids)
    assert not any("not asked for" in each for each in said)


async def test_reads_keep_to_stripe_s_limit_for_each_account() -> None:
    emulator, ids = emulator_of(60)
    theirs = [emulator.add_refund(account=THEM) for _ in range(60)]
    requests = [
        *map(CancelRequest, ids),
        *(CancelRequest(each, THEM) for each in theirs),
    ]
    output = Output(path="/dev/null")
    writer = PreviewWriter(output)
    clock = asyncio.get_running_loop().time
    async with emulator.serve() as base_url:
        began = clock()
        async with RefundsClient("sk_test_1", base_url=base_url) as client:
            await PacedReads(ReadOptions(), writer.write).run(
                client, iter(requests), total=len(requests), output=output
            )
    assert writer.preview.cancelable == 120
    assert 59 / 20 <= clock() - began < 60 / 20 + 3.5


def test_time_is_that_of_the_account_with_most_refunds() -> None:
    preview = Preview()
    preview.statuses["requires_action"] = 1200
    preview.counts.update(
        {("", "jpy"): 100, ("acct_1", "jpy"): 600, ("acct_1", "eur"): 500}
    )
    assert preview.seconds == 44.0
    assert "about 0:00:44 at Stripe's limit" in "\n".join(
        preview_lines(preview, repeatable=True)
    )


def test_few_reasons_are_told_why_refunds_could_not_be_read() -> None:
    preview = Preview()
    preview.statuses["not read"] = 15
    preview.causes.update({f"could not be read: {n}": n for n in range(1, 6)})
    assert [*preview_lines(preview, repeatable=True)] == [
        *(f"{n} refunds could not be read: {n}" for n in (5, 4, 3)),
        "and 2 more reasons why some could not be read",
        "nothing was canceled",
    ]


def test_sums_that_are_all_known_have_nothing_to_add() -> None:
    known = Preview()
    known.counts["", "eur"], known.sums["", "eur"] = 2, 105_600
    sums = ["currency  refunds  sum", "eur       2        1,056.00"]
    assert known_sums(known, 2) == sums
    more = "the sums of 1 other are not known yet: --dry-run shows them"
    assert known_sums(known, 3) == [*sums, more]


@real
@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1)])
async def test_more_than_one_live_refund_is_asked_about(answer: str, code: int) -> None:
    emulator, _ = emulator_of(0)
    ids = [emulator.add_refund(livemode=True, account=THEM) for _ in range(2)]
    screen = Screen()
    async with (
        emulator.serve() as base_url,
        started(
            *("cancel", *ids, "--live", "--account", THEM, "--base-url", base_url),
            key=LIVE_KEY,
            stdin=screen.terminal,
            stderr=screen.terminal,
        ) as running,
    ):
        ended, shown = await screen.answers(running, answer)
    assert ended.code == code
    assert shown.splitlines()[:2] == [
        f"live mode, {base_url}",
        "the sums are not known yet: --dry-run shows them",
    ]
    assert f"Cancel these 2 refunds of {THEM}? Real money moves. [y/N]:" in shown
    assert emulator.books.cancellations == (dict.fromkeys(ids, 1) if code == 0 else {})


@real
async def test_what_the_journal_knows_of_the_sums_is_shown_before_the_question(
    tmp_path: Path,
) -> None:
    emulator, _ = emulator_of(0)
    requests = [
        CancelRequest(emulator.add_refund(livemode=True, account=account), account)
        for account in (f"acct_{n}" for n in range(6))
    ]
    screen = Screen()
    async with emulator.serve() as base_url:
        run_of = Run(base_url, livemode=True)
        async with SqliteJournal.open(tmp_path / "run.sqlite3", run_of) as journal:
            await journal.add(requests)
            for request in requests[:2]:
                (claim,) = await claimed(journal, request.stripe_account, 1)
                seen = Refund(claim.refund_id, "refund", 5000, "eur", 0)
                result = CancelResult(
                    refund_id=claim.refund_id,
                    stripe_account=claim.stripe_account,
                    outcome="unknown",
                    refund=seen,
                    idempotency_key=claim.idempotency_key,
                    settled=False,
                )
                await journal.settle([(claim, result)])
        async with started(
            *("resume", "run.sqlite3", "--live"),
            key=LIVE_KEY,
            stdin=screen.terminal,
            stderr=screen.terminal,
            folder=tmp_path,
        ) as running:
            ended, shown = await screen.answers(running, "y\n")
    assert ended.code == 0
    them = "6 refunds that are open in the journal of acct_0, acct_1, acct_2 and 3 more"
    mode, *sums, question = shown.partition("continuing")[0].splitlines()
    assert mode == f"live mode, {base_url}"
    assert sums == [
        "account  currency  refunds  sum",
        "acct_0   eur       1        50.00",
        "acct_1   eur       1        50.00",
        "the sums of 4 others are not known yet: --dry-run shows them",
    ]
    assert question == f"Cancel {them} accounts? Real money moves. [y/N]:y"


@real
@pytest.mark.parametrize("limit", [None, 2])
async def test_what_a_journal_holds_already_is_shown_before_the_question(
    limit: int | None, tmp_path: Path
) -> None:
    """A second list in the journal of another one: both are canceled."""
    emulator, _ = emulator_of(0)
    done, both, other, *more = (emulator.add_refund(livemode=True) for _ in range(5))
    (tmp_path / "list2").write_text("\n".join([done, both, *more]))
    screen = Screen()
    async with emulator.serve() as base_url:
        run_of = Run(base_url, livemode=True)
        async with SqliteJournal.open(tmp_path / "run.sqlite3", run_of) as journal:
            await journal.add([CancelRequest(each) for each in (done, both, other)])
            (claim,) = await claimed(journal, None, 1)
            result = CancelResult(
                refund_id=done,
                stripe_account=None,
                outcome="canceled",
                idempotency_key=claim.idempotency_key,
            )
            await journal.settle([(claim, result)])
        async with started(
            *("cancel", "--from", "list2", "--journal", "run.sqlite3", "--live"),
            *("--base-url", base_url, *(["--max", str(limit)] if limit else [])),
            key=LIVE_KEY,
            stdin=screen.terminal,
            stderr=screen.terminal,
            folder=tmp_path,
        ) as running:
            ended, shown = await screen.answers(running, "y\n")
    added = "2 of the 4 given are added"
    assert ended.code == 0
    assert shown.splitlines()[:3] == [
        f"live mode, {base_url}",
        f"run.sqlite3 holds 3 refunds already, 2 of them open; {added}",
        "the sums are not known yet: --dry-run shows them",
    ]
    them = "2 of 4 refunds, 3 given" if limit else "these 3 refunds"
    question = f"Cancel {them}, and 1 more that is open in the journal? Real money"
    assert question in shown
    assert "continuing" not in shown
    expected = [both, other] if limit else [both, other, *more]
    assert emulator.books.cancellations == dict.fromkeys(expected, 1)


@real
async def test_live_refunds_without_a_terminal_or_yes_are_refused(
    tmp_path: Path,
) -> None:
    emulator, _ = emulator_of(0)
    ids = [emulator.add_refund(livemode=True) for _ in range(6)]
    async with emulator.serve() as base_url:
        live = ("--live", "--base-url", base_url)
        kept = ("--journal", "run.sqlite3")
        refused = await run_each(
            ("cancel", *ids, *live),
            ("cancel", *ids, *live, *kept),
            key=LIVE_KEY,
            folder=tmp_path,
        )
        assert not emulator.requests
        assert not there(tmp_path, "*")  # no journal of a run that never was
        one = await run("cancel", *ids, *live, "--max", "1", key=LIVE_KEY)
        some = await run(
            *("cancel", *ids, *live, *kept, "--yes", "--max", "3"),
            key=LIVE_KEY,
            folder=tmp_path,
        )
        resume = ("resume", "run.sqlite3", "--live")
        refused.append(await run(*resume, key=LIVE_KEY, folder=tmp_path))
        rest = await run(*resume, "--yes", key=LIVE_KEY, folder=tmp_path)
    for ended in refused:
        assert (ended.code, ended.out) == (2, "")
        assert "there is no terminal to ask on: add --yes" in ended.err
    assert one.code == 0
    assert one.err.endswith("--max left out 5 refunds\n")
    assert [line["refund_id"] for line in one.lines] == ids[:1]
    assert some.code == 0
    assert sorted(line["refund_id"] for line in some.lines) == sorted(ids[:3])
    command = "async-refunds resume run.sqlite3 --live"
    assert f"3 of 6 are open: `{command}` continues with them" in some.err
    assert rest.code == 0
    assert emulator.books.cancellations == dict.fromkeys(ids, 1)


@real
async def test_journal_with_a_limit_gives_out_no_more(tmp_path: Path) -> None:
    run_of = Run("https://a.example", livemode=False)
    async with BoundedJournal.open(tmp_path / "run.sqlite3", run_of) as journal:
        await journal.add([CancelRequest(f"re_{n}") for n in range(3)])
        journal.limit = 2
        taken = [len(await claimed(journal, None, 1)) for _ in range(3)]
    assert taken == [1, 1, 0]


@real
async def test_max_counts_over_all_accounts_of_a_journal(tmp_path: Path) -> None:
    emulator, ids = emulator_of(2)
    theirs = [emulator.add_refund(account=THEM) for _ in range(40)]
    lines = [*(f"{each}," for each in ids), *(f"{each},{THEM}" for each in theirs)]
    (tmp_path / "ids.csv").write_text("\n".join(["id,stripe_account", *lines]))
    async with emulator.serve() as base_url:
        ended = await run(
            *("cancel", "--from", "ids.csv", "--journal", "run.sqlite3"),
            *("--max", "30", "--rate", "2000", "--base-url", base_url),
            folder=tmp_path,
        )
    assert ended.code == 0
    assert len(ended.lines) == emulator.books.cancellations.total() == 30
