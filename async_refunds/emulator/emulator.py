"""A local Stripe for refunds, as its user holds it."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from async_refunds.emulator.server.admin import AdminApi
from async_refunds.emulator.server.listener import Listener
from async_refunds.emulator.server.thread import in_thread

from .admin_operations import admin_operations
from .controls import Controls

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator


class Emulator(Controls):
    """A local Stripe for refunds, with its state, its limits and its faults.

    ```python
    emulator = Emulator()
    refund_id = emulator.add_refund()
    async with emulator.serve() as base_url:
        ...  # any Stripe client, any key such as sk_test_123
    assert emulator.refund(refund_id)["status"] == "canceled"
    ```

    Args:
        seed: The same seed draws the same ids and the same faults.
        clock: Returns the time in Unix seconds; ``clock.advance`` adds to it.
        limits: What an account may send; None is no limit.
        latency: How many seconds each execution takes. Meanwhile the request counts
            for the limiters, its idempotency key is in flight, and another write on a
            refund of the same charge is refused with ``lock_timeout``. The refund
            changes at the end of that time.
        lock_wait: How many seconds such a write waits first. Stripe waits too, for a
            time that it does not publish; the default makes every collision visible.

    Attributes:
        clock: The emulator's time.
        faults: What goes wrong.
        books: Counts of what happened.
    """

    _base_url: str | None = None

    @property
    def base_url(self) -> str:
        """Where the emulator serves, without a slash at the end.

        Raises:
            RuntimeError: It does not serve.
        """
        if self._base_url is None:
            raise RuntimeError("this emulator is not being served")
        return self._base_url

    @asynccontextmanager
    async def serve(
        self, *, host: str = "127.0.0.1", port: int = 0
    ) -> AsyncGenerator[str]:
        """Serve over HTTP and give the base URL, without a slash at the end.

        At the end every connection is closed, and every request in flight ends.

        Args:
            host: The address to listen on. Other machines reach only an address that
                is not a loopback address.
            port: 0 takes a free one.

        Raises:
            OSError: The address cannot be used.
            RuntimeError: The emulator serves already.
        """
        if self._base_url is not None:
            raise RuntimeError("this emulator is being served already")
        listener = Listener(self._state, AdminApi(admin_operations(self)))
        try:
            self._base_url = listener.open(host, port)
            yield self._base_url
        finally:
            self._base_url = None
            await listener.close()

    @contextmanager
    def serve_in_thread(
        self, *, host: str = "127.0.0.1", port: int = 0
    ) -> Generator[str]:
        """Serve from a thread of its own: for code without an event loop, or with any.

        Arguments and exceptions are those of `serve`. A change made in any thread
        applies from the next request on.
        """
        with in_thread(self.serve(host=host, port=port)) as base_url:
            yield base_url
