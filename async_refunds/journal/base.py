"""The contract of a journal: what a batch needs of it, wherever it is kept."""

from __future__ import annotations

from collections import Counter  # noqa: TC003 - a struct's field
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from async_refunds.errors import JournalError
from async_refunds.results import CancelOutcome  # noqa: TC001 - a struct's field

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from async_refunds.results import CancelRequest, CancelResult


class LeaseLostError(Exception):
    """Some accounts belong to another process now, which goes on with the same keys.

    No failure: whatever concerned other accounts was kept.

    Args:
        accounts: Those that this journal does not hold any more.
    """

    def __init__(self, accounts: Iterable[str | None]) -> None:
        super().__init__("the leases of some accounts were lost")
        self.accounts = frozenset(accounts)


class RunClosedError(Exception):
    """The run is closed: it makes no new key, and so nothing more is sent of an item.

    No failure: the item ends as not canceled.
    """


class Run(msgspec.Struct, frozen=True):
    """What a journal is about. It never holds the API key."""

    base_url: str
    livemode: bool
    """Whether it moves real money."""
    options: dict[str, Any] = {}
    """What a later process has to know besides, as JSON has it."""

    @property
    def target(self) -> str:
        """The server and the mode, in words."""
        return f"{self.base_url} in {'live' if self.livemode else 'test'} mode"


class Claim(msgspec.Struct, frozen=True, gc=False):
    """One item given out to be canceled now."""

    number: int
    """Its place in the input, from 1, repetitions not counted."""
    refund_id: str
    stripe_account: str | None
    idempotency_key: str
    key_created_at: float
    """Unix seconds at which the key was made or, if it is ``maybe_sent``, given out by
    an earlier batch for the last time: no request with it is younger."""
    maybe_sent: bool
    """Whether an earlier batch may have sent this key, so that its request may land."""
    key_unused_until: float = 0.0
    """Unix seconds until which nothing was sent with this key; 0 if nobody knows. For a
    day from then, Stripe certainly remembers what the key has done."""
    same_credentials: bool = False
    """Whether all requests with this key, earlier and in this batch, certainly have the
    same credentials, and so reach the same account."""


class Tally(msgspec.Struct, frozen=True):
    """How far a run is."""

    open: int
    """Items that this batch or the next one still has to cancel."""
    outcomes: Counter[CancelOutcome | None]
    """Items by what is known of them. ``None`` counts those that were never sent."""
    requests: int = 0
    """Sent so far, as far as their results are known."""
    rate_limited: int = 0
    """Of these, the ones answered 429."""
    uncounted: bool = False
    """Whether there are more: of those that are under way now, or that a worker sent
    which was killed or did not see their end."""
    seconds: float = 0.0
    """How long batches were at work, over all processes."""

    @property
    def total(self) -> int:
        """All items of the run."""
        return self.outcomes.total()


class Record(msgspec.Struct, frozen=True, gc=False):
    """What a journal knows of one refund."""

    number: int
    """Its place in the input, from 1, repetitions not counted."""
    refund_id: str
    stripe_account: str | None
    outcome: CancelOutcome | None
    """``None`` if it was never sent. ``unknown`` also while it is under way."""
    status: str | None
    """The refund's status as last seen."""
    idempotency_key: str | None
    """The latest key, sent or about to be sent; ``None`` before the first."""
    attempts: int
    """Requests sent for it, over all processes, as far as their results are known."""
    request_id: str | None
    """Stripe's name of the last exchange that has one, ``req_...``."""
    error: str | None
    seconds: float | None
    """How long the last result took; ``None`` if there is none."""
    settled: bool
    """Whether a resumed run leaves it alone."""
    amount: int | None = None
    """In the smallest unit of ``currency``; ``None`` while no answer held the refund,
    and so the fields below."""
    currency: str | None = None
    created: int | None = None
    """Unix seconds at which the refund was created."""
    charge: str | None = None
    payment_intent: str | None = None
    failure_balance_transaction: str | None = None
    """The transaction that brings the money back to the balance."""
    known_at: float | None = None
    """Unix seconds of the last result."""
    in_flight: bool | None = None
    """Whether a process that holds its account has it in hand now; ``None`` where only
    the use of the journal as a whole is known."""


class Leases(Protocol):
    """The leases that this process holds, each for one account."""

    on_lost: Callable[[str | None], object] | None
    """Called with each account that somebody else has taken over."""

    def may_send(self, stripe_account: str | None) -> bool:
        """Tell whether a request for an account may go out now. Cheap.

        ``False`` is not for ever: a database that was away may come back in time, with
        the lease unchanged.
        """
        ...

    def rate(self, stripe_account: str | None) -> float | None:
        """Return the cancels a second that the last holder of the lease had found.

        ``None`` if nobody knows.
        """
        ...


