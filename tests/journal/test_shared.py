"""Several processes and one journal: one writes, any read, each may be killed."""

from __future__ import annotations

import asyncio
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from async_refunds.errors import JournalError
from async_refunds.journal import JournalReader, Run, SqliteJournal
from async_refunds.journal.sqlite import file
from async_refunds.results import CancelRequest, CancelResult
from tests.support.journals import claimed

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from async_refunds.journal import Record

real = pytest.mark.asyncio(loop_factories=["real"])

RUN = Run("https://api.stripe.com", livemode=False)
AGES = 60.0  # seconds until a process that hangs is given up

# Prints what the journal returned, line by line, and is killed while it does.
WORKER = """
import asyncio, sys
from async_refunds.errors import OutcomeUnknownError
from async_refunds.journal import Run, SqliteJournal
from async_refunds.results import CancelRequest, CancelResult
from tests.support.journals import claimed

def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\\n")
    sys.stdout.flush()

async def ask(journal, claim):
    if claim.number % 7 == 3 and not claim.maybe_sent:
        claim = await journal.rekey(claim)
    say("key", claim.refund_id, claim.idempotency_key, int(claim.maybe_sent))
    lost = claim.number % 5 == 0 and not claim.maybe_sent
    result = CancelResult(
        refund_id=claim.refund_id, stripe_account=claim.stripe_account,
        outcome="unknown" if lost else "canceled",
        idempotency_key=claim.idempotency_key,
        error=OutcomeUnknownError("lost", refund=None) if lost else None,
    )
    await journal.settle([(claim, result)])
    say("result", claim.refund_id, result.outcome)

async def work(journal, account):
    while claims := await claimed(journal, account, 3):
        await asyncio.gather(*(ask(journal, claim) for claim in claims))

async def main():
    run = Run("https://api.stripe.com", False)
    async with SqliteJournal.open(sys.argv[1], run) as journal:
        for first in range(0, 300, 60):
            batch = [
                CancelRequest(f"re_{number}", (None, "acct_1", "acct_2")[number % 3])
                for number in range(first, first + 60)
            ]
            await journal.add(batch)
            say("added", first + 60)
            await asyncio.gather(*(work(journal, a) for a in await journal.accounts()))
    say("end")

asyncio.run(main())
"""

LOADER = """
import sys
from async_refunds.journal import Run, SqliteJournal
from async_refunds.results import CancelRequest

def items():
    for number in range(40_000):
        if number % 100 == 0:
            sys.stdout.write(f"{number}\\n")
            sys.stdout.flush()
        yield CancelRequest(f"re_{number * 7919 % 40_000}")
    sys.stdout.write("last\\n")
    sys.stdout.flush()

journal = SqliteJournal.open(sys.argv[1], Run("https://api.stripe.com", False))
journal.load(items())
sys.stdout.write("loaded\\n")
sys.stdout.flush()
sys.stdin.read()
"""

HOLDER = """
import sys
from async_refunds.journal import Run, SqliteJournal
journal = SqliteJournal.open(sys.argv[1], Run("https://api.stripe.com", False))
journal.load([])
print("held", flush=True)
sys.stdin.read()
journal.close_now()
"""

LEAVES_WAL = """
import sqlite3, sys
sqlite3.connect(sys.argv[1], timeout=0).execute("PRAGMA journal_mode = DELETE")
"""

