"""Which items were given out for the first time: one row for each account.

An item without facts was never given out, or for the first time and nothing more is
known. Items of an account are given out in order, so the number of the last one tells
which; the idempotency key can be derived. So a claim writes a row for each account, not
for each item, and the key is on the disk all the same.
"""

from __future__ import annotations

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
    """What one claim gave out of an account for the first time."""

    last: int
    """The number of its last item. Its first one follows that of the page before."""
    claimed_at: float
    """Unix seconds."""


class _OpenPage:
    """A page of this batch, some of whose items may have no facts yet."""

    __slots__ = ("items", "page")

    def __init__(self, page: _Page, items: int) -> None:
        self.page = page
        self.items = items
        """How many have none."""


class _Account:
    """What is known of one account."""

    __slots__ = ("crc", "earlier", "id", "pages")

    def __init__(self, number: int) -> None:
        self.id = number
        self.crc = 0  # of its row as written
        self.earlier: list[_Page] = []
        """Of earlier batches."""
        self.pages: list[_OpenPage] = []
        """Of this batch, oldest first; never empty again after its first claim."""

    @property
    def written(self) -> list[_Page]:
        """The pages that its row has."""
        return self.earlier or [each.page for each in self.pages]


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
            account.pages = []

    def last(self, stripe_account: str | None) -> int:
        """Return the number of the last item that was given out; 0 if none was."""
        account = self._accounts.get(stripe_account)
        if account is None:
            return 0
        return (account.earlier[-1] if account.earlier else account.pages[-1].page).last

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
        account.earlier = []
        account.pages = [each for each in account.pages if each.items]
        account.pages.append(_OpenPage(_Page(last, claimed_at), items))

    def leave(self, stripe_account: str | None, number: int) -> None:
        """Note that an item that this batch gave out has facts now."""
        pages = self._accounts[stripe_account].pages
        next(each for each in pages if number <= each.page.last).items -= 1

    def write(
        self, db: sqlite3.Connection, stripe_accounts: Iterable[str | None]
    ) -> int:
        """Write the rows of some accounts; return by how much `crc_sum` grows."""
        rows: list[tuple[Any, ...]] = []
        more = 0
        for stripe_account in stripe_accounts:
            account = self._accounts[stripe_account]
            pages = bytearray(_encode(account.written))
            crc = checksum(account.id, stripe_account, pages)
            more += crc - account.crc
            account.crc = crc
            rows.append((account.id, stripe_account, pages, crc))
        write_rows(db, _WRITE, rows)
        return more
