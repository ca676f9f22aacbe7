"""Draws a script from a seed and the number of the case: always the same one."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

from . import wire
from .canaries import SPELLINGS
from .script import (
    FOREVER,
    Act,
    Call,
    Damage,
    Given,
    Kill,
    Move,
    Option,
    Part,
    Script,
)

if TYPE_CHECKING:
    from collections.abc import Collection

_APIS: dict[str, dict[str, float]] = {
    "POST": {
        "run": 62,
        "skip": 12,
        "late": 6,
        "500_done": 3,
        "500_undone": 3,
        "limit_rate": 2,
        "limit_concurrency": 1,
        "limit_global": 1,
        "lock": 2,
        "401": 1,
        "403": 1.5,
        "404": 1,
        "424": 1,
        "in_use": 1,
        "400_param": 0.5,
        "odd_status": 0.5,
    },
    "GET": {
        "run": 66,
        "skip": 12,
        "limit_rate": 4,
        "500": 6,
        "503": 3,
        "401": 2,
        "403": 2,
        "404": 2,
        "stale": 3,
        "odd_status": 1,
    },
}
_PLAIN = 0.2
"""The share of acts whose answer arrives as it is: then it is the API that acts."""
_WEIGHTS = {"proxy": 6.0, "extra_now": 1.5, "extra_next": 5.0, "plain": 0.0}
_WIRES = (*wire.KINDS, "extra_now", "extra_soon", "extra_next")
_STATES = ("requires_action",) * 12 + (
    *("canceled", "canceled", "succeeded", "failed", "pending"),
)


def drawn(kind: str, seed: int, number: int, without: Collection[str] = ()) -> Script:
    """Return a case: of ``calls``, of a ``batch`` or of ``journals``.

    Args:
        kind: Which one.
        seed: Of the whole run.
        number: Of the case.
        without: Names of acts, options and damages that are left out; ``frames``
            leaves the stack free.
    """
    chance = random.Random(f"{kind} {seed} {number}")  # noqa: S311 - no secret
    parts = {"calls": _calls, "batch": _batch, "journals": _journal}[kind](chance)
    if "frames" in without:
        parts = [replace(p, frames=0) if isinstance(p, Call) else p for p in parts]
    return tuple(part for part in parts if not _is_left_out(part, without))


def _is_left_out(part: Part, without: Collection[str]) -> bool:
    if isinstance(part, Act):
        return part.api in without or part.wire in without
    if isinstance(part, Damage):
        return part.kind in without or f"{part.kind}({part.file or 'main'})" in without
    return isinstance(part, Option) and part.name in without


def _calls(chance: random.Random) -> list[Part]:
    parts = _options(chance)
    poor = Option("poor") in parts
    refunds = chance.choice((1, 1, 1, 2, 2, 3, 3, 4, 4, 12))
    calls = 0
    for number in range(refunds):
        parts += _refund(chance, number, poor=poor)
        for _ in range(chance.choice((1, 1, 1, 1, 2, 3))):
            parts.append(_call(chance, calls, number))
            calls += 1
    if chance.random() < 0.05:
        parts.append(Option("close_at", round(chance.uniform(0, 3), 3)))
    if chance.random() < 0.05:
        parts.append(Option("session_close_at", round(chance.uniform(0, 3), 3)))
    return parts


def _options(chance: random.Random) -> list[Part]:
    parts: list[Part] = []

    def maybe(share: float, name: str, *values: float | str) -> None:
        if chance.random() < share:
            parts.append(Option(name, chance.choice(values or (1,))))

    maybe(0.25, "poor")
    maybe(0.25, "borrowed", 1, 2, 100)
    maybe(0.5, "max_retries", 0, 1, 2, 5)
    maybe(0.3, "deadline", 1.0, 5.0, 20.0)
    maybe(0.2, "attempt_timeout", 0.5, 2.0, 80.0)
    maybe(0.06, "deaf_until", 0.1, 1.0, 30.0, 1e6)
    maybe(0.03, "deaf_from", 0.01, 0.5, 2.0)
    maybe(0.06, "greets", *range(16))
    maybe(0.08, "hook", *range(1, 6))
    if Option("borrowed", 1) in parts or Option("borrowed", 2) in parts:
        maybe(0.2, "trace", *range(40))
        maybe(0.1, "resolver", *range(8))
    return parts


def _refund(chance: random.Random, number: int, *, poor: bool) -> list[Part]:
    state = chance.choice(_STATES)
    parts: list[Part] = [Given(number, state, chance.randrange(SPELLINGS))]
    for method, most in (("POST", 4), ("GET", 3)):
        for at in range(chance.choice((0, 1, 1, most))):
            forever = chance.random() < 0.15
            last = FOREVER if forever else at
            parts.append(_act(chance, number, method, (at, last), poor=poor))
    if chance.random() < 0.06:
        to = chance.choice(("pending", "succeeded", "failed", "canceled"))
        parts.append(Move(number, round(chance.uniform(0, 20), 2), to))
    return parts


def _act(
    chance: random.Random,
    refund: int,
    method: str,
    span: tuple[int, int],
    *,
    poor: bool,
) -> Act:
    apis = _APIS[method]
    (api,) = chance.choices(list(apis), list(apis.values()))
    path = "plain"
    if chance.random() > _PLAIN:
        # Without a name of Stripe's nobody could tell another request's answer.
        kinds = [each for each in _WIRES if not (poor and each.startswith("extra"))]
        weights = [_WEIGHTS.get(each, 1.0) for each in kinds]
        (path,) = chance.choices(kinds, weights)
    return Act(refund, method, *span, api, path, chance.randrange(100_000))


def _call(chance: random.Random, number: int, refund: int) -> Call:
    at = round(chance.choice((0.0, 0.0, 0.0, chance.uniform(0, 5))), 3)
    cancel_after, cancel_step, frames = -1.0, -1, 0
    odd = chance.random()
    if odd < 0.04:
        cancel_after = round(chance.choice((0.01, 0.5, 3.0, 30.0)) * chance.random(), 3)
    elif odd < 0.08:
        cancel_step = chance.randrange(25)
    elif odd < 0.11:
        frames = chance.randrange(8, 90)
    return Call(
        number,
        refund,
        at=at,
        own_key=chance.random() < 0.5,
        timeout=chance.choice((0.0, 0.0, 0.0, 0.5, 4.0, 40.0)),
        already_canceled_ok=chance.random() < 0.15,
        cancel_after=cancel_after,
        cancel_step=cancel_step,
        frames=frames,
        ask_again=chance.random() < 0.3,
        reads=chance.random() < 0.08,
    )


def _batch(chance: random.Random) -> list[Part]:
    parts = _options(chance)
    poor = Option("poor") in parts

    def maybe(share: float, name: str, *values: float | str) -> None:
        if chance.random() < share:
            parts.append(Option(name, chance.choice(values or (1,))))

    maybe(0.8, "concurrency", 1, 2, 5, 20)
    maybe(0.5, "rate", 1.0, 20.0, 1000.0)
    maybe(0.9, "patience", 0.5, 5.0, 60.0)
    maybe(0.1, "input_raises", *range(12))
    maybe(0.1, "slow_input", 0.1, 2.0)
    maybe(0.05, "stop_at", 0, 1, 3)
    maybe(0.05, "interrupt_at", 0, 1, 3)
    maybe(0.05, "leave_at", 1, 2, 4)
    maybe(0.05, "cancel_at", 0.01, 0.5, 5.0)
    maybe(0.05, "accounts", 2, 3)
    maybe(0.05, "twice", 1, 2)
    faulty = chance.choice((0.1, 0.4, 1.0))
    refunds = chance.choice((1, 3, 8, 8, 20))
    if chance.random() < 0.05:
        return parts + _outage(refunds)
    for number in range(refunds):
        if chance.random() < faulty:
            parts += _refund(chance, number, poor=poor)
        else:
            parts.append(Given(number, spelling=chance.randrange(SPELLINGS)))
    return parts


def _outage(refunds: int) -> list[Part]:
    """A proxy whose backend is dead."""
    status = wire.PROXY_STATUSES.index(502)
    return [
        Option("outage"),
        *(
            Act(refund, method, 0, FOREVER, "skip", "proxy", status)
            for refund in range(refunds)
            for method in ("POST", "GET")
        ),
    ]


_DAMAGES = {
    "lose": 3,
    "empty": 1,
    "cut": 2,
    "flip": 6,
    "zero": 1,
    "restore": 3,
    "move": 3,
    "alias": 1,
    "pair": 2,
}
_ALIASES = ("same", "hardlink", "symlink", "dots")
_QUIET_WIRES = ("plain", "plain", "rst", "fin", "stall", "cut_body", "garbage", "proxy")


def _journal(chance: random.Random) -> list[Part]:
    runs = chance.choice((2, 2, 3, 4))
    refunds = chance.choice((1, 3, 8, 20))
    parts: list[Part] = [
        Option("runs", runs),
        Option("concurrency", chance.choice((1, 3, 8))),
    ]
    for share, name, *values in (
        (0.3, "resume_empty", 1),
        (0.06, "twice", 1),
        (0.06, "hook", *range(1, 12)),
        (0.06, "file_size", 5_000, 30_000, 60_000, 100_000),
        (0.05, "day_old", 1),
    ):
        if chance.random() < share:
            parts.append(Option(name, chance.choice(values)))
    for number in range(refunds):
        state = chance.choice(_STATES)
        parts.append(Given(number, state, chance.randrange(SPELLINGS)))
        if chance.random() < 0.2:
            api = chance.choice(("run", "run", "run", "skip", "500_done", "limit_rate"))
            path, value = chance.choice(_QUIET_WIRES), chance.randrange(100_000)
            parts.append(
                Act(number, "POST", 0, chance.choice((0, 0, 2)), api, path, value)
            )
    for run in range(runs - 1):
        if chance.random() < 0.8:
            phase = chance.choice(("before", "executed", "answered"))
            delay = chance.choice((0.0, 0.0, chance.uniform(0, 0.02)))
            request = chance.randrange(1, refunds + 2)
            signal = chance.choice(("SIGKILL",) * 8 + ("SIGINT", "SIGTERM"))
            parts.append(Kill(run, request, phase, round(delay, 4), signal))
    for run in range(runs):
        for _ in range(chance.choice((0, 1, 1, 2))):
            parts += _damage(chance, run, refunds)
    return parts


def _damage(chance: random.Random, run: int, refunds: int) -> list[Part]:
    (kind,) = chance.choices(list(_DAMAGES), list(_DAMAGES.values()))
    value = chance.randrange(10_000_000)
    if kind in ("alias", "pair"):
        return [Damage(run, kind, chance.choice(_ALIASES))]
    file = chance.choice(("", "", "-wal", "-wal", "-shm", "-lock"))
    if kind == "restore":
        file = chance.choice(("", "-wal", "-shm", "all"))
    live = kind not in ("move", "flip", "zero") and chance.random() < 0.2
    request = chance.randrange(1, refunds + 1) if live else 0
    if run == 0 and not request:
        return []  # there is nothing yet
    return [Damage(run, kind, file if kind != "move" else "", value, request)]
