from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from async_refunds.cli.tables import Table
from tests.support.terminal import (
    TEST_KEY,
    Screen,
    emulator_of,
    held,
    run,
    run_in_shell,
    started,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_refunds.emulator import Emulator

pytestmark = pytest.mark.asyncio(loop_factories=["real"])


@pytest.fixture
def full() -> Iterator[int]:
    """A disk with no space left."""
    with Path("/dev/full").open("wb") as file:
        yield file.fileno()


@pytest.fixture
def unread() -> Iterator[int]:
    """A pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize(
    "words",
    [("--help",), ("--version",), ("cancel", "--help"), ("fleet", "worker", "-h")],
)
async def test_help_ends_as_data_does_when_stdout_breaks(
    words: tuple[str, ...], full: int, unread: int
) -> None:
    ended = await run(*words, stdout=full)
    said = "async-refunds: stdout broke (No space left on device)\n"
    assert (ended.code, ended.err) == (1, said)
    left = await run(*words, stdout=unread)
    assert (left.code, left.err) == (1, "")
    whole = await run(*words)
    assert (whole.code, whole.err) == (0, "")
    assert whole.out.startswith("async-refunds" if "--version" in words else "Usage: ")


@pytest.mark.parametrize(
    ("stdout", "reason"),
    [("full", "No space left on device"), ("unread", "Broken pipe")],
)
async def test_results_of_a_cancel_go_on_to_stderr_when_stdout_breaks(
    request: pytest.FixtureRequest, stdout: str, reason: str
) -> None:
    emulator, ids = emulator_of(3)
    async with emulator.serve() as base_url:
        ended = await run(
            *("cancel", *ids, "--base-url", base_url),
            stdout=request.getfixturevalue(stdout),
        )
    assert ended.code == 1
    said, *results = ended.err.splitlines()
    assert said == f"stdout broke ({reason}): the results go on here"
    told = [json.loads(line) for line in results]
    assert sorted(line["refund_id"] for line in told) == sorted(ids)
    assert {line["outcome"] for line in told} == {"canceled"}


async def test_results_of_a_cancel_go_to_stderr_when_stdout_is_closed() -> None:
    emulator, ids = emulator_of(2)
    async with emulator.serve() as base_url:
        ended = await run_in_shell(
            f"refunds cancel {' '.join(ids)} --base-url {base_url} >&-"
        )
    assert ended.code == 1
    said, *results = ended.err.splitlines()
    assert said == "stdout broke (it is closed): the results go on here"
    told = [json.loads(line) for line in results]
    assert sorted(line["refund_id"] for line in told) == sorted(ids)


async def test_unknown_outcome_outranks_a_lost_stdout(full: int) -> None:
    emulator, ids = emulator_of(1)
    emulator.faults.load("reset_after=1")
    async with emulator.serve() as base_url:
        ended = await run(
            *("cancel", *ids, "--base-url", base_url, "--timeout", "1"),
            *("--patience", "0.1"),
            stdout=full,
        )
    assert ended.code == 3
    assert json.loads(ended.err.splitlines()[1])["outcome"] == "unknown"


@pytest.mark.parametrize("where", [">/dev/full 2>/dev/full", ">&- 2>&-"])
async def test_nothing_more_is_canceled_once_nobody_can_be_told(where: str) -> None:
    emulator, ids = emulator_of(3)
    async with emulator.serve() as base_url:
        ended = await run_in_shell(
            f"refunds cancel {' '.join(ids)} --concurrency 1 --base-url {base_url} "
            + where
        )
    # 120 is how Python says that stderr could not be flushed at exit.
    assert ended.code in (1, 120)
    assert emulator.books.cancellations == {ids[0]: 1}


async def test_stderr_that_nobody_reads_takes_no_result_with_it(unread: int) -> None:
    emulator, ids = emulator_of(3)
    emulator.set_status(ids[0], "succeeded")
    async with emulator.serve() as base_url:
        ended = await run("cancel", *ids, "--base-url", base_url, stderr=unread)
    assert ended.code == 1
    assert sorted(line["refund_id"] for line in ended.lines) == sorted(ids)


async def test_bar_s_terminal_that_is_gone_takes_no_result_with_it() -> None:
    emulator, ids = emulator_of(3)
    screen = Screen()
    async with held(
        emulator,
        1,
        *("cancel", *ids, "--concurrency", "1"),
        stderr=screen.terminal,
    ) as (gate, running):
        screen.leave_to_process()
        screen.unplug()
        gate.open()
        ended = await running.ended()
    assert ended.code == 0
    assert sorted(line["refund_id"] for line in ended.lines) == sorted(ids)


async def test_results_of_a_cancel_outlive_the_terminal() -> None:
    emulator, ids = emulator_of(2)
    screen = Screen()
    async with held(emulator, 2, "cancel", *ids, stdout=screen.terminal) as (
        gate,
        running,
    ):
        screen.leave_to_process()
        screen.unplug()
        gate.open()
        ended = await running.ended()
    assert ended.code == 1
    said, *results = ended.err.splitlines()
    assert said == "stdout broke (Input/output error): the results go on here"
    told = [json.loads(line) for line in results]
    assert sorted(line["refund_id"] for line in told) == sorted(ids)


async def test_reader_who_has_enough_ends_a_list_without_a_word() -> None:
    emulator, ids = emulator_of(500)
    async with emulator.serve() as base_url:
        ended = await run_in_shell(
            f"{{ refunds list --base-url {base_url}; echo code $? >&2; }} | head -1"
        )
    assert [line["id"] for line in ended.lines] == ids[-1:]
    assert ended.err == "code 1\n"


async def test_full_disk_under_a_list_is_told(full: int) -> None:
    emulator, _ = emulator_of(2)
    async with emulator.serve() as base_url:
        ended = await run("list", "--base-url", base_url, stdout=full)
    assert ended.code == 1
    assert ended.err == "async-refunds: stdout broke (No space left on device)\n"


async def test_closed_stdout_under_a_retrieve_is_told() -> None:
    emulator, ids = emulator_of(1)
    async with emulator.serve() as base_url:
        ended = await run_in_shell(
            f"refunds retrieve {ids[0]} --base-url {base_url} >&-"
        )
    assert ended.code == 1
    assert ended.err == "async-refunds: stdout broke (it is closed)\n"


async def test_full_disk_under_a_demo_is_told_after_its_story(full: int) -> None:
    ended = await run("demo", "--refunds", "3", "--json", stdout=full)
    assert ended.code == 1
    assert ended.err.startswith("3 of 3 refunds canceled\n")
    assert ended.err.endswith("async-refunds: stdout broke (No space left on device)\n")


async def test_json_is_utf8_whatever_the_terminal_can_write() -> None:
    emulator, _ = emulator_of(0)
    emulator.add_refund(metadata={"kraj": "Łódź"})
    async with emulator.serve() as base_url:
        ended = await run("list", "--base-url", base_url, encoding="ascii")
    assert ended.code == 0
    assert ended.lines[0]["metadata"] == {"kraj": "Łódź"}


async def test_table_shows_text_as_it_is_and_obeys_none_of_it() -> None:
    emulator, _ = emulator_of(0)
    emulator.add_refund(status="[bold]:boom:\x1b[31mŁ", refund_id="re_odd")
    screen = Screen()
    async with (
        emulator.serve() as base_url,
        started(
            *("list", "--base-url", base_url), stdout=screen.terminal, encoding="ascii"
        ) as running,
    ):
        ended, shown = await screen.shows(running)
    assert ended.code == 0
    assert shown.splitlines()[1].split()[:2] == [
        "re_odd",
        r"[bold]:boom:\x1b[31m\u0141",
    ]


HOSTILE = "\x1b[31mX\x1b]8;;http://e\x07\x9b31m\u202e\r\nforged\u2028\x00\x7f\U000e0041"
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\U000e0000-\U000e007f]")
"""What a terminal obeys, but for the ends of lines."""


def hostile_emulator() -> tuple[Emulator, list[str]]:
    emulator, _ = emulator_of(0)
    ids = [
        emulator.add_refund(refund_id="re_waits", currency=f"x{HOSTILE}"),
        emulator.add_refund(refund_id="re_odd", status=f"odd{HOSTILE}"),
    ]
    emulator.add_refund(refund_id="re_more", metadata={"note": f"more{HOSTILE}"})
    return emulator, ids


async def test_nothing_of_a_server_is_obeyed_by_a_terminal(tmp_path: Path) -> None:
    emulator, ids = hostile_emulator()
    async with emulator.serve() as base_url:
        to = ("--base-url", base_url)
        kept = ("--journal", "run.sqlite3")
        for words in (
            ("cancel", *ids, "--dry-run", *to),
            ("cancel", *ids, *kept, *to),
            ("report", "run.sqlite3"),
            ("report", "run.sqlite3", "--json"),
            ("verify", "run.sqlite3", *to),
            ("list", *to),
            ("list", "--json", *to),
            ("retrieve", *ids, "--json", *to),
            ("sweep", "--older-than", "1d", "--dry-run", *to),
        ):
            screen = Screen()
            async with started(
                *words,
                stdout=screen.terminal,
                stderr=screen.terminal,
                environment={"TERM": "dumb"},
                folder=tmp_path,
            ) as running:
                _, shown = await screen.shows(running)
            assert shown, words
            assert not OBEYED.search(shown), (words, ascii(shown))
            assert "\nforged" not in shown, words


@pytest.mark.parametrize("how", ["-v", "ASYNC_REFUNDS_LOG"])
async def test_nothing_of_a_server_is_obeyed_by_who_reads_the_log(how: str) -> None:
    emulator, ids = hostile_emulator()
    emulator.faults.script("saved_500")
    more = {"ASYNC_REFUNDS_LOG": "debug"} if how != "-v" else {}
    async with emulator.serve() as base_url:
        ended = await run(
            *("cancel", *ids[1:], *(["-v"] if how == "-v" else [])),
            *("--patience", "0.1", "--base-url", base_url),
            environment=more,
        )
    assert "is in state odd" in ended.err
    assert not OBEYED.search(ended.err), ascii(ended.err)
    assert "\nforged" not in ended.err


async def test_json_for_a_program_has_the_text_itself() -> None:
    emulator, _ = hostile_emulator()
    async with emulator.serve() as base_url:
        ended = await run("list", "--base-url", base_url)
    assert not OBEYED.search(ended.out)
    told = {line["id"]: line for line in ended.lines}
    assert told["re_more"]["metadata"] == {"note": f"more{HOSTILE}"}


async def test_odd_error_text_is_shown_to_people_as_it_is() -> None:
    emulator, _ = emulator_of(0)
    async with emulator.serve() as base_url:
        ended = await run(
            "list", "--charge", "ch_[bold]:boom:\x1b", "--base-url", base_url
        )
    assert ended.code == 2
    assert r"ch_[bold]:boom:\x1b" in ended.err


async def test_columns_of_the_environment_go_before_those_of_the_terminal() -> None:
    emulator, ids = emulator_of(1)
    screen = Screen(200)
    async with (
        emulator.serve() as base_url,
        started(
            *("cancel", *ids, "re_missing", "--base-url", base_url),
            stdout=screen.terminal,
            environment={"COLUMNS": "40"},
        ) as running,
    ):
        _, shown = await screen.shows(running)
    error = [line for line in shown.splitlines() if line.startswith("    ")]
    assert len(error) > 1
    assert max(map(len, error)) <= 40


ID = "re_1" + 23 * "x"
WHY = "was not canceled: it is succeeded, and only a refund in requires_action can be"
RESULT = {
    "refund_id": ID,
    "outcome": "not_cancelable",
    "idempotency_key": 32 * "k",
    "error": f"{ID} {WHY}",
}


@pytest.mark.parametrize(
    ("columns", "lines"),
    [
        (
            200,
            [f"{ID}  not_cancelable  {32 * 'k'}  {WHY}"],
        ),
        (
            80,
            [
                f"{ID}  not_cancelable  was not canceled: it is succeeded,",
                f"{45 * ' '}and only a refund in",
                f"{45 * ' '}requires_action can be",
            ],
        ),
        (
            40,
            [
                f"{ID}  not_cancelable",
                "    was not canceled: it is succeeded,",
                "    and only a refund in requires_action",
                "    can be",
            ],
        ),
    ],
)
async def test_row_wraps_at_words_and_keeps_the_id_whole(
    columns: int, lines: list[str]
) -> None:
    table = Table(("refund_id", "outcome", "idempotency_key", "error"), columns)
    assert table.lines([RESULT], head=False) == lines


@pytest.mark.parametrize("columns", [20, 40, 60, 80])
async def test_key_in_a_row_is_not_torn(columns: int) -> None:
    key = "idempotency_key='0198c9a2-6f0e-7c31-b3a5-5d1f4f0e9a77'"
    table = Table(("refund_id", "error"), columns)
    row = {"refund_id": "re_1", "error": f"the answer was lost; ask again with {key}"}
    lines = table.lines([row], head=False)
    assert any(key in line for line in lines)


async def test_amount_is_in_the_currency_s_own_unit_and_json_in_the_smallest() -> None:
    emulator, _ = emulator_of(0)
    emulator.add_refund(amount=105_600, currency="eur")
    screen = Screen()
    async with emulator.serve() as base_url:
        as_json = await run("list", "--base-url", base_url)
        async with started(
            "list", "--base-url", base_url, stdout=screen.terminal
        ) as running:
            _, shown = await screen.shows(running)
    assert as_json.lines[0]["amount"] == 105_600
    assert shown.splitlines()[1].split()[2:4] == ["1,056.00", "eur"]


async def test_reader_who_leaves_is_sent_to_the_journal_and_stderr_is_not_flooded(
    tmp_path: Path,
) -> None:
    emulator, ids = emulator_of(120)
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    async with emulator.serve() as base_url:
        ended = await run_in_shell(
            "{ refunds cancel --from ids.txt --journal run.sqlite3 --rate 2000 "
            f"--base-url {base_url}; echo code $? >&2; }} | head -1",
            folder=tmp_path,
        )
    assert len(ended.lines) == 1
    said, *summary = ended.said
    assert said == (
        "stdout broke (Broken pipe): `async-refunds report run.sqlite3` shows the "
        "results"
    )
    assert summary == [
        "outcome   refunds  what to do",
        "canceled  120",
        "code 1",
    ]
    assert emulator.books.cancellations == dict.fromkeys(ids, 1)


async def test_no_command_ever_shows_the_key() -> None:
    emulator, _ = emulator_of(0)
    emulator.add_refund(metadata={"pasted": TEST_KEY})
    async with emulator.serve() as base_url:
        listed = await run("list", "--base-url", base_url)
    assert listed.lines[0]["metadata"] == {"pasted": "sk_test_***"}
    # Every output of this suite is checked for it; this shows that the check can fail.
    with pytest.raises(AssertionError):
        await run_in_shell(f"echo {TEST_KEY}")
