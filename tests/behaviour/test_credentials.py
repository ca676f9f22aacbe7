"""An API key that a callable provides, and its rotation without a restart."""

from __future__ import annotations

import asyncio
import ssl
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from async_refunds import (
    APITimeoutError,
    AuthenticationError,
    CallRecord,
    RefundsClient,
    cancel_many,
)
from tests.support.scripted import (
    CANCELED,
    RE,
    Received,
    Scripted,
    refusal,
    scripted,
    seen,
    served,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

OLD, NEW = "sk_test_CANARYold", "sk_test_CANARYnew"
EXPIRED = refusal(401, code="api_key_expired")


class Vault:
    """Provides the current key, and counts how often."""

    def __init__(self, *keys: str) -> None:
        self.keys = list(keys)
        self.asked = 0
        self.seconds = 0.0

    def provide(self) -> str:
        self.asked += 1
        return self.keys[0] if len(self.keys) == 1 else self.keys.pop(0)

    async def provide_later(self) -> str:
        key = self.provide()
        await asyncio.sleep(self.seconds)
        return key


class Rotating(Scripted):
    """A server that takes one key; the others have expired."""

    key = OLD
    echo = True

    def act_for(self, request: Received) -> bytes:
        if request.headers["authorization"] != f"Bearer {self.key}":
            return refusal(401, echo=self.echo, code="api_key_expired")
        return CANCELED if request.method == "POST" else seen("canceled")


def keys_sent(server: Scripted) -> list[str]:
    return [each.headers["authorization"].split()[1] for each in server.received]


@pytest.mark.parametrize("later", [False, True], ids=["sync", "async"])
async def test_key_is_provided_once_for_all_calls(
    later: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    vault = Vault(OLD)
    provider = vault.provide_later if later else vault.provide
    async with scripted(CANCELED) as server, server.client(api_key=provider) as refunds:
        assert vault.asked == 0
        assert refunds.livemode, "it may be, while the key is not known"
        await asyncio.gather(*(refunds.cancel(RE) for _ in range(10)))
        assert not refunds.livemode
        await refunds.cancel(RE)
    assert vault.asked == 1
    assert set(keys_sent(server)) == {OLD}


@pytest.mark.parametrize("later", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("echo", [False, True], ids=["plain 401", "401 with the key"])
async def test_rotation_with_a_hundred_calls_in_flight_fails_none(
    later: bool,  # noqa: FBT001 - a parameter of the test
    echo: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    vault = Vault(OLD, NEW)
    provider = vault.provide_later if later else vault.provide
    records: list[CallRecord] = []
    async with (
        served(Rotating()) as server,
        server.client(api_key=provider, on_call=records.append) as refunds,
    ):
        server.echo = echo
        await refunds.cancel(RE)
        server.key = NEW
        calls = [asyncio.create_task(refunds.cancel(RE)) for _ in range(100)]
        assert {(await call).status for call in calls} == {"canceled"}
    assert vault.asked == 2
    assert {each.outcome for each in records} == {"canceled"}
    assert len(records) == 101


async def test_read_and_settling_read_use_the_new_key_too() -> None:
    vault = Vault(OLD, NEW)
    async with (
        served(Rotating()) as server,
        server.client(api_key=vault.provide) as refunds,
    ):
        await refunds.retrieve(RE)
        server.key = NEW
        assert (await refunds.retrieve(RE)).status == "canceled"
    assert keys_sent(server) == [OLD, OLD, NEW]


async def test_lost_answer_and_a_rotation_are_settled_with_the_new_key() -> None:
    vault = Vault(OLD, NEW)
    async with (
        scripted("reset", EXPIRED, refusal(402), reads=[seen("canceled")]) as server,
        server.client(api_key=vault.provide) as refunds,
    ):
        assert (await refunds.cancel(RE)).status == "canceled"
    assert keys_sent(server) == [OLD, OLD, NEW, NEW]
    assert len(server.cancel_keys) == 1


async def test_new_key_may_meet_a_failure_that_is_retried() -> None:
    vault = Vault(OLD, NEW)
    async with (
        scripted(EXPIRED, refusal(503, type="api_error"), CANCELED) as server,
        server.client(api_key=vault.provide) as refunds,
    ):
        assert (await refunds.cancel(RE)).status == "canceled"
    assert keys_sent(server) == [OLD, NEW, NEW]


@pytest.mark.parametrize(
    "keys",
    [(OLD, OLD), (OLD, "sk_live_CANARYlive"), (OLD, "no key")],
    ids=["the same", "of the other mode", "no key"],
)
async def test_key_without_another_one_is_refused_and_asked_for_once_by_all(
    keys: tuple[str, ...],
) -> None:
    vault = Vault(*keys)
    async with (
        served(Rotating()) as server,
        server.client(api_key=vault.provide_later) as refunds,
    ):
        await refunds.cancel(RE)
        server.key = NEW
        vault.seconds = 1.0
        calls = [refunds.cancel(RE) for _ in range(20)]
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(each) for each in ended} == {AuthenticationError}
        assert vault.asked == 2
        # Later it is asked for again: there may be one by then.
        vault.keys = [NEW]
        assert (await refunds.cancel(RE)).status == "canceled"
    assert vault.asked == 3


def raises() -> str:
    raise LookupError(f"the vault is shut: {OLD}")


def leaves() -> str:
    raise GeneratorExit


async def raises_later() -> str:
    secret = OLD
    raise LookupError(f"the vault is shut: {secret}")


def file_that_is_missing() -> str:
    return Path(f"/nowhere/{OLD}").read_text()


def variable_that_is_missing() -> str:
    return {"OTHER": OLD}["STRIPE_API_KEY"]


def key_that_is_missing() -> str:
    return {"OTHER": OLD}[OLD]


def host_that_is_none() -> str:
    raise ssl.SSLError(1, OLD)


# And what is told of it.
WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "raises": (raises, "LookupError"),
    "raises later": (raises_later, "LookupError"),
    "raises what closes a coroutine": (leaves, "GeneratorExit"),
    "no file": (
        file_that_is_missing,
        "FileNotFoundError: No such file or directory",
    ),
    "no variable": (variable_that_is_missing, "KeyError: STRIPE_API_KEY"),
    "no entry": (key_that_is_missing, "KeyError"),
    "no TLS": (host_that_is_none, "SSLError"),
    "None": (lambda: None, "it gave NoneType, not str"),
    "bytes": (OLD.encode, "it gave bytes, not str"),
    "publishable": (
        lambda: "pk_test_CANARYpublic",
        (
            "api_key is a publishable key (pk_...), which cannot cancel refunds: use a "
            "secret key (sk_...) or a restricted one (rk_...)"
        ),
    ),
    "white space": (
        lambda: f"{OLD}\n",
        "api_key has white space around it: strip it off",
    ),
    "another thing": (lambda: [OLD], "it gave list, not str"),
}


def shown(error: BaseException) -> str:
    """Return all that a traceback with locals shows of this package's frames."""
    tree = traceback.TracebackException.from_exception(error, capture_locals=True)
    frames = [f"{f.name} {f.locals}" for f in tree.stack if f.filename != __file__]
    assert error.__context__ is error.__cause__ is None
    return "\n".join([*frames, repr(error), str(vars(error))])


@pytest.mark.parametrize(("provider", "why"), WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("method", ["cancel", "retrieve"])
async def test_provider_that_gives_no_key_sends_nothing_and_says_why_without_it(
    provider: Callable[[], Any], why: str, method: str
) -> None:
    records: list[CallRecord] = []
    async with (
        scripted(CANCELED) as server,
        server.client(api_key=provider, on_call=records.append) as refunds,
    ):
        with pytest.raises(AuthenticationError) as caught:
            await getattr(refunds, method)(RE)
    said = f"the api_key callable gave no key ({why}); nothing was sent"
    assert str(caught.value) == said
    assert "CANARY" not in shown(caught.value)
    assert not server.received
    assert caught.value.attempts == ()
    assert [(each.outcome, each.error) for each in records] == [
        ("failed", "AuthenticationError")
    ]
    assert caught.value.idempotency_key == records[0].idempotency_key


async def test_batch_tells_of_each_refund_why_there_was_no_key() -> None:
    async with (
        scripted(CANCELED) as server,
        server.client(api_key=variable_that_is_missing) as refunds,
    ):
        results = [each async for each in cancel_many(refunds, [RE, "re_2"])]
    assert [each.outcome for each in results] == ["failed"] * 2
    assert all(
        "(KeyError: STRIPE_API_KEY); nothing was" in str(e.error) for e in results
    )
    assert not server.received


async def test_log_tells_why_there_is_no_other_key(
    caplog: pytest.LogCaptureFixture,
) -> None:
    keys = iter([OLD])

    def provide() -> str:
        for key in keys:
            return key
        raise PermissionError(13, OLD, OLD)

    async with (
        served(Rotating()) as server,
        server.client(api_key=provide) as refunds,
    ):
        await refunds.cancel(RE)
        server.key = NEW
        with pytest.raises(AuthenticationError):
            await refunds.cancel(RE)
    assert "(PermissionError: Permission denied); nothing was sent" in caplog.text
    assert "CANARY" not in caplog.text


async def test_key_that_changed_while_a_call_waited_to_send_is_renewed() -> None:
    """The last of 101 calls, for which the pool has no connection free at first."""
    vault = Vault(OLD, "sk_test_CANARYmiddle", NEW)
    async with (
        served(Rotating()) as server,
        server.client(api_key=vault.provide) as refunds,
    ):
        await refunds.cancel(RE)
        server.key = NEW
        calls = [asyncio.create_task(refunds.cancel(RE)) for _ in range(101)]
        await asyncio.wait(calls)
        assert isinstance(calls[0].exception(), AuthenticationError)
        assert (await calls[-1]).status == "canceled"
    assert vault.asked == 3


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_provider_that_ends_the_process_ends_it(kind: type[BaseException]) -> None:
    def provide() -> str:
        raise kind

    async def cancel() -> None:
        async with RefundsClient(provide) as refunds:
            await refunds.cancel(RE)

    with pytest.raises(kind):
        asyncio.run(cancel())


async def test_provider_that_fails_once_is_asked_again_by_the_next_call() -> None:
    vault = Vault("no key", OLD)
    async with (
        scripted(CANCELED) as server,
        server.client(api_key=vault.provide) as refunds,
    ):
        with pytest.raises(AuthenticationError):
            await refunds.cancel(RE)
        assert (await refunds.cancel(RE)).status == "canceled"


async def test_provider_that_fails_slowly_fails_all_who_wait_for_it_at_once() -> None:
    vault = Vault("no key")
    vault.seconds = 5.0
    loop = asyncio.get_running_loop()
    async with (
        scripted(CANCELED) as server,
        server.client(api_key=vault.provide_later) as refunds,
    ):
        began = loop.time()
        calls = [refunds.cancel(RE, timeout=8.0) for _ in range(20)]
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(each) for each in ended} == {AuthenticationError}
        assert all("gave no key (api_key must be" in str(each) for each in ended)
        assert loop.time() - began < 5.5
        assert vault.asked == 1
        vault.keys = [OLD]
        assert (await refunds.cancel(RE)).status == "canceled"
    assert vault.asked == 2


async def test_provider_that_hangs_ends_at_the_deadline_of_the_call() -> None:
    vault = Vault(OLD)
    vault.seconds = 1000.0
    loop = asyncio.get_running_loop()
    async with (
        scripted(CANCELED) as server,
        server.client(api_key=vault.provide_later) as refunds,
    ):
        began = loop.time()
        with pytest.raises(APITimeoutError, match="in time; nothing was sent"):
            await refunds.cancel(RE, timeout=5.0)
        assert 5.0 <= loop.time() - began < 5.5
        assert not server.received
        # One that is slow leaves the rest of the time to the attempts.
        vault.seconds = 3.0
        assert (await refunds.cancel(RE, timeout=5.0)).status == "canceled"


async def test_provider_that_hangs_at_a_rotation_ends_in_time_too() -> None:
    vault = Vault(OLD, NEW)
    loop = asyncio.get_running_loop()
    async with (
        served(Rotating()) as server,
        server.client(api_key=vault.provide_later) as refunds,
    ):
        await refunds.cancel(RE)
        server.key, vault.seconds = NEW, 1000.0
        began = loop.time()
        with pytest.raises(AuthenticationError):
            await refunds.cancel(RE, timeout=5.0)
        assert loop.time() - began < 5.5


async def test_caller_that_is_cancelled_leaves_the_provider_to_the_next() -> None:
    vault = Vault(OLD)
    vault.seconds = 10.0
    async with (
        scripted(CANCELED) as server,
        server.client(api_key=vault.provide_later) as refunds,
    ):
        first = asyncio.create_task(refunds.cancel(RE))
        second = asyncio.create_task(refunds.cancel(RE))
        await asyncio.sleep(1)
        first.cancel()
        assert (await second).status == "canceled"
        assert first.cancelled()


@pytest.mark.parametrize("why", ["cancelled", "out of time"])
async def test_caller_that_leaves_in_a_rotation_leaves_the_provider_to_the_next(
    why: str,
) -> None:
    vault = Vault(OLD, NEW)
    async with (
        served(Rotating()) as server,
        server.client(api_key=vault.provide_later) as refunds,
    ):
        await refunds.cancel(RE)
        server.key, vault.keys, vault.seconds = NEW, [NEW], 10.0
        hasty = None if why == "cancelled" else 5.0
        first = asyncio.create_task(refunds.cancel(RE, timeout=hasty))
        await asyncio.sleep(1)
        second = asyncio.create_task(refunds.cancel(RE))
        await asyncio.sleep(1)
        if why == "cancelled":
            first.cancel()
        assert (await second).status == "canceled"
        await asyncio.wait([first])
    assert vault.asked == 3


async def test_borrowed_session_carries_the_provided_key() -> None:
    async with aiohttp.ClientSession() as session, scripted(CANCELED) as server:
        refunds = server.client(api_key=Vault(NEW).provide, session=session)
        await refunds.cancel(RE)
    assert keys_sent(server) == [NEW]


def test_provided_key_may_be_live_so_plain_http_is_refused() -> None:
    with pytest.raises(ValueError, match="base_url must be https"):
        RefundsClient(Vault(OLD).provide, base_url="http://stripe.example")


@pytest.mark.parametrize("key", ["sk_live_1", "rk_test_1", "sk_test_1"])
def test_client_with_a_key_knows_its_mode(key: str) -> None:
    assert RefundsClient(key).livemode == ("live" in key)


def test_client_with_a_provider_shows_no_key() -> None:
    refunds = RefundsClient(Vault(OLD).provide)
    assert "CANARY" not in f"{refunds!r} {vars(refunds)!r}"


async def test_repr_tells_the_mode_of_a_provided_key_once_it_is_known() -> None:
    provide = Vault(OLD).provide
    async with scripted(CANCELED) as server, server.client(api_key=provide) as refunds:
        assert f"{refunds!r}".startswith("<RefundsClient live ")
        await refunds.cancel(RE)
        assert f"{refunds!r}".startswith("<RefundsClient test ")


async def later(seconds: float, key: str) -> str:
    await asyncio.sleep(seconds)
    return key


async def test_provider_may_return_any_awaitable() -> None:
    def provide() -> Awaitable[str]:
        return asyncio.ensure_future(later(1.0, NEW))

    async with scripted(CANCELED) as server, server.client(api_key=provide) as refunds:
        assert (await refunds.cancel(RE)).status == "canceled"
