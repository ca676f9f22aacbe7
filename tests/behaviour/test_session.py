"""What goes over the wire, whose session it is, and what a cancellation leaves."""

from __future__ import annotations

import asyncio
import gzip
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from async_refunds import (
    STRIPE_VERSION,
    APIConnectionError,
    OutcomeUnknownError,
    RefundsClient,
    RefundsError,
    RetryPolicy,
    __version__,
)
from async_refunds.transport.connections import closes_coroutine
from tests.support.scripted import (
    CANCELED,
    KEY,
    RE,
    Act,
    answer,
    error_json,
    refund_json,
    scripted,
    seen,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ACCOUNT = "acct_1032D82eZvKYlo2C"


@pytest.fixture(params=["own", "borrowed"])
async def session(
    request: pytest.FixtureRequest,
) -> AsyncIterator[aiohttp.ClientSession | None]:
    if request.param == "own":
        yield None
    else:
        async with aiohttp.ClientSession() as borrowed:
            yield borrowed


async def test_cancel_on_the_wire(session: aiohttp.ClientSession | None) -> None:
    async with scripted(CANCELED) as server:
        refunds = server.client(
            session=session, app_info="my-shop/1.4", stripe_context="acct_1/acct_2"
        )
        await refunds.cancel(
            RE,
            idempotency_key="order-7!",
            expand=["charge", "payment_intent.customer"],
            stripe_account=ACCOUNT,
        )
        await refunds.close()
    (sent,) = server.received
    assert (sent.method, sent.target) == ("POST", f"/v1/refunds/{RE}/cancel")
    assert sent.body == b"expand%5B%5D=charge&expand%5B%5D=payment_intent.customer"
    assert sent.headers["authorization"] == f"Bearer {KEY}"
    assert sent.headers["idempotency-key"] == "order-7!"
    assert sent.headers["stripe-version"] == STRIPE_VERSION
    assert sent.headers["stripe-account"] == ACCOUNT
    assert sent.headers["stripe-context"] == "acct_1/acct_2"
    assert sent.headers["content-type"] == "application/x-www-form-urlencoded"
    assert sent.headers["user-agent"] == f"async-refunds/{__version__} my-shop/1.4"


async def test_cancel_says_form_also_without_one(
    session: aiohttp.ClientSession | None,
) -> None:
    async with scripted(CANCELED) as server:
        refunds = server.client(session=session)
        await refunds.cancel(RE)
        await refunds.close()
    (sent,) = server.received
    assert sent.body == b""
    assert sent.headers["content-length"] == "0"
    assert sent.headers["content-type"] == "application/x-www-form-urlencoded"


async def test_read_on_the_wire(session: aiohttp.ClientSession | None) -> None:
    async with scripted(reads=[seen("pending")]) as server:
        refunds = server.client(session=session, stripe_account=ACCOUNT)
        refund = await refunds.retrieve(RE, expand=["charge"])
        await refunds.close()
    (sent,) = server.received
    assert (sent.method, sent.target) == (
        "GET",
        f"/v1/refunds/{RE}?expand%5B%5D=charge",
    )
    assert sent.headers["stripe-account"] == ACCOUNT
    assert "idempotency-key" not in sent.headers
    assert "content-type" not in sent.headers
    assert refund.last_response.idempotency_key is None
    assert refund.last_response.request_id == "req_seen"


async def test_own_session_sends_what_aiohttp_makes_of_the_same_headers() -> None:
    """It merges them in a way of its own: Host first, and each once."""

    async def sent(session: aiohttp.ClientSession | None) -> list[list[str]]:
        async with scripted(CANCELED, reads=[seen("pending")]) as server:
            refunds = server.client(session=session, stripe_account=ACCOUNT)
            await refunds.cancel(RE, idempotency_key="order-7", expand=["charge"])
            await refunds.cancel(RE, idempotency_key="order-7")
            await refunds.retrieve(RE)
            await refunds.close()
        host = f"Host: {server.url.removeprefix('http://')}"
        assert [each.header_lines[0] for each in server.received] == [host] * 3
        return [sorted(each.header_lines[1:]) for each in server.received]

    # Not zstd and the like, which aiohttp adds where it can decode them.
    accepted = {"Accept-Encoding": "gzip, deflate"}
    async with aiohttp.ClientSession(headers=accepted) as borrowed:
        assert await sent(None) == await sent(borrowed)


async def test_each_call_has_a_key_of_its_own_and_the_settling_read_its_account() -> (
    None
):
    no = answer(400, error_json())
    async with (
        scripted(CANCELED, CANCELED, no, reads=[seen("canceled")]) as server,
        server.client(stripe_account="acct_client") as refunds,
    ):
        first = await refunds.cancel(RE)
        second = await refunds.cancel(RE)
        await refunds.cancel(RE, already_canceled_ok=True, stripe_account="acct_x")
    keys = {
        first.last_response.idempotency_key,
        second.last_response.idempotency_key,
    }
    assert len(server.cancel_keys) == 3
    assert keys < server.cancel_keys
    accounts = [request.headers["stripe-account"] for request in server.received]
    assert accounts == ["acct_client", "acct_client", "acct_x", "acct_x"]


async def test_last_response_is_what_stripe_said() -> None:
    replayed = answer(
        headers={"Request-Id": "req_7", "Idempotent-Replayed": "true"},
        body=refund_json(),
    )
    async with scripted(replayed) as server, server.client() as refunds:
        refund = await refunds.cancel(RE, idempotency_key="mine")
    last = refund.last_response
    assert last.status_code == 200
    assert last.request_id == "req_7"
    assert last.idempotency_key == "mine"
    assert last.idempotent_replayed
    assert last.body == refund_json()
    (attempt,) = last.attempts
    assert (attempt.number, attempt.method, attempt.status) == (1, "POST", 200)
    assert (attempt.failure, attempt.slept) == (None, 0.0)


async def test_unreadable_answer_is_named_so_in_the_log_of_attempts() -> None:
    async with (
        scripted(answer(body=b"?"), CANCELED) as server,
        server.client() as refunds,
    ):
        refund = await refunds.cancel(RE)
    first, second = refund.last_response.attempts
    assert (first.status, first.failure) == (200, "unreadable")
    assert (second.status, second.failure) == (200, None)
    assert 0 <= second.slept <= 0.5


async def test_body_without_end_is_not_read_on(
    session: aiohttp.ClientSession | None,
) -> None:
    begun = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + b" " * 1_200_000
    async with scripted(begun, CANCELED) as server:
        refunds = server.client(session=session)
        refund = await refunds.cancel(RE)
        await refunds.close()
    first, _ = refund.last_response.attempts
    assert first.failure == "too_large"
    assert first.seconds < 1.0


async def test_redirect_is_never_followed_with_the_key() -> None:
    async with scripted(CANCELED) as elsewhere:
        away = answer(307, b"", {"Location": f"{elsewhere.url}/v1/refunds/{RE}/cancel"})
        async with scripted(away) as server, server.client() as refunds:
            with pytest.raises(RefundsError):
                await refunds.cancel(RE)
        assert not elsewhere.received


@pytest.mark.asyncio(loop_factories=["real"])  # to look a name up takes a thread
async def test_own_session_keeps_no_cookies() -> None:
    cookie = answer(headers={"Set-Cookie": "a=b"})
    async with scripted(cookie) as server:
        # By name: aiohttp's jar takes no cookies from an address anyway.
        named = server.url.replace("127.0.0.1", "localhost")
        async with RefundsClient(KEY, base_url=named) as refunds:
            await refunds.cancel(RE)
            await refunds.cancel(RE)
    assert len(server.received) == 2
    assert all("cookie" not in request.headers for request in server.received)


async def test_own_session_reuses_its_connection_and_closes_it() -> None:
    async with scripted(CANCELED) as server:
        async with server.client() as refunds:
            for _ in range(5):
                await refunds.cancel(RE)
        await asyncio.sleep(0.1)
        assert server.connections == 1
        assert server.open == 0


async def test_borrowed_session_is_never_closed() -> None:
    async with aiohttp.ClientSession() as session, scripted(CANCELED) as server:
        async with server.client(session=session) as refunds:
            await refunds.cancel(RE)
        assert not session.closed


async def test_borrowed_session_may_raise_for_status_follow_and_trace() -> None:
    """Whatever it is set to, the answer is read as Stripe's."""
    traced: list[str] = []
    config = aiohttp.TraceConfig()

    async def trace(
        session: aiohttp.ClientSession,
        context: object,
        params: aiohttp.TraceRequestStartParams,
    ) -> None:
        traced.append(params.method)

    config.on_request_start.append(trace)
    packed = answer(
        body=gzip.compress(refund_json("canceled")),
        headers={"Content-Encoding": "gzip"},
    )
    no = answer(400, error_json())
    async with (
        aiohttp.ClientSession(
            base_url="http://elsewhere.example/",
            raise_for_status=True,
            trace_configs=[config],
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=0.001),
            headers={"Authorization": "Bearer another", "User-Agent": "theirs"},
        ) as session,
        scripted(no, reads=[packed]) as server,
    ):
        refunds = server.client(session=session)
        refund = await refunds.cancel(RE, already_canceled_ok=True)
    assert refund.status == "canceled"
    assert traced == ["POST", "GET"]
    assert server.received[0].headers["authorization"] == f"Bearer {KEY}"


