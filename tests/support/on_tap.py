"""The emulator behind a tap, for clients of every kind."""

from __future__ import annotations

import http.client
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from async_refunds.emulator import Emulator
from async_refunds.emulator.server.thread import in_thread
from tests.support.tap import Tap

if TYPE_CHECKING:
    from collections.abc import Generator


@dataclass
class Stripe:
    """An emulator in a thread, with a tap in front of it.

    Args:
        base_url: The address for clients.
        emulator: What they take for Stripe.
        tap: Keeps the answers.
    """

    base_url: str
    emulator: Emulator
    tap: Tap


@contextmanager
def on_tap() -> Generator[Stripe]:
    """Serve an emulator; check each answer against Stripe's description at the end."""
    emulator = Emulator()
    with emulator.serve_in_thread() as upstream:
        tap = Tap(upstream)
        with in_thread(tap.serve()) as base_url:
            yield Stripe(base_url, emulator, tap)
    assert tap.check() > 0


@contextmanager
def hanging(emulator: Emulator, refund_id: str, key: str) -> Generator[None]:
    """Keep another client's cancel in flight."""
    emulator.faults.script("stall")
    connection = http.client.HTTPConnection(urlsplit(emulator.base_url).netloc)
    connection.request(
        "POST",
        f"/v1/refunds/{refund_id}/cancel",
        headers={
            "Authorization": "Bearer sk_test_51Another",
            "Idempotency-Key": key,
        },
    )
    # Another thread receives it.
    while not emulator.requests:
        time.sleep(0)
    try:
        yield
    finally:
        connection.close()
