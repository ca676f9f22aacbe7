"""From the environment and the options to a client, or to a clear refusal."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NoReturn

import typer

from async_refunds.client import RefundsClient

from .output import plain

if TYPE_CHECKING:
    from async_refunds.journal import Run

USAGE = 2
"""Exit code of a call that cannot be right; nothing was sent."""

BASE_URL = "https://api.stripe.com"


def is_elsewhere(run: Run) -> bool:
    """Tell whether a live key goes to a run only when its address is given again.

    Whoever wrote the journal chose the address; one of this machine is for trials.
    """
    far = run.base_url.startswith("https:") and run.base_url != BASE_URL
    return run.livemode and far


def tell(text: str) -> None:
    """Write a line for people, to stderr, before there is an output."""
    typer.echo(plain(text), err=True)


def refuse(text: str) -> NoReturn:
    """End with a sentence and the exit code of a wrong call."""
    tell(f"async-refunds: {text}")
    raise typer.Exit(USAGE)


def client(*, live: bool, base_url: str, account: str | None) -> RefundsClient:
    """Make a client with the key of ``STRIPE_API_KEY``.

    The key comes from nowhere else: an option would show it in every process list and
    shell history. A live key asks for ``--live``, as the Stripe CLI has it.
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
