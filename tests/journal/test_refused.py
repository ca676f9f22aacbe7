"""A file that cannot be a journal, or no longer: a sentence, and nothing is lost."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from async_refunds.errors import JournalError
from async_refunds.journal import JournalReader, Run, SqliteJournal
from async_refunds.journal.sqlite.rows import RunState
from async_refunds.results import CancelRequest, CancelResult
from tests.support.journals import claimed
from tests.support.small_disk import fill_disk, root, small_disk

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from async_refunds.journal import Record

real = pytest.mark.asyncio(loop_factories=["real"])

RUN = Run("https://api.stripe.com", livemode=False)
ENDS = ("", "-wal", "-shm", "-lock", "-journal")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite3"


def items(count: int) -> list[CancelRequest]:
    return [CancelRequest(f"re_{number}") for number in range(count)]


def begin(path: Path, count: int = 3) -> None:
    with SqliteJournal.open(path, RUN) as journal:
        journal.load(items(count))


def records(path: Path) -> list[Record]:
    return list(JournalReader(path).records())


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        each.name: each.read_bytes() if each.is_file() else None
        for each in folder.iterdir()
    }


def refused(path: Path, text: str, run: Run | None = RUN) -> None:
    """See that neither a writer nor a reader takes it, and that nothing changes."""
    before = contents(path.parent)
    with pytest.raises(JournalError, match=text) as caught:
        SqliteJournal.open(path, run)
    assert str(path) in str(caught.value)
    with pytest.raises(JournalError):
        JournalReader(path)
    assert contents(path.parent) == before


# ----------------------------------------------------------------- by mistake


def test_missing_file(path: Path) -> None:
    with pytest.raises(JournalError, match=r"there is no journal '.*/run\.sqlite3'"):
        SqliteJournal.open(path)
    with pytest.raises(JournalError, match="there is no journal"):
        JournalReader(path)
    assert contents(path.parent) == {}


def test_missing_folder(path: Path) -> None:
    with pytest.raises(JournalError, match="has no folder to be in: make '"):
        SqliteJournal.open(path / "run.sqlite3", RUN)


def test_working_folder_that_is_gone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = path.parent / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(JournalError, match=r"'run' .* working folder is gone"):
        SqliteJournal.open("run", RUN)
    with pytest.raises(JournalError, match=r"'run' .* working folder is gone"):
        JournalReader(Path("run"))
    begin(path)
    with pytest.raises(JournalError, match="working folder is gone"):
        JournalReader(path).backup("copy")
    assert not records(path)[0].settled


def test_folder(path: Path) -> None:
    path.mkdir()
    refused(path, "is a folder or a device, not a file")


def test_name_that_is_too_long(path: Path) -> None:
    for name in ("x" * 300, "x" * 252):  # the lock's name alone is, too
        with pytest.raises(JournalError, match=r"too long|cannot be opened"):
            SqliteJournal.open(path.with_name(name), RUN)
    assert contents(path.parent) == {}


def test_empty_file_becomes_a_journal(path: Path) -> None:
    path.touch()
    with pytest.raises(JournalError, match="holds no run"):
        JournalReader(path)
    with pytest.raises(JournalError, match="holds no run"):
        SqliteJournal.open(path)
    assert contents(path.parent) == {"run.sqlite3": b""}
    begin(path)
    assert len(records(path)) == 3


@pytest.mark.parametrize("size", [1, 50, 5000])
def test_file_of_another_kind(path: Path, size: int) -> None:
    path.write_bytes(b"refund_id\nre_1\n".ljust(size, b"x")[:size])
    refused(path, "no SQLite database|is too short for a journal")


@pytest.mark.parametrize(
    "statement", ["CREATE TABLE run (x)", "PRAGMA application_id=1"]
)
def test_database_of_another_program(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute(statement)
    refused(path, "is another program's database")


def test_run_whose_keys_follow_another_rule(path: Path) -> None:
    begin(path)
    with closing(sqlite3.connect(path)) as other, other:
        (row,) = other.execute("SELECT * FROM run").fetchall()
        state = msgspec.structs.replace(RunState.read(row), derivation=9)
        other.execute("UPDATE run SET derivation = 9, crc = ?", (state.row()[-1],))
    with pytest.raises(JournalError, match="derives its keys by rule 9"):
        SqliteJournal.open(path)
    assert len(records(path)) == 3


def spoil(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as other, other:
        other.execute(statement)


def test_other_version(path: Path) -> None:
    begin(path)
    spoil(path, "PRAGMA user_version = 3")
    refused(path, "has version 3, and this release reads versions up to 2")


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM run",
        "INSERT INTO run SELECT * FROM run",
        "UPDATE run SET options = 'x'",
        "UPDATE run SET options = '[]'",
        "UPDATE run SET base_url = x'00'",
        "ALTER TABLE run ADD extra",
        "DROP TABLE run",
        "DROP INDEX open_items",
    ],
)
def test_file_that_is_not_as_it_was_written(path: Path, statement: str) -> None:
    begin(path)
    spoil(path, statement)
    refused(path, "is damaged or cut short")


@pytest.mark.parametrize(
    ("run", "text"),
    [
        (
            Run("https://api.stripe.com", livemode=True),
            r"on https://api.stripe.com in test .* on https://api.stripe.com in live",
        ),
        (
            Run("http://127.0.0.1:1", livemode=False),
            r"on https://api.stripe.com in test .* on http://127.0.0.1:1 in test",
        ),
    ],
)
def test_other_run(path: Path, run: Run, text: str) -> None:
    begin(path)
    before = contents(path.parent)
    with pytest.raises(JournalError, match=text):
        SqliteJournal.open(path, run)
    assert contents(path.parent) == before


def test_same_run_keeps_its_options(path: Path) -> None:
    first = Run(RUN.base_url, livemode=False, options={"rate": 5})
    with SqliteJournal.open(str(path), first) as journal:
        journal.load([])
    with SqliteJournal.open(path, RUN) as journal:
        assert journal.run == first
    assert JournalReader(str(path)).run == first


def test_options_that_json_has_not(path: Path) -> None:
    with pytest.raises(TypeError):
        SqliteJournal.open(path, Run("x", livemode=False, options={"x": object()}))
    assert contents(path.parent) == {}


def test_file_in_the_way_of_the_lock(path: Path) -> None:
    begin(path)
    lock = path.with_name("run.sqlite3-lock")
    lock.write_bytes(b"mine")
    with pytest.raises(JournalError, match=r"sqlite3-lock' is not a journal"):
        SqliteJournal.open(path)
    assert lock.read_bytes() == b"mine"
    lock.unlink()
    spoil(lock, "CREATE TABLE x (x)")
    before = contents(path.parent)
    with pytest.raises(JournalError, match=r"sqlite3-lock' is in the way"):
        SqliteJournal.open(path)
    assert contents(path.parent) == before


# ------------------------------------------------------------- permissions


@pytest.fixture
def public() -> Generator[Path]:
    """Give a folder that an unprivileged user can reach."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name) / "run.sqlite3"


