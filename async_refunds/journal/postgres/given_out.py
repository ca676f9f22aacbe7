"""What a worker was given out of its accounts, and the keys that belong to it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from async_refunds.errors import JournalError
from async_refunds.journal.keys import DERIVATION, derive_key

from .leases import monotonic
from .rows import LeasedClaim

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .leases import Lease, Leases

_REMEMBERED = 100  # accounts that are not held any more


class ClaimedRow(msgspec.Struct, frozen=True, gc=False):
    """An item as `CLAIM` has it."""

    run_id: str
    refund_id: str
    number: int
    generation: int
    claimed_at: float
    sent_before: float | None
    same_credentials: bool
    dead: bool


class _Run(msgspec.Struct, frozen=True):
    seed: bytes
    created_at: float


class GivenOut:
    """What is under way of each account that is held, and how far its claims are.

    In memory only: a failover may have forgotten what this worker was given.
    """

    def __init__(self) -> None:
        self._runs: dict[str, _Run] = {}
        self._clock_offset = time.time() - monotonic()
        """Of the database's clock, which all times are of, from `monotonic`: this
        machine's own may be set at any moment, and a key would seem too old."""
        # By account, the lease's token and the last number claimed of each run.
        self._after: dict[str | None, tuple[str, dict[str, int]]] = {}
        # By account, what was given out and has no result yet.
        self._pending: dict[str | None, set[tuple[str, str]]] = {}

    def __len__(self) -> int:
        """Return of how many accounts it knows something."""
        return len(self._after)

    # ------------------------------------------------------------------- accounts

    def cursor(self, lease: Lease) -> dict[str, int]:
        """Return the last number of each run that was claimed under a lease."""
        token, after = self._after.get(lease.account, ("", {}))
        if token != lease.token:
            after = {}
            self._after[lease.account] = (lease.token, after)
            self._pending[lease.account] = set()
        return after

    def give_out(
        self, lease: Lease, claim_number: int, item: ClaimedRow
    ) -> LeasedClaim | None:
        """Return the claim of an item; ``None`` if it must not be given out."""
        # With each: after a failover it is another machine's clock.
        self._clock_offset = item.claimed_at - monotonic()
        after, pending = self.cursor(lease), self._pending[lease.account]
        after[item.run_id] = max(item.number, after.get(item.run_id, 0))
        # A failover may have forgotten that it was given out.
        if item.dead or (item.run_id, item.refund_id) in pending:
            return None
        run = self._runs.get(item.run_id)
        if run is None:  # somebody deleted it meanwhile
            return None
        pending.add((item.run_id, item.refund_id))
        fresh = item.sent_before is None
        created_at = item.claimed_at if item.sent_before is None else item.sent_before
        return LeasedClaim(
            number=item.number,
            refund_id=item.refund_id,
            stripe_account=lease.account,
            idempotency_key=derive_key(
                run.seed, lease.account, item.refund_id, item.generation
            ),
            key_created_at=created_at,
            maybe_sent=not fresh,
            # No key of a run is older than the run.
            key_unused_until=created_at if fresh else run.created_at,
            same_credentials=item.same_credentials,
            run_id=item.run_id,
            generation=item.generation,
            token=lease.token,
            claim_number=claim_number,
        )

    def take_back(self, claims: Iterable[LeasedClaim]) -> None:
        """Note that claims have a result, or went back."""
        for claim in claims:
            pending = self._pending.get(claim.stripe_account, set())
            pending.discard((claim.run_id, claim.refund_id))

    def forget_all_but(self, held: Leases) -> None:
        """Forget the accounts that are not held any more, once they are many."""
        if len(self._after) > 2 * len(held.accounts) + _REMEMBERED:
            for account in [*self._after]:
                if held.get(account) is None:
                    del self._after[account], self._pending[account]

    # ----------------------------------------------------------------------- keys

    def now(self) -> float:
        """Return Unix seconds by the database's clock, as far as it is known."""
        return monotonic() + self._clock_offset

    def next_key(
        self,
        claim: LeasedClaim,
        claimed_at: float,
        claim_number: int,
        *,
        same_credentials: bool,
    ) -> LeasedClaim:
        """Return the same item with its next key, which was never sent.

        Args:
            claim: With the key before.
            claimed_at: When, by the database's clock.
            claim_number: Of the new claim.
            same_credentials: Whether those that it is sent with will not change.
        """
        generation = claim.generation + 1
        seed = self._runs[claim.run_id].seed
        return msgspec.structs.replace(
            claim,
            idempotency_key=derive_key(
                seed, claim.stripe_account, claim.refund_id, generation
            ),
            key_created_at=claimed_at,
            key_unused_until=claimed_at,
            maybe_sent=False,
            same_credentials=same_credentials,
            generation=generation,
            claim_number=claim_number,
        )

    def unknown_runs(self, run_ids: Iterable[str]) -> set[str]:
        """Return the runs whose seeds are not known yet."""
        return set(run_ids) - self._runs.keys()

    def learn_runs(self, rows: Iterable[tuple[str, bytes, int, float]]) -> None:
        """Note what `RUNS` finds.

        Raises:
            JournalError: The keys of a run are derived as a newer release does.
        """
        for run_id, seed, derivation, created_at in rows:
            if derivation > DERIVATION:
                raise JournalError(
                    f"a run derives its keys by rule {derivation}, and this release "
                    f"knows rules up to {DERIVATION}: go on with a newer release"
                )
            self._runs[run_id] = _Run(bytes(seed), created_at)
