"""Which items were given out for the first time: one row for each account.

An item without facts was never given out, or for the first time and nothing more is
known. Items of an account are given out in order, so the number of the last one tells
which; the idempotency key can be derived. So a claim writes a row for each account, not
for each item, and the key is on the disk all the same.
"""

from __future__ import annotations

from collections.abc import Sequence  # noqa: TC003 - a struct's field
from typing import TYPE_CHECKING, Any

import msgspec

from .bulk import write_rows
from .errors import damaged
from .rows import checksum

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

_READ = "SELECT id, stripe_account, pages, crc FROM claims"
_WRITE = "INSERT OR REPLACE INTO claims"


class _Page(msgspec.Struct, array_like=True, gc=False):
    """What one claim gave out of an account for the first time.

    The first two fields are written.
    """

    last: int
    """The number of its last item. Its first one follows that of the page before."""
    claimed_at: float
    """Unix seconds."""
    without_facts: int = 0
    """How many of its items have no facts yet. Of this batch's pages only."""


class _Account(msgspec.Struct, gc=False):
    """What is known of one account. A platform has thousands, so it is small."""

    id: int
    crc: int = 0
    """Of its row as written."""
    earlier: Sequence[_Page] = ()
    """The pages of earlier batches, which its row has until this one claims."""
    pages: Sequence[_Page] = ()
    """Of this batch, oldest first; never empty again after its first claim."""

    @property
    def written(self) -> Sequence[_Page]:
        """The pages that its row has."""
        return self.earlier or self.pages


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[_Page]).decode


class ClaimPages:
    """The rows of ``claims``, as a batch goes on."""

    def __init__(self) -> None:
        self._accounts: dict[str | None, _Account] = {}

    @classmethod
    def read(cls, db: sqlite3.Connection, place: str) -> ClaimPages:
        """Return what a file has.

        Raises:
            JournalError: It is damaged.
            sqlite3.Error: The same, or it cannot be read.
        """
        found = cls()
        for number, stripe_account, pages, crc in db.execute(_READ):
            if (
                type(pages) is not bytes
                or checksum(number, stripe_account, pages) != crc
            ):
                raise damaged(place, f"claim {number} does not match its checksum")
            account = found._accounts[stripe_account] = _Account(number)
            account.crc = crc
            account.earlier = _decode(pages)
        return found

    @property
    def crc_sum(self) -> int:
        """The sum of the checksums of all rows, as written."""
        return sum(account.crc for account in self._accounts.values())

    def begin(self) -> None:
        """Begin a batch: what was given out before it is of an earlier one."""
        for account in self._accounts.values():
            account.earlier = account.written
            account.pages = ()

    def last(self, stripe_account: str | None) -> int:
        """Return the number of the last item that was given out; 0 if none was."""
        account = self._accounts.get(stripe_account)
        if account is None:
            return 0
        return account.written[-1].last

    def claimed_at(self, stripe_account: str | None, number: int) -> float | None:
        """Return when an item without facts was given out; ``None`` if it was not."""
        account = self._accounts.get(stripe_account)
        for page in account.written if account is not None else ():
            if number <= page.last:
                return page.claimed_at
        return None

    def add(
        self, stripe_account: str | None, last: int, items: int, claimed_at: float
    ) -> None:
        """Note that so many more items were given out for the first time.

        All items of earlier batches were given out before them, and have facts now.
        """
        account = self._accounts.get(stripe_account)
        if account is None:
            account = _Account(len(self._accounts) + 1)
            self._accounts[stripe_account] = account
        account.earlier = ()
        page = _Page(last, claimed_at, items)
        account.pages = (*[each for each in account.pages if each.without_facts], page)

    def leave(self, stripe_account: str | None, number: int) -> None:
        """Note that an item that this batch gave out has facts now."""
        pages = self._accounts[stripe_account].pages
        next(each for each in pages if number <= each.last).without_facts -= 1

    def write(
        self, db: sqlite3.Connection, stripe_accounts: Iterable[str | None]
    ) -> int:
        """Write the rows of some accounts; return by how much `crc_sum` grows."""
        rows: list[tuple[Any, ...]] = []
        more = 0
        for stripe_account in stripe_accounts:
            account = self._accounts[stripe_account]
            pages = [(each.last, each.claimed_at) for each in account.written]
            encoded = bytearray(_encode(pages))
            crc = checksum(account.id, stripe_account, encoded)
            more += crc - account.crc
            account.crc = crc
            rows.append((account.id, stripe_account, encoded, crc))
        write_rows(db, _WRITE, rows)
        return more
