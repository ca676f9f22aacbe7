"""Holds what callers were told against what the emulator's books say was done."""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
from collections import defaultdict
from typing import TYPE_CHECKING

import msgspec

from benchmarks.faults_clients import Client, Told
from benchmarks.harness import Figure, figure, ratio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.faults_clients import Cancel
    from benchmarks.faults_emulator import Request, Stripe

HUNG_SECONDS = 90.0
"""A call with no end by then hangs: every client's own limits are below it (the longest
is the deadline of async_refunds, 80 seconds)."""


class Report(msgspec.Struct, frozen=True):
    """What a caller was told of one refund."""

    refund_id: str
    told: Told
    error: str | None = None
    """The class of the exception."""
    raw: bool = False
    """Whether that is none that the client documents."""
    hung: bool = False


class Turn(msgspec.Struct, frozen=True):
    """What one client told in one turn, and the truth about it."""

    reports: list[Report]
    canceled: frozenset[str]
    """The refunds that are canceled, when nothing is under way any more."""
    twice: int
    """Refunds of which a cancel was executed more than once."""
    second_keys: int
    """Refunds that were asked for with more than one key, each for one intent."""
    requests: int
    faults: int
    """Requests that met a fault."""
    cpu: float
    """Seconds of this process while the calls were made."""


class Split(msgspec.Struct):
    """How many refunds, by the truth about them."""

    canceled: int = 0
    not_canceled: int = 0


class Result(msgspec.Struct, frozen=True):
    """What one client told under one weather, over all rounds."""

    client: str
    calls: int
    told: dict[str, Split]
    """By what the callers were told (a value of `Told`)."""
    errors: dict[str, Split]
    """By the class of the exception."""
    wrong_per_10000: float
    """Told canceled of what is not; or, of what is canceled, told no by an error that
    means it, or by one that leaves it open with nothing to go on with."""
    contradicted_per_10000: float
    """The first two of these: what is refuted by the books whoever reads the error."""
    untold_per_10000: float
    """Canceled, and the caller was told anything else: also that it is unknown."""
    raw: int
    hung: int
    lost: int
    """Calls that ended, or hung, with no report at all."""
    twice: int
    second_keys: int
    requests_per_call: float
    faults_per_request: float
    cpu: Figure
    """Seconds per call."""
    cpu_ratio: Figure
    """CPU over that of the baseline in the same rounds."""


async def calls(
    client: Client,
    base_url: str,
    ids: Sequence[str],
    *,
    concurrency: int,
    pace: float,
    seconds: float,
) -> tuple[list[Report], float]:
    """Cancel each refund; return what was told, and the seconds of CPU.

    Args:
        client: Cancels.
        base_url: Where.
        ids: The refunds.
        concurrency: How many may be in flight.
        pace: How many begin in a second.
        seconds: For each attempt.
    """
    waiting = iter(ids)
    reports: list[Report] = []
    loop = asyncio.get_running_loop()
    starts = itertools.count(loop.time(), 1 / pace)
    async with client.open(base_url, seconds) as cancel:

        async def worker() -> None:
            for refund_id in waiting:
                await asyncio.sleep(next(starts) - loop.time())
                reports.append(await _told(client, cancel, refund_id))

        gc.collect()
        began = time.process_time()
        await asyncio.gather(*(worker() for _ in range(concurrency)))
        return reports, time.process_time() - began


async def _told(client: Client, cancel: Cancel, refund_id: str) -> Report:
    limit = asyncio.timeout(HUNG_SECONDS)
    try:
        async with limit:
            status = await cancel(refund_id)
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # Nobody cancelled it: the client ended its caller's task.
        return Report(refund_id, Told.NOTHING, type(error).__name__, raw=True)
    except Exception as error:  # noqa: BLE001 - whatever a caller meets
        if limit.expired():
            return Report(refund_id, Told.NOTHING, hung=True)
        raw = not isinstance(error, client.family)
        return Report(refund_id, client.told_by(error), _named(error), raw=raw)
    return Report(refund_id, Told.CANCELED if status == "canceled" else Told.NO)