class Outrage(BaseException):
    """No `Exception`, as what `pytest.fail` raises."""


@pytest.mark.parametrize("error", [LookupError, Outrage, GeneratorExit])
async def test_tracing_that_raises_is_an_unknown_outcome_not_a_foreign_error(
    error: type[BaseException],
) -> None:
    config = aiohttp.TraceConfig()

    async def trace(*_: object) -> None:
        raise error("the tracing's own")

    config.on_request_end.append(trace)
    async with (
        aiohttp.ClientSession(trace_configs=[config]) as session,
        scripted(CANCELED) as server,
    ):
        words = f"{error.__name__}: the tracing's"
        with pytest.raises(OutcomeUnknownError, match=words):
            await server.client(session=session).cancel(RE)


@pytest.mark.parametrize("error", [LookupError, Outrage, GeneratorExit])
async def test_tracing_that_raises_without_a_connection_sends_nothing(
    error: type[BaseException],
) -> None:
    config = aiohttp.TraceConfig()

    async def trace(*_: object) -> None:
        raise error("the tracing's own")

    config.on_connection_create_start.append(trace)
    async with (
        aiohttp.ClientSession(trace_configs=[config]) as session,
        scripted(CANCELED) as server,
    ):
        with pytest.raises(APIConnectionError, match=error.__name__):
            await server.client(session=session).cancel(RE)
    assert not server.received


