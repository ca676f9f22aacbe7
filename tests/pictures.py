"""Draw the pictures of the README again: ``python -m tests.pictures``.

A run of the command on a terminal, against the emulator, in a minute; then its report
in a browser.
"""

from __future__ import annotations

import asyncio
import io
import re
import tempfile
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

from async_refunds.emulator import Limits
from tests.support.browser import started as browser_started
from tests.support.terminal import Screen, emulator_of, run, started

FOLDER = Path(__file__).parents[1] / ".github" / "pictures"
COLUMNS = 120
COUNT = 1200
# What takes the terminal's cursor back to the start of a line that it rewrites.
_REWRITTEN = re.compile(r"\r\x1b\[K")


async def record(folder: Path) -> list[str]:
    """Run a batch on a terminal, and return the lines of the picture."""
    emulator, ids = emulator_of(COUNT)
    emulator.limits = Limits()
    emulator.faults.load("503=0.03,reset_after=0.02,rate_429=0.02")
    for paid in ids[37::300]:
        emulator.set_status(paid, "succeeded")
    ids.insert(400, "re_1NoSuchRefundOfThisShop00")
    (folder / "ids.csv").write_text("\n".join(["refund_id", *ids]))
    command = ("cancel", "--from", "ids.csv", "--journal", "tonight.sqlite3")
    screen = Screen(COLUMNS)
    async with (
        emulator.serve(port=12111) as base_url,
        started(
            *command,
            "--yes",
            folder=folder,
            environment={"ASYNC_REFUNDS_BASE_URL": base_url},
            stdout=screen.terminal,
            stderr=screen.terminal,
        ) as running,
    ):
        _, shown = await screen.shows(running)
    frames: list[str] = []
    lines: list[str] = []
    for line in shown.rstrip().split("\n"):  # not at \r, as splitlines does
        *rewritten, left = _REWRITTEN.split(line)
        frames += rewritten
        lines.append(left)
    drawn = [frame for frame in frames if frame]
    halfway = drawn[len(drawn) // 2]
    return [
        f"$ async-refunds {' '.join(command)}",
        halfway,
        "",
        "# at its end",
        *lines,
    ]


def draw_terminal(lines: list[str], path: Path) -> None:
    """Draw lines as they are on a terminal."""
    console = Console(width=COLUMNS, record=True, file=io.StringIO())
    for line in lines:
        style = "bold" if line.startswith("$") else "dim" if line[:1] == "#" else ""
        console.print(Text(line, style), no_wrap=True, crop=True)
    drawn = console.export_svg(title="async-refunds", unique_id="terminal")
    # GitHub loads no fonts for a picture.
    path.write_text(re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL))


async def draw_report(folder: Path, path: Path) -> None:
    """Draw the top of the report of the run in that folder."""
    command = ("report", "tonight.sqlite3", "--html", "report.html")
    await run(*command, folder=folder, key=None)
    async with browser_started() as browser:
        page = await browser.new_page(viewport={"width": 1100, "height": 1180})
        await page.goto((folder / "report.html").as_uri())
        await page.screenshot(path=path)
    # A quarter of the size, and no difference to see.
    Image.open(path).quantize(64).save(path, optimize=True)


async def main() -> None:
    """Draw them all."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_terminal(await record(folder), FOLDER / "progress.svg")
        await draw_report(folder, FOLDER / "report.png")


if __name__ == "__main__":
    asyncio.run(main())
