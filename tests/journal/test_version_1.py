"""Journals of release 0.1.0, which are brought to this version when a run goes on."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from async_refunds.errors import JournalError
from async_refunds.journal import Claim, JournalReader, Record, Run, SqliteJournal
from async_refunds.results import CancelRequest
from tests.support.journals import claimed

real = pytest.mark.asyncio(loop_factories=["real"])

DUMP = Path(__file__).parents[1] / "support" / "journal_0_1_0.sql"
MADE_AT = 1790000000.25
NOW = 1790003600.0
AGES = 60.0  # seconds until a process that hangs is given up


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run.sqlite3"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(DUMP.read_text())
    return path


def version(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[60:64], "big")


def key(number: int) -> str:
    return f"{number:032x}"


def known(path: Path) -> list[tuple[Any, ...]]:
    return [
        (each.refund_id, each.stripe_account, each.outcome, each.idempotency_key)
        for each in JournalReader(path).records()
    ]


KNOWN = [
    ("re_1", None, "canceled", key(1)),
    ("re_2", None, "unknown", key(2)),
    ("re_3", None, "failed", key(3)),
    ("re_4", None, "not_cancelable", key(4)),
    ("re_5", None, "unknown", key(5)),
    ("re_6", None, None, None),
    ("re_1", "acct_1", "unknown", key(6)),
    ("pyr_8", "acct_2", None, key(7)),
]


def test_it_is_read_as_it_is(path: Path) -> None:
    before = path.read_bytes()
    reader = JournalReader(path)
    assert known(path) == KNOWN
    assert reader.run == Run(
        "https://api.stripe.com", livemode=False, options={"rate": 20}
    )
    assert next(reader.records()) == Record(
        number=1,
        refund_id="re_1",
        stripe_account=None,
        outcome="canceled",
        status="canceled",
        idempotency_key=key(1),
        attempts=2,
        request_id="req_1",
        error=None,
        seconds=1.5,
        settled=True,
        known_at=MADE_AT,
    )
    tally = reader.tally()
    assert (tally.open, tally.requests) == (6, 5)
    assert tally.outcomes == Counter([outcome for _, _, outcome, _ in KNOWN])
    assert path.read_bytes() == before


@real
async def test_run_goes_on_with_its_keys(path: Path) -> None:
    async with SqliteJournal.open(path, clock=lambda: NOW) as journal:
        assert known(path) == KNOWN
        own = await claimed(journal, None, 9)
        assert own[0] == Claim(2, "re_2", None, key(2), MADE_AT, maybe_sent=True)
        assert [(each.refund_id, each.maybe_sent) for each in own] == [
            *(("re_2", True), ("re_5", True), ("re_6", False), ("re_3", False)),
        ]
        assert own[3].idempotency_key != key(3)  # it failed, so that it comes last
        assert own[3].key_created_at == NOW
        (connected,) = await claimed(journal, "acct_1", 9)
        assert (connected.idempotency_key, connected.maybe_sent) == (key(6), True)
        (returned,) = await claimed(journal, "acct_2", 9)
        assert (returned.idempotency_key != key(7), returned.maybe_sent) == (
            True,
            False,
        )
        assert journal.load([CancelRequest("re_1"), CancelRequest("re_9")]) == 1
    assert version(path) == 2
    assert [record.number for record in JournalReader(path).records()] == [
        *range(1, 10)
    ]


def test_other_run_leaves_it_alone(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(JournalError, match="holds a run on"):
        SqliteJournal.open(path, Run("https://api.stripe.com", livemode=True))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        ("DELETE FROM run", "its run cannot be read"),
        ("UPDATE run SET options = 'x'", "its run cannot be read"),
        ("DROP TABLE run", "no such table"),
        ("UPDATE items SET outcome = x'00'", "is damaged"),
    ],
)
def test_damage_is_named_and_nothing_is_changed(
    path: Path, statement: str, text: str
) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(statement)
    for use in (SqliteJournal.open, JournalReader):
        with pytest.raises(JournalError, match=text):
            use(path)
    assert version(path) == 1


# Kills itself in the middle: however slow another process is, it would not be too late.
OPENER = """
import os, signal, sys
from async_refunds.journal import SqliteJournal
from async_refunds.journal.sqlite import file

wal = f"{sys.argv[1]}-wal"
connect = file.connect

def kill_in_the_middle(statement):
    if os.path.exists(wal) and os.path.getsize(wal) > 1_000_000:
        os.kill(os.getpid(), signal.SIGKILL)

def watched(place, mode):
    db = connect(place, mode)
    db.set_trace_callback(kill_in_the_middle)
    return db

file.connect = watched
SqliteJournal.open(sys.argv[1])
"""


@pytest.mark.parametrize("lose", [False, True], ids=["whole", "only the file is left"])
def test_kill_while_it_is_migrated_loses_nothing(path: Path, *, lose: bool) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.executemany(
            "INSERT INTO items (refund_id) VALUES (?)",
            [(f"re_x{number}",) for number in range(60_000)],
        )
    wal = path.with_name("run.sqlite3-wal")
    opener = [sys.executable, "-c", OPENER, str(path)]
    ended = subprocess.run(opener, check=False, timeout=AGES)  # noqa: S603 - ours
    assert ended.returncode == -signal.SIGKILL
    assert wal.stat().st_size > 1_000_000
    if lose:
        wal.unlink()
        path.with_name("run.sqlite3-shm").unlink()
    assert version(path) == 1, "it is migrated already"
    assert known(path)[: len(KNOWN)] == KNOWN
    with SqliteJournal.open(path) as journal:
        assert journal.tally().total == 60_000 + len(KNOWN)
    assert known(path)[: len(KNOWN)] == KNOWN
