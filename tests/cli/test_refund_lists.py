from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import pytest

from async_refunds.cli.list_files import UnreadableError, read_list
from async_refunds.cli.refund_list import RefundList
from async_refunds.results import CancelRequest
from tests.support.terminal import CANARY, emulator_of, run, run_each, run_in_shell

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

real = pytest.mark.asyncio(loop_factories=["real"])

REPORTED = '{"refund_id":"re_1","id":"ch_1","stripe_account":null,"x":{"a":[]}}'
GOOD = [CancelRequest("re_1"), CancelRequest("pyr_2", "acct_1Them")]


@pytest.fixture
def ids() -> Iterator[RefundList]:
    with RefundList() as made:
        yield made


def unexpected(line: tuple[int, str]) -> None:
    raise AssertionError(line)


def bad_lines(path: Path, ids: RefundList, data: str | bytes) -> list[tuple[int, str]]:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    bad: list[tuple[int, str]] = []
    read_list(str(path), ids, bad.append)
    return bad


def test_refunds_without_an_account_get_the_one_given(tmp_path: Path) -> None:
    data = "id,stripe_account\nre_1,\npyr_2,acct_1Them\n"
    with RefundList("acct_1Ours") as requests:
        assert bad_lines(tmp_path / "a.csv", requests, data) == []
        assert list(requests) == [CancelRequest("re_1", "acct_1Ours"), GOOD[1]]


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
@pytest.mark.parametrize(
    "pasted", [f"sk_live_{CANARY}", "jenny.rosen@example.com", 999 * "long"]
)
def test_what_is_shown_of_a_bad_line_is_short_and_holds_no_secret(
    tmp_path: Path, ids: RefundList, name: str, pasted: str
) -> None:
    data = {
        "a.txt": pasted,
        "a.csv": f"id,stripe_account\n{pasted},\nre_1,{pasted}",
        "a.jsonl": f'{{"id":"{pasted}"}}\n{{"id":"re_1","{pasted}":"}}\n{pasted}',
    }[name]
    bad = bad_lines(tmp_path / name, ids, data)
    assert bad
    for _, reason in bad:
        assert CANARY not in reason
        assert "jenny" not in reason
        assert len(reason) < 200


def test_longest_line_that_is_read_is_64_kib(tmp_path: Path, ids: RefundList) -> None:
    line = "re_1," + "x" * (65_536 - 6) + "\n"
    assert bad_lines(tmp_path / "a.csv", ids, f"id,note\n{line}re_2,") == []
    assert ids.count == 2


def test_memory_is_flat_however_long_the_list_is(
    tmp_path: Path, ids: RefundList
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(f"re_{number:030}\n" for number in range(100_000)))
    tracemalloc.start()
    try:
        read_list(str(path), ids, unexpected)
        assert sum(1 for _ in ids) == ids.count == 100_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3_000_000  # of a file of 3.4 MB; a list of them takes 20


def test_refund_is_in_the_list_once_for_each_account() -> None:
    with RefundList("acct_1Ours") as requests:
        for account in (None, "acct_1Ours", "acct_1Them", None):
            requests.add(CancelRequest("re_1", account))
        assert list(requests) == [
            CancelRequest("re_1", "acct_1Ours"),
            CancelRequest("re_1", "acct_1Them"),
        ]
        assert (requests.count, requests.duplicates) == (2, 2)


def test_list_that_cannot_be_written_says_so_in_an_os_error() -> None:
    with RefundList() as requests:
        pass
    with pytest.raises(OSError, match="the temporary file"):
        requests.add(CancelRequest("re_1"))


@real
async def test_list_that_does_not_fit_on_the_disk_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("".join(f"re_{n:0200}\n" for n in range(30_000)))
    ended = await run(
        *("cancel", "--from", "ids.txt"), python=("-c", SMALL_DISK), folder=tmp_path
    )
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        "async-refunds: ids.txt cannot be read: the temporary file: disk I/O error; "
        "nothing was sent\n"
    )


# No file of this process gets larger than this: the list would be six times as large,
# and what a measurement of coverage writes at the end is a quarter.
SMALL_DISK = """
import resource, runpy, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_048_576, 1_048_576))
runpy.run_module("async_refunds", run_name="__main__", alter_sys=True)
"""


