"""Run every benchmark, one after another, and hold the headlines against the targets.

Each is a process of its own. Its object goes to ``NAME.json`` and its plot to
``NAME.svg``; what it says of its progress goes to stderr.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import msgspec

from benchmarks import report, targets


class Run(msgspec.Struct, frozen=True):
    """One script with its flags."""

    name: str
    script: str
    flags: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    """What makes it short."""


_FEW = ("--calls", "500", "--clients", "async_refunds,bare,tuned,official_aiohttp")
_ON_AIOHTTP = "async_refunds,bare,bare_plain,tuned,official_aiohttp"

RUNS = (
    Run("cancel", "bench_cancel", quick=_FEW),
    # Another loop changes nothing for the clients that take most of the time.
    Run(
        "cancel_uvloop",
        "bench_cancel",
        ("--uvloop", "--clients", _ON_AIOHTTP),
        quick=_FEW,
    ),
    Run("decode", "bench_decode", quick=("--calls", "300")),
    Run("import", "bench_import"),
    Run("memory", "bench_memory", quick=("--calls", "100,300")),
    Run(
        "faults",
        "bench_faults",
        # The one rate that has a target. Half of the calls, at 400/s for each of seven
        # clients, are a quarter of a minute of each less, and show the same.
        ("--rates", "20", "--calls", "5000"),
        quick=("--calls", "300", "--rates", "20", "--clients", "async_refunds"),
    ),
    Run(
        "availability",
        "bench_availability",
        quick=("--parts", "door,stall"),
    ),
    Run(
        "batch",
        "bench_batch",
        quick=("--parts", "journal,pace", "--items", "500", "--seconds", "3"),
    ),
    # A million refunds and paced turns take their time: one round is enough.
    Run(
        "fleet",
        "bench_fleet",
        ("--rounds", "1"),
        quick=("--items", "2000", "--seconds", "2"),
    ),
    Run("service", "bench_service", quick=("--calls", "50")),
    Run("report", "bench_report", quick=("--items", "500")),
    Run("storm", "bench_storm", quick=("--calls", "60", "--cases", "cancelled")),
    Run("emulator", "bench_emulator", quick=("--calls", "200", "--seed", "1000")),
)


def main() -> int:
    """Run them all; return 1 if one of them failed, and else 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parent / "results",
        metavar="DIR",
        help="default: %(default)s",
    )
    parser.add_argument(
        "--rounds", type=report.count, help="of each; default: its own number"
    )
    parser.add_argument(
        "--quick", action="store_true", help="see whether all run: no measurement"
    )
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    rounds = given.rounds or (1 if given.quick else None)
    headlines: dict[str, dict[str, float]] = {}
    for number, run in enumerate(RUNS, 1):
        report.say(f"[{number}/{len(RUNS)}] {run.name}")
        flags = [*run.flags, *(run.quick if given.quick else ())]
        if rounds is not None:
            flags += ["--rounds", str(rounds)]
        found = measured(run, flags, given.out)
        if found is not None:
            headlines[run.name] = found.headlines
    if given.quick:
        print("A quick run: no measurement.")
    print("\n".join(targets.summary(headlines, judge=not given.quick)))
    failed = [run.name for run in RUNS if run.name not in headlines]
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def measured(run: Run, flags: list[str], out: Path) -> report.Report | None:
    """Run a script and keep what it tells; ``None`` if it failed."""
    told, plot = out / f"{run.name}.json", out / f"{run.name}.svg"
    for path in (told, plot):
        path.unlink(missing_ok=True)  # or a run that fails would leave an old one
    module = f"benchmarks.{run.script}"
    ended = subprocess.run(  # noqa: S603 - our own module, by this interpreter
        [sys.executable, "-m", module, *flags, "--json", "--plot", str(plot)],
        stdout=subprocess.PIPE,
        check=False,
    )
    if ended.returncode != 0:
        report.say(f"{run.name} failed: exit status {ended.returncode}")
        return None
    told.write_bytes(ended.stdout)
    return msgspec.json.decode(ended.stdout, type=report.Report)


if __name__ == "__main__":
    sys.exit(main())