def _named(error: Exception) -> str:
    """Return the class of an error with the status or the cause that it gives."""
    # aiohttp has one class for all statuses, Stripe's client one for all causes.
    for name in ("status", "status_code", "http_status"):
        if status := getattr(error, name, None):
            return f"{type(error).__name__} {status}"
    cause = error.__cause__
    because = "" if cause is None else f" from {type(cause).__name__}"
    return f"{type(error).__name__}{because}"


def turn(stripe: Stripe, reports: list[Report], cpu: float) -> Turn:
    """Read the truth about what was told, once nothing is under way.

    Raises:
        RuntimeError: The books and the refunds contradict each other.
    """
    books = stripe.books()
    canceled = frozenset(books.cancellations)
    for report in reports:
        # Of what all agree on, one source is enough.
        if report.told is Told.CANCELED and report.refund_id in canceled:
            continue
        is_canceled = stripe.status(report.refund_id) == "canceled"
        if is_canceled is not (report.refund_id in canceled):
            raise RuntimeError(f"the books contradict {report.refund_id}")
    return Turn(
        reports=reports,
        canceled=canceled,
        twice=sum(count > 1 for count in books.cancellations.values()),
        second_keys=_second_keys(stripe.requests()),
        requests=sum(books.requests.values()),
        faults=sum(books.faults.values()),
        cpu=cpu,
    )


def _second_keys(requests: Sequence[Request]) -> int:
    keys: defaultdict[str, set[str | None]] = defaultdict(set)
    for request in requests:
        if request.endpoint == "cancel":
            keys[request.path].add(request.idempotency_key)
    return sum(len(found) > 1 for found in keys.values())


def result(name: str, turns: Sequence[Turn], baseline: Sequence[Turn]) -> Result:
    """Count over all turns of a client; its CPU is held against that of a baseline."""
    reports = [report for each in turns for report in each.reports]
    requests = sum(each.requests for each in turns)
    told, errors = _by_truth(turns)
    said, no, left_open = (
        told[each.value] for each in (Told.CANCELED, Told.NO, Told.OPEN)
    )
    contradicted = said.not_canceled + no.canceled
    untold = sum(split.canceled for split in told.values()) - said.canceled
    share = 10_000 / len(reports)
    return Result(
        client=name,
        calls=len(reports),
        told=told,
        errors=errors,
        wrong_per_10000=(contradicted + left_open.canceled) * share,
        contradicted_per_10000=contradicted * share,
        untold_per_10000=untold * share,
        raw=sum(report.raw for report in reports),
        hung=sum(report.hung for report in reports),
        lost=sum(report.told is Told.NOTHING for report in reports),
        twice=sum(each.twice for each in turns),
        second_keys=sum(each.second_keys for each in turns),
        requests_per_call=requests / len(reports),
        faults_per_request=sum(each.faults for each in turns) / requests,
        cpu=figure(each.cpu / len(each.reports) for each in turns),
        cpu_ratio=ratio([each.cpu for each in turns], [each.cpu for each in baseline]),
    )


def _by_truth(turns: Sequence[Turn]) -> tuple[dict[str, Split], dict[str, Split]]:
    """Return how many were told what, and by which errors, each by the truth."""
    told = {each.value: Split() for each in Told}
    errors: defaultdict[str, Split] = defaultdict(Split)
    for each in turns:
        for report in each.reports:
            canceled = report.refund_id in each.canceled
            _count(told[report.told.value], canceled=canceled)
            if report.error is not None:
                _count(errors[report.error], canceled=canceled)
    return told, dict(sorted(errors.items()))


def _count(split: Split, *, canceled: bool) -> None:
    if canceled:
        split.canceled += 1
    else:
        split.not_canceled += 1
