"""Files of version 1, which release 0.1.0 wrote."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from async_refunds.journal.base import Run
from async_refunds.journal.facts import Facts

from .errors import damaged
from .rows import WRITTEN_COLUMNS, Item, RunState, checksum
from .schema import TABLES, create, write_state

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from async_refunds.results import CancelOutcome

# The facts in the order of their fields. A key counts as the first one.
_ITEMS = """SELECT refund_id, stripe_account, settled, asked,
    idempotency_key IS NOT NULL, idempotency_key, keyed_at, attempts, outcome, status,
    NULL, NULL, NULL, NULL, NULL, NULL, request_id, error, seconds, known_at
    FROM items_1 ORDER BY number"""

_INSERT = f"""INSERT INTO items
    (stripe_account, {", ".join(WRITTEN_COLUMNS)}, number, refund_id)
    VALUES (?, ?, ?, ?, ?, ?, ?)"""  # noqa: S608 - our own names
_NOTHING = Facts()


def read_run(db: sqlite3.Connection, place: str) -> Run:
    """Return what a file of version 1 is about.

    Raises:
        JournalError: It is damaged.
        sqlite3.Error: The same, or it cannot be read.
    """
    try:
        ((base_url, livemode, options),) = db.execute("SELECT * FROM run")
        return Run(
            msgspec.convert(base_url, str),
            bool(livemode),
            msgspec.json.decode(options, type=dict[str, Any]),
        )
    except (ValueError, TypeError) as error:  # not one row, or not as it was written
        raise damaged(place, f"its run cannot be read: {error}") from error


def migrate(db: sqlite3.Connection, place: str) -> None:
    """Bring a file of version 1 to this version, within a transaction.

    Blocks, for about ten seconds with a million items. What was kept stays, the
    idempotency keys too; what this version keeps besides is empty.

    Raises:
        JournalError: It is damaged.
        sqlite3.Error: The same, or it cannot be read and written.
    """
    # Version 1 did not keep when its keys were used first.
    state = RunState.begin(read_run(db, place), 0.0)
    for name, statement in TABLES.items():
        if "INDEX" in statement:
            db.execute(f"DROP INDEX {name}")
    db.execute("ALTER TABLE items RENAME TO items_1")
    db.execute("DROP TABLE run")
    create(db, state)
    counts: Counter[CancelOutcome] = Counter()

    def rows() -> Iterator[tuple[Any, ...]]:
        for number, (refund_id, account, *known) in enumerate(db.execute(_ITEMS), 1):
            # Not strict: SQLite has 0 and 1 for false and true.
            facts = msgspec.convert(known, Facts, strict=False)
            identity = checksum(refund_id, account)
            item = Item(number, refund_id, account, facts, identity, identity)
            row = (
                item.row()
                if facts != _NOTHING
                else (0, 0.0, None, identity, number, refund_id)
            )
            yield (account, *row)
            state.items += 1
            state.open += not facts.settled
            state.crc_sum += item.crc
            state.requests += facts.attempts
            if facts.known is not None:
                counts[facts.known] += 1

    try:
        db.executemany(_INSERT, rows())
        state.outcomes = msgspec.json.encode(counts).decode()
    except (ValueError, TypeError) as error:  # a value that version 1 never wrote
        raise damaged(place, str(error)) from error
    db.execute("DROP TABLE items_1")
    write_state(db, state)
