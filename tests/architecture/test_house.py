"""The layers of the package: what each folder may import, and which do no I/O.

`ROOMS` lists the folders and top-level modules from the highest to the lowest. A test
reads the imports of every file, also those inside functions, and fails if one is not
allowed in its folder.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import async_refunds

PACKAGE = Path(async_refunds.__path__[0])

# Each room, and the rooms that it may import. A room is a folder or a top-level module.
ROOMS: dict[str, set[str]] = {
    "cli": {"batch", "client", "emulator", "journal", "protocol", "results", "retry"}
    | {"errors", "models", "telemetry", "version", "workers"},
    "integrations": {"models", "version", "workers"},
    "workers": {"batch", "client", "journal", "telemetry", "protocol", "results"}
    | {"errors"},
    "batch": {"telemetry", "client", "call", "journal", "retry", "protocol", "results"}
    | {"errors", "models"},
    "client": {"call", "credentials", "telemetry", "transport", "retry", "protocol"}
    | {"errors", "models", "version"},
    "call": {"telemetry", "transport", "retry", "protocol", "errors", "models"},
    "credentials": {"telemetry", "transport", "protocol", "errors"},
    "telemetry": {"protocol", "errors", "models"},
    "transport": {"protocol"},
    "retry": {"protocol"},
    "journal": {"protocol", "results", "errors", "models"},
    "webhooks": {"protocol", "errors", "models"},
    "protocol": {"results", "errors", "models"},
    "results": {"errors", "models"},
    "errors": {"models"},
    "models": set(),
    "version": set(),
    "emulator": set(),
}
# The inner rooms of the emulator; its public modules stand above them.
EMULATOR_ROOMS: dict[str, set[str]] = {
    "server": {"api", "state"},
    "api": {"state"},
    "state": set(),
}
# The two ways in stand above every room.
ENTRANCES = {"__init__", "__main__"}
PURE = {"protocol", "results", "errors", "models"}
PURE_LIBRARIES = {"__future__", "collections", "enum", "ipaddress", "math", "re"} | {
    *("msgspec", "multidict", "typing", "unicodedata", "urllib.parse", "async_refunds")
}
ONLY_IN = {
    "aiohttp": {"transport", "client", "emulator", "cli"},
    "opentelemetry": {"integrations"},
    "procrastinate": {"workers"},
    "psycopg": {"journal", "workers", "cli"},
    "tenacity": {"retry"},
}
LIBRARIES = {"aiohttp", "async_refunds", "msgspec", "multidict", "tenacity", "yarl"}
NO_ROOMS = {"utils", "helpers", "common", "constants"}

FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def module(path: Path) -> str:
    """Return the dotted name of a file."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Return the dotted names that a file imports, relative ones made absolute."""
    found: set[str] = set()
    parents = path.relative_to(PACKAGE.parent).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            start = parents[: len(parents) + 1 - node.level] if node.level else ()
            name = ".".join([*start, *([node.module] if node.module else [])])
            if name == "async_refunds" or not node.module:  # from . import a, b
                found |= {f"{name}.{alias.name}" for alias in node.names}
            else:
                found.add(name)
    return found


def roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def rooms_used(path: Path) -> set[str]:
    used = {
        name.split(".")[1]
        for name in imports(path)
        if name.startswith("async_refunds.")
    }
    return used - {room(path)}


@pytest.mark.parametrize("name", ROOMS)
def test_room_imports_only_what_lies_below(name: str) -> None:
    used = {lower for path in FILES if room(path) == name for lower in rooms_used(path)}
    assert used <= ROOMS[name]


@pytest.mark.parametrize("name", EMULATOR_ROOMS)
def test_inner_room_of_the_emulator_imports_only_what_lies_below(name: str) -> None:
    start = "async_refunds.emulator."
    used = {
        lower.removeprefix(start).split(".")[0]
        for path in (PACKAGE / "emulator" / name).rglob("*.py")
        for lower in imports(path)
        if lower.startswith(start)
    }
    assert used <= EMULATOR_ROOMS[name] | {name}
    folders = {path.name for path in (PACKAGE / "emulator").iterdir() if path.is_dir()}
    assert folders - {"__pycache__"} == set(EMULATOR_ROOMS)


def test_house_is_drawn_as_it_stands() -> None:
    assert {room(path) for path in FILES} - ENTRANCES == set(ROOMS)
    names = {part for path in FILES for part in path.relative_to(PACKAGE).parts}
    assert not {Path(name).stem for name in names} & NO_ROOMS
    order = list(ROOMS)
    for upper, lowers in ROOMS.items():
        for lower in lowers:
            assert order.index(upper) < order.index(lower), (upper, lower)


def test_no_two_files_need_each_other() -> None:
    """Also not for types alone: each can be read with those below it in mind."""
    files = {module(path): path for path in FILES}
    TopologicalSorter(
        {name: imports(path) & set(files) - {name} for name, path in files.items()}
    ).prepare()


def test_pure_rooms_do_no_io() -> None:
    for path in FILES:
        if room(path) in PURE:
            for name in imports(path):
                root = name.split(".")[0]
                assert root in PURE_LIBRARIES or name in PURE_LIBRARIES, (path, name)


@pytest.mark.parametrize("library", ONLY_IN)
def test_library_is_used_in_its_rooms_only(library: str) -> None:
    users = {room(path) for path in FILES if library in roots(path)}
    assert users <= ONLY_IN[library]


def test_library_needs_no_extra() -> None:
    """Nothing imports an extra but the rooms that are there for one."""
    for path in FILES:
        if room(path) not in {"cli", "emulator", "integrations", "workers"} and (
            PACKAGE / "journal" / "postgres" not in path.parents
        ):
            assert roots(path) <= set(sys.stdlib_module_names) | LIBRARIES


def test_each_name_is_imported_when_it_is_asked_for() -> None:
    code = """
import sys
import async_refunds.__main__
from async_refunds.cli import interruption
# Ctrl-C is not handled before this: it must take next to no time.
for name in ("aiohttp", "async_refunds.client", "asyncio", "typing", "typer"):
    assert name not in sys.modules, name
shown = dir(async_refunds)
assert set(async_refunds.__all__) <= set(shown), "an editor and `help` do not see it"
assert async_refunds.webhooks.refund_event is async_refunds.refund_event
assert "aiohttp" not in sys.modules, "a receiver of webhooks sends nothing"
from async_refunds import RefundsClient
for name in ("async_refunds.batch", "async_refunds.journal", "opentelemetry"):
    assert name not in sys.modules, name
from async_refunds import cancel_many
assert cancel_many is async_refunds.cancel_many
assert "async_refunds.journal" in sys.modules
try:
    async_refunds.cancel_few
except AttributeError as error:
    assert "cancel_few" in str(error)
else:
    sys.exit("it has whatever it is asked for")
"""
    # Not measured: that alone would import half of the standard library.
    plain = {name: os.environ[name] for name in os.environ if "COVERAGE" not in name}
    subprocess.run([sys.executable, "-c", code], check=True, env=plain)  # noqa: S603 - our own