class Journal(Protocol):
    """What a batch has decided and learned, item by item.

    An item is one refund of one account. When a method returns, what it did is kept as
    safely as this journal keeps anything. Several tasks may call it at the same time.

    A journal of several machines holds a lease for each account that it works on, and
    another process may take it over. The others hold every account for ever.

    Raises:
        JournalError: From any method, once the journal can no longer be used.
    """

    @property
    def run(self) -> Run | None:
        """What the journal is about; ``None`` if any client may use it."""
        ...

    @property
    def leases(self) -> Leases | None:
        """Those that are asked before each send; ``None`` if nobody shares the work."""
        ...

    def now(self) -> float:
        """Return Unix seconds by the clock that its claims are dated with."""
        ...

    def begin(self, credentials: str = "") -> None:
        """Begin a batch: every open item may be claimed, also one claimed before.

        Args:
            credentials: The digest of those that it sends with; empty if they may
                change. See `Claim.same_credentials`.

        Raises:
            JournalError: Another batch uses this object.
        """
        ...

    def end(self) -> None:
        """End the batch. Without one this does nothing."""
        ...

    async def add(self, requests: Sequence[CancelRequest]) -> None:
        """Keep these items. An item that is there already is not added again.

        May wait until there is room for them.
        """
        ...

    async def claim(
        self, limits: Mapping[str | None, int]
    ) -> dict[str | None, list[Claim]]:
        """Give out the next open items of some accounts, oldest first.

        Those that an earlier batch asked for and that failed come after all others.

        Each is given out once in a batch, and its key is kept first. An item gets a new
        key unless it is ``maybe_sent``.

        Args:
            limits: How many at most, by account.

        Returns:
            The items of each account. Fewer than its limit (or none) means that there
            are no more for now; `add` may bring more. An account that this journal does
            not hold any more is left out.

        Raises:
            ValueError: A limit below 1.
        """
        ...

    async def rekey(self, claim: Claim) -> Claim:
        """Give out the same item with a new key, which is kept.

        Raises:
            LeaseLostError: Its account is not held any more; it has no new key.
            RunClosedError: Its run gives up on what is not canceled; the same.
        """
        ...

    async def give_back(self, claims: Sequence[Claim]) -> None:
        """Take back items that were never sent, as if they had not been claimed.

        The next batch gets them. An item that an earlier batch may have sent stays
        ``maybe_sent``.

        Raises:
            LeaseLostError: Some accounts are not held any more; all else is kept.
        """
        ...

    async def settle(self, known: Sequence[tuple[Claim, CancelResult]]) -> None:
        """Keep what became of items. An item that is settled stays as it is.

        Raises:
            LeaseLostError: Some accounts are not held any more; all else is kept.
        """
        ...

    async def hand_over(self, known: Sequence[tuple[Claim, CancelResult]]) -> None:
        """Leave items that were sent, and came to no end, to the next holder.

        It claims them at once, and with the same keys. A journal that nobody shares
        keeps the results: the next batch asks again.

        Raises:
            LeaseLostError: Some accounts are not held any more; all else is kept.
        """
        ...

    async def accounts(self) -> list[str | None]:
        """Return the accounts that have open items, ``None`` for the key's own."""
        ...

    async def explain_missing(self, *, stopped: bool) -> str | None:
        """Tell which items came to no result in this batch, and why.

        Args:
            stopped: Whether the caller has stopped it: then nobody misses what was not
                given out.

        Returns:
            Words for people; ``None`` if nothing is missing.
        """
        ...

    def tally(self) -> Tally:
        """Count the items. Blocks while they are read."""
        ...

    def records(self) -> Iterator[Record]:
        """Yield what is known of each item, in input order. Blocks for each page."""
        ...

    async def close(self) -> None:
        """Keep what is not kept yet, and release the journal. May be called twice."""
        ...


def check_limits(limits: Mapping[str | None, int]) -> None:
    """Refuse a claim of nothing.

    Raises:
        ValueError: A limit below 1.
    """
    for limit in limits.values():
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")


def require_target(kept: Run | None, wanted: Run, name: str = "the journal") -> None:
    """Refuse to use a journal for another server or mode than its own.

    Args:
        kept: What the journal is about; ``None`` fits every client.
        wanted: The server and the mode of the client.
        name: How the message names the journal.

    Raises:
        JournalError: They differ.
    """
    if kept is not None and kept.target != wanted.target:
        raise JournalError(
            f"{name} holds a run on {kept.target}, and this one is on "
            f"{wanted.target}: give another path"
        )


class BatchGuard:
    """Lets one batch at a time use a journal object."""

    def __init__(self) -> None:
        self._busy = False
        self._credentials = ""
        """The digest of those that the batch sends with; empty if they may change."""

    def begin(self, credentials: str = "") -> None:
        """Note that a batch begins.

        Args:
            credentials: The digest of those that it sends with.

        Raises:
            JournalError: Another one has not ended.
        """
        if self._busy:
            raise JournalError(
                "another batch uses this journal: wait for its end, or open another "
                "journal"
            )
        self._busy = True
        self._credentials = credentials

    def end(self) -> None:
        """Note that the batch has ended."""
        self._busy = False

    async def explain_missing(self, *, stopped: bool) -> str | None:
        """Return ``None``: nobody else decides what the batch is given."""
        return None
