"""Whatever ends a task of a batch: what is known is told, then what happened."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from async_refunds import CancelRequest, CancelResult, cancel_many
from async_refunds.batch import Batch
from async_refunds.emulator import Emulator
from async_refunds.journal import MemoryJournal
from tests.support.batches import asked, client, emulator
from tests.support.journals import claimed

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Iterator,
        Mapping,
        Sequence,
    )

    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

    from async_refunds.journal import Claim

FAST = 1000.0


class Alarm(BaseException):
    """What a signal handler of the caller's may raise."""


async def taken(
    results: AsyncGenerator[CancelResult], error: type[BaseException]
) -> dict[str, CancelResult]:
    """Return the results before the exception, which comes within a minute."""
    found: dict[str, CancelResult] = {}

    async def take() -> None:
        async for result in results:
            found[result.refund_id] = result

    async with asyncio.timeout(60):
        with pytest.raises(error):
            await take()
    return found


@pytest.mark.parametrize("kind", ["plain", "asynchronous"])
@pytest.mark.parametrize(
    ("raised", "seen"),
    [(Alarm, Alarm), (GeneratorExit, RuntimeError), (StopAsyncIteration, None)],
)
async def test_any_exception_of_the_input_comes_after_what_it_gave(
    kind: str, raised: type[BaseException], seen: type[BaseException] | None
) -> None:
    stripe = emulator()
    ids = stripe.seed_refunds(120)

    def broken() -> Iterator[str]:
        yield from ids
        raise raised

    class Broken:
        """No generator, which would turn some exceptions into others."""

        def __init__(self) -> None:
            self.ids = iter(ids)

        def __aiter__(self) -> Broken:
            return self

        async def __anext__(self) -> str:
            for refund_id in self.ids:
                return refund_id
            raise raised

    given = broken() if kind == "plain" else Broken()
    async with client(stripe) as refunds:
        results = cancel_many(refunds, given, rate=FAST)
        if seen is None and kind == "asynchronous":  # that is how it ends
            async with asyncio.timeout(60):
                found = {result.refund_id async for result in results}
            assert found == set(ids)
        else:
            assert set(await taken(results, seen or RuntimeError)) == set(ids)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("kind", ["plain", "asynchronous"])
def test_interrupt_in_the_input_passes_through(
    error: type[BaseException], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    stripe = Emulator()
    (refund_id,) = stripe.seed_refunds(1)

    def plain() -> Iterator[str]:
        yield from [refund_id] * 100
        raise error

    async def asynchronous() -> AsyncIterator[str]:
        yield refund_id
        while not stripe.books.cancellations[refund_id]:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)  # until it was asked
        raise error

    async def run() -> None:
        given = plain() if kind == "plain" else asynchronous()
        async with client(stripe) as refunds:
            async for _ in cancel_many(refunds, given):
                await asyncio.Event().wait()

    with pytest.raises(error):
        asyncio.run(run())
    # What was under way is accounted for.
    assert stripe.books.cancellations[refund_id] <= 1


@pytest.mark.parametrize("raised", [LookupError, Alarm, KeyboardInterrupt])
def test_input_that_cannot_be_read_at_all_is_told(
    raised: type[BaseException],
) -> None:
    class Unreadable:
        def __iter__(self) -> Iterator[str]:
            raise raised

    async def run() -> None:
        async with client(Emulator()) as refunds:
            async for _ in cancel_many(refunds, Unreadable()):
                pass

    with pytest.raises(raised):
        asyncio.run(run())


