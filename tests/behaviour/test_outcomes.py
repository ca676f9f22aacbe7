"""The promise of three: each row of the table of retries, over a real socket."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import trustme
from aiohttp.abc import AbstractResolver, ResolveResult

from async_refunds import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    IdempotencyError,
    InvalidRequestError,
    OutcomeUnknownError,
    PermissionDeniedError,
    RateLimitError,
    RefundNotCancelableError,
    RefundNotFoundError,
    RefundsClient,
    RefundsError,
    RetryPolicy,
)
from async_refunds.client import begin_call
from async_refunds.protocol.outcome import SentBefore
from async_refunds.protocol.requests import cancel_request
from tests.conftest import JumpingEventLoop
from tests.support.batches import client, emulator
from tests.support.scripted import (
    CANCELED,
    CUT,
    KEY,
    RE,
    Act,
    answer,
    error_json,
    refund_json,
    refusal,
    scripted,
    seen,
)

if TYPE_CHECKING:
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

    from async_refunds.models import Attempt
    from async_refunds.protocol.requests import Request

WAITING = seen("requires_action")
NO_CODE = refusal(400)
CUT_BODY = answer(body=refund_json())[:-40] + CUT
MISSING = refusal(404, code="resource_missing", param="id")
EXPIRED = refusal(401, code="api_key_expired")
IN_USE = refusal(409, code="idempotency_key_in_use")
LIMITED = refusal(
    429, {"Stripe-Rate-Limited-Reason": "endpoint-rate"}, code="rate_limit"
)
LOCKED = refusal(429, code="lock_timeout")
REUSED = refusal(400, type="idempotency_error")
SAVED_500 = refusal(500, {"Idempotent-Replayed": "true"}, type="api_error")
HTML = answer(502, b"<html><h1>Bad Gateway</h1></html>")

LOST: dict[str, Act] = {
    "reset": "reset",
    "disconnect": "close",
    "stall": "stall",
    "cut body": CUT_BODY,
    "garbage": answer(body=b"not JSON"),
    "empty": answer(body=b""),
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "bad gzip": answer(body=b"not gzip", headers={"Content-Encoding": "gzip"}),
    "another refund": answer(body=refund_json(id="re_another")),
    "not HTTP": b"SSH-2.0-OpenSSH_9.2\r\n\r\n" + CUT,
    "endless body": answer(body=b" " * (2 << 20)),
    "in use": IN_USE,
    "dependency": refusal(424),
    "server 500": refusal(500, type="api_error"),
    "server 503": refusal(503, type="api_error"),
    "proxy 502": HTML,
    "no status of HTTP": answer(999, b""),
}
"""What may have landed, and is asked again."""


@pytest.mark.parametrize("act", LOST.values(), ids=LOST.keys())
async def test_lost_answer_is_asked_again_with_the_same_key(act: Act) -> None:
    async with scripted(act, CANCELED) as server, server.client() as refunds:
        refund = await refunds.cancel(RE)
    assert refund.status == "canceled"
    assert server.methods() == "POST POST"
    assert server.cancel_keys == {refund.last_response.idempotency_key}
    assert [each.number for each in refund.last_response.attempts] == [1, 2]
    assert refund.last_response.request_id == "req_canceled"


@pytest.mark.parametrize("act", LOST.values(), ids=LOST.keys())
async def test_answer_lost_to_the_last_is_settled_by_a_read(act: Act) -> None:
    async with (
        scripted(act, reads=[seen("canceled")]) as server,
        server.client(attempt_timeout=5.0) as refunds,
    ):
        refund = await refunds.cancel(RE)
    assert refund.status == "canceled"
    assert server.methods() == "POST POST POST POST GET"
    assert refund.last_response.attempts[-1].method == "GET"
    assert refund.last_response.request_id == "req_seen"
    assert server.cancel_keys == {refund.last_response.idempotency_key}


@pytest.mark.parametrize("act", LOST.values(), ids=LOST.keys())
async def test_answer_lost_to_the_last_and_refund_still_open_is_unknown(
    act: Act,
) -> None:
    async with (
        scripted(act, reads=[WAITING]) as server,
        server.client(attempt_timeout=5.0) as refunds,
    ):
        with pytest.raises(OutcomeUnknownError) as caught:
            await refunds.cancel(RE)
    assert server.cancel_keys == {caught.value.idempotency_key}
    assert caught.value.refund is not None
    assert caught.value.refund.status == "requires_action"
    assert len(caught.value.attempts) == 5


@pytest.mark.parametrize(
    ("acts", "why"),
    [
        (("stall", IN_USE), r"an answer was lost \(timeout\), then HTTP status 409"),
        ((CUT_BODY, MISSING), r"an answer was lost \(cut_body\), then HTTP status 404"),
        (("reset",), r"the connection broke"),
        ((IN_USE,), "HTTP status 409"),
    ],
)
async def test_unknown_outcome_names_how_an_answer_was_lost(
    acts: tuple[Act, ...], why: str
) -> None:
    """A 409 comes of the lost one, and not of anybody else."""
    async with (
        scripted(*acts, reads=[WAITING]) as server,
        server.client(attempt_timeout=5.0) as refunds,
    ):
        with pytest.raises(OutcomeUnknownError, match=f"canceled: {why}"):
            await refunds.cancel(RE)


FINAL_NO: dict[str, tuple[bytes, type[RefundsError], int]] = {
    "unknown id": (MISSING, RefundNotFoundError, 1),
    "no such route": (refusal(404), InvalidRequestError, 1),
    "bad key": (refusal(401), AuthenticationError, 1),
    "expired key": (EXPIRED, AuthenticationError, 1),
    "no permission": (refusal(403), PermissionDeniedError, 1),
    "key reused": (REUSED, IdempotencyError, 1),
    "unknown parameter": (
        refusal(400, code="parameter_unknown", param="x"),
        InvalidRequestError,
        1,
    ),
    "not acceptable": (refusal(406), InvalidRequestError, 1),
    "limiter": (LIMITED, RateLimitError, 4),
    "lock": (LOCKED, RateLimitError, 4),
    "told to retry a no": (
        refusal(402, {"Stripe-Should-Retry": "true"}),
        InvalidRequestError,
        4,
    ),
    "told not to retry a limit": (
        refusal(429, {"Stripe-Should-Retry": "false"}),
        RateLimitError,
        1,
    ),
}


@pytest.mark.parametrize(
    ("act", "error", "requests"), FINAL_NO.values(), ids=FINAL_NO.keys()
)
async def test_definite_no_is_raised_as_what_it_is(
    act: bytes, error: type[RefundsError], requests: int
) -> None:
    async with scripted(act) as server, server.client() as refunds:
        with pytest.raises(RefundsError) as caught:
            await refunds.cancel(RE)
    assert type(caught.value) is error
    assert len(server.received) == len(caught.value.attempts) == requests
    assert {caught.value.idempotency_key} == server.cancel_keys


NOT_STRIPES: dict[str, bytes] = {
    **{
        f"{status}": answer(status, b"<html>", {"Request-Id": "req_1"})
        for status in (301, 302, 400, 401, 402, 403, 404, 405, 406, 407, 410, 413)
    },
    **{f"{status}": answer(status) for status in (415, 421, 422, 426, 428, 451, 499)},
    "redirect": answer(302, b"", {"Location": "http://127.0.0.1:1/"}),
    "not modified": b"HTTP/1.1 304 Not Modified\r\n\r\n",
    "error object alone": answer(404, error_json(code="resource_missing")),
}
"""What a proxy may put in place of the answer to a cancel that was executed."""


@pytest.mark.parametrize("act", NOT_STRIPES.values(), ids=NOT_STRIPES.keys())
async def test_no_of_a_proxy_is_settled_by_one_read(act: bytes) -> None:
    async with (
        scripted(act, reads=[seen("canceled")]) as server,
        server.client() as refunds,
    ):
        assert (await refunds.cancel(RE)).status == "canceled"
    assert server.methods() == "POST GET"


@pytest.mark.parametrize("act", NOT_STRIPES.values(), ids=NOT_STRIPES.keys())
async def test_no_of_a_proxy_to_everything_is_unknown_and_says_why(act: bytes) -> None:
    async with scripted(act, reads=[act]) as server, server.client() as refunds:
        with pytest.raises(OutcomeUnknownError, match="did not come from Stripe"):
            await refunds.cancel(RE)
    assert len(server.received) <= 2


async def test_limit_of_a_proxy_is_retried_and_then_settled() -> None:
    limit = answer(429, b"slow down")
    async with (
        scripted(limit, reads=[seen("canceled")]) as server,
        server.client() as refunds,
    ):
        assert (await refunds.cancel(RE)).status == "canceled"
    assert server.methods() == "POST POST POST POST GET"


UNCONFIRMED = {
    status: refusal(status, echo=False, code=f"code_{status}")
    for status in (400, 401, 403, 404, 413)
}
"""Stripe's refusals without the key. They may be late answers to something else."""


