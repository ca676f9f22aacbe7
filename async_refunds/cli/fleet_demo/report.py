"""What the demo with several workers reports, for programs and for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from async_refunds.cli.tables import aligned, counted

if TYPE_CHECKING:
    from collections.abc import Iterator


class HeldAccount(msgspec.Struct, frozen=True, kw_only=True):
    """An account that the killed worker held."""

    stripe_account: str
    open: int
    """Refunds of it that were not settled at the kill."""
    taken_over_by: str | None = None
    """Which worker went on with it; ``None`` if none did."""
    seconds: float | None = None
    """From the kill until then, by the database's clock."""
    requests_meanwhile: int = 0
    """Requests for it that the emulator received between both. Nobody may send any."""


class FleetDemoReport(msgspec.Struct, frozen=True, kw_only=True):
    """What happened, as the journal and as the emulator's books have it."""

    refunds: int
    accounts: int
    workers: int
    canceled: int
    """By the journal."""
    outcomes: dict[str, int]
    """Refunds by what the journal says of them; ``open`` where it says nothing."""
    canceled_exactly_once: int
    """By the emulator's books."""
    canceled_twice: int
    never_canceled: int
    refunds_with_two_keys: int
    requests: int
    retries: int
    replays: int
    """Answers that the emulator had saved under a key."""
    retried: int
    """Refunds that were left unknown or failed, and asked for again by hand."""
    rate_limited: int
    """Answers 429, those of the storm among them."""
    faults: dict[str, int]
    killed: str | None
    """The worker that was killed."""
    held: list[HeldAccount]
    """The accounts that it held."""
    seconds: float

    @property
    def agrees(self) -> bool:
        """Whether both sides say that each refund was canceled exactly once."""
        return self.refunds == self.canceled == self.canceled_exactly_once

    @property
    def sent_after_kill(self) -> int:
        """Requests for the accounts of the killed worker that nobody held."""
        return sum(each.requests_meanwhile for each in self.held)

    def problems(self) -> Iterator[str]:
        """Yield what did not go as it must, and the demo would prove nothing else."""
        if not self.agrees:
            yield (
                f"The emulator's books DISAGREE: of {counted(self.refunds, 'refund')}, "
                f"{self.canceled_exactly_once:,} were canceled exactly once, "
                f"{self.canceled_twice:,} more often, {self.never_canceled:,} never; "
                f"the journal says {_listed(self.outcomes)}."
            )
        if self.killed is None:
            yield "NOBODY WAS KILLED: no worker held an account in time."
        elif not self.held:
            yield f"THE WRONG ONE WAS KILLED: {self.killed} held no account."
        if self.sent_after_kill:
            yield (
                "SENT WITHOUT A LEASE after the kill: "
                f"{counted(self.sent_after_kill, 'request')} for accounts of "
                f"{self.killed}."
            )

    @property
    def good(self) -> bool:
        """Whether all went as it must."""
        return not list(self.problems())


def report_lines(report: FleetDemoReport) -> Iterator[str]:
    """Yield the report as lines of text."""
    yield (
        f"{report.canceled:,} of {counted(report.refunds, 'refund')} of "
        f"{counted(report.accounts, 'account')} canceled by "
        f"{counted(report.workers, 'worker')}"
    )
    if report.killed is not None:
        yield (
            f"  killed           {report.killed}, which held "
            f"{counted(len(report.held), 'account')}:"
        )
        yield from (f"    {line}" for line in _held_lines(report.held))
        sent = counted(report.sent_after_kill, "request")
        yield f"  sent meanwhile   {sent} for them"
    two = report.refunds_with_two_keys
    yield f"  keys             one for each refund{f', two for {two:,}' if two else ''}"
    yield f"  requests         {report.requests:,}, of which {report.retries:,} retries"
    yield f"  replayed         {report.replays:,} answers saved under a key"
    if report.retried:
        yield f"  retried          {report.retried:,}, as by `fleet retry`"
    storm = sum(report.faults.get(name, 0) for name in ("rate_429", "lock_429"))
    yield f"  rate limited     {report.rate_limited:,}, of which {storm:,} by the storm"
    faults = sum(report.faults.values())
    yield f"  faults met       {faults:,} ({_listed(report.faults)})"
    yield f"  seconds          {report.seconds}"
    if report.agrees:
        yield "The emulator's books agree: each refund was canceled exactly once."
    yield from report.problems()


def _held_lines(held: list[HeldAccount]) -> list[str]:
    rows = [(each.stripe_account, f"{each.open:,} open", _fate(each)) for each in held]
    return aligned(rows) if rows else []


def _fate(each: HeldAccount) -> str:
    if each.seconds is not None:
        return f"taken over by {each.taken_over_by} after {each.seconds:.1f} s"
    return "taken over by nobody" if each.open else "nothing was left to do"


def _listed(counts: dict[str, int]) -> str:
    told = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    return told or "none"
