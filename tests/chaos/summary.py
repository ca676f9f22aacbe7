"""What came of many runs, in figures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .judge import Report, Takeover, Zombie


def figures(report: Report) -> str:
    """Return a run on one line."""
    done = ", ".join(f"{kind} {count}" for kind, count in report.done.items())
    parts = [
        f"{report.told['canceled']} of {report.refunds} told canceled",
        f"{report.requests} requests",
        f"{report.limited} limited",
        f"{sum(report.faults_met.values())} faults",
        f"{report.seconds:.1f} s",
        done or "no disaster",
    ]
    if report.lost:
        parts.append(f"lost {', '.join(map(str, report.lost))} settled rows")
    parts += [
        f"{each.worker} woke after {each.seconds:.0f} s without {each.accounts} "
        f"accounts: sent {each.sent}, wrote {each.wrote}"
        for each in report.zombies
    ]
    parts.append(f"{len(report.findings)} findings" if report.findings else "good")
    return "; ".join(parts)


@dataclass
class Summary:
    """What came of many runs."""

    runs: int = 0
    refunds: int = 0
    renewed: int = 0
    requests: int = 0
    limited: int = 0
    told: Counter[str] = field(default_factory=Counter[str])
    done: Counter[str] = field(default_factory=Counter[str])
    found: Counter[str] = field(default_factory=Counter[str])
    """Runs by what was found in them."""
    lost: list[int] = field(default_factory=list[int])
    takeovers: list[Takeover] = field(default_factory=list["Takeover"])
    ends: list[float] = field(default_factory=list[float])
    zombies: list[Zombie] = field(default_factory=list["Zombie"])

    def add(self, report: Report) -> None:
        """Add one run."""
        self.runs += 1
        self.refunds += report.refunds
        self.renewed += report.renewed
        self.requests += report.requests
        self.limited += report.limited
        self.told += report.told
        self.done += report.done
        self.found.update({finding.kind for finding in report.findings})
        self.lost += report.lost
        self.takeovers += report.takeovers
        self.ends += [each.seconds for each in report.ends]
        self.zombies += report.zombies

    def lines(self) -> Iterator[str]:
        """Yield the figures, a line each."""
        yield f"refunds      {self.refunds}, told {dict(self.told)}"
        yield f"new keys     {self.renewed}, each after a definite no"
        yield f"requests     {self.requests}, {self.limited} of them limited"
        yield f"disasters    {dict(self.done.most_common())}"
        yield f"rows lost    {self.lost}"
        yield (
            f"zombies      {len(self.zombies)} that had held "
            f"{sum(each.accounts for each in self.zombies)} accounts of others woke up "
            f"after {_spread([each.seconds for each in self.zombies])} s"
        )
        sent = sum(each.sent for each in self.zombies)
        wrote = sum(each.wrote for each in self.zombies)
        yield f"  sent       {sent} requests for these, wrote {wrote} rows"
        for kind in ("kill", "end"):
            some = [each for each in self.takeovers if each.kind == kind]
            yield f"after {kind:<6} {_spread([each.seconds for each in some])} s"
            yield f"  limited    {_spread([float(each.limited) for each in some])}"
        yield f"SIGTERM      {_spread(self.ends)} s to the end of a process"
        yield f"found        {dict(self.found) or 'nothing'}"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "none"
    ordered = sorted(values)
    middle = ordered[len(ordered) // 2]
    return f"{len(ordered)} times, median {middle:.2f}, most {ordered[-1]:.2f}"