@pytest.mark.parametrize("status", UNCONFIRMED)
async def test_refusal_that_may_answer_another_request_is_believed_if_it_comes_twice(
    status: int,
) -> None:
    act = UNCONFIRMED[status]
    for read in (WAITING, act):
        once = RetryPolicy(max_retries=1)
        async with (
            scripted(act, reads=[read]) as server,
            server.client(retry=once) as refunds,
        ):
            with pytest.raises(APIStatusError) as caught:
                await refunds.cancel(RE)
        assert caught.value.status_code == status
        assert server.methods().startswith("POST POST GET")


async def test_second_refusal_comes_on_a_connection_that_carried_nothing_before() -> (
    None
):
    """Two kept connections may each hold a late answer, both the same."""
    act = UNCONFIRMED[401]
    async with scripted(act, reads=[act]) as server, server.client() as refunds:
        with pytest.raises(AuthenticationError):
            await refunds.cancel(RE)
        methods = server.methods()
        assert server.connections == len(methods.split()) == 3
        server.cancels[:], server.reads[:] = [CANCELED], [WAITING]
        await asyncio.gather(refunds.retrieve(RE), refunds.cancel(RE))
        assert server.connections <= 4  # these are kept, and used again


@pytest.mark.parametrize("read", [HTML, seen("a_later_word"), seen(None)])
async def test_refusal_that_came_twice_is_not_believed_without_a_read(
    read: bytes,
) -> None:
    """Nor by one that tells no state in which a refund certainly is not canceled."""
    act = UNCONFIRMED[404]
    async with scripted(act, reads=[read]) as server, server.client() as refunds:
        with pytest.raises(OutcomeUnknownError):
            await refunds.cancel(RE)
    assert server.methods().startswith("POST POST GET")