class Raising(logging.Handler):
    """A handler of the caller's logging that raises."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error

    def emit(self, record: logging.LogRecord) -> None:
        if "the input broke off" in record.getMessage():
            raise self.error


@pytest.mark.parametrize("error", [Alarm, LookupError, KeyboardInterrupt])
def test_only_an_interrupt_passes_through_the_callers_logging(
    error: type[BaseException],
) -> None:
    stripe = Emulator()
    ids = stripe.seed_refunds(3)
    found: set[str] = set()

    def broken() -> Iterator[str]:
        yield from ids
        raise OSError

    async def run() -> None:
        async with client(stripe) as refunds:
            async for result in cancel_many(refunds, broken()):
                found.add(result.refund_id)

    handler = Raising(error)
    logging.getLogger("async_refunds").addHandler(handler)
    try:
        with pytest.raises(error if error is KeyboardInterrupt else OSError):
            asyncio.run(run())
    finally:
        logging.getLogger("async_refunds").removeHandler(handler)
    assert error is KeyboardInterrupt or found == set(ids)


class Failing(MemoryJournal):
    """A journal one of whose methods raises what no journal should."""

    def __init__(self, method: str, error: type[BaseException]) -> None:
        super().__init__()
        self.method = method
        self.error = error
        self.calls = 0

    def fail(self, method: str) -> None:
        if method == self.method:
            self.calls += 1
            if self.calls > (1 if method in {"claim", "settle"} else 0):
                raise self.error

    async def add(self, requests: Sequence[CancelRequest]) -> None:
        self.fail("add")
        await super().add(requests)

    async def accounts(self) -> list[str | None]:
        self.fail("accounts")
        return await super().accounts()

    async def claim(
        self, limits: Mapping[str | None, int]
    ) -> dict[str | None, list[Claim]]:
        self.fail("claim")
        return await super().claim(limits)

    async def settle(self, known: Sequence[tuple[Claim, CancelResult]]) -> None:
        self.fail("settle")
        await super().settle(known)

    async def give_back(self, claims: Sequence[Claim]) -> None:
        self.fail("give_back")
        await super().give_back(claims)


@pytest.mark.parametrize("error", [Alarm, MemoryError])
@pytest.mark.parametrize("method", ["accounts", "add", "claim", "settle", "give_back"])
async def test_any_exception_of_the_journal_reaches_the_caller(
    method: str, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    stripe = emulator()
    ids = stripe.seed_refunds(300)
    journal = Failing(method, error)
    # At a slow pace claims always wait, which are to be given back.
    rate = 20 if method == "give_back" else FAST
    async with client(stripe) as refunds:
        batch = Batch(refunds, ids, journal=journal, concurrency=4, rate=rate)

        async def stopped() -> AsyncGenerator[CancelResult]:
            async with aclosing(batch.results()) as results:
                async for result in results:
                    if method == "give_back":  # what there is after a stop only
                        batch.stop()
                    yield result

        found = await taken(stopped(), error)
    canceled = {each for each in ids if stripe.books.cancellations[each]}
    if method == "settle":  # nothing is handed out that is not kept
        assert canceled > set(found)
    else:
        assert canceled == set(found)


def inner_tasks() -> list[asyncio.Task[Any]]:
    """Return the tasks of all batches, in the order of their making."""
    found: list[asyncio.Task[Any]] = []
    for task in asyncio.all_tasks():
        code = getattr(task.get_coro(), "cr_code", None)
        if code is not None and "/async_refunds/batch/" in code.co_filename:
            found.append(task)
    return sorted(found, key=lambda task: (len(task.get_name()), task.get_name()))


@pytest.mark.parametrize("chosen", [*range(6), None])
async def test_task_cancelled_from_outside_ends_the_batch_with_an_error(
    chosen: int | None,
) -> None:
    stripe = emulator()
    stripe.faults.storm(1, names=["slow"])
    ids = stripe.seed_refunds(100)

    async def feed() -> AsyncIterator[str]:
        for refund_id in ids:
            yield refund_id
        await asyncio.Event().wait()

    async with client(stripe) as refunds:
        results = cancel_many(refunds, feed(), concurrency=2, rate=5)
        first = await anext(results)
        tasks = inner_tasks()
        assert len(tasks) >= 6
        for task in tasks if chosen is None else [tasks[chosen]]:
            task.cancel()
        found = await taken(results, RuntimeError)
    found[first.refund_id] = first
    assert {each for each in ids if stripe.books.cancellations[each]} <= set(found)
    assert len(found) < 20


@pytest.mark.parametrize("error", [Alarm, RecursionError, MemoryError])
async def test_fault_after_the_send_leaves_nothing_that_counts_as_never_sent(
    error: type[BaseException],
) -> None:
    stripe = emulator()
    ids = stripe.seed_refunds(3)
    returned: list[str] = []

    class Journal(MemoryJournal):
        async def give_back(self, claims: Sequence[Claim]) -> None:
            returned.extend(claim.refund_id for claim in claims)

    async def fail(*_: object) -> None:
        raise error

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(fail)
    found: dict[str, CancelResult] = {}

    async def take() -> None:
        async for result in cancel_many(
            refunds, ids, journal=Journal(), concurrency=1, patience=1
        ):
            found[result.refund_id] = result

    async with (
        aiohttp.ClientSession(trace_configs=[trace]) as session,
        client(stripe, session=session) as refunds,
        asyncio.timeout(60),
    ):
        await take()  # the call itself reports it
    canceled = {each for each in ids if stripe.books.cancellations[each]}
    assert canceled
    assert canceled.isdisjoint(returned)
    for refund_id in canceled:
        assert found[refund_id].outcome == "unknown"
        assert found[refund_id].idempotency_key is not None


class Stuck(MemoryJournal):
    """A journal on a disk that does not answer."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method

    async def settle(self, known: Sequence[tuple[Claim, CancelResult]]) -> None:
        if self.method == "settle":
            await asyncio.Event().wait()
        await super().settle(known)

    async def claim(
        self, limits: Mapping[str | None, int]
    ) -> dict[str | None, list[Claim]]:
        claims = await super().claim(limits)
        if self.method == "claim" and claims[None][0].number > 1:
            await asyncio.Event().wait()
        return claims

    async def give_back(self, claims: Sequence[Claim]) -> None:
        if self.method == "give_back":
            await asyncio.Event().wait()
        await super().give_back(claims)


