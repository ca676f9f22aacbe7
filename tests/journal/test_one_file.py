"""The file alone is the journal: whatever else is lost, mixed up or put back."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing, suppress
from random import Random
from typing import TYPE_CHECKING

import pytest

from async_refunds.errors import JournalError
from async_refunds.journal import JournalReader, Record, Run, SqliteJournal
from async_refunds.journal.sqlite import file
from async_refunds.results import CancelRequest, CancelResult
from tests.support.journals import claimed

if TYPE_CHECKING:
    from pathlib import Path

real = pytest.mark.asyncio(loop_factories=["real"])

RUN = Run("https://api.stripe.com", livemode=False)
PAGE = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite3"


def items(first: int, last: int) -> list[CancelRequest]:
    return [CancelRequest(f"re_{number}") for number in range(first, last)]


def records(path: Path) -> list[Record]:
    return list(JournalReader(path).records())


def contents(path: Path) -> bytes:
    return path.read_bytes()


def wal(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


async def cancel(journal: SqliteJournal, count: int) -> None:
    """Claim some items, and settle all but the last of them."""
    settled = [
        (
            claim,
            CancelResult(
                refund_id=claim.refund_id, stripe_account=None, outcome="canceled"
            ),
        )
        for claim in (await claimed(journal, None, count))[:-1]
    ]
    for first in range(0, len(settled), 10):  # a commit each
        await journal.settle(settled[first : first + 10])


@real
async def test_file_alone_has_all_that_was_told(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.sqlite3"
    async with SqliteJournal.open(path, RUN) as journal:
        for step in range(10):
            await journal.add(items(step * 10, step * 10 + 10))
            await cancel(journal, 5)
            shutil.copy(path, copy)
            assert records(copy) == list(journal.records())
            assert JournalReader(copy).tally() == journal.tally()


def test_load_is_in_the_file_alone(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.sqlite3"
    with SqliteJournal.open(path, RUN) as journal:
        journal.load(items(0, 5000))
        shutil.copy(path, copy)
    with SqliteJournal.open(copy) as journal:
        assert journal.tally().open == 5000


def refused(path: Path, text: str) -> None:
    for use in (SqliteJournal.open, JournalReader):
        with pytest.raises(JournalError, match=text):
            use(path)


@pytest.mark.parametrize("count", [15, 300], ids=["on one page", "on many pages"])
@real
async def test_wal_of_another_moment_is_not_believed(
    path: Path, tmp_path: Path, count: int
) -> None:
    early, late = tmp_path / "early", tmp_path / "late"
    async with SqliteJournal.open(path, RUN) as journal:
        await journal.add(items(0, count))
        for moment in (early, late):
            await cancel(journal, 5)
            moment.mkdir()
            shutil.copy(path, moment / "x")
            shutil.copy(wal(path), moment / "x-wal")
    known = records(late / "x")
    shutil.copy(early / "x-wal", late / "x-wal")
    (late / "x-shm").unlink(missing_ok=True)
    refused(late / "x", "'.*x-wal' does not belong to the journal")
    (late / "x-wal").unlink()
    assert records(late / "x") == known


@real
async def test_wal_of_another_run_is_not_believed(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        async with SqliteJournal.open(path, RUN) as journal:
            for _ in range(2 if path is second else 1):
                await journal.add(items(0, 3))
            shutil.copy(wal(path), tmp_path / f"{path.name}.log")
    known = records(first)
    shutil.copy(tmp_path / "second.log", wal(first))
    refused(first, "does not belong to the journal")
    wal(first).unlink()
    assert records(first) == known


@real
async def test_parts_of_two_moments_are_never_taken_for_a_journal(
    path: Path, tmp_path: Path
) -> None:
    """As a copy has them that is made while a commit writes the file."""
    moments: list[tuple[bytes, list[Record]]] = []
    async with SqliteJournal.open(path, RUN) as journal:
        await journal.add(items(0, 400))
        claims = await claimed(journal, None, 300)
        for _ in range(4):
            moments.append((contents(path), list(journal.records())))
            # On pages of their own, whose size stays.
            for at in (0, 150, 299):
                claims[at] = await journal.rekey(claims[at])
    mixed = tmp_path / "mixed.sqlite3"
    right = refusals = 0
    for seed in range(150):
        chance = Random(seed)  # noqa: S311 - the same mixtures in every run
        (old, old_known), (new, new_known) = chance.sample(moments, 2)
        pages = [
            chance.choice([old, new])[at : at + PAGE]
            for at in range(0, max(len(old), len(new)), PAGE)
        ]
        mixed.write_bytes(b"".join(pages))
        try:
            found = records(mixed)
        except JournalError:
            refusals += 1
        else:
            right += 1
            assert found in (old_known, new_known)
    assert refusals > 100


@real
async def test_old_copy_asks_with_the_keys_that_were_used_since(
    path: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.sqlite3"
    async with SqliteJournal.open(path, RUN) as journal:
        await journal.add([*items(0, 5), CancelRequest("re_1", "acct_1")])
        shutil.copy(path, copy)
        used = [*await claimed(journal, None, 4), *await claimed(journal, "acct_1", 1)]
        used[0] = await journal.rekey(used[0])
    async with SqliteJournal.open(copy) as journal:
        again = [*await claimed(journal, None, 4), *await claimed(journal, "acct_1", 1)]
        again[0] = await journal.rekey(again[0])
    keys = [claim.idempotency_key for claim in used]
    assert [claim.idempotency_key for claim in again] == keys
    assert len(set(keys)) == 5
    # Another run on the same refunds has keys of its own.
    async with SqliteJournal.open(tmp_path / "other.sqlite3", RUN) as journal:
        await journal.add(items(0, 5))
        others = {claim.idempotency_key for claim in await claimed(journal, None, 5)}
    assert not others & set(keys)


@pytest.mark.parametrize("size", [0, 31, 5000])
@real
async def test_wal_cut_short_in_mid_run_loses_nothing(path: Path, size: int) -> None:
    async with SqliteJournal.open(path, RUN) as journal:
        await journal.add(items(0, 300))
        await cancel(journal, 50)
        with wal(path).open("r+b") as log:
            log.truncate(size)
        with suppress(JournalError):
            await cancel(journal, 50)
            await journal.add(items(300, 310))
    found = records(path)
    assert [each.refund_id for each in found] == [
        each.refund_id for each in items(0, len(found))
    ]
    assert sum(each.outcome == "canceled" for each in found) in {49, 98}


@real
async def test_long_reader_does_not_stop_a_run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program's: while it reads, the file stays behind the -wal."""
    monkeypatch.setattr(file, "_LOCK_WAIT", 0.05)  # the reader outlasts any wait
    connect, executed = file.connect, list[str]()

    def traced(place: str, mode: str) -> sqlite3.Connection:
        db = connect(place, mode)
        db.set_trace_callback(executed.append)
        return db

    monkeypatch.setattr(file, "connect", traced)
    copy = tmp_path / "copy.sqlite3"
    async with SqliteJournal.open(path, RUN) as journal:
        await journal.add(items(0, 300))
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN")
            other.execute("SELECT * FROM run").fetchone()
            await cancel(journal, 10)
            await cancel(journal, 10)
            # Only a FULL one waits for the reader: once, not each time.
            assert sum("wal_checkpoint(FULL)" in each for each in executed) == 1
            known = list(journal.records())
            other.execute("ROLLBACK")
        await journal.add(items(0, 1))  # which changes nothing
        shutil.copy(path, copy)
        assert records(copy) == known
