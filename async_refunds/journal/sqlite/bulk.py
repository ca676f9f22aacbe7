"""Statements for many rows at once.

`sqlite3` releases the interpreter's lock for each step of a statement. While the event
loop is busy, the thread that writes gets it back only when the loop next waits, with
two switches of threads: for each row, that costs more than the row. A statement that
takes 64 rows is one step; it also costs SQLite less.
"""

from __future__ import annotations

from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Sequence

T = TypeVar("T")

# Rows of one statement. With seven columns they are fewer than the 999 parameters that
# older releases of SQLite allow (https://www.sqlite.org/limits.html). Each size is
# another statement that is kept prepared, so they are few.
_SIZES = (64, 16, 4, 1)


def in_bulks(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield the rows in parts of a few fixed sizes."""
    start = 0
    for size in _SIZES:
        while len(rows) - start >= size:
            yield rows[start : start + size]
            start += size


def write_rows(
    db: sqlite3.Connection,
    head: str,
    rows: Sequence[tuple[Any, ...]],
    tail: str = "",
) -> None:
    """Execute ``head VALUES (?, ...), ... tail`` for rows of one width."""
    for part in in_bulks(rows):
        statement = _values(head, len(part[0]), len(part), tail)
        db.execute(statement, tuple(chain.from_iterable(part)))


@cache
def _values(head: str, columns: int, rows: int, tail: str) -> str:
    row = f"({', '.join('?' * columns)})"
    return f"{head} VALUES {', '.join([row] * rows)} {tail}"


@cache
def repeated(query: str, times: int) -> str:
    """Return a SELECT whose columns are so many of the query, of one value each."""
    return f"SELECT {', '.join([f'({query})'] * times)}"