@pytest.mark.parametrize("status", UNCONFIRMED)
async def test_refusals_that_the_refund_contradicts_are_not_believed(
    status: int,
) -> None:
    async with (
        scripted(UNCONFIRMED[status], reads=[seen("canceled")]) as server,
        server.client() as refunds,
    ):
        assert (await refunds.cancel(RE)).status == "canceled"
    assert server.methods() == "POST POST GET"


LIMITED_SILENTLY = refusal(429, echo=False, code="rate_limit")


@pytest.mark.parametrize(
    ("read", "told"),
    [
        (seen("canceled"), None),
        (WAITING, RateLimitError),
        (LIMITED_SILENTLY, RateLimitError),
        (HTML, OutcomeUnknownError),
        (seen("a_later_word"), OutcomeUnknownError),
    ],
    ids=["canceled", "waiting", "limited too", "a proxy's page", "no known state"],
)
async def test_limit_is_believed_if_it_comes_twice_unless_one_read_contradicts_it(
    read: bytes, told: type[RefundsError] | None
) -> None:
    async with (
        scripted(LIMITED_SILENTLY, reads=[read]) as server,
        server.client() as refunds,
    ):
        if told is None:
            assert (await refunds.cancel(RE)).status == "canceled"
        else:
            with pytest.raises(told):
                await refunds.cancel(RE)
    assert server.methods() == "POST POST POST POST GET"


