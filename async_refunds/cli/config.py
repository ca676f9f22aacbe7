"""Make a client from the environment and the options, or refuse clearly."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from async_refunds.client import RefundsClient

from .output import refuse

if TYPE_CHECKING:
    from async_refunds.journal import Run

BASE_URL = "https://api.stripe.com"


def needs_address(run: Run) -> bool:
    """Tell whether a live key goes to this run only when --base-url is given again.

    The address of a run comes from its journal, and someone else may have written that
    file. A loopback address is for trials and needs no confirmation.
    """
    remote = run.base_url.startswith("https:") and run.base_url != BASE_URL
    return run.livemode and remote


def client(*, live: bool, base_url: str, account: str | None = None) -> RefundsClient:
    """Make a client with the key of ``STRIPE_API_KEY``, or refuse.

    The key comes from nowhere else: every process list and shell history would show an
    option. A live key needs ``--live``, as in the Stripe CLI.
    """
    key = os.environ.get("STRIPE_API_KEY")
    if key is None:
        refuse(
            "STRIPE_API_KEY is not set: put your secret key (sk_test_...) there, or "
            "try `async-refunds demo`, which needs none"
        )
    try:
        made = RefundsClient(
            key, base_url=base_url, stripe_account=account, app_info="cli"
        )
    except ValueError as error:
        text = str(error).replace("api_key", "STRIPE_API_KEY")
        refuse(text.replace("base_url", "--base-url"))
    if made.livemode and not live:
        refuse("STRIPE_API_KEY is a live key: add --live to act on real money")
    return made
