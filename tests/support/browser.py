"""A real browser: Debian's Chromium, or another one that is installed."""

from __future__ import annotations

import shutil
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from playwright.async_api import async_playwright

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from playwright.async_api import Browser

# A name that an attacker gives the address of this machine (DNS rebinding).
REBOUND = "evil.example"
_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, _NAMES)), None)

needs_browser = pytest.mark.skipif(
    CHROMIUM is None,
    reason="there is no chromium: apt-get install chromium, or another browser's "
    f"command named {' or '.join(_NAMES)}",
)


@asynccontextmanager
async def started() -> AsyncGenerator[Browser]:
    """Start the browser, without a window."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1"],
        )
        try:
            yield browser
        finally:
            await browser.close()
