"""What a service sees of its calls: records, log records, hooks, the debug log."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from async_refunds import (
    Attempt,
    CallRecord,
    OutcomeUnknownError,
    Refund,
    RefundNotCancelableError,
    RefundsError,
    RetryBudget,
    RetryPolicy,
)
from async_refunds.emulator import Emulator
from tests.support.scripted import (
    CANCELED,
    KEY,
    RE,
    Act,
    Scripted,
    refusal,
    scripted,
    seen,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


ACCOUNT = "acct_1032D82eZvKYlo2C"


def logged(caplog: pytest.LogCaptureFixture, *levels: str) -> list[logging.LogRecord]:
    """Return this package's log records, of these levels or of any."""
    return [
        each
        for each in caplog.records
        if each.name == "async_refunds" and (not levels or each.levelname in levels)
    ]


NO_CODE = refusal(400)
MISSING = refusal(404, code="resource_missing")
FAILING = refusal(503, type="api_error")


async def name_of_error(call: Awaitable[Refund]) -> str | None:
    try:
        await call
    except RefundsError as error:
        return type(error).__name__
    return None


CANCELS: dict[str, tuple[Act, Act, str, str | None, str]] = {
    "canceled": (CANCELED, "stall", "canceled", None, "POST"),
    "canceled before": (
        NO_CODE,
        seen("canceled"),
        "already_canceled",
        "RefundNotCancelableError",
        "POST GET",
    ),
    "in another state": (
        NO_CODE,
        seen("succeeded"),
        "not_cancelable",
        "RefundNotCancelableError",
        "POST GET",
    ),
    "missing": (MISSING, "stall", "failed", "RefundNotFoundError", "POST"),
    "unknown": (
        "reset",
        seen("requires_action"),
        "unknown",
        "OutcomeUnknownError",
        "POST POST POST POST GET",
    ),
}


@pytest.mark.parametrize(
    ("act", "read", "outcome", "error", "methods"), CANCELS.values(), ids=CANCELS.keys()
)
async def test_cancel_leaves_one_record(
    act: Act, read: Act, outcome: str, error: str | None, methods: str
) -> None:
    records: list[CallRecord] = []
    async with (
        scripted(act, reads=[read]) as server,
        server.client(on_call=records.append) as refunds,
    ):
        call = refunds.cancel(RE, idempotency_key="mine", stripe_account=ACCOUNT)
        assert await name_of_error(call) == error
    (record,) = records
    assert (record.method, record.refund_id) == ("cancel", RE)
    assert (record.stripe_account, record.idempotency_key) == (ACCOUNT, "mine")
    assert (record.outcome, record.error) == (outcome, error)
    assert " ".join(each.method for each in record.attempts) == methods
    assert record.seconds >= sum(each.seconds for each in record.attempts)
    assert record.tokens is not None


READS: dict[str, tuple[Act, str, str | None]] = {
    "read": (seen("pending"), "done", None),
    "missing": (MISSING, "failed", "RefundNotFoundError"),
    "not answered": ("close", "failed", "APIConnectionError"),
}


@pytest.mark.parametrize(("act", "outcome", "error"), READS.values(), ids=READS.keys())
async def test_read_leaves_one_record(
    act: Act, outcome: str, error: str | None
) -> None:
    records: list[CallRecord] = []
    async with (
        scripted(reads=[act]) as server,
        server.client(on_call=records.append) as refunds,
    ):
        assert await name_of_error(refunds.retrieve(RE)) == error
    (record,) = records
    assert (record.method, record.refund_id) == ("retrieve", RE)
    assert record.idempotency_key is None
    assert (record.outcome, record.error) == (outcome, error)


async def test_list_leaves_a_record_for_each_page() -> None:
    records: list[CallRecord] = []
    emulator = Emulator()
    emulator.seed_refunds(3)
    async with (
        emulator.serve() as url,
        Scripted(url=url).client(on_call=records.append) as refunds,
    ):
        assert len([refund async for refund in refunds.list(limit=2)]) == 3
    assert [each.method for each in records] == ["list", "list"]
    assert {each.refund_id for each in records} == {None}


