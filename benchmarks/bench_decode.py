"""What does it cost to make an object of a refund's bytes?

Every way starts from the body as it came from the socket, and ends with what its users
get. The official client's way is its own: ``StripeResponse`` and ``deserialize``, both
public, are all that stands between the body and the object in its ``_api_requestor``.
"""

from __future__ import annotations

import functools
import gc
import itertools
import json
import operator
import sys
import time
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import msgspec
import pydantic
import stripe

if not __package__:  # run by its path, whose folder is first in the search path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from async_refunds import Refund
from async_refunds.protocol.requests import retrieve_request
from benchmarks import canned, drawing, report
from benchmarks.harness import Figure, figure, in_turn, ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

QUESTION = "What does it cost to make an object of a refund's bytes?"
OURS, OFFICIAL = "async_refunds", "official"

REFUND_ID = "re_1Pgc72B7WZ01zgkWqPvrRrPE"
_SUPPORT = Path(__file__).parent.parent / "tests" / "support"
FIXTURE = _SUPPORT / "stripe" / "refund.fixture.json"
BODIES = {
    "Stripe's own example": FIXTURE.read_bytes(),
    "a bank transfer, canceled": canned.body(REFUND_ID.encode()),
}


class Flags(report.Flags, frozen=True, kw_only=True):
    """What the command line asked for."""

    calls: int


class Result(msgspec.Struct, frozen=True):
    """One way to make an object of one body, over all rounds."""

    body: str
    way: str
    cpu: Figure
    """Seconds for each object."""
    faster: Figure
    """How many times as fast `async_refunds` is."""


class Report(report.Report, frozen=True, kw_only=True):
    """A whole run."""

    calls: int
    results: list[Result]


def model(struct: type[msgspec.Struct]) -> type[pydantic.BaseModel]:
    """Return a pydantic model with the same fields, of the same types."""
    fields: dict[str, Any] = {
        field.name: (_annotation(field.type), ... if field.required else field.default)
        for field in msgspec.structs.fields(struct)
    }
    return pydantic.create_model(struct.__name__, **fields)


def _annotation(found: Any) -> Any:  # noqa: ANN401 - a type, of whatever form
    if isinstance(found, types.UnionType):
        parts: list[Any] = [_annotation(part) for part in get_args(found)]
        return functools.reduce(lambda whole, part: whole | part, parts)
    return model(found) if hasattr(found, "__struct_fields__") else found


def ways() -> dict[str, Callable[[bytes], Any]]:
    """Return what is measured, by name."""
    client = stripe.StripeClient("sk_test_bench")

    def official(body: bytes) -> stripe.StripeObject:
        response = stripe.StripeResponse(body.decode("utf-8"), 200, {})
        return client.deserialize(response, api_mode="V1")

    return {
        OURS: retrieve_request(REFUND_ID).decode,
        OFFICIAL: official,
        "pydantic": model(Refund).model_validate_json,
        "json.loads": json.loads,
    }


def _check(way: Callable[[bytes], Any], body: bytes) -> None:
    """Make sure that a way gives what it is measured for."""
    names = ("id", "amount", "status")
    made = way(body)
    # A dictionary, or an object of some kind.
    is_dict = isinstance(made, dict)
    read = operator.itemgetter if is_dict else operator.attrgetter
    if read(*names)(made) != operator.itemgetter(*names)(json.loads(body)):
        raise RuntimeError(f"no refund: {made!r}")


def _turn(way: Callable[[bytes], Any], body: bytes, calls: int) -> float:
    # From the same state for all, and on during the turn, as in a program that runs.
    gc.collect()
    began = time.process_time()
    for _ in itertools.repeat(None, calls):
        way(body)
    return (time.process_time() - began) / calls


def measure(asked: Flags) -> list[Result]:
    """Return a result for each body and way."""
    found: list[Result] = []
    measured = ways()
    # What the imports left on the heap would make every collection longer.
    gc.collect()
    gc.freeze()
    for name, body in BODIES.items():
        for way in measured.values():
            _check(way, body)
        turns = in_turn(
            {
                each: functools.partial(_turn, way, body, asked.calls)
                for each, way in measured.items()
            },
            asked.rounds,
        )
        found += [
            Result(
                body=name,
                way=way,
                cpu=figure(seconds),
                faster=ratio(seconds, turns[OURS]),
            )
            for way, seconds in turns.items()
        ]
    return found


def by_body(results: list[Result]) -> Mapping[str, list[Result]]:
    """Return the results of each body."""
    return {
        name: [result for result in results if result.body == name] for name in BODIES
    }


def table(results: list[Result]) -> list[str]:
    """Return the lines of a table: medians, each with half its quartiles' distance."""
    return report.table(
        ["", "µs CPU", f"x {OURS}"],
        [
            [
                result.way,
                report.shown(result.cpu, 2, 1e6),
                report.shown(result.faster, 1),
            ]
            for result in results
        ],
    )


def draw(results: list[Result], path: Path) -> None:
    """Write a bar for each way, a panel for each body."""
    with drawing.sheet(path, QUESTION, size=(8, 4.6), panels=len(BODIES)) as sheet:
        for axes, (name, rows) in zip(sheet, by_body(results).items(), strict=True):
            drawing.bars(
                axes,
                [row.way for row in rows],
                [row.cpu.median * 1e6 for row in rows],
                [
                    f"{row.cpu.median * 1e6:.1f} µs, {row.faster.median:.1f} x"
                    for row in rows
                ],
                spreads=[row.cpu.iqr * 1e6 / 2 for row in rows],
            )
            axes.set_title(f"{name}, {len(BODIES[name])} bytes")
            axes.set_xlabel(f"µs of CPU for each object; x is times {OURS}")


def main() -> None:
    """Measure as the command line says; print, and draw if asked."""
    parser = report.parser(QUESTION, rounds=15)
    parser.add_argument(
        "--calls", type=report.count, default=3000, help="of each way in each round"
    )
    asked = report.read(parser, Flags)
    if not asked.json:
        how = f"medians of {asked.rounds} rounds of {asked.calls} objects, ± IQR / 2"
        print(report.heading(QUESTION, how), flush=True)
    results = measure(asked)
    if not asked.json:
        for name, rows in by_body(results).items():
            lines = ("", f"{name}, {len(BODIES[name])} bytes", *table(rows))
            print("\n".join(lines), flush=True)
    whole = Report(
        question=QUESTION,
        versions=report.versions(),
        rounds=asked.rounds,
        headlines={
            f"times as fast as {result.way}, {result.body}": result.faster.median
            for result in results
        },
        calls=asked.calls,
        results=results,
    )
    report.finish(asked, whole, lambda path: draw(results, path))


if __name__ == "__main__":
    main()
