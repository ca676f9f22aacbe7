"""What the control API takes, as JSON; what is not of its form is refused by name."""

from __future__ import annotations

from typing import Annotated

import msgspec

from .refunds import SAMPLE_EMAIL

# Seconds: some, none, but not less.
Seconds = Annotated[float, msgspec.Meta(ge=0)]

# A limit of nothing would never let anything in again.
Rate = Annotated[float, msgspec.Meta(gt=0)]
Concurrency = Annotated[int, msgspec.Meta(ge=1)]

# More would keep everybody waiting for minutes, and fill the memory.
MOST_SEEDED = 1_000_000


class Asked(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A body; a misspelt field is an error."""


class Advance(Asked):
    """``POST /_emulator/clock``."""

    advance: Seconds


class Script(Asked):
    """``POST /_emulator/faults/script``."""

    names: list[str]


class Storm(Asked):
    """``POST /_emulator/faults/storm``."""

    probability: float
    names: list[str] | None = None
    seed: int | None = None


class Load(Asked):
    """``POST /_emulator/faults/load``: the words of the command line."""

    spec: str


class Timing(Asked):
    """``POST /_emulator/timing``; what is left out stays as it is."""

    latency: Seconds | None = None
    lock_wait: Seconds | None = None
    slow_seconds: Seconds | None = None
    refuse_seconds: Seconds | None = None


class Limits(Asked):
    """``POST /_emulator/limits``; Stripe's own unless told otherwise."""

    global_rate: Rate | None = 100
    endpoint_rate: Rate | None = 25
    global_concurrency: Concurrency | None = None
    endpoint_concurrency: Concurrency | None = None


class Refund(Asked):
    """``POST /_emulator/refunds``: what `Emulator.add_refund` takes."""

    status: str = "requires_action"
    amount: int = 5000
    currency: str = "jpy"
    livemode: bool = False
    account: str | None = None
    created: int | None = None
    expires_at: int | None = None
    instructions_email: str | None = SAMPLE_EMAIL
    charge: str | None = None
    payment_intent: str | None = None
    metadata: dict[str, str] | None = None
    refund_id: str | None = None


class Seed(Asked):
    """``POST /_emulator/refunds/seed``: what `Emulator.seed_refunds` takes."""

    count: Annotated[int, msgspec.Meta(ge=0, le=MOST_SEEDED)]
    per_charge: int = 1
    livemode: bool = False
    account: str | None = None


class Account(Asked):
    """``POST /_emulator/accounts``."""

    account: str


class ExpireKey(Asked):
    """``POST /_emulator/keys/expire``."""

    key: str


class RestrictKey(Asked):
    """``POST /_emulator/keys/restrict``."""

    key: str
    allow: list[str] = []