@pytest.mark.parametrize("act", ["stall", "trickle", FAILING])
async def test_cancelled_task_leaves_a_record_and_the_key_in_the_log(
    act: Act, caplog: pytest.LogCaptureFixture
) -> None:
    records: list[CallRecord] = []
    async with (
        scripted(act) as server,
        server.client(on_call=records.append) as refunds,
    ):
        call = asyncio.create_task(refunds.cancel(RE))
        await server.arrived.wait()
        await asyncio.sleep(0.001)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert refunds.calls_in_progress == 0
    (record,) = records
    assert (record.outcome, record.error) == ("interrupted", None)
    assert {record.idempotency_key} == server.cancel_keys
    # FAILING is answered, and the wait for a retry was broken off.
    last = record.attempts[-1]
    assert last.failure == ("broken_off" if act != FAILING else None)
    assert (last.method, last.sent, last.number) == ("POST", True, len(record.attempts))
    assert len(record.attempts) == len(server.received)
    (warning,) = logged(caplog, "WARNING")
    assert str(record.idempotency_key) in warning.getMessage()
    assert "its task was cancelled" in warning.getMessage()


async def test_cancelled_read_leaves_a_record_and_no_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    records: list[CallRecord] = []
    async with (
        scripted(reads=["stall"]) as server,
        server.client(on_call=records.append) as refunds,
    ):
        call = asyncio.create_task(refunds.retrieve(RE))
        await server.arrived.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    (record,) = records
    assert record.outcome == "interrupted"
    assert [each.failure for each in record.attempts] == ["broken_off"]
    assert not logged(caplog)


