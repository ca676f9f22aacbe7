"""What every journal does for a batch, whatever it is kept in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from async_refunds.results import CancelRequest, CancelResult


class Claim(msgspec.Struct, frozen=True, gc=False):
    """One item given out to be canceled now."""

    number: int
    """Its place in the input, from 1."""
    refund_id: str
    stripe_account: str | None
    idempotency_key: str
    key_created_at: float
    """Unix seconds at which the key was made: no request with it is older."""
    asked: bool
    """Whether somebody may have sent this key before, and its request have landed."""


class Journal(Protocol):
    """What a batch has decided and learnt, item by item.

    An item is one refund of one account. What a method has returned from is kept as
    safely as this journal keeps anything. One task may call it while another one
    waits in it.

    Raises:
        JournalError: From any method, once this journal can no longer be written.
    """

    async def add(self, requests: Sequence[CancelRequest]) -> None:
        """Remember these items; one that is there already is not there twice.

        May wait until there is room for them.
        """
        ...

    async def claim(self, stripe_account: str | None, limit: int) -> list[Claim]:
        """Give out the next open items of an account, oldest first.

        Each only once in the life of this object, and with its key kept. Fewer than
        ``limit`` (none at last) if there are no more for now; `add` may bring more.
        """
        ...

    async def rekey(self, claim: Claim) -> Claim:
        """Give out the same item with a fresh key, which is kept."""
        ...

    async def give_back(self, claims: Sequence[Claim]) -> None:
        """Take back what was given out and never sent: it is as if never claimed."""
        ...

    async def settle(self, known: Sequence[tuple[Claim, CancelResult]]) -> None:
        """Keep what became of items."""
        ...

    async def accounts(self) -> list[str | None]:
        """Return the accounts that have open items, ``None`` for the key's own."""
        ...

    async def close(self) -> None:
        """Keep what is not yet kept, and let go. May be called more than once."""
        ...