LIMITED_WITH_KEY = refusal(429, code="rate_limit")
ONE_DOUBT: dict[str, tuple[list[Act], type[RefundsError]]] = {
    # The first may answer another request: then nobody knows what became of its own.
    "another, then a limit": (
        [UNCONFIRMED[404], LIMITED_SILENTLY],
        OutcomeUnknownError,
    ),
    "another, then a limit to our key": (
        [UNCONFIRMED[404], LIMITED_WITH_KEY],
        OutcomeUnknownError,
    ),
    "another, then a refused key": (
        [UNCONFIRMED[403], UNCONFIRMED[401]],
        OutcomeUnknownError,
    ),
    "a limit, then another limit": (
        [LIMITED_SILENTLY, refusal(429, echo=False, code="lock_timeout")],
        OutcomeUnknownError,
    ),
    # For our key Stripe gives its first answer again, so that was no other one.
    "another, then a refusal to our key": (
        [UNCONFIRMED[404], refusal(404, code="resource_missing")],
        RefundNotFoundError,
    ),
    "a limit, and the same to our key": (
        [LIMITED_SILENTLY, LIMITED_WITH_KEY],
        RateLimitError,
    ),
    "a limit twice, then a refused key": (
        [LIMITED_SILENTLY, LIMITED_SILENTLY, UNCONFIRMED[401]],
        AuthenticationError,
    ),
    "a limit to our key, then a refused key": (
        [LIMITED_WITH_KEY, UNCONFIRMED[401]],
        AuthenticationError,
    ),
}


@pytest.mark.parametrize(("acts", "told"), ONE_DOUBT.values(), ids=ONE_DOUBT)
async def test_refusal_that_nothing_confirms_leaves_its_doubt_behind(
    acts: list[Act], told: type[RefundsError]
) -> None:
    """The cancel that it seemed to answer may still be carried out."""
    async with (
        scripted(*acts, reads=[WAITING]) as server,
        server.client() as refunds,
    ):
        with pytest.raises(told):
            await refunds.cancel(RE)
    assert len(server.cancel_keys) == 1


PROXY_LIMITS: dict[str, bytes] = {
    "page": b"Server: nginx\r\nContent-Length: 12\r\n\r\n<h1>429</h1>",
    "gateway": b"Retry-After: 1\r\nKong-Request-Id: 1f\r\nContent-Length: 37\r\n\r\n"
    b'{"message":"API rate limit exceeded"}',
    "object without a name": b"Content-Length: 37\r\n\r\n"
    b'{"error":{"type":"rate_limit_error"}}',
    "named, without an object": b"Request-Id: req_1\r\nContent-Length: 0\r\n\r\n",
}
"""As they come over the wire, in place of the answer to a cancel that was executed."""


@pytest.mark.parametrize("act", PROXY_LIMITS.values(), ids=PROXY_LIMITS.keys())
@pytest.mark.parametrize("read", ["canceled", "requires_action", "limited"])
async def test_limit_of_a_proxy_is_never_a_no_however_often_it_comes(
    act: bytes, read: str
) -> None:
    act = b"HTTP/1.1 429 Too Many Requests\r\n" + act
    async with (
        scripted(act, reads=[act if read == "limited" else seen(read)]) as server,
        server.client() as refunds,
    ):
        if read == "canceled":
            assert (await refunds.cancel(RE)).status == "canceled"
        else:
            with pytest.raises(OutcomeUnknownError):
                await refunds.cancel(RE)
    assert server.methods().startswith("POST POST POST POST GET")


@pytest.mark.parametrize("state", ["canceled", "requires_action", "limited"])
async def test_limit_that_came_once_is_settled_and_no_proof(state: str) -> None:
    read = LIMITED_SILENTLY if state == "limited" else seen(state)
    once = RetryPolicy(max_retries=0)
    async with (
        scripted(LIMITED_SILENTLY, reads=[read]) as server,
        server.client(retry=once) as refunds,
    ):
        if state == "canceled":
            assert (await refunds.cancel(RE)).status == "canceled"
        else:
            with pytest.raises(OutcomeUnknownError):
                await refunds.cancel(RE)
    assert server.methods() == "POST GET"


@pytest.mark.parametrize("status", UNCONFIRMED)
async def test_late_refusal_of_another_request_does_not_hide_the_cancel(
    status: int,
) -> None:
    async with (
        scripted(UNCONFIRMED[status], CANCELED) as server,
        server.client() as refunds,
    ):
        assert (await refunds.cancel(RE)).status == "canceled"
    assert server.methods() == "POST POST"