async def test_call_cancelled_before_it_sent_anything_is_no_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def provide() -> str:
        await asyncio.sleep(1000)
        return KEY

    records: list[CallRecord] = []
    async with scripted(CANCELED) as server:
        refunds = server.client(api_key=provide, on_call=records.append)
        call = asyncio.create_task(refunds.cancel(RE))
        await asyncio.sleep(1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await refunds.close()
    assert [(each.outcome, each.attempts) for each in records] == [("interrupted", ())]
    assert not logged(caplog)
    assert not server.received


STOPS: dict[str, tuple[dict[str, Any], str]] = {
    "count": ({"retry": RetryPolicy(max_retries=2)}, "count"),
    "deadline": ({"retry": RetryPolicy(deadline=4.0, initial_delay=50.0)}, "deadline"),
    "budget": ({"retry_budget": RetryBudget(min_tokens=1)}, "budget"),
}


@pytest.mark.parametrize(("options", "reason"), STOPS.values(), ids=STOPS.keys())
async def test_record_log_and_error_say_why_no_further_retry_came(
    options: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    records: list[CallRecord] = []
    async with (
        scripted(FAILING, reads=[seen("requires_action")]) as server,
        server.client(on_call=records.append, **options) as refunds,
    ):
        with pytest.raises(OutcomeUnknownError) as caught:
            await refunds.cancel(RE)
    *_, last_cancel, read = records[0].attempts
    assert (last_cancel.stopped, read.stopped) == (reason, None)
    assert caught.value.retries_stopped_by == reason
    (warning,) = logged(caplog, "WARNING")
    assert vars(warning)["stopped"] == reason


async def test_record_tells_the_tokens_left_and_the_time_of_each_attempt() -> None:
    records: list[CallRecord] = []
    budget = RetryBudget(min_tokens=10)
    async with (
        scripted(FAILING, CANCELED) as server,
        server.client(on_call=records.append, retry_budget=budget) as refunds,
    ):
        await refunds.cancel(RE)
    (record,) = records
    assert record.tokens == budget.tokens
    assert 9.0 < budget.tokens < 10.0
    first, second = record.attempts
    assert (first.status, second.slept > 0) == (503, True)
    assert first.began_at <= second.began_at


async def test_no_budget_leaves_no_tokens_to_tell() -> None:
    records: list[CallRecord] = []
    async with (
        scripted(CANCELED) as server,
        server.client(on_call=records.append, retry_budget=None) as refunds,
    ):
        await refunds.cancel(RE)
    assert records[0].tokens is None


async def test_log_has_one_info_per_retry_and_one_warning_per_unknown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "async_refunds")
    async with (
        scripted(FAILING, reads=[seen("requires_action")]) as server,
        server.client() as refunds,
    ):
        with pytest.raises(OutcomeUnknownError) as caught:
            await refunds.cancel(RE, stripe_account=ACCOUNT)
    levels = [each.levelname for each in logged(caplog)]
    assert levels.count("INFO") == 3
    assert levels.count("WARNING") == 1
    assert levels.count("DEBUG") == 5
    retry = logged(caplog, "INFO")[0]
    fields = vars(retry)
    assert fields["refund_id"] == RE
    assert fields["stripe_account"] == ACCOUNT
    assert fields["idempotency_key"] == caught.value.idempotency_key
    assert fields["request_id"] == "req_refused"
    assert (fields["attempt"], fields["status"], fields["failure"]) == (1, 503, None)
    assert fields["seconds"] >= 0
    warning = vars(logged(caplog)[-1])
    assert warning["levelname"] == "WARNING"
    assert warning["message"] == str(caught.value)
    assert warning["idempotency_key"] == caught.value.idempotency_key
    assert (warning["attempt"], warning["status"]) == (5, 200)
    for each in logged(caplog):
        assert KEY not in repr(vars(each))


class HookError(BaseException):
    """As `pytest.fail` raises: no `Exception`."""


HOOKS: dict[str, Callable[[], BaseException]] = {
    "error": lambda: RuntimeError("the hook's own"),
    "no Exception": lambda: HookError("the hook's own"),
    "generator exit": GeneratorExit,
    "cancelled": asyncio.CancelledError,
}


@pytest.mark.parametrize("name", ["on_attempt", "on_call"])
@pytest.mark.parametrize("raised", HOOKS.values(), ids=HOOKS.keys())
@pytest.mark.parametrize("method", ["cancel", "retrieve"])
async def test_hook_that_fails_harms_nothing_and_is_logged(
    name: str,
    raised: Callable[[], BaseException],
    method: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def hook(seen: Attempt | CallRecord) -> None:
        raise raised()

    async with (
        scripted(CANCELED, reads=[seen("canceled")]) as server,
        server.client(**{name: hook}) as refunds,
    ):
        assert (await getattr(refunds, method)(RE)).status == "canceled"
        assert refunds.calls_in_progress == 0
    (error,) = logged(caplog)
    assert error.getMessage() == f"{name} raised; the call goes on"
    assert error.exc_info is not None


@pytest.mark.parametrize("name", ["on_attempt", "on_call"])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_hook_may_end_the_process(name: str, kind: type[BaseException]) -> None:
    def hook(seen: Attempt | CallRecord) -> None:
        raise kind

    async def main() -> None:
        async with (
            scripted(CANCELED) as server,
            server.client(**{name: hook}) as refunds,
        ):
            await refunds.cancel(RE)

    with pytest.raises(kind):
        asyncio.run(main())


async def test_logging_that_fails_harms_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise RuntimeError("the filter's own")

    logger = logging.getLogger("async_refunds")
    monkeypatch.setattr(logger, "filters", [Broken()])

    def hook(attempt: Attempt) -> None:
        raise RuntimeError("the hook's own")

    async with (
        scripted(FAILING, CANCELED) as server,
        server.client(on_attempt=hook) as refunds,
    ):
        assert (await refunds.cancel(RE)).status == "canceled"


DEBUGGED = """
import asyncio, sys
from async_refunds import RefundsClient
async def main():
    for _ in range(2):
        async with RefundsClient(sys.argv[2], base_url=sys.argv[1]) as refunds:
            await refunds.cancel(sys.argv[3])
            sys.argv[3] = sys.argv[4]
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("level", "shown"), [("debug", 3), ("INFO", 1), ("", 0), ("nonsense", 0)]
)
async def test_variable_shows_each_attempt_on_stderr_and_never_the_key(
    level: str, shown: int, stripe_emulator: Emulator
) -> None:
    ids = stripe_emulator.seed_refunds(2)
    stripe_emulator.faults.script("503", "ok")
    key = "sk_test_CANARYofTheKey51"
    ran = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", DEBUGGED, stripe_emulator.base_url, key, *ids],
        env={**os.environ, "ASYNC_REFUNDS_LOG": level},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = ran.stderr.splitlines()
    assert len([line for line in lines if "async_refunds" in line]) == shown + (
        level == "debug"
    )
    assert "CANARY" not in ran.stderr
    if level == "debug":
        assert f"POST /v1/refunds/{ids[0]}/cancel: attempt 1: 503 in" in lines[0]


@pytest.mark.parametrize("name", ["on_attempt", "on_call"])
async def test_refund_that_is_refused_names_its_error(name: str) -> None:
    seen_by_hook: list[Any] = []
    async with (
        scripted(NO_CODE, reads=[seen("failed")]) as server,
        server.client(**{name: seen_by_hook.append}) as refunds,
    ):
        with pytest.raises(RefundNotCancelableError):
            await refunds.cancel(RE)
    assert len(seen_by_hook) == {"on_attempt": 2, "on_call": 1}[name]


async def test_gauges_show_connections_waits_and_calls() -> None:
    async with scripted("stall") as server, server.client() as refunds:
        assert refunds.connections_in_use == refunds.waiting_for_connection == 0
        calls = [asyncio.create_task(refunds.cancel(RE)) for _ in range(103)]
        await server.received_at_least(100)
        assert refunds.connections_in_use == 100
        assert refunds.waiting_for_connection == 3
        assert refunds.calls_in_progress == 103
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        assert refunds.connections_in_use == refunds.waiting_for_connection == 0
        assert refunds.calls_in_progress == 0
