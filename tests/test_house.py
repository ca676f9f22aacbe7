"""The house: imports point only down, and below the line nothing does I/O."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import async_refunds

PACKAGE = Path(async_refunds.__path__[0])

# Each module, and what of the package it may import. Top to bottom.
HOUSE: dict[str, set[str]] = {
    "__main__": {"cli"},
    "cli": {"batch", "client", "emulator", "errors", "journal", "models", "privacy"}
    | {"protocol", "results", "retry", "validate", "version"},
    "__init__": {"batch", "client", "errors", "models", "protocol", "results", "retry"}
    | {"version"},
    "batch": {"asking", "client", "errors", "intake", "journal", "lanes", "pacing"}
    | {"privacy", "results", "turns", "validate"},
    "asking": {"client", "errors", "journal", "lanes", "models", "privacy", "protocol"}
    | {"refusal", "results", "retry", "turns"},
    "turns": {"journal", "lanes", "pacing", "results"},
    "lanes": {"advice", "journal", "models", "pacing", "protocol", "refusal"}
    | {"results"},
    "intake": {"privacy", "results", "validate"},
    "client": {"advice", "call", "models", "privacy", "protocol", "refusal", "retry"}
    | {"session", "validate", "version"},
    "call": {"advice", "models", "protocol", "refusal", "retry", "session"},
    "session": {"deadline", "pool", "privacy", "protocol"},
    "retry": {"validate"},
    "pool": {"deadline"},
    "deadline": set(),
    "journal": {"errors", "privacy", "results"},
    "pacing": set(),
    # ------------------------------------------------------------ the I/O line
    "refusal": {"advice", "errors", "models", "privacy", "protocol"},
    "advice": {"models", "protocol", "validate"},
    "protocol": {"models", "validate"},
    "validate": {"privacy"},
    "privacy": {"models"},
    "results": {"errors", "models"},
    "errors": {"models"},
    "models": set(),
    "version": set(),
    "emulator": set(),
}
PURE = ("refusal", "advice", "protocol", "validate", "privacy", "errors", "models")
ONLY = {"aiohttp": {"session", "pool", "client", "emulator"}, "tenacity": {"retry"}}
NO_ROOMS = {"utils", "helpers", "base", "common", "constants"}

FILES = sorted(PACKAGE.rglob("*.py"))


def module(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """Return the dotted names a file imports, its own package's made absolute."""
    found: set[str] = set()
    parents = path.relative_to(PACKAGE.parent).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            start = parents[: len(parents) + 1 - node.level] if node.level else ()
            name = ".".join([*start, *([node.module] if node.module else [])])
            if name == "async_refunds":
                found |= {f"{name}.{alias.name}" for alias in node.names}
            else:
                found.add(name)
    return found


def inner(path: Path) -> set[str]:
    found = {
        name.split(".")[1]
        for name in imports(path)
        if name.startswith("async_refunds.")
    }
    return found - {module(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_import_points_down(path: Path) -> None:
    assert inner(path) <= HOUSE[module(path)]


def test_house_is_drawn_as_it_stands() -> None:
    assert {module(path) for path in FILES} == set(HOUSE)
    assert not {path.stem for path in FILES} & NO_ROOMS
    order = list(HOUSE)
    for upper, lowers in HOUSE.items():
        for lower in lowers:
            assert order.index(upper) < order.index(lower), (upper, lower)
            assert any(
                lower in inner(path) for path in FILES if module(path) == upper
            ), f"{upper} does not import {lower} any more"


@pytest.mark.parametrize("name", PURE)
def test_module_below_the_line_does_no_io(name: str) -> None:
    allowed = {"msgspec", "async_refunds"} | {
        *("__future__", "collections", "enum", "ipaddress", "math", "re", "typing"),
        "urllib",
    }
    roots = {each.split(".")[0] for each in imports(PACKAGE / f"{name}.py")}
    assert roots <= allowed
    assert "urllib.request" not in imports(PACKAGE / f"{name}.py")


@pytest.mark.parametrize("library", ONLY)
def test_library_has_one_door(library: str) -> None:
    users = {
        module(path)
        for path in FILES
        if library in {name.split(".")[0] for name in imports(path)}
    }
    assert users <= ONLY[library]


def test_client_needs_no_extra_and_no_emulator() -> None:
    """Nothing below `cli` imports rich, typer or the emulator."""
    for path in FILES:
        if module(path) not in ("cli", "emulator"):
            roots = {name.split(".")[0] for name in imports(path)}
            assert not roots & {"rich", "typer"}
            assert roots <= set(sys.stdlib_module_names) | {
                *(
                    "aiohttp",
                    "async_refunds",
                    "msgspec",
                    "multidict",
                    "tenacity",
                    "yarl",
                )
            }


def test_who_cancels_one_refund_loads_nothing_of_batches() -> None:
    code = """
import sys
import async_refunds
shown = dir(async_refunds)
assert set(async_refunds.__all__) <= set(shown), "an editor and `help` do not see it"
for name in ("async_refunds.batch", "async_refunds.journal"):
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
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603 - our own