@pytest.mark.parametrize("status", UNCONFIRMED)
@pytest.mark.parametrize("state", ["canceled", "requires_action"])
async def test_refusal_that_cannot_be_asked_for_twice_is_settled(
    status: int, state: str
) -> None:
    never = {"Stripe-Should-Retry": "false"}
    act = refusal(status, never, echo=False, code=f"code_{status}")
    async with scripted(act, reads=[seen(state)]) as server, server.client() as refunds:
        if state == "canceled":
            assert (await refunds.cancel(RE)).status == "canceled"
        else:
            with pytest.raises(OutcomeUnknownError):
                await refunds.cancel(RE)
    assert server.methods() == "POST GET"


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_refusal_without_our_key_is_asked_for_twice_also_without_retries(
    status: int,
) -> None:
    act, once = UNCONFIRMED[status], RetryPolicy(max_retries=0)
    async with (
        scripted(act, reads=[act]) as server,
        server.client(retry=once) as refunds,
    ):
        with pytest.raises(APIStatusError) as caught:
            await refunds.cancel(RE)
    assert caught.value.status_code == status
    assert server.methods() == "POST POST GET"


async def test_refusal_is_not_asked_for_twice_where_no_time_is_left() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, JumpingEventLoop)

    def wait(_: Attempt) -> None:
        loop.jump(79.0)

    never = RetryPolicy(max_retries=0)
    async with (
        scripted(UNCONFIRMED[401], reads=[WAITING]) as server,
        server.client(retry=never, on_attempt=wait) as refunds,
    ):
        with pytest.raises(OutcomeUnknownError):
            await refunds.cancel(RE)
    assert server.methods().count("POST") == 1


async def test_client_that_was_closed_opens_no_connection_for_a_second_answer() -> None:
    closing: list[asyncio.Task[None]] = []

    def close(_: Attempt) -> None:
        if not closing:
            closing.append(asyncio.create_task(refunds.close()))

    async with scripted(UNCONFIRMED[401]) as server:
        refunds = server.client(on_attempt=close)
        with pytest.raises(OutcomeUnknownError):
            await refunds.cancel(RE)
        await asyncio.gather(*closing)
        assert server.methods() == "POST"
    sessions = [s for s in gc.get_objects() if isinstance(s, aiohttp.ClientSession)]
    assert all(session.closed for session in sessions)


async def test_refusal_that_came_once_is_not_proven_by_a_read_that_is_refused() -> None:
    """The read may be refused for a reason of its own."""
    act = refusal(401, {"Stripe-Should-Retry": "false"}, echo=False)
    async with scripted(act, reads=[act]) as server, server.client() as refunds:
        with pytest.raises(OutcomeUnknownError):
            await refunds.cancel(RE)
    assert server.methods() == "POST GET"


async def test_conflict_that_must_not_be_retried_is_settled_by_the_read() -> None:
    act = refusal(409, {"Stripe-Should-Retry": "false"})
    async with scripted(act, reads=[WAITING]) as server, server.client() as refunds:
        with pytest.raises(OutcomeUnknownError):
            await refunds.cancel(RE)
    assert server.methods() == "POST GET"


@pytest.mark.parametrize("lost", ["reset", "close", "stall", CUT_BODY, HTML, IN_USE])
@pytest.mark.parametrize("state", ["canceled", "requires_action", "gone"])
@pytest.mark.parametrize(
    "no", [MISSING, EXPIRED, REUSED, NO_CODE, refusal(403), refusal(402)]
)
async def test_no_after_a_lost_answer_is_never_a_plain_no(
    lost: Act, no: bytes, state: str
) -> None:
    reads: list[Act] = [MISSING if state == "gone" else seen(state)]
    async with scripted(lost, no, reads=reads) as server, server.client() as refunds:
        if state == "canceled":
            assert (await refunds.cancel(RE)).status == "canceled"
        else:
            with pytest.raises(OutcomeUnknownError):
                await refunds.cancel(RE)
    assert server.methods() == "POST POST GET"


@pytest.mark.parametrize("limited", [LIMITED, LOCKED])
async def test_limit_after_a_lost_answer_is_settled(limited: bytes) -> None:
    async with (
        scripted("reset", limited, reads=[WAITING]) as server,
        server.client() as refunds,
    ):
        with pytest.raises(OutcomeUnknownError):
            await refunds.cancel(RE)
    assert server.methods() == "POST POST POST POST GET"


