"""The emulator as its user holds it."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from .control import Control
from .server import Server
from .threads import in_thread
from .world import World

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator


class Emulator(World):
    """A local Stripe for refunds, with its state, its limits and its moods.

    ```python
    emulator = Emulator()
    refund_id = emulator.add_refund()
    async with emulator.serve() as base_url:
        ...  # any Stripe client, any key such as sk_test_123
    assert emulator.refund(refund_id)["status"] == "canceled"
    ```

    Args:
        seed: The same seed draws the same ids and the same faults.
        clock: Gives the time in Unix seconds; ``clock.advance`` adds to it.
        limits: What an account may ask for; None is no limit.
        latency: Seconds that each execution takes. Meanwhile the request counts for
            the limiters' concurrency, its idempotency key is in flight, and another
            write on a refund of its charge is refused with ``lock_timeout``; what it
            does is done at the end.
        lock_wait: Seconds that such a write waits first. Stripe waits too, for a time
            it does not tell; with the default every collision is seen.

    Attributes:
        clock: The emulator's time.
        faults: What goes wrong.
        requests: The last requests received, oldest first.
    """

    _base_url: str | None = None

    @property
    def base_url(self) -> str:
        """Where it is being served, without a slash at the end.

        Raises:
            RuntimeError: It is not being served.
        """
        if self._base_url is None:
            raise RuntimeError("this emulator is not being served")
        return self._base_url

    @asynccontextmanager
    async def serve(
        self, *, host: str = "127.0.0.1", port: int = 0
    ) -> AsyncGenerator[str]:
        """Serve over HTTP and give the base URL, without a slash at its end.

        Everything is closed at the end, whatever is under way.

        Args:
            host: A loopback address, unless others shall reach it.
            port: 0 takes any free one.

        Raises:
            OSError: The address cannot be had.
            RuntimeError: The emulator is being served already.
        """
        if self._base_url is not None:
            raise RuntimeError("this emulator is being served already")
        server = Server(self._service, self.faults, Control(self), self.requests.append)
        try:
            self._base_url = server.open(host, port)
            yield self._base_url
        finally:
            self._base_url = None
            await server.close()

    @contextmanager
    def serve_in_thread(
        self, *, host: str = "127.0.0.1", port: int = 0
    ) -> Generator[str]:
        """Serve from a thread of its own: for code without an event loop, or any.

        Arguments and exceptions are those of `serve`. What is changed between two
        requests, from whatever thread, the next request meets.
        """
        with in_thread(self.serve(host=host, port=port)) as base_url:
            yield base_url