def test_directory_is_no_list(tmp_path: Path, ids: RefundList) -> None:
    with pytest.raises(UnreadableError, match="cannot be read: Is a directory"):
        read_list(str(tmp_path), ids, unexpected)


@real
async def test_file_that_is_none_is_a_wrong_call(tmp_path: Path) -> None:
    (tmp_path / "head.csv").write_text("id\n")
    wrong = {
        "missing.csv": "missing.csv cannot be read: No such file or directory",
        "head.csv": "head.csv has no refund ids in it",
        "-": "stdin is empty",
    }
    commands = [("cancel", "--from", source) for source in wrong]
    refused = await run_each(*commands, folder=tmp_path)
    for said, ended in zip(wrong.values(), refused, strict=True):
        assert ended.err == f"async-refunds: {said}; nothing was sent\n"
        assert (ended.code, ended.out) == (2, "")
    closed = await run_in_shell("refunds cancel --from - <&-")
    assert closed.err == "async-refunds: stdin is closed; nothing was sent\n"
    assert closed.code == 2


@real
async def test_bad_lines_are_named_and_nothing_is_sent(tmp_path: Path) -> None:
    emulator, ids = emulator_of(1)
    lines = [ids[0], *(f"ch_{number}" for number in range(12)), f"sk_live_{CANARY}"]
    (tmp_path / "ids.txt").write_text("\n".join(lines))
    (tmp_path / "one.txt").write_text(f"{ids[0]}\nch_1\n")
    async with emulator.serve() as base_url:
        many, one = await run_each(
            ("cancel", "--from", "ids.txt", "--base-url", base_url),
            *[("cancel", "--from", "one.txt", "--base-url", base_url)],
            folder=tmp_path,
        )
    assert (many.code, many.out) == (2, "")
    *named, last = many.err.splitlines()
    assert len(named) == 10
    assert named[0].startswith("ids.txt:2: 'ch_0' is the id of a charge")
    assert named[9].startswith("ids.txt:11: 'ch_9' is the id of a charge")
    assert last == (
        "async-refunds: 13 lines of ids.txt are wrong; nothing was sent: fix them, or "
        "leave them out with --skip-bad"
    )
    assert one.err.endswith(
        "1 line of one.txt is wrong; nothing was sent: fix it, or leave it out with "
        "--skip-bad\n"
    )
    assert not emulator.requests


@real
async def test_bad_lines_are_skipped_when_told_and_each_is_named(
    tmp_path: Path,
) -> None:
    emulator, ids = emulator_of(2)
    lines = [ids[0], *(f"ch_{number}" for number in range(11)), ids[1], *ids]
    (tmp_path / "ids.txt").write_text("\n".join(lines))
    async with emulator.serve() as base_url:
        ended = await run(
            *("cancel", "--from", "ids.txt", "--skip-bad", "--base-url", base_url),
            folder=tmp_path,
        )
    assert ended.code == 0
    said = ended.said
    assert [line.split(":")[1] for line in said[:11]] == [str(n) for n in range(2, 13)]
    assert said[11:] == [
        "outcome   refunds  what to do",
        "canceled  2",
        "11 lines of ids.txt were skipped",
        "4 refunds given, 2 of them given before; each is canceled once",
    ]
    assert {line["refund_id"] for line in ended.lines} == set(ids)
    assert emulator.books.cancellations == dict.fromkeys(ids, 1)


@real
async def test_what_list_and_report_print_is_read_again(tmp_path: Path) -> None:
    emulator, ids = emulator_of(3)
    async with emulator.serve() as base_url:
        ended = await run_in_shell(
            f"refunds list --base-url {base_url} | "
            f"refunds cancel --from - --journal run.sqlite3 --base-url {base_url} && "
            f"refunds report run.sqlite3 --json | "
            f"refunds cancel --from - --base-url {base_url}",
            folder=tmp_path,
        )
    assert ended.code == 0
    shown = [(line["refund_id"], line["outcome"]) for line in ended.lines]
    assert sorted(shown[:3]) == sorted((each, "canceled") for each in ids)
    assert sorted(shown[3:]) == sorted((each, "already_canceled") for each in ids)
    assert emulator.books.cancellations == dict.fromkeys(ids, 1)
