"""What a run came to: outcomes, money, time, requests."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from async_refunds.results import CANCELED

from .money import in_major_units
from .summary import IN_FLIGHT, closed_run, next_steps
from .tables import aligned, counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from async_refunds.journal import Record, Run, Tally
    from async_refunds.results import CancelOutcome

    from .summary import Outcomes, Steps


class Sums:
    """What refunds come to, by currency.

    Args:
        records: Those to begin with.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.amounts = Counter[str]()
        """In the currency's smallest unit."""
        self.counts = Counter[str]()
        """The number of refunds in it."""
        for record in records:
            self.add(record.amount, record.currency)

    def add(self, amount: int | None, currency: str | None) -> None:
        """Add a refund, unless its amount is not known."""
        if amount is not None:
            self.amounts[currency or ""] += amount
            self.counts[currency or ""] += 1

    def rows(self) -> list[tuple[str, int, str]]:
        """Return each currency, its number of refunds, and the sum in major units."""
        return [
            (currency.upper(), self.counts[currency], in_major_units(amount, currency))
            for currency, amount in sorted(self.amounts.items())
        ]

    def line(self) -> str:
        """Return the sums on one line, or nothing if no amount is known."""
        return ", ".join(f"{currency} {amount}" for currency, _, amount in self.rows())

    def table(self, title: str) -> list[str]:
        """Return the sums as a table, or nothing if no amount is known."""
        if not self.counts:
            return []
        rows = [
            [currency, f"{self.counts[currency]:,}", in_major_units(amount, currency)]
            for currency, amount in sorted(self.amounts.items())
        ]
        return aligned([[title, "refunds", "sum"], *rows])


class CanceledSums:
    """What canceled refunds come to, by who canceled them.

    A refund that was canceled before a run asked has another run, or somebody else, to
    account for it: to add it to what came back would count its money twice.
    """

    def __init__(self) -> None:
        self.came_back = Sums()
        """Of those that the run canceled."""
        self.before = Sums()
        """Of those that were canceled before the run asked."""

    def add(
        self, outcome: CancelOutcome | None, amount: int | None, currency: str | None
    ) -> None:
        """Add a refund if it is canceled."""
        if outcome == "canceled":
            self.came_back.add(amount, currency)
        elif outcome == "already_canceled":
            self.before.add(amount, currency)

    def tables(self) -> list[str]:
        """Return a table of each, or nothing if no amount is known."""
        return [
            *self.came_back.table("came back"),
            *self.before.table("canceled before"),
        ]


class RunReader(Protocol):
    """Reads a run, wherever it is kept."""

    @property
    def run(self) -> Run:
        """What it is about."""
        ...

    @property
    def run_closed(self) -> bool:
        """Whether nothing more of it is sent, but what was perhaps sent."""
        ...

    @property
    def in_use(self) -> bool:
        """Whether somebody is working on it now."""
        ...

    def tally(self) -> Tally:
        """Return how far it is."""
        ...

    def records(self) -> Iterator[Record]:
        """Yield what is known of each item, in input order."""
        ...


class RunReport:
    """What a run came to, as of now.

    Reads every record once: a hundred thousand take about a second.

    Args:
        name: The path of the journal, or what else the user calls the run.
        reader: Reads it.
        resume: The command that goes on with it.
        steps: Returns what to do about each outcome, for the counts and that command.
    """

    def __init__(
        self,
        name: str,
        reader: RunReader,
        *,
        resume: str,
        steps: Callable[[Outcomes, str], Steps] = next_steps,
    ) -> None:
        self.name = name
        self.resume = resume
        self._steps = steps
        self.run = reader.run
        self.going_on, self.closed = reader.in_use, reader.run_closed
        tally = reader.tally()
        self.requests, self.rate_limited = tally.requests, tally.rate_limited
        self.uncounted = tally.uncounted
        self.seconds = tally.seconds
        self.outcomes: Outcomes = Counter()
        self.sums = CanceledSums()
        self.sums_by_account: dict[str | None, Sums] = {}
        """What came back, ``None`` for what is of the key's own account."""
        for record in reader.records():
            in_flight = self.is_in_flight(record)
            self.outcomes[IN_FLIGHT if in_flight else record.outcome] += 1
            money = record.amount, record.currency
            self.sums.add(record.outcome, *money)
            if record.outcome == "canceled":
                account = record.stripe_account
                self.sums_by_account.setdefault(account, Sums()).add(*money)

    def is_in_flight(self, record: Record) -> bool:
        """Tell whether the running process may be canceling a refund now."""
        in_hand = self.going_on if record.in_flight is None else record.in_flight
        return in_hand and record.outcome == "unknown" and record.seconds is None

    @property
    def steps(self) -> Steps:
        """What to do about each outcome."""
        return self._steps(self.outcomes, self.resume)

    @property
    def canceled(self) -> int:
        """The number of refunds that are canceled, by the run or before it asked."""
        return sum(self.outcomes[outcome] for outcome in CANCELED)

    def facts(self) -> Iterator[str]:
        """Yield sentences about the run."""
        yield f"A run at {self.run.target}: {self.outcomes.total():,} refunds."
        if self.going_on:
            yield "It is going on."
        if self.closed:
            yield f"It is {closed_run(self.outcomes['unknown'])}."
        if self.requests:
            sentence = f"{self.effort}."
            yield sentence[0].upper() + sentence[1:]

    @property
    def effort(self) -> str:
        """How much work it was."""
        return effort(
            self.requests, self.rate_limited, self.seconds, uncounted=self.uncounted
        )


def effort(requests: int, rate_limited: int, seconds: float, *, uncounted: bool) -> str:
    """Return how much work a run was; see `Tally`."""
    limited = f", {rate_limited:,} of them answered 429" if rate_limited else ""
    time = timedelta(seconds=round(seconds))
    least = "at least " if uncounted else ""
    return f"{least}{counted(requests, 'request')} in {time}{limited}"