@contextmanager
def unprivileged() -> Generator[None]:
    """Run as a user whom the modes of files bind."""
    root = os.geteuid() == 0
    if root:  # pragma: no branch - who is not root is bound already
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:  # pragma: no branch - the same
            os.seteuid(0)


def test_file_is_its_owner_s_only(path: Path) -> None:
    old = os.umask(0)
    try:
        with SqliteJournal.open(path, RUN) as journal:
            journal.load(items(1))
            for end in ENDS[:3]:
                mode = path.with_name(f"run.sqlite3{end}").stat().st_mode
                assert mode & 0o777 == 0o600, end
    finally:
        os.umask(old)


def test_finished_run_is_read_where_nothing_can_be_written(public: Path) -> None:
    begin(public)
    public.chmod(0o444)
    public.parent.chmod(0o555)
    before = contents(public.parent)
    try:
        with unprivileged():
            assert len(records(public)) == 3
            assert JournalReader(public).tally().open == 3
            for run in (RUN, None):
                with pytest.raises(JournalError, match=r"permissions of the file"):
                    SqliteJournal.open(public, run)
    finally:
        public.parent.chmod(0o777)
    assert contents(public.parent) == before


def test_file_that_may_not_be_written(public: Path) -> None:
    begin(public)
    public.chmod(0o444)
    before = contents(public.parent)
    with (
        unprivileged(),
        pytest.raises(JournalError, match="may not be written: check the permissions"),
    ):
        SqliteJournal.open(public)
    assert contents(public.parent) == before


def test_copy_to_a_folder_that_may_not_be_written(public: Path) -> None:
    begin(public)
    public.chmod(0o444)
    public.parent.chmod(0o555)
    try:
        with unprivileged(), pytest.raises(JournalError, match="check the permissions"):
            JournalReader(public).backup(public.with_name("copy"))
    finally:
        public.parent.chmod(0o777)


def test_file_that_may_not_be_read(public: Path) -> None:
    begin(public)
    public.chmod(0)
    with unprivileged():
        for use in (SqliteJournal.open, JournalReader):
            with pytest.raises(JournalError, match="cannot be opened"):
                use(public)
    public.parent.chmod(0)
    try:
        with unprivileged():
            for use in (SqliteJournal.open, JournalReader):
                with pytest.raises(JournalError, match="cannot be opened"):
                    use(public)
    finally:
        public.parent.chmod(0o777)


