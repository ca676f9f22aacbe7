"""A copy of a journal, also of one that is in use."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from async_refunds.errors import JournalError
from async_refunds.journal import JournalReader, Record, Run, SqliteJournal
from async_refunds.results import CancelRequest
from tests.support.journals import claimed

if TYPE_CHECKING:
    from pathlib import Path

real = pytest.mark.asyncio(loop_factories=["real"])

RUN = Run("https://api.stripe.com", livemode=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite3"


def records(path: Path) -> list[Record]:
    return list(JournalReader(path).records())


def left(folder: Path) -> list[str]:
    assert all(each.stat().st_mode & 0o777 == 0o600 for each in folder.iterdir())
    return sorted(each.name for each in folder.iterdir())


@real
async def test_copy_of_a_run_that_goes_on_is_whole(path: Path, tmp_path: Path) -> None:
    async with SqliteJournal.open(path, RUN) as journal:
        await journal.add([CancelRequest(f"re_{number}") for number in range(2000)])
        reader = JournalReader(path)
        copies = [tmp_path / f"copy-{number}.sqlite3" for number in range(10)]

        async def work() -> None:
            while await claimed(journal, None, 50):
                pass

        working = asyncio.create_task(work())
        for copy in copies:
            await asyncio.to_thread(reader.backup, copy)
        await working
        used = {record.idempotency_key for record in journal.records()}
    assert left(tmp_path) == sorted([*(copy.name for copy in copies), path.name])
    for copy in copies:
        async with SqliteJournal.open(copy) as journal:
            claims = await claimed(journal, None, 2000)
        assert {claim.idempotency_key for claim in claims} == used


def test_copy_of_a_run_that_has_ended_is_the_same(path: Path, tmp_path: Path) -> None:
    with SqliteJournal.open(path, RUN) as journal:
        journal.load([CancelRequest("re_1")])
    before = path.read_bytes()
    JournalReader(path).backup(str(tmp_path / "copy"))
    assert records(tmp_path / "copy") == records(path)
    assert path.read_bytes() == before


def test_copy_takes_no_file_s_place(path: Path, tmp_path: Path) -> None:
    with SqliteJournal.open(path, RUN) as journal:
        journal.load([CancelRequest("re_1")])
    other = tmp_path / "other"
    other.write_bytes(b"x" * 200)
    reader = JournalReader(path)
    for target in (other, path):
        before = target.read_bytes()
        with pytest.raises(JournalError, match="is there already: give another path"):
            reader.backup(target)
        assert target.read_bytes() == before
    with pytest.raises(JournalError, match="has no folder to be in"):
        reader.backup(tmp_path / "none" / "copy")
    with pytest.raises(JournalError, match="too long"):
        reader.backup(tmp_path / ("x" * 300))


def test_copy_of_what_is_gone_leaves_nothing(path: Path, tmp_path: Path) -> None:
    with SqliteJournal.open(path, RUN) as journal:
        journal.load([CancelRequest("re_1")])
    reader = JournalReader(path)
    path.unlink()
    with pytest.raises(JournalError, match="there is no journal"):
        reader.backup(tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []
