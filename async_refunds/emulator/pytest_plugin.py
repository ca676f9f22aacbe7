"""The pytest plugin: an emulator for each test that asks for one.

It is installed beside the package as ``pytest_async_refunds``, since pytest imports
every plugin there is before any test is known: a module of the package would take the
package with it, and everybody's start would be slower by its imports. For the same
reason this module imports nothing of ours before a test asks for the fixture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_refunds.emulator import Emulator


@pytest.fixture
def stripe_emulator() -> Iterator[Emulator]:
    """A local Stripe for refunds, being served at ``stripe_emulator.base_url``.

    It is new for each test, and runs in a thread of its own, so that it serves tests
    without an event loop, and any loop of those with one. It has ``add_refund``,
    ``faults``, ``requests``, ``books``, ``clock`` and all else of
    `async_refunds.emulator.Emulator`.
    """
    from async_refunds.emulator import Emulator  # noqa: PLC0415 - as said above

    emulator = Emulator()
    with emulator.serve_in_thread():
        yield emulator
