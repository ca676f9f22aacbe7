"""The pytest plugin: an emulator for each test, or for all of them.

It is installed beside the package as ``pytest_async_refunds``, because pytest imports
every plugin before any test is known: a module of the package would import the whole
package, and slow down every start of pytest. For the same reason this module imports
nothing of the package before a test uses a fixture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_refunds.emulator import Emulator


@pytest.fixture(scope="session")
def stripe_emulator_session() -> Iterator[Emulator]:
    """A local Stripe for refunds that all tests of a session share.

    Its ``base_url`` stays the same, so an application that is started once can use it.
    Refunds, ``requests`` and ``books`` add up from test to test, and faults and limits
    stay until a test clears them: add refunds in each test, and look only at those.
    Otherwise it is like `stripe_emulator`. With pytest-xdist each process has its own.
    """
    yield from _served()


@pytest.fixture
def stripe_emulator() -> Iterator[Emulator]:
    """A local Stripe for refunds that serves at ``stripe_emulator.base_url``.

    Each test has a new one. It runs in a thread of its own, so it serves tests without
    an event loop and tests with any loop. It has ``add_refund``, ``faults``,
    ``requests``, ``books``, ``clock`` and the rest of
    `async_refunds.emulator.Emulator`.
    """
    yield from _served()


def _served() -> Iterator[Emulator]:
    from async_refunds.emulator import Emulator  # noqa: PLC0415 - as said above

    emulator = Emulator()
    with emulator.serve_in_thread():
        yield emulator