async def test_saved_500_is_not_asked_again_but_settled() -> None:
    async with (
        scripted(SAVED_500, reads=[seen("canceled")]) as server,
        server.client() as refunds,
    ):
        assert (await refunds.cancel(RE)).status == "canceled"
    assert server.methods() == "POST GET"


@pytest.mark.parametrize("status", [500, 503])
async def test_told_not_to_retry_a_500_goes_straight_to_the_read(status: int) -> None:
    act = refusal(status, {"Stripe-Should-Retry": "false"}, type="api_error")
    async with scripted(act, reads=[WAITING]) as server, server.client() as refunds:
        with pytest.raises(OutcomeUnknownError):
            await refunds.cancel(RE)
    assert server.methods() == "POST GET"


@pytest.mark.parametrize("state", ["succeeded", "failed"])
async def test_lost_answer_of_a_refund_in_a_final_state_is_a_no(state: str) -> None:
    async with (
        scripted("reset", reads=[seen(state)]) as server,
        server.client() as refunds,
    ):
        with pytest.raises(RefundNotCancelableError, match=state) as caught:
            await refunds.cancel(RE)
    assert caught.value.refund.status == state


@pytest.mark.parametrize("state", ["pending", None, "a later word of Stripe's"])
async def test_lost_answer_of_a_refund_that_may_come_back_is_unknown(
    state: str | None,
) -> None:
    async with (
        scripted("reset", reads=[seen(state)]) as server,
        server.client() as refunds,
    ):
        with pytest.raises(OutcomeUnknownError):
            await refunds.cancel(RE)


@pytest.mark.parametrize("state", ["pending", "succeeded", "failed", "canceled", "new"])
async def test_refusal_without_a_code_is_explained_by_one_read(state: str) -> None:
    async with (
        scripted(NO_CODE, reads=[seen(state)]) as server,
        server.client() as refunds,
    ):
        with pytest.raises(RefundNotCancelableError, match=state) as caught:
            await refunds.cancel(RE)
    assert server.methods() == "POST GET"
    assert caught.value.refund.status == state
    assert caught.value.status_code == 400


@pytest.mark.parametrize("read", [WAITING, seen(None), MISSING, refusal(403)])
async def test_refusal_that_no_state_explains_stays_what_stripe_said(
    read: bytes,
) -> None:
    async with scripted(NO_CODE, reads=[read]) as server, server.client() as refunds:
        with pytest.raises(InvalidRequestError, match=r"No\.") as caught:
            await refunds.cancel(RE)
    assert type(caught.value) is InvalidRequestError


async def test_refund_canceled_before_is_returned_when_that_is_fine() -> None:
    async with (
        scripted(NO_CODE, reads=[seen("canceled")]) as server,
        server.client() as refunds,
    ):
        refund = await refunds.cancel(RE, already_canceled_ok=True)
    assert refund.status == "canceled"
    assert refund.last_response.idempotency_key in server.cancel_keys


async def test_success_in_another_state_is_not_believed() -> None:
    async with (
        scripted(seen("pending"), reads=[WAITING]) as server,
        server.client() as refunds,
    ):
        with pytest.raises(OutcomeUnknownError):
            await refunds.cancel(RE)
    assert server.methods() == "POST GET"


async def test_settling_read_is_itself_retried() -> None:
    async with (
        scripted("reset", reads=["close", HTML, seen("canceled")]) as server,
        server.client(retry=RetryPolicy(max_retries=2)) as refunds,
    ):
        # aiohttp repeats a GET by itself where a kept connection turns out dead.
        assert (await refunds.cancel(RE)).status == "canceled"
    assert server.methods().startswith("POST POST POST GET GET")


def unused_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


async def test_refused_connection_is_not_sent() -> None:
    url = f"http://127.0.0.1:{unused_port()}"
    async with RefundsClient("sk_test_x", base_url=url) as refunds:
        with pytest.raises(APIConnectionError, match="refused") as caught:
            await refunds.cancel(RE)
    assert [each.failure for each in caught.value.attempts] == ["refused"] * 4
    assert not any(each.sent for each in caught.value.attempts)
    assert isinstance(caught.value, ConnectionError)