async def test_coroutine_that_is_closed_in_the_middle_of_a_call_ends_there(
    session: aiohttp.ClientSession | None,
) -> None:
    """As a task is that its event loop has left behind."""
    async with scripted("stall") as server, server.client(session=session) as refunds:
        call = refunds.cancel(RE)
        task = asyncio.create_task(call)
        await server.received_at_least(1)
        call.close()
        assert refunds.calls_in_progress == refunds.connections_in_use == 0
        task.cancel()
        with pytest.raises(RuntimeError, match="already awaited"):
            await task
    assert server.methods() == "POST"


def test_coroutine_that_outlives_its_event_loop_is_closed_and_not_a_failure() -> None:
    """As the garbage collector does when no event loop is running any more."""
    assert closes_coroutine(GeneratorExit(), None)
    assert not closes_coroutine(asyncio.CancelledError(), None)


async def test_closed_client_says_so_before_anything_is_sent() -> None:
    async with scripted(CANCELED) as server:
        refunds = server.client()
        await refunds.close()
        await refunds.close()
        with pytest.raises(RuntimeError, match="closed"):
            await refunds.cancel(RE)
        assert not server.received


async def test_closed_session_says_so_before_anything_is_sent() -> None:
    async with scripted(CANCELED) as server, aiohttp.ClientSession() as session:
        refunds = server.client(session=session)
        await refunds.cancel(RE)
        await session.close()
        with pytest.raises(RuntimeError, match="session given"):
            await refunds.cancel(RE)
        with pytest.raises(RuntimeError, match="session given"):
            await server.client(session=session).cancel(RE)
        assert len(server.received) == 1


async def test_close_in_the_midst_of_a_call_leaves_an_unknown_outcome() -> None:
    async with scripted("stall") as server:
        refunds = server.client()
        call = asyncio.create_task(refunds.cancel(RE))
        await server.arrived.wait()
        await refunds.close()
        with pytest.raises(OutcomeUnknownError):
            await call


def test_second_event_loop_gets_a_clear_error() -> None:
    never = RetryPolicy(max_retries=0)
    refunds = RefundsClient(KEY, base_url="http://127.0.0.1:1", retry=never)

    async def use(error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=words):
            await refunds.cancel(RE)

    asyncio.run(use(APIConnectionError, "no connection"))
    asyncio.run(use(RuntimeError, "another event loop"))
    asyncio.run(refunds.close())


