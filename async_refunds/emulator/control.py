"""The control API, under ``/_emulator/``: what Stripe, banks and time do by themselves.

JSON, with no authentication: whoever reaches the emulator may use it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, TypeVar

import msgspec

from . import control_requests as asked
from .faults import FAULTS
from .limiter import Limits
from .refunds import STEPS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .incoming import Incoming
    from .world import World

    # From a body to what is answered.
    Route: TypeAlias = Callable[[bytes], object]

# Where it begins.
CONTROL = "/_emulator"

T = TypeVar("T")


class _UnknownError(Exception):
    """There is no such thing."""


def _read(body: bytes, kind: type[T]) -> T:
    return msgspec.json.decode(body or b"{}", type=kind)


class Control:
    """Answers the control API's requests.

    Args:
        world: What they look at and change.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._routes: Mapping[str, Route] = {
            "GET /": self._index,
            "GET /books": lambda _: world.books,
            "GET /requests": lambda _: list(world.requests),
            "GET /clock": self._clock,
            "POST /clock": self._advance,
            "GET /faults": self._faults,
            "POST /faults/script": self._script,
            "POST /faults/storm": self._storm,
            "POST /faults/load": self._load,
            "POST /faults/clear": self._clear,
            "GET /timing": self._timing,
            "POST /timing": self._set_timing,
            "GET /limits": self._limits,
            "POST /limits": self._set_limits,
            "POST /refunds": self._add,
            "POST /refunds/seed": self._seed,
            "POST /accounts": self._add_account,
            "POST /keys/expire": self._expire_key,
            "POST /keys/restrict": self._restrict_key,
        }

    def answer(self, incoming: Incoming) -> tuple[int, bytes]:
        """Return the status and the JSON of the answer."""
        if incoming.malformed is not None:
            return 400, msgspec.json.encode({"error": incoming.malformed.message})
        try:
            found = self._find(incoming.method, incoming.path)(incoming.body)
        except _UnknownError as error:
            return 404, msgspec.json.encode({"error": str(error)})
        except (ValueError, msgspec.DecodeError) as error:
            return 400, msgspec.json.encode({"error": str(error)})
        return 200, msgspec.json.encode(found)

    def _find(self, method: str, path: str) -> Route:
        below = path.removeprefix(CONTROL).rstrip("/") or "/"
        route = self._routes.get(f"{method} {below}")
        if route is not None:
            return route
        start, _, rest = below.removeprefix("/").partition("/")
        refund_id, _, step = rest.partition("/")
        if start == "refunds" and refund_id:
            if method == "GET" and not step:
                return lambda _: self._refund(refund_id)
            if method == "POST" and step in STEPS:
                return lambda _: self._step(refund_id, step)
        msg = f"there is no {method} {path}; GET {CONTROL} tells what there is"
        raise _UnknownError(msg)

    def _index(self, _body: bytes) -> object:
        with_id = ["GET /refunds/{id}", *(f"POST /refunds/{{id}}/{s}" for s in STEPS)]
        return {
            "endpoints": [
                route.replace(" /", f" {CONTROL}/").rstrip("/")
                for route in (*self._routes, *with_id)
            ]
        }

    def _clock(self, _body: bytes) -> object:
        return {"now": self._world.clock.time()}

    def _advance(self, body: bytes) -> object:
        self._world.clock.advance(_read(body, asked.Advance).advance)
        return self._clock(b"")

    def _faults(self, _body: bytes) -> object:
        faults = self._world.faults
        return {
            "known": FAULTS,
            "script": faults.scripted,
            "storm": faults.storming,
        }

    def _script(self, body: bytes) -> object:
        self._world.faults.script(*_read(body, asked.Script).names)
        return self._faults(b"")

    def _storm(self, body: bytes) -> object:
        storm = _read(body, asked.Storm)
        self._world.faults.storm(storm.probability, names=storm.names, seed=storm.seed)
        return self._faults(b"")

    def _load(self, body: bytes) -> object:
        self._world.faults.load(_read(body, asked.Load).spec)
        return self._faults(b"")

    def _clear(self, _body: bytes) -> object:
        self._world.faults.clear()
        return self._faults(b"")

    def _timing(self, _body: bytes) -> object:
        world = self._world
        return asked.Timing(
            latency=world.latency,
            lock_wait=world.lock_wait,
            slow_seconds=world.faults.slow_seconds,
            refuse_seconds=world.faults.refuse_seconds,
        )

    def _set_timing(self, body: bytes) -> object:
        world, timing = self._world, _read(body, asked.Timing)
        if timing.latency is not None:
            world.latency = timing.latency
        if timing.lock_wait is not None:
            world.lock_wait = timing.lock_wait
        if timing.slow_seconds is not None:
            world.faults.slow_seconds = timing.slow_seconds
        if timing.refuse_seconds is not None:
            world.faults.refuse_seconds = timing.refuse_seconds
        return self._timing(b"")

    def _limits(self, _body: bytes) -> object:
        return self._world.limits

    def _set_limits(self, body: bytes) -> object:
        given = msgspec.json.decode(body or b"{}", type=asked.Limits | None)
        self._world.limits = (
            None if given is None else Limits(**msgspec.structs.asdict(given))
        )
        return self._limits(b"")

    def _add(self, body: bytes) -> object:
        given = msgspec.structs.asdict(_read(body, asked.Refund))
        return self._refund(self._world.add_refund(**given))

    def _seed(self, body: bytes) -> object:
        given = msgspec.structs.asdict(_read(body, asked.Seed))
        return {"ids": self._world.seed_refunds(given.pop("count"), **given)}

    def _add_account(self, body: bytes) -> object:
        account = _read(body, asked.Account)
        self._world.add_account(account.account)
        return account

    def _expire_key(self, body: bytes) -> object:
        self._world.expire_key(_read(body, asked.ExpireKey).key)
        return {}

    def _restrict_key(self, body: bytes) -> object:
        given = _read(body, asked.RestrictKey)
        self._world.restrict_key(given.key, allow=given.allow)
        return {}

    def _refund(self, refund_id: str) -> object:
        try:
            return self._world.refund(refund_id)
        except KeyError:
            raise _UnknownError(f"there is no refund {refund_id!r}") from None

    def _step(self, refund_id: str, step: str) -> object:
        self._refund(refund_id)
        happen: Mapping[str, Callable[[str], None]] = {
            "expire": self._world.expire,
            "give_details": self._world.give_details,
            "return_money": self._world.return_money,
            "succeed": self._world.succeed,
        }
        happen[step](refund_id)
        return self._refund(refund_id)