async def test_unknown_host_is_not_sent() -> None:
    class NoSuchHost(AbstractResolver):
        async def resolve(
            self, host: str, port: int = 0, family: int = 0
        ) -> list[ResolveResult]:
            raise OSError(None, "no such host")

        async def close(self) -> None:
            pass

    connector = aiohttp.TCPConnector(resolver=NoSuchHost())
    async with aiohttp.ClientSession(connector=connector) as session:
        refunds = RefundsClient("sk_test_x", session=session)
        with pytest.raises(APIConnectionError) as caught:
            await refunds.cancel(RE)
    assert {each.failure for each in caught.value.attempts} == {"refused"}


@pytest.mark.parametrize("seconds", [10.0, 400.0])
async def test_wait_for_the_pool_is_not_sent(seconds: float) -> None:
    pool = aiohttp.TCPConnector(limit=1)
    async with (
        scripted("stall") as server,
        aiohttp.ClientSession(connector=pool) as session,
    ):

        async def hold() -> None:
            no_limit = aiohttp.ClientTimeout(total=None)
            await session.post(f"{server.url}/hold", timeout=no_limit)

        holder = asyncio.create_task(hold())
        await server.arrived.wait()  # now it has the only connection
        with pytest.raises(APITimeoutError) as caught:
            await server.client(session=session).cancel(RE, timeout=seconds)
        assert {each.failure for each in caught.value.attempts} == {"connect_timeout"}
        assert isinstance(caught.value, TimeoutError)
        assert [request.target for request in server.received] == ["/hold"]
        holder.cancel()
        await asyncio.wait([holder])


@pytest.mark.parametrize("trusted", [True, False])
async def test_certificate_nobody_trusts_is_not_sent_nor_tried_again(
    trusted: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    authority = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    # trustme's types leave pyOpenSSL, which it may also serve, unknown.
    authority.issue_cert("127.0.0.1").configure_cert(tls)  # pyright: ignore[reportUnknownMemberType]
    context = ssl.create_default_context()
    if trusted:
        authority.configure_trust(context)  # pyright: ignore[reportUnknownMemberType]
    connector = aiohttp.TCPConnector(ssl=context)
    async with (
        scripted(CANCELED, tls=tls) as server,
        aiohttp.ClientSession(connector=connector) as session,
    ):
        refunds = server.client(session=session)
        if trusted:
            assert (await refunds.cancel(RE)).status == "canceled"
        else:
            with pytest.raises(APIConnectionError, match="certificate") as caught:
                await refunds.cancel(RE)
            assert len(caught.value.attempts) == 1
            assert not server.received


READ_ERRORS: dict[str, tuple[Act, type[RefundsError]]] = {
    "reset": ("reset", APIConnectionError),
    "stall": ("stall", APITimeoutError),
    "cut body": (CUT_BODY, APIError),
    "garbage": (answer(body=b"?"), APIError),
    "not HTTP": (b"?\r\n\r\n" + CUT, APIError),
    "in use": (IN_USE, IdempotencyError),
    "server": (HTML, APIError),
    "missing": (MISSING, RefundNotFoundError),
    "no status of HTTP": (answer(999, b""), APIError),
}


@pytest.mark.parametrize(("act", "error"), READ_ERRORS.values(), ids=READ_ERRORS.keys())
async def test_failed_read_is_raised_as_what_it_is(
    act: Act, error: type[RefundsError]
) -> None:
    async with scripted(reads=[act]) as server, server.client() as refunds:
        with pytest.raises(error) as caught:
            await refunds.retrieve(RE)
    assert type(caught.value) is error
    assert caught.value.idempotency_key is None


class BrokenObserver:
    """Fails on the settling read, as a bug or a lack of memory may."""

    def attempt_finished(
        self, request: Request[Any], classification: object, attempt: object
    ) -> None:
        del classification, attempt
        if request.method == "GET":
            raise MemoryError

    def attempt_broken_off(self, attempt: object) -> None:
        raise AssertionError(f"each one has ended, and not {attempt!r}")


@pytest.mark.parametrize(
    ("act", "outcome"),
    [("reset", "unknown"), (UNCONFIRMED[403], "unknown"), (NO_CODE, "failed")],
)
async def test_fault_during_the_settling_read_hides_nothing(
    act: Act, outcome: str
) -> None:
    once = RetryPolicy(max_retries=0)
    request = cancel_request(RE, idempotency_key="key")
    async with (
        scripted(act, reads=[WAITING]) as server,
        server.client(retry=once) as refunds,
    ):
        call = begin_call(refunds, None, observer=BrokenObserver())
        conclusion = await call.cancel(request)
    assert conclusion.outcome == outcome
    assert "MemoryError" in str(conclusion.error)
    assert "before it was sent" not in str(conclusion.error)


class Door(aiohttp.TCPConnector):
    """Is shut for the second, third and fourth connection."""

    entered = 0

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's own argument
    ) -> Connection:
        self.entered += 1
        if self.entered in (2, 3, 4):
            raise aiohttp.ClientConnectorError(req.connection_key, OSError(111, "no"))
        return await super().connect(req, traces, timeout)


