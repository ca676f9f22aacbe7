"""The pace in a simulation with fake time and seeded chance, then rule by rule."""

from __future__ import annotations

import heapq
import itertools
import math
from bisect import bisect_left, bisect_right
from collections import deque
from contextlib import nullcontext
from random import Random
from typing import TYPE_CHECKING, Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_refunds.batch.rate_control import RateController
from async_refunds.emulator.state.limits import Limiter, Limits
from tests.support.measuring import unmeasured

if TYPE_CHECKING:
    from collections.abc import Callable

SEEDS = range(3)


class Gate(Protocol):
    """A limiter; its rate may be changed in mid-run."""

    rate: float

    def enter(self, now: float) -> bool: ...


class Emulated:
    """The emulator's own: a bucket that holds the requests of one second."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.limits = Limits(global_rate=None, endpoint_rate=rate)
        self.limiter = Limiter(self.limits)

    def enter(self, now: float) -> bool:
        self.limits.endpoint_rate = self.rate
        reason = self.limiter.enter(self.limits, "acct", "cancel", now=now)
        return reason is None


class OneToken:
    """A bucket of one token: whatever comes a little too early is refused."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.tokens = 1.0
        self.at = 0.0

    def enter(self, now: float) -> bool:
        self.tokens = min(1.0, self.tokens + (now - self.at) * self.rate)
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Window:
    """So many in each second of the clock."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.second = -1
        self.entered = 0

    def enter(self, now: float) -> bool:
        if int(now) != self.second:
            self.second = int(now)
            self.entered = 0
        if self.entered >= self.rate:
            return False
        self.entered += 1
        return True


class Sim:
    """Fake time, a limiter, and a service behind it that may be failing."""

    def __init__(self, gate: Gate, seed: int = 0) -> None:
        self.now = 0.0
        self.gate = gate
        self.random = Random(seed)  # noqa: S311 - chance of a simulation
        self.faults = 0.0
        self.down = False
        self.at_once = math.inf
        self.under_way = 0
        self.measured = False
        """Whether coverage counts: most of a simulation does the same again."""
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def at(self, time: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._order), event))

    def run(self, until: float) -> None:
        with nullcontext() if self.measured else unmeasured():
            while self._events and self._events[0][0] <= until:
                self.now, _, event = heapq.heappop(self._events)
                event()
        self.now = until

    def change(self, time: float, rate: float) -> None:
        def change() -> None:
            self.gate.rate = rate

        self.at(time, change)

    def fail(self, begin: float, end: float) -> None:
        def turn(*, down: bool) -> None:
            self.down = down

        self.at(begin, lambda: turn(down=True))
        self.at(end, lambda: turn(down=False))


class Client:
    """One process: workers that each take an item through at most three retries.

    A retry sleeps with full jitter up to 0.5, 1 and 2 s and then takes a turn like any
    request; an item whose retries are used up is asked again 5 s later. Timers are up
    to a millisecond late, and each thirtieth up to ``stall`` seconds. An
    answer takes ``latency``, give or take a fifth.
    """

    def __init__(
        self,
        sim: Sim,
        *,
        latency: float = 0.1,
        steady: bool = False,
        start: float = 0.0,
        rate: float | None = None,
        start_rate: float | None = None,
        workers: int = 100,
        items: float = math.inf,
        stall: float = 0.0,
        alone: bool = False,
    ) -> None:
        self.sim = sim
        self.alone = alone
        self.stall = stall
        self.latency = latency
        self.steady = steady
        self.rate = rate
        self.start_rate = start_rate
        self.workers = workers
        self.items = items
        self.busy = 0
        self.under_way = 0
        self.most_under_way = 0
        self.retries: deque[int] = deque()
        self.waking = math.inf
        self.sent: list[float] = []
        self.ok: list[float] = []  # when the limiter let it in
        self.refused: list[float] = []  # when the 429 came back
        self.paces: list[tuple[float, float]] = []
        sim.at(start, self.begin)

    def begin(self) -> None:
        self.pace = RateController(
            rate=self.rate,
            start=self.start_rate,
            alone=self.alone,
            now=self.sim.now,
        )
        self.go()

    def go(self) -> None:
        """Send while there is something to send and the pace allows it."""
        while self.retries or (self.items > 0 and self.busy < self.workers):
            if self.under_way >= self.pace.concurrency:
                return
            if self.pace.free_at > self.sim.now:
                if self.pace.free_at < self.waking:
                    self.waking = self.pace.free_at
                    self.sim.at(self.waking + self.lateness(), self.wake)
                return
            if self.retries:
                retry = self.retries.popleft()
            else:
                retry = 0
                self.items -= 1
                self.busy += 1
            assert self.pace.reserve(self.sim.now) == self.sim.now
            self.send(retry)

    def lateness(self) -> float:
        late = 0.0 if self.steady else self.sim.random.uniform(0, 0.001)
        if self.stall and self.sim.random.random() < 1 / 30:
            late += self.sim.random.uniform(0, self.stall)
        return late

    def wake(self) -> None:
        self.waking = math.inf
        self.go()

    def way(self, *, steady: bool) -> float:
        jitter = 0.0 if steady else self.sim.random.uniform(-0.2, 0.2)
        return self.latency / 2 * (1 + jitter)

    def send(self, retry: int) -> None:
        sent_at = self.sim.now
        self.sent.append(sent_at)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        way = self.way(steady=self.steady)
        self.sim.at(self.sim.now + way, lambda: self.arrive(retry, sent_at))

    def arrive(self, retry: int, sent_at: float) -> None:
        sim = self.sim
        if sim.under_way >= sim.at_once:
            kind = "crowded"
        elif not sim.gate.enter(sim.now):
            kind = "limited"
        else:
            kind = "failed" if sim.random.random() < sim.faults else "ok"
            sim.under_way += 1
            if kind == "ok":
                self.ok.append(sim.now)
        back = self.way(steady=False)
        sim.at(sim.now + back, lambda: self.answered(retry, kind, sent_at))

    def answered(self, retry: int, kind: str, sent_at: float) -> None:
        now, pace = self.sim.now, self.pace
        if kind in {"ok", "failed"}:
            self.sim.under_way -= 1
            if self.sim.down:
                kind = "failed"
        if kind == "ok":
            pace.on_success(now, sent_at)
        elif kind == "failed":
            pace.on_failure(now)
        else:
            self.refused.append(now)
            if kind == "limited":
                pace.on_rate_limit(now, sent_at)
            else:
                pace.on_concurrency_limit(now, self.under_way)
        self.under_way -= 1
        if kind == "ok":
            self.busy -= 1
        elif retry < 3:
            pause = self.sim.random.uniform(0, 0.5 * 2**retry)
            self.sim.at(now + pause, lambda: self.again(retry + 1))
        else:
            self.busy -= 1
            self.sim.at(now + 5, self.put_back)
        self.paces.append((now, pace.rate))
        self.go()

    def again(self, retry: int) -> None:
        self.retries.append(retry)
        self.go()

    def put_back(self) -> None:
        self.items += 1
        self.go()

    def good(self, begin: float, seconds: float) -> float:
        """How many a second got through."""
        return between(self.ok, begin, begin + seconds) / seconds

    def share_refused(self, begin: float, seconds: float) -> float:
        end = begin + seconds
        return between(self.refused, begin, end) / between(self.sent, begin, end)


def between(times: list[float], begin: float, end: float) -> int:
    return bisect_left(times, end) - bisect_left(times, begin)


def assert_kept(
    client: Client,
    limit: float,
    begin: float,
    end: float,
    *,
    seconds: float = 30.0,
    share: float = 0.95,
    refused: float = 0.02,
) -> None:
    """Every window of so many seconds has the share of the limit, and few 429s."""
    while begin + seconds <= end:
        assert client.good(begin, seconds) >= share * limit, begin
        assert client.share_refused(begin, seconds) < refused, begin
        begin += 5


GATES = pytest.mark.parametrize("gate", [Emulated, OneToken, Window])
ALONE = pytest.mark.parametrize("alone", [False, True], ids=["shared", "alone"])
LATENCIES = pytest.mark.parametrize("latency", [0.005, 0.1, 0.5])


def steady(gate: type[Gate], latency: float) -> bool:
    """Whether the way to the limiter must take the same time for every request.

    A bucket of one token, and to a lesser degree a window, refuses a part of a stream
    whose spacing jitter has spoilt, whatever its pace.
    """
    return gate is OneToken or (gate is Window and latency > 0.1)


# What must hold: the limit


@ALONE
@GATES
@LATENCIES
@pytest.mark.parametrize("seed", SEEDS)
def test_limit_is_found_at_once_and_kept(
    gate: type[Emulated | OneToken | Window], latency: float, seed: int, *, alone: bool
) -> None:
    sim = Sim(gate(25), seed)
    client = Client(sim, latency=latency, steady=steady(gate, latency), alone=alone)
    sim.run(150)
    assert_kept(client, 25, 0, 150)
    assert len(client.refused) < 0.01 * len(client.sent)


@ALONE
@GATES
@LATENCIES
@pytest.mark.parametrize("seed", SEEDS)
def test_halved_limit_is_found_within_20_seconds_and_kept(
    gate: type[Emulated | OneToken | Window], latency: float, seed: int, *, alone: bool
) -> None:
    sim = Sim(gate(25), seed)
    client = Client(sim, latency=latency, steady=steady(gate, latency), alone=alone)
    half = 12 if gate is Window else 12.5  # a window lets in whole requests
    sim.change(65.3, half)
    sim.run(160)
    assert_kept(client, half, 85.3, 160)


@pytest.mark.parametrize("latency", [0.002, 0.005, 0.1])
@pytest.mark.parametrize("moment", range(40, 90, 2))
def test_minute_in_which_the_limit_halves_has_few_refusals(
    latency: float, moment: int
) -> None:
    """Whenever that is: also while the pace is cut for a 429 every few seconds."""
    sim = Sim(Emulated(25), moment)
    client = Client(sim, latency=latency)
    sim.change(moment, 12.5)
    sim.run(moment + 95)
    assert client.share_refused(moment, 60) < 0.02
    assert_kept(client, 12.5, moment + 20, moment + 95)


class Closed(Emulated):
    """A limiter that lets nothing in for a while."""

    def __init__(self, rate: float, begin: float, end: float) -> None:
        super().__init__(rate)
        self.begin = begin
        self.end = end

    def enter(self, now: float) -> bool:
        return not self.begin <= now < self.end and super().enter(now)


@ALONE
@pytest.mark.parametrize("seconds", [60, 600])
@LATENCIES
@pytest.mark.parametrize("seed", SEEDS)
def test_rate_is_back_soon_after_nothing_but_429s(
    seconds: float, latency: float, seed: int, *, alone: bool
) -> None:
    end = 60 + seconds
    sim = Sim(Closed(25, 60, end), seed)
    client = Client(sim, latency=latency, alone=alone)
    sim.run(end + 80)
    assert between(client.sent, 62, end) < 0.6 * seconds
    back = 20 if seconds == 60 else 40
    assert client.good(end + back, 30) >= 0.95 * 25
    assert client.share_refused(end + 1, 59) < 0.02


def test_limit_that_is_lower_after_nothing_but_429s_is_found() -> None:
    sim = Sim(Closed(25, 60, 120))
    client = Client(sim)
    sim.change(100, 5)
    sim.run(240)
    assert_kept(client, 5, 150, 240, refused=0.06)


def fullest_second(times: list[float]) -> int:
    """Return how many of these times lie in the fullest second of all."""
    return max(
        last + 1 - bisect_right(times, at - 1.0) for last, at in enumerate(times)
    )


@pytest.mark.parametrize("stall", [0.0, 0.06])
@LATENCIES
@pytest.mark.parametrize("seed", SEEDS)
def test_no_second_has_a_tenth_more_than_the_limit(
    latency: float, stall: float, seed: int
) -> None:
    """Neither while a full bucket hides the limit, nor after a stall."""
    sim = Sim(Emulated(25), seed)
    client = Client(sim, latency=latency, stall=stall, alone=True)
    for end in (100, 220, 300):
        sim.run(end)
        items, client.items = client.items, 0
        sim.run(end + 10)  # the bucket is full again
        client.items = items
        client.go()
    assert_kept(client, 25, 0, 90)
    assert fullest_second(client.sent) <= 1.1 * 25


@pytest.mark.parametrize("stall", [0.0, 0.06])
@LATENCIES
@pytest.mark.parametrize("seed", range(6))
def test_no_second_has_a_tenth_more_than_the_limit_at_handovers(
    latency: float, stall: float, seed: int
) -> None:
    sim = Sim(Emulated(25), seed)
    sent: list[float] = []
    passed, refused, worked, rate = 0, 0, 0.0, None
    for end in range(15, 165, 15):
        worked += end - sim.now
        client = Client(
            sim,
            latency=latency,
            stall=stall,
            start=sim.now,
            start_rate=rate,
            alone=True,
        )
        sim.run(end)
        rate, client.items = client.pace.found_rate, 0
        sim.run(end + sim.random.uniform(latency, latency + 0.2))
        sent += client.sent
        passed += len(client.ok)
        refused += len(client.refused)
    assert fullest_second(sent) <= 1.1 * 25
    assert passed >= 0.95 * 25 * worked
    assert refused < 0.02 * len(sent)


@pytest.mark.parametrize("limit", [15, 18, 22])
@pytest.mark.parametrize("seed", SEEDS)
def test_other_limit_is_found_as_well(limit: float, seed: int) -> None:
    sim = Sim(Emulated(limit), seed)
    client = Client(sim)
    sim.run(150)
    assert_kept(client, limit, 0, 30, refused=0.1)
    assert_kept(client, limit, 30, 150)


@ALONE
@pytest.mark.parametrize("latency", [0.005, 0.5])
@pytest.mark.parametrize(
    ("limit", "seconds"), [(50, 75), (100, 95), (500, 150)], ids=str
)
def test_raised_limit_is_found_within_minutes(
    limit: float, seconds: float, latency: float, *, alone: bool
) -> None:
    sim = Sim(Emulated(25))
    client = Client(sim, latency=latency, workers=1000, alone=alone)
    sim.change(40, limit)
    sim.run(40 + seconds + 30)
    assert client.good(40 + seconds, 30) >= 0.95 * limit
    assert client.share_refused(40, seconds + 30) < 0.02


@ALONE
@pytest.mark.parametrize("latency", [0.005, 0.1])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("limit", "settled"), [(10, 30), (5, 30), (2, 60), (1, 180)], ids=str
)
def test_slow_limit_is_found_from_above(
    limit: float, settled: float, latency: float, seed: int, *, alone: bool
) -> None:
    sim = Sim(Emulated(limit), seed)
    client = Client(sim, latency=latency, alone=alone)
    sim.run(settled + 300)
    assert client.good(settled, 300) >= 0.95 * limit
    # With 300 requests in all, the six 429s of 300 s at 1/s are 2 % already.
    assert client.share_refused(settled, 300) < 0.025


@ALONE
@pytest.mark.parametrize("seed", SEEDS)
def test_limit_that_falls_to_a_tenth_is_found(seed: int, *, alone: bool) -> None:
    sim = Sim(Emulated(20), seed)
    sim.measured = True  # the rules of a limit that falls show only here
    client = Client(sim, alone=alone)
    sim.change(40, 2)
    sim.run(200)
    assert_kept(client, 2, 70, 200, seconds=60, refused=0.1)
    assert_kept(client, 2, 100, 200, seconds=60, refused=0.04)


@pytest.mark.parametrize("start", [0, 60])
@LATENCIES
def test_two_processes_share_the_limit(start: float, latency: float) -> None:
    minutes: list[float] = []
    for seed in range(4):
        sim = Sim(Emulated(25), seed)
        a = Client(sim, latency=latency)
        b = Client(sim, latency=latency, start=start + 0.013)
        sim.run(start + 240)
        for minute in (120, 180):
            got = sorted((a.good(start + minute, 60), b.good(start + minute, 60)))
            minutes.append(1 - got[0] / got[1])
        for window in range(int(start), int(start) + 210, 10):
            assert a.good(window, 30) + b.good(window, 30) >= 0.95 * 25
    assert sum(minutes) / len(minutes) < 0.1
    assert max(minutes) < 0.2


def test_every_item_gets_through() -> None:
    sim = Sim(Emulated(25))
    client = Client(sim, items=1000)
    sim.run(50)
    assert len(client.ok) == 1000


# What must hold: the run that does not use its rate


def test_rate_does_not_grow_while_the_concurrency_is_what_limits() -> None:
    sim = Sim(Emulated(1e9))
    client = Client(sim, latency=0.5, steady=True, workers=5)
    sim.run(300)
    assert client.good(100, 200) < 11
    assert client.pace.rate < 21


def test_rate_grows_no_further_than_it_is_used() -> None:
    sim = Sim(Emulated(1e9))
    client = Client(sim, latency=0.5, workers=30)
    sim.run(500)
    assert client.good(200, 300) == pytest.approx(60, rel=0.05)
    # It is the busiest half seconds that count.
    assert client.pace.rate < 60 / 0.9 * 1.2


def test_rate_does_not_grow_with_single_items() -> None:
    pace = RateController(now=0.0)
    for second in range(1000):
        assert pace.reserve(float(second)) == second
        pace.on_success(second + 0.1)
    assert pace.rate == 20


# What must hold: the limit on concurrency


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("at_once", [1, 4, 10])
def test_limit_on_concurrency_is_found_and_the_rate_kept(
    at_once: int, seed: int
) -> None:
    sim = Sim(Emulated(1e9), seed)
    sim.at_once = at_once
    client = Client(sim, latency=1.0)
    sim.run(240)
    # A place is empty for the half second that the answer takes, and the next request.
    best = at_once / 1.0
    assert client.good(60, 180) >= 0.9 * best
    assert client.share_refused(60, 180) < 0.03
    assert client.pace.rate >= 20


def test_concurrency_is_free_again_when_the_limit_is_gone() -> None:
    sim = Sim(Emulated(25))
    sim.at_once = 5
    client = Client(sim, latency=1.0)
    sim.run(60)
    assert client.pace.concurrency < 10
    sim.at_once = math.inf
    sim.run(240)
    assert client.good(200, 30) >= 0.95 * 25


# What must hold: trouble


@pytest.mark.parametrize("rate", [None, 25])
@pytest.mark.parametrize("seed", SEEDS)
def test_independent_faults_hardly_slow_the_run(rate: float | None, seed: int) -> None:
    sim = Sim(Emulated(25), seed)
    sim.faults = 0.2
    client = Client(sim, rate=rate)
    sim.run(200)
    for begin in range(0, 170, 10):
        assert between(client.sent, begin, begin + 30) >= 0.95 * 25 * 30
    assert client.share_refused(0, 200) < 0.02


@pytest.mark.parametrize("rate", [None, 25])
@pytest.mark.parametrize("latency", [0.1, 2.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_minute_of_failures_costs_few_requests_and_is_over_at_once(
    rate: float | None, latency: float, seed: int
) -> None:
    sim = Sim(Emulated(25), seed)
    client = Client(sim, rate=rate, latency=latency)
    sim.fail(60, 120)
    sim.run(59.99)
    under_way = client.under_way
    assert latency < 1 or 45 <= under_way <= 55
    before = client.pace.rate
    sim.run(120)
    assert client.pace.in_trouble
    assert under_way + between(client.sent, 60, 120) < 100
    assert between(client.sent, 60 + 2, 120) <= 36
    sim.run(120 + 5 + 3 * latency)
    assert not client.pace.in_trouble
    assert client.pace.rate == pytest.approx(before, rel=0.05)
    sim.run(180)
    assert client.good(135, 30) >= 0.95 * 25


# The rules, one by one


def test_turns_are_evenly_spaced() -> None:
    pace = RateController(rate=10, now=5.0)
    assert pace.free_at == pytest.approx(5.0)
    turns = [pace.reserve(5.0) for _ in range(5)]
    assert turns == pytest.approx([5.0, 5.1, 5.2, 5.3, 5.4])
    assert pace.free_at == pytest.approx(5.5)


def test_idleness_earns_no_burst() -> None:
    pace = RateController(rate=10, now=0.0)
    pace.reserve(0.0)
    assert [pace.reserve(60.0) for _ in range(3)] == pytest.approx([60.0, 60.1, 60.2])


def test_turn_taken_late_is_not_lost() -> None:
    pace = RateController(rate=500, now=0.0)
    now = 0.0
    for _ in range(1000):
        now = max(now, pace.free_at) + 0.001
        assert pace.reserve(now) == now
    assert now == pytest.approx(2.0, rel=0.01)


def test_of_a_stall_little_is_caught_up() -> None:
    pace = RateController(rate=10, now=0.0)
    pace.reserve(0.0)
    assert [pace.reserve(0.4) for _ in range(3)] == pytest.approx([0.4, 0.48, 0.58])


def test_second_that_begins_late_holds_no_more_than_another() -> None:
    pace = RateController(rate=26, now=0.0)
    turns = [pace.reserve(0.0)]
    turns.append(pace.reserve(pace.free_at + 0.04))
    turns += [pace.reserve(0.0) for _ in range(30)]
    assert fullest_second(turns) <= 27


def test_laptop_that_slept_goes_on_as_before() -> None:
    pace = RateController(now=0.0)
    for _ in range(10):
        pace.reserve(0.0)
    assert [pace.reserve(1e9) for _ in range(2)] == pytest.approx([1e9, 1e9 + 0.05])
    assert pace.rate == 20


@pytest.mark.parametrize("rate", [0.01, 0.3, 25, 1000])
def test_fixed_rate_is_kept_whatever_is_refused(rate: float) -> None:
    pace = RateController(rate=rate, now=0.0)
    turn = 0.0
    for _ in range(100):
        turn = pace.reserve(0.0)
        pace.on_rate_limit(turn)
        pace.on_success(turn)
    assert pace.rate == rate
    assert turn == pytest.approx(99 / rate)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.inf, math.nan])
def test_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        RateController(rate=rate, now=0.0)


def test_search_goes_to_the_documented_limit_at_once_then_feels_its_way() -> None:
    pace = RateController(now=0.0)
    turn = 0.0
    while turn < 4:
        turn = pace.reserve(turn)
    assert 25 <= pace.rate < 25.1
    while turn < 30:
        turn = pace.reserve(turn)
    assert 25.4 < pace.rate < 25.6


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("limit", [0.5, 5.0, 25.0, 100.0])
def test_handover_costs_few_refusals(limit: float, seed: int) -> None:
    """Two in ten seconds, then as few as at any time; and the pace is kept."""
    sim = Sim(Emulated(limit), seed)
    first = Client(sim, start=0.0)
    sim.run(200.0)
    first.items = 0
    found = first.pace.found_rate
    assert found == pytest.approx(limit, rel=0.1)
    second = Client(sim, start=200.0, start_rate=found)
    sim.run(260.0)
    assert sum(at < 210.0 for at in second.refused) <= max(2, 0.01 * 10 * limit)
    assert len(second.refused) <= max(2, 0.02 * len(second.sent))
    assert len(second.ok) >= 0.9 * 60 * limit


def test_search_waits_a_little_above_the_limit_until_its_bucket_would_be_dry() -> None:
    pace = RateController(alone=True, now=0.0)
    turn, rates = 0.0, dict[int, float]()
    while turn < 120:
        turn = pace.reserve(turn)
        rates[int(turn)] = pace.rate
        if pace.rate < 25.6:
            assert pace.found_rate is None or pace.found_rate == 25
    # It is 25 requests above the limit in this time, where the bucket holds as many.
    assert all(25.5 < rates[second] < 25.63 for second in range(34, 61))
    assert rates[70] < 27.5
    assert rates[85] > 30
    assert pace.found_rate == pytest.approx(pace.rate, rel=0.05)


def test_idle_seconds_fill_the_bucket_that_hides_the_limit() -> None:
    pace = RateController(alone=True, now=0.0)
    turn = 0.0
    while turn < 55:
        turn = pace.reserve(turn)
    turn = pace.reserve(65.0)
    while turn < 95:
        turn = pace.reserve(turn)
    assert pace.rate == pytest.approx(25 * 1.025)
    while turn < 130:
        turn = pace.reserve(turn)
    assert pace.rate > 30


def test_search_does_not_wait_where_others_share_the_limit() -> None:
    """The limit that it met was its share, and that may have grown since."""
    pace = RateController(now=0.0)
    turn = 0.0
    while turn < 50:
        turn = pace.reserve(turn)
    assert pace.rate > 27


def test_found_rate_is_told_once_there_is_one_and_kept_in_bad_times() -> None:
    pace = RateController(now=0.0)
    assert pace.found_rate is None
    pace.on_rate_limit(1.0)
    assert pace.found_rate == pace.rate
    found = pace.rate
    for _ in range(20):
        pace.on_failure(2.0)
    assert pace.in_trouble
    assert pace.found_rate == found
    for _ in range(3):
        pace.on_success(3.0)
    for at in range(20):
        pace.on_rate_limit(4.0 + at)
    assert pace.rate < 1
    assert pace.found_rate == pytest.approx(found, rel=0.1)


def test_refusals_of_one_moment_are_one_event() -> None:
    pace = RateController(now=0.0)
    for late in range(10):
        pace.on_rate_limit(10 + late / 11)
    assert pace.rate == pytest.approx(20 * 0.975)


@pytest.mark.parametrize(
    ("refused", "admitted", "cut"),
    [(0, 9, 0.975), (1, 9, 0.975), (3, 9, 0.9), (6, 3, 0.7), (5, 6, 0.9)],
)
def test_refusals_that_go_on_cut_deeper(
    refused: int, admitted: int, cut: float
) -> None:
    pace = RateController(now=0.0)
    pace.on_rate_limit(10.0)
    for _ in range(refused):
        pace.on_rate_limit(10.5)
    for _ in range(admitted):
        pace.on_success(10.5)
    pace.on_rate_limit(11.5)
    assert pace.rate == pytest.approx(20 * 0.975 * cut)


def test_refusal_long_after_is_another_event() -> None:
    pace = RateController(now=0.0)
    for time in (10.0, 10.1, 10.2, 10.3, 12.1):
        pace.on_rate_limit(time)
    assert pace.rate == pytest.approx(20 * 0.975**2)


def test_failures_are_no_congestion_nor_dilute_it() -> None:
    pace = RateController(now=0.0)
    pace.on_rate_limit(10.0)
    for _ in range(3):
        pace.on_rate_limit(10.5)
    for _ in range(5):
        pace.on_failure(10.5)
    assert pace.rate == pytest.approx(20 * 0.975)
    pace.on_rate_limit(11.5)
    assert pace.rate == pytest.approx(20 * 0.975 * 0.9)


def test_cut_that_was_too_deep_is_half_undone_after_the_event() -> None:
    pace = RateController(now=0.0)
    for time in (10.0, 10.1, 10.2, 11.5):
        pace.on_rate_limit(time)
    deep = pace.rate
    assert deep == pytest.approx(20 * 0.975 * 0.7)
    turn = pace.reserve(11.5)
    while turn < 12.4:
        turn = pace.reserve(turn)
    assert pace.rate == deep
    while turn < 15:
        turn = pace.reserve(turn)
    assert pace.rate == pytest.approx(20 * 0.975 * 0.85, rel=0.01)


def test_no_end_of_refusals_leaves_a_least_rate() -> None:
    pace = RateController(now=0.0)
    now = 0.0
    for _ in range(200):
        now = pace.reserve(now)
        pace.on_rate_limit(now)
    assert pace.rate == pytest.approx(0.1, rel=0.001)


def closed_door() -> RateController:
    """Return a pace that has met nothing but 429s for ten seconds."""
    pace = RateController(now=0.0)
    for second in range(20):
        pace.reserve(10.0 + second / 2)
        pace.on_rate_limit(10.0 + second / 2)
    return pace


def test_nothing_but_429s_leave_half_a_request_a_second_for_a_while() -> None:
    pace = closed_door()
    assert 0.3 < pace.rate <= 0.5


def test_each_success_after_nothing_but_429s_doubles_the_rate_up_to_what_it_was() -> (
    None
):
    pace = closed_door()
    rates = [pace.rate]
    for _ in range(8):
        pace.on_success(21.0)
        rates.append(pace.rate)
    assert rates[1:4] == pytest.approx([2 * each for each in rates[:3]])
    assert rates[-1] == 20


def test_refusal_on_the_way_back_ends_the_doubling() -> None:
    pace = closed_door()
    for _ in range(3):
        pace.on_success(21.0)
    before = pace.rate
    pace.on_rate_limit(21.5)
    assert pace.rate == before / 2
    pace.on_success(22.0)
    assert pace.rate == before / 2


def test_many_refusals_of_one_event_put_the_next_try_off() -> None:
    rates: list[float] = []
    for further in (0, 5):
        pace = RateController(now=0.0)
        turn = pace.reserve(10.0)
        pace.on_rate_limit(turn)
        for _ in range(further):
            pace.on_rate_limit(turn)
        while turn < 30:
            turn = pace.reserve(turn)
        rates.append(pace.rate)
    assert rates[0] > 20 * 0.975 + 0.3
    assert rates[1] == 20 * 0.975


def test_crowd_is_cut_by_one_for_each_refusal_and_never_below_one() -> None:
    pace = RateController(now=0.0)
    assert pace.concurrency == math.inf
    pace.on_concurrency_limit(1.0, 50)
    assert pace.concurrency == 49
    pace.on_concurrency_limit(1.0, 49)
    assert pace.concurrency == 48
    pace.on_concurrency_limit(1.0, 80)
    assert pace.concurrency == 47
    for _ in range(60):
        pace.on_concurrency_limit(1.0, 2)
    assert pace.concurrency == 1
    assert pace.rate == 20


def test_crowd_grows_by_one_in_a_hundred_answers_while_it_is_what_limits() -> None:
    pace = RateController(now=0.0)
    pace.on_concurrency_limit(0.0, 6)
    for _ in range(150):
        pace.on_success(0.0)
    assert pace.concurrency == 5  # the rate has been in use as far as is known
    pace.reserve(10.0)
    for _ in range(99):
        pace.on_success(10.0)
    assert pace.concurrency == 5
    for _ in range(2):
        pace.on_success(10.0)
    assert pace.concurrency == 6
    for _ in range(595):
        pace.on_success(10.0)
    assert pace.concurrency == 11
    for _ in range(10):
        pace.on_success(10.0)
    assert pace.concurrency == math.inf


def test_failures_beyond_the_tolerated_halve_the_pace_to_a_floor() -> None:
    pace = RateController(rate=16, now=0.0)
    rates: list[float] = []
    for _ in range(20):
        pace.on_failure(1.0)
        rates.append(pace.rate)
    assert rates[:11] == [16, 16, 16, 16, 16, 8, 4, 2, 1, 0.5, 0.5]
    assert rates[-1] == 0.5


def test_three_successes_end_the_worst_trouble() -> None:
    pace = RateController(rate=16, now=0.0)
    for _ in range(1000):
        pace.on_failure(1.0)
    assert pace.in_trouble
    rates: list[float] = []
    for _ in range(3):
        pace.on_success(2.0)
        rates.append(pace.rate)
    assert rates == [2, 8, 16]
    assert not pace.in_trouble


def test_refusals_neither_make_nor_end_trouble() -> None:
    pace = RateController(rate=16, now=0.0)
    for _ in range(100):
        pace.on_rate_limit(1.0)
        pace.on_concurrency_limit(1.0, 100)
    assert not pace.in_trouble
    for _ in range(10):
        pace.on_failure(1.0)
    pace.on_rate_limit(1.0)
    pace.on_concurrency_limit(1.0, 100)
    assert pace.rate == 0.5


def test_pace_below_the_floor_is_not_raised_to_it_by_trouble() -> None:
    pace = RateController(rate=0.01, now=0.0)
    for _ in range(100):
        pace.on_failure(1.0)
    assert pace.rate == 0.01


def test_pace_found_below_the_floor_is_not_raised_to_it_by_trouble() -> None:
    pace = RateController(now=0.0)
    for _ in range(20):
        pace.on_failure(1.0)
    for second in range(200):
        pace.on_rate_limit(10.0 + 3 * second)
    assert pace.in_trouble
    assert pace.rate < 0.2


def test_end_of_trouble_brings_the_next_turn_forward() -> None:
    pace = RateController(rate=16, now=0.0)
    for _ in range(10):
        pace.on_failure(0.0)
    assert pace.reserve(10.0) == 10.0
    assert pace.free_at == 12.0
    for _ in range(3):
        pace.on_success(10.1)
    assert pace.free_at == pytest.approx(10 + 1 / 16)


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["reserve"] * 3 + ["admitted", "limited", "crowded", "failed"]),
        st.one_of(
            st.just(0.0), st.floats(0, 0.1), st.floats(0, 100), st.just(1e9)
        ),  # seconds since the event before
        st.integers(0, 100),  # under way
        st.integers(1, 50),  # times
    ),
    max_size=60,
)


@given(
    rate=st.none() | st.floats(0.01, 1000),
    start=st.floats(0, 1e6),
    events=EVENTS,
)
def test_whatever_happens_turns_go_on_within_bounds(
    rate: float | None, start: float, events: list[tuple[str, float, int, int]]
) -> None:
    pace = RateController(rate=rate, now=start)
    now = last = start
    booked = 0
    for event, seconds, under_way, times in events:
        now += seconds
        for _ in range(times):
            match event:
                case "reserve":
                    free = pace.free_at
                    turn = pace.reserve(now)
                    assert turn == max(now, free)
                    assert turn >= last
                    assert pace.free_at > now - 0.05
                    last = turn
                    booked += 1
                case "admitted":
                    pace.on_success(now)
                case "limited":
                    pace.on_rate_limit(now)
                case "crowded":
                    pace.on_concurrency_limit(now, under_way)
                case _:
                    pace.on_failure(now)
            assert pace.concurrency >= 1
            assert pace.rate > 0
            if rate is None:
                # Each request can raise the rate by so much at the very most.
                assert 0.1 <= pace.rate <= 25 + booked
            else:
                assert min(rate, 0.5) <= pace.rate <= rate
