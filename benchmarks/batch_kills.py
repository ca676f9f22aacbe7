"""Does a batch lose anything: the part ``kills``.

A run is killed again and again, each time after another number of requests, while the
emulator answers a fifth of them with a fault. The refunds are those of 100 accounts.
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING

from async_refunds.cli.crash_recovery import kill_and_resume
from async_refunds.emulator import Emulator
from async_refunds.results import CancelRequest

if TYPE_CHECKING:
    from pathlib import Path

FAULTS = ("", "reset_after", "stall", "saved_500", "503", "cut_body")
"""What the killed runs meet, a fifth of their requests each."""

_REFUNDS = 2000
_ACCOUNTS = 100
# Many in flight at no pace at all, so that a kill hits much of it.
_OPTIONS = ("--concurrency", "500", "--rate", "100000", "--timeout", "2")


def kills(times: int, folder: Path) -> dict[str, float]:
    """Return what runs with this many kills lost or did twice."""
    totals: dict[str, float] = dict.fromkeys(
        (
            "kills",
            "refunds without a final outcome",
            "refunds not canceled",
            "refunds canceled twice",
            "refunds sent with a second key",
        ),
        0.0,
    )
    for place, fault in enumerate(FAULTS):
        often = (times + place) // len(FAULTS)
        run = folder / f"kills-{fault}"
        run.mkdir()
        for name, value in asyncio.run(_killed(run, fault, often)).items():
            totals[name] += value
    return totals


async def _killed(folder: Path, fault: str, often: int) -> dict[str, float]:
    stripe = Emulator()
    if fault:
        stripe.faults.load(f"{fault}=0.2")
    chance = Random(fault)  # noqa: S311 - no secret
    most = _REFUNDS // max(often, 1)
    found = await kill_and_resume(
        stripe,
        [
            CancelRequest(each, f"acct_{number}")
            for number in range(_ACCOUNTS)
            for each in stripe.seed_refunds(
                _REFUNDS // _ACCOUNTS, account=f"acct_{number}"
            )
        ],
        folder,
        kill_after=[chance.randint(1, most) for _ in range(often)],
        options=_OPTIONS,
    )
    canceled = found.canceled_exactly_once + found.canceled_twice
    return {
        "kills": found.killed,
        "refunds without a final outcome": found.unsettled,
        "refunds not canceled": _REFUNDS - canceled,
        "refunds canceled twice": found.canceled_twice,
        "refunds sent with a second key": found.refunds_with_two_keys,
    }