@pytest.mark.parametrize("method", ["settle", "claim", "give_back"])
async def test_batch_that_is_closed_waits_for_no_disk_that_hangs(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    stripe = emulator()
    ids = stripe.seed_refunds(200)
    loop = asyncio.get_running_loop()
    journal = Stuck(method)
    async with client(stripe) as refunds:
        batch = Batch(refunds, ids, journal=journal, concurrency=4, rate=20)
        results = batch.results()
        if method == "settle":
            running = asyncio.create_task(anext(results))
            await asyncio.sleep(5)
            running.cancel()
            began = loop.time()
            with pytest.raises(asyncio.CancelledError):
                await running
        else:
            for _ in range(4):  # the first page of claims; the next one hangs
                await anext(results)
            await asyncio.sleep(5)
            began = loop.time()
            await results.aclose()
        seconds = loop.time() - began
    assert seconds < 25
    canceled = [each for each in ids if stripe.books.cancellations[each]]
    if method == "settle":
        assert canceled
        for refund_id in canceled:
            assert f"{refund_id}: canceled, which nobody waited for" in caplog.text
    assert "the journal did not answer" in caplog.text
    assert not inner_tasks()
    if method == "settle":  # what was claimed ahead was given back
        journal.begin()
        claims = await claimed(journal, None, len(ids))
        maybe_sent = {claim.refund_id for claim in claims if claim.maybe_sent}
        assert maybe_sent == {each for each in ids if asked(stripe, each)}


@pytest.mark.parametrize("after", [0.1, 3.0], ids=["first attempt", "between retries"])
async def test_batch_that_is_interrupted_before_it_could_send_leaves_nothing_unknown(
    after: float,
) -> None:
    class Refusing(aiohttp.TCPConnector):
        """Takes its time to find nobody."""

        async def connect(
            self,
            req: aiohttp.ClientRequest,
            traces: list[Trace],
            timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's own argument
        ) -> Connection:
            await asyncio.sleep(1.0)
            raise aiohttp.ClientConnectorError(req.connection_key, OSError(111, "no"))

    stripe, journal = emulator(), MemoryJournal()
    ids = stripe.seed_refunds(4)
    async with (
        aiohttp.ClientSession(connector=Refusing()) as session,
        client(stripe, session=session) as refunds,
    ):
        batch = Batch(refunds, ids, journal=journal, concurrency=3)
        asyncio.get_running_loop().call_later(after, batch.interrupt)
        found = [result async for result in batch.results()]
    tried = [] if after < 1.0 else ids[:3]
    assert {result.refund_id for result in found} == set(tried)
    for result in found:
        assert result.outcome == "failed"
        assert "before it was sent" in str(result.error)
    journal.begin()
    claims = await claimed(journal, None, 10)
    assert len(claims) == len(ids) - len(tried)
    assert not any(claim.maybe_sent for claim in claims)


class BadInput:
    """An input that cannot even be begun."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __iter__(self) -> Iterator[str]:
        raise self.error


@pytest.mark.parametrize("error", [LookupError("no list"), Alarm()])
async def test_input_that_cannot_be_begun_ends_the_batch_with_its_error(
    error: BaseException,
) -> None:
    async with client(emulator()) as refunds:
        results = cancel_many(refunds, BadInput(error))
        with pytest.raises(type(error)):
            await anext(results)


class RaisingHandler(logging.Handler):
    """A handler that raises what the caller's logging must never do to a call."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def handle(self, record: logging.LogRecord) -> bool:
        raise self.error


@pytest.mark.parametrize("error", [Alarm(), KeyboardInterrupt()])
async def test_logging_that_raises_ends_a_call_only_with_the_process(
    error: BaseException,
) -> None:
    stripe = emulator()
    (refund_id,) = stripe.seed_refunds(1)
    stripe.faults.script("503", "ok")  # a retry is logged
    logger, handler = logging.getLogger("async_refunds"), RaisingHandler(error)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        async with client(stripe) as refunds:
            if isinstance(error, KeyboardInterrupt):
                with pytest.raises(KeyboardInterrupt):
                    await refunds.cancel(refund_id)
            else:
                assert (await refunds.cancel(refund_id)).status == "canceled"
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


@pytest.mark.parametrize("wrong", ["re_" + 252 * "x", "re_sk_test_51Secret", "ch_1"])
async def test_item_of_a_journal_that_cannot_be_sent_ends_alone(wrong: str) -> None:
    """Other programs write to a journal in a database."""
    stripe, journal = emulator(), MemoryJournal()
    good = stripe.add_refund()
    await journal.add([CancelRequest(wrong), CancelRequest(good)])
    async with client(stripe) as refunds:
        results = [each async for each in Batch(refunds, (), journal=journal).results()]
    refused, canceled = sorted(results, key=lambda each: each.outcome == "canceled")
    assert (refused.outcome, refused.attempts) == ("failed", ())
    assert isinstance(refused.error, ValueError)
    assert "Secret" not in repr(refused)
    assert (canceled.refund_id, canceled.outcome) == (good, "canceled")
    assert journal.tally().outcomes == {"failed": 1, "canceled": 1}
