"""The command of the chaos: `python -m tests.chaos --runs 100 --seed 7 --jobs 2`."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from tests.attack.shrink import shrunk

from .campaign import campaign, played
from .script import KINDS, drawn, shown
from .summary import Summary, figures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .judge import Report
    from .script import Script


def main(arguments: Sequence[str]) -> int:
    """Run the command, and return its exit code: 1 if anything was found."""
    options = _options(arguments)
    without = tuple(options.without)
    if options.case is not None:
        return _one(options, drawn(options.seed, options.case, without))
    began, summary = time.perf_counter(), Summary()
    scripts = [
        (number, drawn(options.seed, number, without))
        for number in range(options.first, options.first + options.runs)
    ]
    for number, report in campaign(options.seed, scripts, jobs=options.jobs):
        summary.add(report)
        print(f"run {number}: {figures(report)}", flush=True)
        if report.findings:
            print(f"  python -m tests.chaos --seed {options.seed} --case {number}")
            print(shown(dict(scripts)[number]))
            _tell(report)
    print()
    for line in summary.lines():
        print(line)
    print(f"{options.runs} runs in {time.perf_counter() - began:.0f} s")
    return 1 if summary.found else 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    add = parser.add_argument
    add("--runs", type=int, default=1, help="how many (default: 1)")
    add("--seed", type=int, default=1, help="of all chance (default: 1)")
    add("--first", type=int, default=0, help="the number of the first (default: 0)")
    add("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    add("--case", type=int, help="play one run, and show it whole")
    add("--shrink", action="store_true", help="make a --case that fails small")
    add(
        "--without",
        action="append",
        default=[],
        choices=sorted(KINDS),
        help="leave a disaster out",
    )
    return parser.parse_args(arguments)


def _tell(report: Report) -> None:
    for finding in report.findings[:10]:
        print(f"  == {finding.kind}: {finding.text}")
    for line in report.left[:10]:
        print(f"  left: {line}")
    if report.findings:
        print(report.log)


def _one(options: argparse.Namespace, script: Script) -> int:
    name = f"{options.seed} {options.case}"
    report = played(script, name)
    if report.findings and options.shrink:
        kind = report.findings[0].kind

        def fails(smaller: Script) -> bool:
            return any(each.kind == kind for each in played(smaller, name).findings)

        script = shrunk(script, fails, tries=30)
        report = played(script, name)
    print(shown(script))
    print(figures(report))
    _tell(report)
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
