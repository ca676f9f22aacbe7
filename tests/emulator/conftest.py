"""An emulator that is served to a plain HTTP client."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from async_refunds.emulator import Emulator
from tests.support.stripe_caller import Caller, serving

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


@pytest.fixture
def emulator() -> Emulator:
    return Emulator()


@pytest.fixture
async def api(emulator: Emulator) -> AsyncGenerator[Caller]:
    async with serving(emulator) as caller:
        yield caller


@pytest.fixture
def refund_id(emulator: Emulator) -> str:
    """A refund that can be canceled."""
    return emulator.add_refund()
