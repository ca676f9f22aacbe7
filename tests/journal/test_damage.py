"""Flipped bits: a journal says what was written, or that it is damaged."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import closing
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from async_refunds.errors import JournalError, OutcomeUnknownError
from async_refunds.journal import Claim, JournalReader, Record, Run, SqliteJournal
from async_refunds.journal.sqlite import writer
from async_refunds.models import Refund
from async_refunds.results import CancelRequest, CancelResult
from tests.support.journals import claimed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SEEDS = 60
"""Bits to flip, for each kind of journal and use."""

RUN = Run("https://api.stripe.com", livemode=False, options={"rate": 20})
ITEMS = [
    *(CancelRequest(f"re_{number}") for number in range(12)),
    *(CancelRequest(f"re_{number}", "acct_1") for number in range(5)),
    *(CancelRequest(f"pyr_{number}", "acct_2") for number in range(3)),
]


async def fill(journal: SqliteJournal) -> None:
    await journal.add(ITEMS)
    claims = await claimed(journal, None, 8)
    refund = Refund("re_0", "refund", 105600, "jpy", 1700000000, status="canceled")
    lost = OutcomeUnknownError("lost", refund=None)
    for claim in claims[:6]:
        unknown = claim.number % 3 == 0
        result = CancelResult(
            refund_id=claim.refund_id,
            stripe_account=None,
            outcome="unknown" if unknown else "canceled",
            refund=None if unknown else refund,
            error=lost if unknown else None,
            idempotency_key=claim.idempotency_key,
        )
        await journal.settle([(claim, result)])
    await claimed(journal, "acct_1", 2)


async def all_claims(journal: SqliteJournal) -> list[Claim]:
    """Return what a resumed run asks for, the same input given again."""
    await journal.add(ITEMS)
    return [
        msgspec.structs.replace(
            claim,
            key_created_at=0.0,
            key_unused_until=claim.key_unused_until if claim.maybe_sent else 0.0,
        )
        for account in await journal.accounts()
        for limit in (3, 100)
        for claim in await claimed(journal, account, limit)
    ]


def read(path: Path) -> object:
    reader = JournalReader(path)
    found: list[Record] = list(reader.records())
    return found, reader.tally(), reader.run


def resumed(path: Path) -> object:
    with SqliteJournal.open(path) as journal:
        claims = asyncio.run(all_claims(journal))
        return claims, journal.tally().total, journal.run


@pytest.fixture(scope="module")
def journals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    """Return journals by what ended them: the file, and its -wal if there is one."""
    path = tmp_path_factory.mktemp("journal") / "run.sqlite3"
    with SqliteJournal.open(path, RUN) as journal:
        asyncio.run(fill(journal))
        killed = [path.read_bytes(), path.with_name("run.sqlite3-wal").read_bytes()]
    return {"closed": [path.read_bytes(), b""], "killed": killed}


def put(path: Path, parts: list[bytes]) -> None:
    for end, content in zip(("", "-wal"), parts, strict=True):
        name = path.with_name(f"{path.name}{end}")
        name.unlink(missing_ok=True)
        if content:
            name.write_bytes(content)
    path.with_name(f"{path.name}-shm").unlink(missing_ok=True)


def flipped(parts: list[bytes], chance: Random) -> list[bytes]:
    """Return a journal with one bit changed, rather where something is written."""
    part = chance.randrange(len(parts)) if all(parts) else 0
    content = bytearray(parts[part])
    used = [at for at, byte in enumerate(content) if byte]
    at = (
        chance.choice(used) if chance.random() < 0.8 else chance.randrange(len(content))
    )
    content[at] ^= 1 << chance.randrange(8)
    changed: list[bytes] = [*parts]
    changed[part] = bytes(content)
    return changed


def outcome(path: Path, use: Callable[[Path], object]) -> Any:  # noqa: ANN401 - whatever the use returns
    try:
        return use(path)
    except JournalError:
        return None


@pytest.mark.parametrize("use", [read, resumed])
@pytest.mark.parametrize("ended", ["closed", "killed"])
def test_flipped_bit_is_seen_or_does_not_matter(
    tmp_path: Path,
    journals: dict[str, list[bytes]],
    ended: str,
    use: Callable[[Path], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(writer, "_BUSY", -1.0)  # one caller: nothing gathers
    path, parts = tmp_path / "run.sqlite3", journals[ended]
    put(path, parts)
    right = use(path)
    refusals = 0
    for seed in range(SEEDS):
        put(path, flipped(parts, Random(f"{ended} {seed}")))  # noqa: S311 - no secrets
        found = outcome(path, use)
        assert found in (None, right), seed
        refusals += found is None
    assert 0 < refusals < SEEDS


@pytest.mark.parametrize(
    ("text", "damaged"),
    [(b"re_11", b"re_1\xd4"), (b"TEXT NOT NULL", b"TEXT NOT \xd4\xd4\xd4\xd4")],
    ids=["of an id", "of the schema"],
)
def test_text_that_is_no_text_is_refused(
    tmp_path: Path, text: bytes, damaged: bytes
) -> None:
    path = tmp_path / "run.sqlite3"
    with SqliteJournal.open(path, RUN) as journal:
        journal.load(ITEMS)
    path.write_bytes(path.read_bytes().replace(text, damaged))
    for use in (read, resumed):
        with pytest.raises(JournalError, match=r"is damaged|decode to UTF"):
            use(path)


def test_value_that_is_not_what_was_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite3"
    with SqliteJournal.open(path, RUN) as journal:
        journal.load(ITEMS)
    content = path.read_bytes()
    assert content.count(b"re_11") == 2  # the item, and its index
    path.write_bytes(content.replace(b"re_11", b"re_1x"))
    with pytest.raises(JournalError, match="item 12 does not match its checksum"):
        SqliteJournal.open(path)
    reader = JournalReader(path)
    with pytest.raises(JournalError, match="item 12 does not match its checksum"):
        list(reader.records())


def empty_index(path: Path) -> None:
    """Take all entries out of the index of open items, and nothing else."""

    def write(*statements: str) -> None:
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("PRAGMA writable_schema = ON")
            for statement in statements:
                db.execute(statement)

    swap = "UPDATE sqlite_master SET sql = replace(sql, '= {}', '= {}') WHERE name = "
    write(swap.format(0, 7) + "'open_items'")
    write("REINDEX open_items")
    write(swap.format(7, 0) + "'open_items'")


@pytest.mark.parametrize("has_thread", [True, False])
def test_item_that_its_index_has_not_is_seen_at_the_start(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    has_thread: bool,  # noqa: FBT001 - a parameter
) -> None:
    """A writer would never find it: the run would end, and say nothing of it."""
    path = tmp_path / "run.sqlite3"
    with SqliteJournal.open(path, RUN) as journal:
        journal.load([CancelRequest("re_1"), CancelRequest("re_2")])
    if not has_thread:

        def start(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", start)
    with SqliteJournal.open(path) as journal:
        assert journal.tally().open == 2
    empty_index(path)
    with pytest.raises(JournalError, match="missing from index open_items"):
        SqliteJournal.open(path)


def test_damaged_pages_are_named_before_what_comes_of_them(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite3"
    with SqliteJournal.open(path, RUN) as journal:
        journal.load([CancelRequest("re_1"), CancelRequest("re_2")])
    empty_index(path)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE items SET crc = crc + 1 WHERE number = 2")
    with pytest.raises(JournalError, match="missing from index open_items"):
        SqliteJournal.open(path)