def test_file_that_cannot_be_made(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "open", no)
    with pytest.raises(JournalError, match=r"cannot be used \(.*No space left"):
        SqliteJournal.open(path, RUN)
    monkeypatch.undo()
    assert contents(path.parent) == {}


# ------------------------------------------------------------------ cut short


async def settle(journal: SqliteJournal, count: int) -> None:
    settled = [
        (
            claim,
            CancelResult(
                refund_id=claim.refund_id, stripe_account=None, outcome="canceled"
            ),
        )
        for claim in await claimed(journal, None, count)
    ]
    for first in range(0, count, 10):  # a commit each
        await journal.settle(settled[first : first + 10])


def test_journal_cut_short_is_never_believed(path: Path) -> None:
    with SqliteJournal.open(path, RUN) as journal:
        journal.load(items(400))
        asyncio.run(settle(journal, 150))
    whole, known = path.read_bytes(), records(path)
    cut = path.with_name("cut.sqlite3")
    assert len(whole) > 15 * 4096
    for size in {
        1,
        99,
        100,
        *range(1, len(whole), 997),
        *range(4096, len(whole), 4096),
    }:
        cut.write_bytes(whole[:size])
        with pytest.raises(JournalError, match=r"cut short|no SQLite|too short"):
            SqliteJournal.open(cut, RUN)
        with pytest.raises(JournalError):
            JournalReader(cut)
        assert cut.read_bytes() == whole[:size]
    cut.write_bytes(whole)
    assert records(cut) == known


def test_journal_of_a_killed_process_cut_short(path: Path) -> None:
    """What the -wal has makes the file look longer than it is."""
    cut, wal = path.with_name("cut.sqlite3"), path.with_name("cut.sqlite3-wal")
    with SqliteJournal.open(path, RUN) as journal:
        journal.load(items(400))
        asyncio.run(settle(journal, 150))
        known = records(path)
        whole = path.read_bytes()
        log = path.with_name("run.sqlite3-wal").read_bytes()
    refused = healed = 0
    for size in range(0, len(whole), 4096):
        cut.write_bytes(whole[:size])
        wal.write_bytes(log)
        try:
            with SqliteJournal.open(cut, RUN):
                assert records(cut) == known  # the -wal has the pages that were cut off
                healed += 1
        except JournalError:
            refused += 1
        cut.with_name("cut.sqlite3-shm").unlink(missing_ok=True)
    assert refused > healed
    # The file has it all, whatever the -wal has lost.
    for size in range(0, len(log), len(log) // 20 + 7):
        cut.write_bytes(whole)
        wal.write_bytes(log[:size])
        with SqliteJournal.open(cut, RUN):
            assert records(cut) == known


@pytest.mark.parametrize("how", ["emptied", "removed"])
def test_log_without_its_journal_is_left_alone(path: Path, how: str) -> None:
    copy = path.with_name("copy.sqlite3")
    with SqliteJournal.open(path, RUN) as journal:
        asyncio.run(journal.add(items(3)))
        shutil.copy(f"{path}-wal", f"{copy}-wal")
    if how == "emptied":
        copy.touch()
    refused(copy, "was emptied or removed, and what '.*-wal' has does not stand alone")


def test_damage_in_the_middle_is_found_at_the_start(path: Path) -> None:
    begin(path, 2000)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 8192 * 4096)
        file.write(b"\xff" * 4096)
    with pytest.raises(JournalError, match="damaged or cut short"):
        SqliteJournal.open(path)