def test_where_no_asyncio_runs_the_error_says_that_it_is_needed() -> None:
    """As under trio, which drives a coroutine by itself."""
    call = RefundsClient(KEY).cancel(RE)
    with pytest.raises(RuntimeError, match="needs asyncio"):
        call.send(None)


async def test_client_that_was_never_used_needs_no_loop_and_no_close() -> None:
    RefundsClient(KEY)


@pytest.mark.parametrize("option", ["session", "retry", "on_attempt"])
def test_option_of_the_wrong_type_is_refused(option: str) -> None:
    async def hook(attempt: object) -> None:
        del attempt

    class Hook:
        async def __call__(self, attempt: object) -> None:
            del attempt

    for wrong in (hook, 5, Hook()):
        options: dict[str, Any] = {option: wrong}
        with pytest.raises(TypeError, match=option):
            RefundsClient(KEY, **options)


CANCELLED_AT: dict[str, tuple[Act, Act, float]] = {
    "the wait for the answer": ("stall", "stall", 1.0),
    "the body": ("trickle", "stall", 5.0),
    "the backoff": (answer(503, b""), "stall", 0.0),
    "the settling read": (
        answer(500, b"", {"Idempotent-Replayed": "true"}),
        "stall",
        1.0,
    ),
    "the settling read's body": (
        answer(400, error_json()),
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{",
        1.0,
    ),
}


@pytest.mark.parametrize(
    ("act", "read", "seconds"), CANCELLED_AT.values(), ids=CANCELLED_AT.keys()
)
async def test_cancellation_leaves_nothing_behind(
    act: Act, read: Act, seconds: float
) -> None:
    connector = aiohttp.TCPConnector(limit=1)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        scripted(act, CANCELED, reads=[read]) as server,
    ):
        refunds = server.client(session=session)
        before = asyncio.all_tasks()
        call = asyncio.create_task(refunds.cancel(RE))
        if seconds:
            await asyncio.sleep(seconds)
        else:
            await server.arrived.wait()
            for _ in range(20):  # the answer's way through the loop, no more
                await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.sleep(0.01)
        left = asyncio.all_tasks() - before
        assert not {task for task in left if "serve" not in repr(task)}
        # The only slot of the pool is free, on a connection that carries no old answer.
        server.cancels[:] = [CANCELED]
        assert (await refunds.cancel(RE, timeout=2.0)).status == "canceled"
    await asyncio.sleep(0.01)
    assert server.open == 0


@pytest.mark.parametrize("steps", range(12))
async def test_cancellation_at_any_step_leaves_nothing_behind(steps: int) -> None:
    connector = aiohttp.TCPConnector(limit=1)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        scripted(answer(503, b""), CANCELED, reads=[seen("canceled")]) as server,
    ):
        refunds = server.client(session=session)
        call = asyncio.create_task(refunds.cancel(RE))
        for _ in range(steps):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])
        assert (await refunds.cancel(RE, timeout=5.0)).status == "canceled"
        ours = {task for task in asyncio.all_tasks() if "refunds" in repr(task)}
        assert not {task for task in ours if "test_" not in repr(task)}
    await asyncio.sleep(0.01)
    assert server.open == 0


async def test_body_in_many_pieces_is_put_together() -> None:
    body = refund_json(metadata={"long": "x" * 300_000})
    async with scripted(answer(body=body)) as server, server.client() as refunds:
        refund = await refunds.cancel(RE)
    assert refund.last_response.body == body


@pytest.mark.parametrize("size", [(1 << 20) - 1, 1 << 20, (1 << 20) + 1])
async def test_body_up_to_a_mebibyte_is_read(size: int) -> None:
    body = refund_json().ljust(size)
    async with (
        scripted(answer(body=body), reads=[seen("requires_action")]) as server,
        server.client() as refunds,
    ):
        if size <= 1 << 20:
            assert (await refunds.cancel(RE)).status == "canceled"
        else:
            with pytest.raises(OutcomeUnknownError, match="1048576"):
                await refunds.cancel(RE)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_end_of_the_process_passes_through_a_call(
    error: type[BaseException],
) -> None:
    config = aiohttp.TraceConfig()

    async def trace(*_: object) -> None:
        raise error

    config.on_request_end.append(trace)
    async with (
        aiohttp.ClientSession(trace_configs=[config]) as session,
        scripted(CANCELED) as server,
    ):
        with pytest.raises(error):
            await server.client(session=session).cancel(RE)
