"""No command writes into its own journal, nor into its list of refunds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from async_refunds.journal import JournalReader, Run, SqliteJournal
from async_refunds.results import CancelRequest
from tests.support.terminal import Ended, emulator_of, run_each, run_in_shell

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

JOURNAL = "run.sqlite3"


def keep(folder: Path) -> bytes:
    """Make a journal of an open refund, and links to it; return what it holds."""
    run = Run("https://x.test", livemode=False)
    with SqliteJournal.open(folder / JOURNAL, run) as journal:
        journal.load([CancelRequest("re_1")])
    (folder / "hard").hardlink_to(folder / JOURNAL)
    (folder / "soft").symlink_to(JOURNAL)
    (folder / "another").write_bytes((folder / JOURNAL).read_bytes())
    (folder / "ids.txt").write_text("re_2\n")
    return (folder / JOURNAL).read_bytes()


def names_in(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()}


async def test_stdout_and_stderr_are_not_the_journal(tmp_path: Path) -> None:
    emulator, ids = emulator_of(1)
    async with emulator.serve() as url:
        cancel = f"refunds cancel {ids[0]} --base-url {url} --journal {JOURNAL}"
        to_stdout = await run_in_shell(f"{cancel} > {JOURNAL}", folder=tmp_path)
        beside = await run_in_shell(f"{cancel} > {JOURNAL}-wal", folder=tmp_path)
        to_stderr = await run_in_shell(f"{cancel} 2> {JOURNAL}", folder=tmp_path)
        to_both = await run_in_shell(f"{cancel} > {JOURNAL} 2>&1", folder=tmp_path)
        (tmp_path / f"{JOURNAL}-wal").unlink()
        done = await run_in_shell(f"{cancel} > out 2> err", folder=tmp_path)
    itself = "the journal itself: give another file; nothing was done\n"
    assert to_stdout == Ended(2, "", f"async-refunds: stdout is {itself}")
    assert "stdout is a file of the journal, beside it: " in beside.err
    assert beside.code == 2
    assert to_stderr == Ended(2, f"async-refunds: stderr is {itself}", "")
    assert to_both == Ended(2, "", "")
    assert done == Ended(0, "", "")
    assert [each.outcome for each in JournalReader(tmp_path / JOURNAL).records()] == [
        "canceled"
    ]
    assert len(emulator.requests) == 1


REFUSED = {
    ("cancel", "re_2", "--journal", "new", "--output", "./new"): "the journal itself",
    ("cancel", "re_2", "--journal", JOURNAL, "--output", "hard"): "the journal itself",
    ("resume", JOURNAL, "--output", "soft"): "the journal itself",
    ("resume", "soft", "--output", f"{JOURNAL}-wal"): "a file of the journal, beside",
    ("sweep", "--older-than", "1d", "--journal", "new", "--output", "new-lock"): (
        "a file of the journal, beside it"
    ),
    ("cancel", "--from", "ids.txt", "--output", "./ids.txt"): "the file of --from",
    ("cancel", "re_2", "--output", "another"): "an SQLite database",
    ("report", JOURNAL, "--html", JOURNAL, "--force"): "the journal itself",
    ("report", JOURNAL, "--html", "hard", "--force"): "the journal itself",
    ("report", JOURNAL, "--html", f"{JOURNAL}-shm", "--force"): "beside it",
    ("report", JOURNAL, "--html", "another", "--force"): "an SQLite database",
    ("backup", JOURNAL, JOURNAL): "is there already",
    ("backup", JOURNAL, f"{JOURNAL}-wal"): "only stands beside the journal",
    ("cancel", "--from", JOURNAL): "is an SQLite database",
    ("cancel", "--from", JOURNAL, "--journal", JOURNAL): "is an SQLite database",
}


async def test_option_that_names_a_file_of_its_own_is_refused(tmp_path: Path) -> None:
    before = keep(tmp_path)
    names = names_in(tmp_path)
    told = await run_each(*REFUSED, folder=tmp_path)
    for said, ended in zip(REFUSED.values(), told, strict=True):
        assert said in ended.err
        assert (ended.code, ended.out) == (2, "")
    assert names_in(tmp_path) == names
    assert (tmp_path / JOURNAL).read_bytes() == before
    assert (tmp_path / "another").read_bytes() == before
    assert (tmp_path / "ids.txt").read_text() == "re_2\n"


async def test_results_are_not_appended_to_the_journal_or_the_list(
    tmp_path: Path,
) -> None:
    before = keep(tmp_path)
    for command, file, what in (
        (f"report {JOURNAL} --csv", "hard", "the journal itself"),
        (f"resume {JOURNAL}", JOURNAL, "the journal itself"),
        (f"verify {JOURNAL}", f"{JOURNAL}-shm", "a file of the journal, beside it"),
        ("cancel --from ids.txt", "ids.txt", "the file of --from"),
    ):
        ended = await run_in_shell(f"refunds {command} >> {file}", folder=tmp_path)
        assert ended.err.startswith(f"async-refunds: stdout is {what}: "), ended
        assert ended.code == 2
    assert (tmp_path / JOURNAL).read_bytes() == before
    assert (tmp_path / "ids.txt").read_text() == "re_2\n"
