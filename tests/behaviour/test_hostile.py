"""What the world, the caller's hooks and odd arguments must not make of the truth."""

from __future__ import annotations

import asyncio
import enum
import gc
import logging
import pickle
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import aiohttp
import pytest
from rich.pretty import pretty_repr

from async_refunds import (
    APIConnectionError,
    Attempt,
    OutcomeUnknownError,
    RefundNotCancelableError,
    RefundsClient,
)
from async_refunds.transport.session import authorization
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
    from collections.abc import Iterator

OTHER = "re_other"
NO_CODE = answer(400, error_json())


@pytest.fixture(params=["own", "borrowed"])
def borrow(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "borrowed")


@pytest.mark.parametrize("status", [200, 400, 404, 408])
@pytest.mark.parametrize("together", [True, False])
async def test_answer_nobody_asked_for_is_not_taken_for_ours(
    status: int,
    together: bool,  # noqa: FBT001 - a parameter of the test
    borrow: bool,  # noqa: FBT001 - the same
) -> None:
    """A kept connection that a proxy wrote to while it was idle."""
    stray = answer(status, error_json())
    acts: list[Act] = [CANCELED + stray if together else CANCELED, CANCELED]
    async with scripted(*acts) as server, aiohttp.ClientSession() as session:
        refunds = server.client(session=session if borrow else None)
        await refunds.cancel(RE)
        if not together:
            server.say(stray)
            await asyncio.sleep(0.01)
        server.cancels[:] = [answer(body=refund_json(id=OTHER))]
        refund = await refunds.cancel(OTHER)
        await refunds.close()
    assert refund.id == OTHER
    assert len(refund.last_response.attempts) == 1
    assert server.connections == 2


async def test_answer_under_another_key_is_not_ours() -> None:
    mixed_up = answer(404, error_json(), {"Idempotency-Key": "somebody's"})
    async with scripted(mixed_up, CANCELED) as server, server.client() as refunds:
        refund = await refunds.cancel(RE)
    assert len(refund.last_response.attempts) == 2


async def test_request_timeout_of_a_proxy_may_have_landed() -> None:
    act = answer(408, b"<html>")
    async with (
        scripted(act, reads=[seen("canceled")]) as server,
        server.client() as refunds,
    ):
        assert (await refunds.cancel(RE)).status == "canceled"


@pytest.mark.parametrize("moment", ["on_request_end", "on_request_exception"])
async def test_tracing_cannot_pass_off_what_was_sent_as_never_sent(
    moment: str,
) -> None:
    config = aiohttp.TraceConfig()

    async def trace(*_: object) -> None:
        raise aiohttp.ConnectionTimeoutError("the metrics' own host")

    getattr(config, moment).append(trace)
    async with (
        aiohttp.ClientSession(trace_configs=[config]) as session,
        scripted(CANCELED if moment == "on_request_end" else "reset") as server,
    ):
        with pytest.raises(OutcomeUnknownError):
            await server.client(session=session).cancel(RE)


