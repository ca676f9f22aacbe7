"""The task that brings the accounts of a batch the claims they want."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from async_refunds.journal import LeaseLostError

if TYPE_CHECKING:
    from async_refunds.journal import Claim, Journal

    from .accounts import Accounts


async def claim_ahead(journal: Journal, accounts: Accounts) -> None:
    """Bring the accounts the claims they want, until they are stopped.

    One round serves many accounts, whose claims the journal keeps with one commit.
    """
    while not accounts.stopped:
        wanted = await accounts.claims_wanted()
        if returned := accounts.take_returned():
            await give_back(journal, returned)
            accounts.claims_kept(returned)
        if wanted:
            claims = await journal.claim({each.account: each.limit for each in wanted})
            for each in wanted:
                if each.account not in claims:
                    accounts.drop([each.account])
                accounts.add_claims(each, claims.get(each.account, []))


async def give_back(journal: Journal, claims: list[Claim]) -> None:
    """Return claims to the journal, those whose lease is lost excepted."""
    with suppress(LeaseLostError):
        await journal.give_back(claims)
