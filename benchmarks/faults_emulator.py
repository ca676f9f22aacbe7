"""The emulator in a process of its own, and what may be asked of it from outside.

A fresh one for each turn: the same refunds, and with the same seed the same storm, for
whoever has the turn. What is true is read through its control API, over HTTP, by code
that shares nothing with the clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import time
from collections import deque
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import msgspec

from async_refunds.emulator import FAULTS, Emulator
from benchmarks import child

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

T = TypeVar("T")

STORM = tuple(name for name in FAULTS if name != "redirect")
"""What a storm is made of: Stripe never redirects."""

# How often a request of the control API comes to a shut door, and the seconds between:
# more than any ``refuse`` lasts.
_TRIES, _PAUSE = 20, 0.05


class Books(msgspec.Struct, frozen=True):
    """What was done, by the emulator's own account."""

    cancellations: dict[str, int]
    """By refund, how often a cancel of it was executed; others are left out."""
    requests: dict[str, int]
    """By endpoint, how many came."""
    faults: dict[str, int]
    """By name, how many of them met it."""


class Request(msgspec.Struct, frozen=True):
    """A request as it came."""

    endpoint: str
    path: str
    idempotency_key: str | None


class _Ids(msgspec.Struct):
    ids: list[str]


class _Refund(msgspec.Struct):
    status: str


class Stripe:
    """The emulator of another process, as its control API shows it.

    Args:
        base_url: Where it is served.
    """

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url

    def seed(self, count: int) -> list[str]:
        """Add so many refunds that can be canceled, and return their ids."""
        return self._ask("POST", "/refunds/seed", _Ids, {"count": count}).ids

    def timing(self, *, slow: float, refuse: float) -> None:
        """Set how many seconds ``slow`` and ``refuse`` last."""
        self._ask(
            "POST", "/timing", object, {"slow_seconds": slow, "refuse_seconds": refuse}
        )

    def storm(self, probability: float, names: Sequence[str], seed: int) -> None:
        """Let each request meet one of these faults with this probability."""
        storm = {"probability": probability, "names": names, "seed": seed}
        self._ask("POST", "/faults/storm", object, storm)

    def script(self, *names: str) -> None:
        """Let the next requests meet these faults, in this order."""
        self._ask("POST", "/faults/script", object, {"names": names})

    def calm(self) -> None:
        """Let no request meet a fault any more."""
        self._ask("POST", "/faults/clear", object)

    def books(self) -> Books:
        """Return what was done."""
        return self._ask("GET", "/books", Books)

    def requests(self) -> list[Request]:
        """Return every request that came, oldest first."""
        return self._ask("GET", "/requests", list[Request])

    def status(self, refund_id: str) -> str:
        """Return the state that a refund is in."""
        return self._ask("GET", f"/refunds/{refund_id}", _Refund).status

    def _ask(self, method: str, path: str, kind: type[T], body: object = None) -> T:
        given = None if body is None else msgspec.json.encode(body)
        for _ in range(_TRIES):
            # The last request of a storm may have shut the door that this comes to.
            with contextlib.suppress(ConnectionError):
                told = self._exchange(method, f"/_emulator{path}", given)
                return msgspec.json.decode(told, type=kind)
            time.sleep(_PAUSE)
        raise RuntimeError("the emulator is gone")

    def _exchange(self, method: str, path: str, body: bytes | None) -> bytes:
        # A connection each: none is kept that ``refuse`` could close.
        connection = http.client.HTTPConnection(urlsplit(self.base_url).netloc)
        with contextlib.closing(connection):
            connection.request(method, path, body)
            answer = connection.getresponse()
            told = answer.read()
        if answer.status != http.client.OK:
            raise RuntimeError(f"{method} {path}: {told.decode()}")
        return told


@contextlib.contextmanager
def emulator() -> Generator[Stripe, None, None]:
    """Serve a fresh emulator for a ``with`` block."""
    with child.started("benchmarks.faults_emulator") as base_url:
        yield Stripe(base_url)


async def _serve() -> None:
    served = Emulator()
    # All of them: the keys that each refund was asked for with are counted.
    served.requests = deque()
    async with served.serve() as base_url:
        print(base_url, flush=True)
        await child.until_left()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve())
    # At once: nothing here wants tidying up.
    os._exit(0)