async def test_middlewares_of_a_session_do_not_send_again() -> None:
    async def twice(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        (await handler(request)).close()
        return await handler(request)

    async with (
        aiohttp.ClientSession(middlewares=[twice]) as session,
        scripted(CANCELED) as server,
    ):
        await server.client(session=session).cancel(RE)
    assert server.methods() == "POST"


async def test_hook_that_raises_a_cancellation_does_not_lose_the_refund() -> None:
    def hook(attempt: Attempt) -> None:
        raise asyncio.CancelledError

    async with scripted(CANCELED) as server, server.client(on_attempt=hook) as refunds:
        assert (await refunds.cancel(RE)).status == "canceled"


@pytest.fixture
def broken_log() -> Iterator[None]:
    class Broken(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise RuntimeError("the logging's own")

    logger, broken = logging.getLogger("async_refunds"), Broken()
    logger.addFilter(broken)
    logger.setLevel(logging.DEBUG)
    yield
    logger.removeFilter(broken)
    logger.setLevel(logging.NOTSET)


@pytest.mark.usefixtures("broken_log")
async def test_logging_that_raises_does_not_end_the_call() -> None:
    def hook(attempt: Attempt) -> None:
        raise RuntimeError("the hook's own")

    async with (
        scripted("reset", CANCELED) as server,
        server.client(on_attempt=hook) as refunds,
    ):
        assert (await refunds.cancel(RE)).status == "canceled"


async def test_expand_is_read_once() -> None:
    fields = ["charge"]

    def spoil(attempt: Attempt) -> None:
        fields.append("no field!")

    async with (
        scripted(NO_CODE, reads=[seen("canceled")]) as server,
        server.client(on_attempt=spoil) as refunds,
    ):
        await refunds.cancel(RE, expand=fields, already_canceled_ok=True)
        lazy: Any = (name for name in ["charge"])
        await refunds.cancel(RE, expand=lazy, already_canceled_ok=True)
    targets = [each.target for each in server.received if each.method == "GET"]
    assert targets == [f"/v1/refunds/{RE}?expand%5B%5D=charge"] * 2


async def test_close_does_not_take_the_deadline_from_a_call_under_way() -> None:
    async with aiohttp.ClientSession() as session, scripted("stall") as server:
        refunds = server.client(session=session)
        call = asyncio.create_task(refunds.cancel(RE))
        await server.arrived.wait()
        await refunds.close()
        with pytest.raises(OutcomeUnknownError):
            await asyncio.wait_for(call, 81.0)
    assert server.methods() == "POST", "sent again by a closed client"


async def test_closing_ends_every_waiting_call_with_an_error_of_ours() -> None:
    async with scripted("stall") as server:
        refunds = server.client()
        calls = [asyncio.create_task(refunds.cancel(f"re_{n}")) for n in range(103)]
        await asyncio.sleep(1.0)
        await refunds.close()
        ended = await asyncio.gather(*calls, return_exceptions=True)
    kinds = {type(each) for each in ended}
    assert kinds == {OutcomeUnknownError, APIConnectionError}
    assert sum(isinstance(each, APIConnectionError) for each in ended) == 3
    assert len(server.received) == 100


async def test_call_in_the_queue_of_a_session_that_its_owner_closes() -> None:
    pool = aiohttp.TCPConnector(limit=1)
    async with (
        scripted("stall") as server,
        aiohttp.ClientSession(connector=pool) as session,
    ):
        refunds = server.client(session=session)
        first = asyncio.create_task(refunds.cancel(RE))
        await server.arrived.wait()
        second = asyncio.create_task(refunds.cancel(OTHER))
        await asyncio.sleep(1.0)
        await session.close()
        with pytest.raises(OutcomeUnknownError):
            await first
        with pytest.raises(APIConnectionError, match="the session was closed"):
            await second
    assert len(server.received) == 1


async def test_cancellation_in_the_queue_is_passed_on(borrow: bool) -> None:  # noqa: FBT001 - a parameter
    async with scripted("stall") as server, aiohttp.ClientSession() as session:
        refunds = server.client(session=session if borrow else None)
        calls = [asyncio.create_task(refunds.cancel(f"re_{n}")) for n in range(101)]
        await server.received_at_least(100)
        assert len(server.received) == 100
        calls[-1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await calls[-1]
        await refunds.close()
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)


class Member(str, enum.Enum):  # noqa: UP042 - a StrEnum formats as its value anyway
    ID = RE
    KEY = "intent-1"
    ACCOUNT = "acct_1"
    FIELD = "charge"


async def test_member_of_an_enum_is_its_value() -> None:
    async with scripted(CANCELED) as server, server.client() as refunds:
        refund = await refunds.cancel(
            Member.ID,
            idempotency_key=Member.KEY,
            stripe_account=Member.ACCOUNT,
            expand=[Member.FIELD],
        )
    (sent,) = server.received
    assert sent.target == f"/v1/refunds/{RE}/cancel"
    assert sent.headers["idempotency-key"] == "intent-1"
    assert sent.headers["stripe-account"] == "acct_1"
    assert sent.body == b"expand%5B%5D=charge"
    assert refund.last_response.idempotency_key == "intent-1"
    assert type(refund.last_response.idempotency_key) is str


async def test_text_that_prints_as_another_goes_out_as_what_was_checked() -> None:
    class Sly(str):
        __slots__ = ()

        def __format__(self, spec: str) -> str:
            return "../charges/ch_1"

        __str__ = __repr__ = lambda self: "../charges/ch_1"

    async with scripted(CANCELED) as server, server.client() as refunds:
        await refunds.cancel(Sly(RE))
    assert server.received[0].target == f"/v1/refunds/{RE}/cancel"


async def test_deeply_nested_expansion_is_no_bare_error() -> None:
    deep: dict[str, Any] = {}
    for _ in range(900):
        deep = {"a": deep}
    read = seen("succeeded", charge={"id": "ch_1", "deep": deep})
    async with scripted(NO_CODE, reads=[read]) as server, server.client() as refunds:
        with pytest.raises(RefundNotCancelableError) as caught:
            await refunds.cancel(RE, expand=["charge"])
    assert caught.value.refund.charge == "ch_1"


@pytest.mark.parametrize("status", [101, 204, 205, 304])
async def test_answer_without_a_body_leaves_no_response_open(status: int) -> None:
    head = f"HTTP/1.1 {status} X\r\n\r\n".encode()
    async with (
        scripted(head, reads=[seen("requires_action")]) as server,
        server.client(attempt_timeout=1.0) as refunds,
    ):
        with pytest.raises(Exception, match=RE):
            await refunds.cancel(RE)
    await asyncio.sleep(0.01)
    assert server.open == 0
    gc.collect()  # where a response left open would say so


async def test_request_is_not_left_to_the_garbage_collector(borrow: bool) -> None:  # noqa: FBT001 - a parameter
    async with scripted(CANCELED) as server, aiohttp.ClientSession() as session:
        refunds = server.client(session=session if borrow else None)
        await refunds.cancel(RE)
        gc.collect()
        gc.disable()
        try:
            await refunds.cancel(RE)
            left = [
                each
                for each in gc.get_objects()
                if isinstance(each, aiohttp.ClientRequest)
            ]
        finally:
            gc.enable()
        await refunds.close()
    assert not left


async def test_request_id_that_holds_a_key_is_none() -> None:
    sly = answer(headers={"Request-Id": "req_sk_live_CANARY"})
    async with scripted(sly) as server, server.client() as refunds:
        refund = await refunds.cancel(RE)
    assert refund.last_response.request_id is None


def test_rich_shows_no_key_however_long() -> None:
    """It cuts a string to 80 characters before it asks for the repr of the rest."""
    made = RefundsClient(f"sk_live_{'CANARY' * 30}")
    assert "CANARY" not in pretty_repr(vars(made), max_string=80)
    assert "CANARY" not in pretty_repr(authorization("CANARY" * 30), max_string=80)


async def test_rich_shows_no_body_of_an_error() -> None:
    frames: list[str] = []
    email = "canary@customer.example"
    act = answer(400, error_json(message=email), {"X-Mail": email})
    async with scripted(act, reads=[act]) as server, server.client() as refunds:
        try:
            await refunds.cancel(RE)
        except Exception as error:  # noqa: BLE001 - whichever, its frames are the point
            traceback = error.__traceback__
            while traceback is not None:
                if traceback.tb_frame.f_code.co_filename != __file__:
                    frames.append(pretty_repr(traceback.tb_frame.f_locals))
                traceback = traceback.tb_next
    assert frames
    assert not [text for text in frames if email in text]


def test_client_with_its_key_is_not_pickled() -> None:
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(RefundsClient(KEY))


async def test_session_whose_proxy_would_read_the_key_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:3128")
    async with aiohttp.ClientSession(trust_env=True) as session:
        with pytest.raises(ValueError, match="trust_env"):
            RefundsClient(KEY, base_url="http://127.0.0.1:1", session=session)
        RefundsClient(KEY, session=session)  # to https, it sees a tunnel
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        RefundsClient(KEY, base_url="http://127.0.0.1:1", session=session)
    async with aiohttp.ClientSession(proxy="http://127.0.0.1:3128") as session:
        with pytest.raises(ValueError, match="proxy"):
            RefundsClient(KEY, base_url="http://127.0.0.1:1", session=session)


@pytest.mark.parametrize(
    "name", ["Stripe-Account", "stripe-context", "Idempotency-Key"]
)
async def test_session_that_would_add_to_what_a_call_says_is_refused(name: str) -> None:
    async with aiohttp.ClientSession(headers={name: "acct_other"}) as session:
        with pytest.raises(ValueError, match=name.casefold()):
            RefundsClient(KEY, session=session)


class Greeted:
    """A pool whose every connection has something to say."""

    closed = 0

    def __init__(self) -> None:
        self.protocol = Mock(should_close=True)

    def close(self) -> None:
        Greeted.closed += 1


async def test_pool_of_stale_connections_is_given_up_after_three(
    monkeypatch: pytest.MonkeyPatch,
    borrow: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    async def connect(*_: object, **__: object) -> Greeted:
        return Greeted()

    monkeypatch.setattr(aiohttp.TCPConnector, "connect", connect)
    monkeypatch.setattr(Greeted, "closed", 0)
    async with aiohttp.ClientSession() as session:
        refunds = RefundsClient(KEY, session=session if borrow else None)
        with pytest.raises(
            APIConnectionError, match="answers before it is asked"
        ) as caught:
            await refunds.cancel(RE)
        await refunds.close()
    assert {each.failure for each in caught.value.attempts} == {"refused"}
    assert Greeted.closed == 3 * 4


async def test_proxy_that_talks_no_http_is_not_sent() -> None:
    async with scripted(CANCELED) as server, scripted() as proxy:
        proxy.greeting = b"?\r\n\r\n"
        async with aiohttp.ClientSession(proxy=proxy.url) as session:
            refunds = RefundsClient(
                KEY, base_url=server.url.replace("http:", "https:"), session=session
            )
            with pytest.raises(APIConnectionError):
                await refunds.cancel(RE)
    assert not server.received


@pytest.mark.filterwarnings("ignore:.*(BasicAuth|'auth').*:DeprecationWarning")
async def test_session_with_an_auth_of_its_own_is_refused() -> None:
    async with aiohttp.ClientSession(auth=aiohttp.BasicAuth("a", "b")) as session:
        with pytest.raises(ValueError, match="auth"):
            RefundsClient(KEY, session=session)


@pytest.mark.parametrize("host", ["a..b", "a" * 64, ".a", "-" * 300])
def test_host_that_no_look_up_takes_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="host"):
        RefundsClient(KEY, base_url=f"https://{host}")


async def test_two_calls_of_one_refund_are_two_intents() -> None:
    async with scripted(CANCELED) as server, server.client() as refunds:
        both = await asyncio.gather(refunds.cancel(RE), refunds.cancel(RE))
    assert len({each.last_response.idempotency_key for each in both}) == 2
