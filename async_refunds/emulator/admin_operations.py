"""What the admin API can do to an emulator: see `server.admin.AdminApi`."""

from __future__ import annotations

from functools import partial, wraps
from typing import TYPE_CHECKING, Annotated, ParamSpec, TypeVar

import msgspec

from async_refunds.emulator.state.books import hide_api_keys
from async_refunds.emulator.state.faults import FAULTS

# At run time: the admin API reads the signatures.
from async_refunds.emulator.state.limits import Limits  # noqa: TC001  # as said

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeAlias

    from async_refunds.emulator.api.serialization import Json

    from .controls import Controls

    Operations: TypeAlias = Mapping[str, Callable[..., object]]

P = ParamSpec("P")
T = TypeVar("T")

Seconds = Annotated[float, msgspec.Meta(ge=0)]


def admin_operations(emulator: Controls) -> Operations:
    """Return the operations by method and path below ``/_emulator``."""

    def requests() -> object:
        text = msgspec.json.encode(list(emulator.requests)).decode()
        return msgspec.Raw(hide_api_keys(text).encode())

    return {
        "GET /books": lambda: emulator.books,
        "GET /requests": requests,
        "POST /webhooks": emulator.webhook,
        **_settings(emulator),
        **_faults(emulator),
        **_refunds(emulator),
    }


def _settings(emulator: Controls) -> Operations:
    durations = {
        "latency": emulator,
        "lock_wait": emulator,
        "slow_seconds": emulator.faults,
        "refuse_seconds": emulator.faults,
    }

    def clock() -> object:
        return {"now": emulator.clock.time()}

    def advance(advance: Seconds) -> None:
        emulator.clock.advance(advance)

    def timing() -> object:
        return {name: getattr(owner, name) for name, owner in durations.items()}

    def set_timing(
        latency: Seconds | None = None,
        lock_wait: Seconds | None = None,
        slow_seconds: Seconds | None = None,
        refuse_seconds: Seconds | None = None,
    ) -> None:
        given = (latency, lock_wait, slow_seconds, refuse_seconds)
        for (name, owner), value in zip(durations.items(), given, strict=True):
            if value is not None:
                setattr(owner, name, value)

    def set_limits(limits: Limits | None, /) -> object:
        emulator.limits = limits
        return limits

    return {
        "GET /clock": clock,
        "POST /clock": _then(advance, lambda _: clock()),
        "GET /timing": timing,
        "POST /timing": _then(set_timing, lambda _: timing()),
        "GET /limits": lambda: emulator.limits,
        "POST /limits": set_limits,
        "POST /keys/expire": _then(emulator.expire_key, lambda _: {}),
        "POST /keys/restrict": _then(emulator.restrict_key, lambda _: {}),
    }


def _faults(emulator: Controls) -> Operations:
    faults = emulator.faults

    def show() -> object:
        return {"known": FAULTS, "script": faults.scripted, "storm": faults.storming}

    def script(names: list[str]) -> None:
        faults.script(*names)

    return {
        "GET /faults": show,
        "POST /faults/script": _then(script, lambda _: show()),
        "POST /faults/storm": _then(faults.storm, lambda _: show()),
        "POST /faults/load": _then(faults.load, lambda _: show()),
        "POST /faults/clear": _then(faults.clear, lambda _: show()),
    }


def _refunds(emulator: Controls) -> Operations:
    def add_account(account: str) -> object:
        emulator.add_account(account)
        return {"account": account}

    def happen(step: Callable[[str], None], refund_id: str) -> Json:
        step(refund_id)
        return emulator.refund(refund_id)

    steps = (
        *(emulator.give_details, emulator.succeed),
        *(emulator.return_money, emulator.expire),
    )
    return {
        "GET /refunds": emulator.latest_refunds,
        "POST /refunds": _then(emulator.add_refund, emulator.refund),
        "POST /refunds/seed": _then(emulator.seed_refunds, lambda ids: {"ids": ids}),
        "POST /accounts": add_account,
        "GET /refunds/{id}": emulator.refund,
        **{
            f"POST /refunds/{{id}}/{step.__name__}": partial(happen, step)
            for step in steps
        },
    }


def _then(
    operation: Callable[P, T], answer: Callable[[T], object]
) -> Callable[P, object]:
    """Return the operation, with its signature, and with another answer."""

    @wraps(operation)
    def run(*args: P.args, **kwargs: P.kwargs) -> object:
        return answer(operation(*args, **kwargs))

    return run