@pytest.mark.parametrize("status", [401, 403, 404, 429])
@pytest.mark.parametrize("state", ["canceled", "requires_action"])
async def test_doubtful_refusal_is_not_forgotten_when_the_server_is_gone(
    status: int, state: str
) -> None:
    act = refusal(status, echo=False, code="code")
    async with (
        scripted(act, reads=[seen(state)]) as server,
        aiohttp.ClientSession(connector=Door()) as session,
    ):
        refunds = server.client(session=session)
        if state == "canceled":
            assert (await refunds.cancel(RE)).status == "canceled"
        else:
            with pytest.raises(OutcomeUnknownError):
                await refunds.cancel(RE)
    assert server.methods() == "POST GET"


class Provider:
    """Gives one key, and then fails."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.given = False

    def __call__(self) -> str:
        if self.given:
            raise self.error
        self.given = True
        return KEY


class Boom(BaseException):
    """No `Exception`."""


@pytest.mark.parametrize("error", [OSError(), Boom(), asyncio.CancelledError()])
async def test_key_that_cannot_be_renewed_hides_no_doubt(error: BaseException) -> None:
    expired = refusal(401, code="api_key_expired")
    async with scripted("reset", expired, reads=[WAITING]) as server:
        refunds = RefundsClient(Provider(error), base_url=server.url)
        with pytest.raises(OutcomeUnknownError):
            await refunds.cancel(RE)
        await refunds.close()


async def test_key_that_cannot_be_loaded_hides_no_doubt_of_an_earlier_call() -> None:
    provider = Provider(OSError())
    provider.given = True
    refunds = RefundsClient(provider, base_url="http://127.0.0.1:1")
    request = cancel_request(RE, idempotency_key="key")
    asking_again = begin_call(refunds, None, sent_before=SentBefore())
    conclusion = await asking_again.cancel(request)
    assert conclusion.outcome == "unknown"
    fresh = await begin_call(refunds, None).cancel(request)
    assert fresh.outcome == "failed"
    await refunds.close()


async def test_renewed_key_does_not_erase_a_doubtful_refusal() -> None:
    keys = iter([KEY, f"{KEY}2"])
    once = RetryPolicy(max_retries=0)
    async with (
        scripted(refusal(401, echo=False), reads=["close"]) as server,
        aiohttp.ClientSession(connector=Door()) as session,
    ):
        refunds = RefundsClient(
            lambda: next(keys), base_url=server.url, session=session, retry=once
        )
        with pytest.raises(OutcomeUnknownError):
            await refunds.cancel(RE)


async def test_time_out_around_a_call_leaves_it_perhaps_canceled() -> None:
    """As a cancellation does: the same key tells what became of it."""
    stripe = emulator()
    refund_id = stripe.add_refund()
    stripe.latency = 2.0
    async with client(stripe) as refunds:
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(1):
                await refunds.cancel(refund_id, idempotency_key="mine")
        assert type(caught.value) is TimeoutError
        await asyncio.sleep(3)  # of the jumping loop: Stripe goes on with it
        assert stripe.books.cancellations[refund_id] == 1
        again = await refunds.cancel(refund_id, idempotency_key="mine")
    assert again.status == "canceled"
    assert stripe.books.cancellations[refund_id] == 1
