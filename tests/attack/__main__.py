"""The command line of the attack: `python -m tests.attack --calls 1000000 --jobs 2`."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from . import campaign, jobs, journal_campaign
from .campaign import Summary
from .drawing import drawn
from .script import shown
from .shrink import shrunk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .campaign import Found
    from .script import Script
    from .world import Report


def main(arguments: Sequence[str]) -> int:
    """Run the command, and return its exit code: 1 if anything was found."""
    options = _options(arguments)
    if options.case is not None:
        return _one(options.only, options.seed, options.case, options.without)
    summary = Summary()
    began = time.perf_counter()
    share = 3 if options.only is None else 1
    goals = {
        "calls": options.calls - options.calls // 3 if share == 3 else options.calls,
        "batch": options.calls // share,
        "journals": options.journals,
    }
    for kind, goal in goals.items():
        if goal and options.only in (None, kind):
            part = _attack(kind, goal, options)
            print(f"\n{kind}: {_figures(part)}\n  told: {dict(part.told)}")
            if part.done:
                print(f"  done: {dict(part.done.most_common())}")
            summary.add(part)
    summary.seconds = time.perf_counter() - began
    found = sorted(summary.simplest(), key=lambda each: -each.times)
    for each in found[: options.most]:
        _show(each, shrink=options.shrink)
    print(f"\nin all: {_figures(summary)}, {len(found)} findings")
    return 1 if found else 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    add = parser.add_argument
    add(
        "--calls",
        type=int,
        default=0,
        help="how many calls, a third of them in batches",
    )
    add("--journals", type=int, default=0, help="how many cases of journals")
    add("--seed", type=int, default=1, help="of all chance (default: 1)")
    add("--jobs", type=int, default=1, help="processes at a time (default: 1)")
    add("--only", choices=("calls", "batch", "journals"), help="only these cases")
    add("--case", type=int, help="play one case of --only, and show it whole")
    add("--without", action="append", default=[], help="leave out an act or an option")
    add("--most", type=int, default=20, help="findings to show (default: 20)")
    add(
        "--no-shrink",
        dest="shrink",
        action="store_false",
        help="show them as they were",
    )
    options = parser.parse_args(arguments)
    if options.case is not None and options.only is None:
        parser.error("--case needs --only")
    if options.case is None and not options.calls and not options.journals:
        parser.error("give --calls or --journals")
    return options


def _attack(kind: str, goal: int, options: argparse.Namespace) -> Summary:
    shown: set[object] = set()

    def progress(summary: Summary) -> None:
        for place, found in summary.found.items():
            if place not in shown:  # at once: a long run may be broken off
                shown.add(place)
                print(f"\n{found.finding.kind}: {_again(found)}", file=sys.stderr)
        line = f"{kind}: {_figures(summary)}, {len(summary.found)} findings"
        print(f"\r{line}", end="", file=sys.stderr, flush=True)

    summary = jobs.attack(
        kind,
        goal,
        seed=options.seed,
        jobs=options.jobs,
        without=tuple(options.without),
        progress=progress,
    )
    print(file=sys.stderr)
    return summary


def _figures(summary: Summary) -> str:
    what = f"{summary.cases} cases, {summary.calls} calls, {summary.requests} requests"
    pace = summary.calls / summary.seconds if summary.seconds else 0.0
    return f"{what} in {summary.seconds:.0f} s ({pace:.0f} calls/s)"


# ------------------------------------------------------------------------- one finding


def _played(kind: str, script: Script, name: str) -> Report:
    if kind == "journals":
        return journal_campaign.played(script)
    return campaign.played(kind, script, name)


def _show(found: Found, *, shrink: bool) -> None:
    name, kind = f"{found.seed} {found.number}", found.finding.kind
    script, lines, text = found.script, found.lines, found.finding.text
    again = ""

    def fails(smaller: Script) -> bool:
        report = _played(found.kind, smaller, name)
        return any(finding.kind == kind for finding in report.findings)

    if shrink:
        if fails(script):
            script = shrunk(
                script, fails, tries=60 if found.kind == "journals" else 400
            )
            report = _played(found.kind, script, name)
            lines = report.lines
            text = next((f.text for f in report.findings if f.kind == kind), text)
        else:
            again = " (not found again when played alone)"
    damages = f" after {', '.join(sorted(found.damages))}" if found.damages else ""
    print(
        f"\n== {kind}{damages}, {found.times} times{again}\n"
        f"   {_again(found)}\n{shown(script)}\n   {text}"
    )
    for line in lines[:30]:
        print(f"   | {line[:300]}")


def _again(found: Found) -> str:
    which = f"--only {found.kind} --seed {found.seed} --case {found.number}"
    return f"python -m tests.attack {which}"


def _one(kind: str, seed: int, number: int, without: list[str]) -> int:
    script = drawn(kind, seed, number, without)
    report = _played(kind, script, f"{seed} {number}")
    print(shown(script))
    for line in report.lines:
        print(f"  | {line}")
    for finding in report.findings:
        print(f"== {finding.kind}: {finding.text}")
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
