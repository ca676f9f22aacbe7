"""One browser for the tests of a module: it takes two seconds to start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest_asyncio

from tests.support.browser import started

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from playwright.async_api import Browser


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncGenerator[Browser]:
    async with started() as browser:
        yield browser