def test_reader_of_a_write_cut_short(path: Path) -> None:
    """A hot journal: `open` mends it, a reader may not."""
    begin(path)
    script = (
        "import os, sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "db.execute('PRAGMA cache_size = 1')\n"
        "db.execute('BEGIN')\n"
        "db.execute('UPDATE run SET livemode = 1')\n"
        "db.execute('CREATE TABLE big AS SELECT zeroblob(100000)')\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=True)  # noqa: S603 - ours
    with pytest.raises(JournalError, match="cut off in the middle of a write: resume"):
        JournalReader(path)
    with SqliteJournal.open(path) as journal:
        assert journal.run == RUN
    assert len(records(path)) == 3


# ------------------------------------------------------------------ under us


def remove(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"of another program")
    other.replace(path)


@pytest.mark.parametrize("how", [remove, replace])
@pytest.mark.parametrize("end", ["", "-wal", "-lock"])
@real
async def test_file_that_goes_away_stops_the_run(
    path: Path, how: Callable[[Path], None], end: str
) -> None:
    journal = SqliteJournal.open(path, RUN)
    await journal.add(items(1))
    gone = path.with_name(f"run.sqlite3{end}")
    how(gone)
    for _ in range(2):
        with pytest.raises(
            JournalError, match=rf"sqlite3{end}' was removed or replaced while"
        ):
            await claimed(journal, None, 1)
    with pytest.raises(JournalError, match="was removed or replaced"):
        journal.load(items(2))
    await journal.close()
    if how is replace and end != "-wal":  # SQLite removes that one by its name
        assert gone.read_bytes() == b"of another program"


# ------------------------------------------------------------------ full disk


@pytest.fixture
def small(tmp_path: Path) -> Generator[Path]:
    """Give a path on a disk of one megabyte."""
    with small_disk(tmp_path) as disk:
        yield disk / "run.sqlite3"


def test_load_on_a_full_disk_leaves_nothing(small: Path) -> None:
    with SqliteJournal.open(small, RUN) as journal:
        for _ in range(2):
            with pytest.raises(JournalError, match="does not fit on the disk"):
                journal.load(items(50_000))
    with pytest.raises(JournalError, match="holds no run"):
        SqliteJournal.open(small)
    begin(small)
    assert len(records(small)) == 3


def test_copy_on_a_full_disk_leaves_nothing(small: Path, path: Path) -> None:
    begin(path, 50_000)
    with pytest.raises(JournalError, match="does not fit on the disk"):
        JournalReader(path).backup(small)
    assert contents(small.parent) == {}


@real
@pytest.mark.parametrize("opened", [SqliteJournal.open, JournalReader])
async def test_full_disk_is_not_taken_for_a_strange_wal(
    small: Path, path: Path, opened: Callable[[Path], object]
) -> None:
    """As after a crash of the machine, which leaves no index of the -wal."""
    async with SqliteJournal.open(path, RUN) as journal:
        journal.load(items(3))
        await claimed(journal, None, 1)
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", f"{small}{suffix}")
    filler = fill_disk(small.parent)
    with pytest.raises(JournalError, match="does not fit on the disk: make room"):
        opened(small)
    filler.unlink()
    assert len(records(small)) == 3


STEP = 250  # items that are added at once, each time in a commit


async def fill(journal: SqliteJournal) -> int:
    """Add items until it fails; return how many it said are kept."""
    kept = 0
    while True:
        try:
            await journal.add(items(kept + STEP)[kept:])
        except JournalError:
            return kept
        kept += STEP


@real
async def test_full_disk_stops_the_run_and_loses_nothing(small: Path) -> None:
    journal = SqliteJournal.open(small, RUN)
    kept = await fill(journal)
    with pytest.raises(JournalError, match="does not fit on the disk"):
        await claimed(journal, None, 1)
    await journal.close()
    assert root("mount", "-o", "remount,size=50m", str(small.parent))
    async with SqliteJournal.open(small) as journal:
        found = [each.refund_id for each in records(small)]
        # The last ones failed, and may be there all the same.
        assert found in [
            [each.refund_id for each in items(n)] for n in (kept, kept + STEP)
        ]
        assert len(await claimed(journal, None, kept + 2 * STEP)) == len(found)
    assert list(contents(small.parent)) == ["run.sqlite3"]


@real
async def test_limit_on_the_size_of_files_loses_nothing(path: Path) -> None:
    resource = pytest.importorskip("resource")
    journal = SqliteJournal.open(path, RUN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    try:
        kept = await fill(journal)
        with pytest.raises(JournalError, match="a limit on the size of files"):
            await claimed(journal, None, 1)
        await journal.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert kept
    async with SqliteJournal.open(path) as journal:
        # The last ones failed, and may be there all the same.
        assert len(await claimed(journal, None, kept + 2 * STEP)) in {kept, kept + STEP}
    assert list(contents(path.parent)) == ["run.sqlite3"]


@pytest.mark.parametrize("end", ["wal", "shm", "lock", "journal"])
@real
async def test_file_beside_a_journal_leads_to_the_journal(
    end: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.sqlite3"
    beside = f"{path}-{end}"
    said = re.escape(f"{beside!r} only stands beside the journal {str(path)!r}: give")
    async with SqliteJournal.open(path, RUN) as journal:
        await journal.add([CancelRequest("re_1")])
        with pytest.raises(JournalError, match=said):
            JournalReader(beside)
        with pytest.raises(JournalError, match=said):
            SqliteJournal.open(beside, RUN)
    # Also once it is gone: a journal there would be in the way of the other one's.
    with pytest.raises(JournalError, match=said):
        SqliteJournal.open(beside, RUN)
    assert contents(tmp_path).keys() == {path.name}


def test_journal_may_have_the_name_of_a_list_and_an_end(tmp_path: Path) -> None:
    (tmp_path / "ids").write_text("re_1\n")
    with SqliteJournal.open(tmp_path / "ids-journal", RUN) as journal:
        journal.load([CancelRequest("re_1")])
    assert JournalReader(tmp_path / "ids-journal").tally().open == 1