FORGETFUL = """
import asyncio, sys
from async_refunds.journal import Run, SqliteJournal
from async_refunds.results import CancelRequest
journal = SqliteJournal.open(sys.argv[1], Run("https://api.stripe.com", False))
asyncio.run(journal.add([CancelRequest("re_1")]))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite3"


@contextmanager
def child(script: str, path: Path) -> Generator[subprocess.Popen[str]]:
    with subprocess.Popen(  # noqa: S603 - our own interpreter and script
        [sys.executable, "-c", script, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str], lines: int) -> list[str]:
    """Kill a child after so many lines, and return all it said."""
    assert process.stdout is not None
    found: list[str] = []
    for line in process.stdout:
        found.append(line)
        if len(found) == lines:
            process.send_signal(signal.SIGKILL)
    process.wait(AGES)
    return [line.rstrip() for line in found if line.endswith("\n")]


def records(path: Path) -> dict[str, Record]:
    return {each.refund_id: each for each in JournalReader(path).records()}


def left(path: Path) -> list[str]:
    return sorted(each.name for each in path.parent.iterdir())


# ------------------------------------------------------------------- killed


def lose_wal(path: Path) -> None:
    for end in ("-wal", "-shm"):
        path.with_name(f"{path.name}{end}").unlink(missing_ok=True)


@pytest.mark.parametrize("lose", [False, True], ids=["whole", "only the file is left"])
def test_what_was_told_is_kept_whenever_it_is_killed(path: Path, *, lose: bool) -> None:
    chance = random.Random(4)  # noqa: S311 - the same moments in every run
    keys: dict[str, str] = {}  # the last key printed, by item
    owners: dict[str, str] = {}
    outcomes: dict[str, str] = {}
    known: dict[str, Record] = {}
    added = rounds = 0
    lines: list[str] = []
    while "end" not in lines:
        rounds += 1
        with child(WORKER, path) as process:
            lines = said(process, chance.randrange(1, 150) if rounds < 9 else -1)
        if lose:
            lose_wal(path)
        for line in lines:
            what, *words = line.split()
            if what == "added":
                added = max(added, int(words[0]))
            elif what == "key":
                item, key, asked = words
                assert owners.setdefault(key, item) == item
                # With a result that is not final, or without one: the same key.
                assert asked == "1" or item not in keys
                assert keys.setdefault(item, key) == key
            elif what == "result":
                item, outcome = words
                assert outcomes.get(item, "unknown") == "unknown"  # not asked again
                outcomes[item] = outcome
        known = records(path) if added else {}
        assert len(known) >= added
        for item, key in keys.items():
            assert known[item].idempotency_key == key
        for item, outcome in outcomes.items():
            assert known[item].outcome in {outcome, "canceled"}
    assert rounds > 5
    assert {each.outcome for each in known.values()} <= {"canceled", "unknown"}
    assert len({each.idempotency_key for each in known.values()}) == len(known) == 300
    assert left(path) == ["run.sqlite3"]


def test_load_that_is_killed_leaves_nothing_or_all(tmp_path: Path) -> None:
    chance = random.Random(5)  # noqa: S311 - the same moments in every run
    moments = [1, 2, 401, 402, *(chance.randrange(3, 401) for _ in range(6))]
    for lines in moments:
        path = tmp_path / f"{lines}.sqlite3"
        with child(LOADER, path) as process:
            heard = said(process, lines)
        try:
            found = JournalReader(path).tally().open
        except JournalError:
            assert "loaded" not in heard
            with pytest.raises(JournalError, match="holds no run"):
                SqliteJournal.open(path)
            with SqliteJournal.open(path, RUN) as journal:
                assert journal.load(items(0, 2)) == 2
        else:
            assert "last" in heard
            assert found == 40_000
            with SqliteJournal.open(path) as journal:
                assert journal.tally().open == 40_000
    assert left(tmp_path / "any") == [
        f"{lines}.sqlite3" for lines in sorted(moments, key=str)
    ]


def test_process_that_forgets_to_close_ends_and_loses_nothing(path: Path) -> None:
    with child(FORGETFUL, path) as process:
        assert process.wait(AGES) == 0
    with SqliteJournal.open(path) as journal:
        assert journal.tally().open == 1


# ------------------------------------------------------------------ one at a time


def refused(path: Path, by: str = "another process") -> None:
    with pytest.raises(JournalError, match=f"is in use by {by}") as caught:
        SqliteJournal.open(path, RUN)
    assert repr(str(path)) in str(caught.value)


def test_second_process_is_refused(path: Path) -> None:
    with child(HOLDER, path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        refused(path)
        refused(path)  # the first refusal let go of nothing
        link = path.with_name("link")
        link.symlink_to(path)
        with pytest.raises(JournalError, match="is in use by another process"):
            SqliteJournal.open(link)
        assert JournalReader(path).run == RUN
        process.send_signal(signal.SIGKILL)
        process.wait(AGES)
    assert "run.sqlite3-lock" in left(path)
    with SqliteJournal.open(path):
        pass
    assert left(path) == ["link", "run.sqlite3"]


def test_second_object_of_a_process_is_refused(path: Path) -> None:
    with SqliteJournal.open(path, RUN) as journal:
        refused(path, by="another batch of this process")
        refused(path, by="another batch of this process")
        journal.load([])
    with SqliteJournal.open(path), child(HOLDER, path) as process:
        # Nor did the refusals take the lock from the first.
        assert process.wait(AGES) == 1


def test_hard_link_is_refused_whichever_name_is_in_use(path: Path) -> None:
    link = path.with_name("link.sqlite3")
    with SqliteJournal.open(path, RUN) as journal:
        journal.load(items(0, 3))
        link.hardlink_to(path)
        for _ in range(2):
            with pytest.raises(JournalError, match="has another name"):
                SqliteJournal.open(link)
        assert journal.load(items(3, 3)) == 3  # and the first is not disturbed
        path.unlink()
        with pytest.raises(JournalError, match="in use by another batch of this"):
            SqliteJournal.open(link)
        with pytest.raises(JournalError, match="was removed or replaced"):
            journal.load(items(6, 3))
    with SqliteJournal.open(link) as journal:
        assert journal.tally().open == 6
    path.hardlink_to(link)
    with pytest.raises(JournalError, match="has another name"):
        SqliteJournal.open(path, RUN)


@pytest.fixture
def mounted(tmp_path: Path) -> Generator[Path]:
    """Give a second place at which the file of the journal is mounted."""
    path = tmp_path / "run.sqlite3"
    with SqliteJournal.open(path, RUN) as journal:
        journal.load(items(0, 3))
    place = tmp_path / "container" / "mounted.sqlite3"
    place.parent.mkdir()
    place.touch()
    mount = subprocess.run(  # noqa: S603 - the system's
        ["mount", "--bind", str(path), str(place)],  # noqa: S607 - the same
        check=False,
        capture_output=True,
    )
    if mount.returncode:
        pytest.skip("may not mount a file")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)  # noqa: S603, S607 - the same


def test_file_that_is_mounted_twice_is_refused(path: Path, mounted: Path) -> None:
    with child(HOLDER, mounted) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        refused(path)
        refused(path)
    with SqliteJournal.open(path) as journal:
        with pytest.raises(JournalError, match="in use by another batch of this"):
            SqliteJournal.open(mounted)
        with child(HOLDER, mounted) as process:
            assert process.wait(AGES) == 1
        # The refusals left SQLite's own locks on the file as they were.
        with child(LEAVES_WAL, path) as process:
            assert process.wait(AGES) == 1
        assert journal.load(items(3, 1)) == 1


def test_process_that_ends_lets_the_next_one_in(path: Path) -> None:
    with child(HOLDER, path) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.stdin.close()
        assert process.wait(AGES) == 0
    assert left(path) == ["run.sqlite3"]
    with SqliteJournal.open(path) as journal:
        assert journal.run == RUN


class Hooks:
    """Calls a function once, just before the next database of a name is opened."""

    def __init__(self) -> None:
        self._armed: tuple[str, Callable[[], object]] | None = None
        sys.addaudithook(self._hear)  # for as long as the process lives

    def before_opening(self, name: str, do: Callable[[], object]) -> None:
        self._armed = (name, do)

    def _hear(self, event: str, args: tuple[object, ...]) -> None:
        if event == "sqlite3.connect" and self._armed is not None:
            name, do = self._armed
            if args[0] == name:
                self._armed = None
                do()


HOOKS = Hooks()


@pytest.mark.parametrize("then", ["gone", "another's"])
def test_lock_that_was_removed_while_it_was_waited_for(path: Path, then: str) -> None:
    """Its holder ends between our look at the file and our lock on it."""
    name = path.with_name("run.sqlite3-lock")
    name.touch()
    others: list[SqliteJournal] = []

    def remove() -> None:
        name.unlink()
        if then == "another's":
            others.append(SqliteJournal.open(path, RUN))

    HOOKS.before_opening(str(name), remove)
    if then == "gone":
        with SqliteJournal.open(path, RUN):
            refused(path, by="another batch of this process")
    else:
        refused(path, by="another batch of this process")
        others[0].close_now()
    assert left(path) == ["run.sqlite3"]


def test_lock_is_let_go_when_opening_fails(path: Path) -> None:
    with SqliteJournal.open(path, RUN) as journal:
        journal.load([])
    for _ in range(2):
        with pytest.raises(JournalError, match="holds a run on"):
            SqliteJournal.open(path, Run("http://127.0.0.1:1", livemode=False))
        assert left(path) == ["run.sqlite3"]


def test_lock_that_cannot_be_removed_stays_and_is_taken_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_use(_: Path) -> None:
        raise PermissionError(13, "as on Windows")

    monkeypatch.setattr(Path, "unlink", in_use)
    for _ in range(2):
        with SqliteJournal.open(path, RUN):
            pass
        assert left(path) == ["run.sqlite3", "run.sqlite3-lock"]


# ------------------------------------------------------------------- readers


def items(first: int, count: int) -> list[CancelRequest]:
    return [CancelRequest(f"re_{number}") for number in range(first, first + count)]


@real
async def test_reader_sees_a_run_that_goes_on(path: Path) -> None:
    async with SqliteJournal.open(path, RUN) as journal:
        with pytest.raises(JournalError, match="holds no run"):
            JournalReader(path)
        journal.load(items(0, 1500))
        before = left(path)
        reader = JournalReader(path)
        pages = reader.records()
        assert next(pages).number == 1
        claims = await claimed(journal, None, 1500)
        for claim in (claims[0], claims[-1]):
            result = CancelResult(
                refund_id=claim.refund_id, stripe_account=None, outcome="canceled"
            )
            await journal.settle([(claim, result)])
        await journal.add(items(1500, 10))
        rest = list(pages)
        assert [each.number for each in rest] == list(range(2, 1511))
        assert rest[1498].outcome == "canceled"  # as of when its page was read
        assert reader.tally().open == 1508
        assert left(path) == before
    assert left(path) == ["run.sqlite3"]


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 2000])
def test_reader_gives_every_record(path: Path, count: int) -> None:
    with SqliteJournal.open(path, RUN) as journal:
        journal.load(items(0, count))
    assert len(list(JournalReader(path).records())) == count


def test_reader_changes_nothing(path: Path) -> None:
    with SqliteJournal.open(path, RUN) as journal:
        journal.load(items(0, 10))
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    reader = JournalReader(path)
    assert len(list(reader.records())) == reader.tally().open == 10
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert left(path) == ["run.sqlite3"]
    path.unlink()
    for use in (reader.tally, lambda: list(reader.records())):
        with pytest.raises(JournalError, match="there is no journal"):
            use()


def test_reader_knows_whether_the_run_goes_on(path: Path) -> None:
    with SqliteJournal.open(path, RUN) as journal:
        journal.load([])
        assert JournalReader(path).in_use
    reader = JournalReader(path)
    assert not reader.in_use
    with child(HOLDER, path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert reader.in_use
        process.send_signal(signal.SIGKILL)
        process.wait(AGES)
    assert path.with_name("run.sqlite3-lock").exists()
    assert not reader.in_use


def test_slow_reader_holds_nothing_up(path: Path) -> None:
    with SqliteJournal.open(path, RUN) as journal:
        journal.load(items(0, 2000))
        pages = JournalReader(path).records()
        next(pages)
    assert left(path) == ["run.sqlite3"]
    with SqliteJournal.open(path):
        assert len(list(pages)) == 1999


def test_reader_in_the_way_of_the_end_is_cleaned_up_after(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "_LOCK_WAIT", 0.05)  # the reader outlasts any wait
    journal = SqliteJournal.open(path, RUN)
    journal.load(items(0, 3))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM items").fetchone()
        asyncio.run(journal.add(items(3, 3)))
        journal.close_now()
        assert "run.sqlite3-lock" not in left(path)
        with SqliteJournal.open(path) as journal:
            assert journal.tally().open == 6
    with SqliteJournal.open(path):
        pass
    assert left(path) == ["run.sqlite3"]


@pytest.mark.parametrize("use", [SqliteJournal.open, JournalReader])
def test_other_writer_that_ends_soon_is_waited_for(
    path: Path, use: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    with SqliteJournal.open(path, RUN) as journal:
        journal.load(items(0, 3))
    monkeypatch.setattr(file, "_LOCK_WAIT", AGES)
    connect, connected = file.connect, threading.Event()

    def noted(place: str, mode: str) -> sqlite3.Connection:
        db = connect(place, mode)
        connected.set()
        return db

    monkeypatch.setattr(file, "connect", noted)
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as other,
        ThreadPoolExecutor() as pool,
    ):
        other.execute("BEGIN EXCLUSIVE")
        using = pool.submit(use, path)
        try:
            assert connected.wait(AGES)
            # SQLite does not tell that it waits. However slow this is, it cannot end.
            assert not wait([using], timeout=0.05).done
        finally:
            other.execute("ROLLBACK")
        used = using.result(AGES)
        if isinstance(used, SqliteJournal):
            used.close_now()


@pytest.mark.parametrize("use", [SqliteJournal.open, JournalReader])
def test_other_writer_in_the_way_is_named(
    path: Path, use: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "_LOCK_WAIT", 0.05)  # the other outlasts any wait
    with SqliteJournal.open(path, RUN) as journal:
        journal.load(items(0, 3))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(JournalError, match="is locked by another program"):
            use(path)
    with SqliteJournal.open(path) as journal:
        assert journal.tally().open == 3
