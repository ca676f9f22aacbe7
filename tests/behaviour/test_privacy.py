"""A canary key and a canary address are looked for in all that can be printed."""

from __future__ import annotations

import asyncio
import copy
import functools
import logging
import pickle
import re
from io import StringIO
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from rich.console import Console

from async_refunds import (
    Attempt,
    Refund,
    RefundNotCancelableError,
    RefundsClient,
    RefundsError,
    telemetry,
)
from async_refunds.models import (
    CardDestination,
    DestinationDetails,
    DisplayDetails,
    EmailSent,
    NextAction,
    PresentmentDetails,
)
from async_refunds.protocol.redaction import SecretStr, scrub
from async_refunds.protocol.requests import Response
from tests.support.canary import (
    EMAIL,
    KEY,
    SECRET,
    Lines,
    printed,
    spelled,
    traceback_of,
)
from tests.support.scripted import (
    CUT,
    RE,
    Act,
    Scripted,
    answer,
    error_json,
    refund_json,
    scripted,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

PERSONAL: dict[str, Any] = {
    "instructions_email": EMAIL,
    "metadata": {"buyer": f"<{EMAIL}>", EMAIL: "x"},
    "description": f"for {EMAIL}",
    "charge": {"id": "ch_1", "emails": [EMAIL], "billing_details": {"email": EMAIL}},
    "next_action": {
        "type": "display_details",
        "display_details": {
            "email_sent": {"email_sent_at": 1, "email_sent_to": EMAIL},
            "expires_at": 2,
        },
    },
}
WAITING = answer(body=refund_json("requires_action", **PERSONAL))
SUCCEEDED = answer(body=refund_json("succeeded", **PERSONAL))
TELLTALE: dict[str, Any] = {
    "message": f"Invalid API Key provided: {KEY}, see {EMAIL}",
    "code": KEY,
    "param": EMAIL,
}
NAMED = {"Request-Id": KEY, "Stripe-Should-Retry": EMAIL, "X-Key": KEY}


USER = "someone:CANARYofTheProxy"
SHUT = f"http://{USER}@127.0.0.1:1"


def told(status: int, **fields: object) -> bytes:
    return answer(status, error_json(**{**TELLTALE, **fields}), NAMED)


PATHS: dict[str, tuple[Act, Act]] = {
    "reset": ("reset", WAITING),
    "stall": ("stall", WAITING),
    "stalled read": ("stall", "stall"),
    "cut body": (answer(body=refund_json(**PERSONAL))[:-9] + CUT, WAITING),
    "undecodable": (answer(body=f"{EMAIL} {KEY}".encode()), WAITING),
    "bad gzip": (
        answer(body=f"{EMAIL} {KEY}".encode(), headers={"Content-Encoding": "gzip"}),
        WAITING,
    ),
    "not HTTP": (f"{KEY} {EMAIL}\r\n\r\n".encode() + CUT, WAITING),
    "bad header": (
        f"HTTP/1.1 200 OK\r\n{KEY} {EMAIL}\r\n\r\n".encode() + CUT,
        WAITING,
    ),
    "wrong type": (answer(body=refund_json(amount=EMAIL, **PERSONAL)), WAITING),
    "wrong id": (answer(body=refund_json(id=KEY, **PERSONAL)), WAITING),
    "state": (answer(400, error_json(message=f"{KEY} {EMAIL}")), SUCCEEDED),
    "final state": ("reset", SUCCEEDED),
    "unexplained": (answer(400, error_json(message=f"{KEY} {EMAIL}")), WAITING),
    "too large": (answer(body=EMAIL.encode() * 50_000), WAITING),
    **{
        str(status): (told(status), WAITING)
        for status in (302, 400, 401, 403, 404, 409, 418, 424, 429, 500)
    },
}


@pytest.fixture
def log() -> Iterator[Lines]:
    root, handler = logging.getLogger(), Lines()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


def client(server: Scripted, **options: Any) -> RefundsClient:  # noqa: ANN401 - passed on
    return RefundsClient(KEY, base_url=server.url, **options)


@pytest.mark.parametrize("borrowed", [False, True], ids=["own", "borrowed"])
@pytest.mark.parametrize(("act", "read"), PATHS.values(), ids=PATHS.keys())
async def test_no_error_gives_the_key_or_the_address_away(
    act: Act,
    read: Act,
    log: Lines,
    borrowed: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    asyncio.get_running_loop().set_debug(True)
    attempts: list[Attempt] = []
    async with scripted(act, reads=[read]) as server, aiohttp.ClientSession() as own:
        refunds = client(
            server, session=own if borrowed else None, on_attempt=attempts.append
        )
        with pytest.raises(RefundsError) as caught:
            await refunds.cancel(RE)
        await refunds.close()
    for text in [
        *printed(caught.value, besides=__file__),
        *log.texts,
        repr(attempts),
        repr(refunds),
    ]:
        assert not spelled(text), text
    assert any("attempt 1 failed" in text for text in log.texts) or len(attempts) < 3


HOSTILE = "\x1b[31mX\x1b]8;;http://e\x07\x9b31m\u202e\r\nforged\u2028\x00\x7f"
OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e]")
"""What a terminal obeys, and what ends a line of a log."""


@pytest.mark.parametrize(
    ("act", "read"),
    [
        (answer(500, b"", {"Idempotent-Replayed": "true"}), f"requires{HOSTILE}"),
        (answer(400, error_json()), f"pending{HOSTILE}"),
        *(
            (answer(status, error_json(message=HOSTILE, code=HOSTILE)), "succeeded")
            for status in (400, 402, 409, 429)
        ),
    ],
    ids=("saved", "state", "400", "402", "409", "429"),
)
async def test_nothing_of_an_answer_is_obeyed_by_a_terminal_or_forges_a_line(
    act: Act, read: str, log: Lines
) -> None:
    waiting = answer(body=refund_json(read))
    async with scripted(act, reads=[waiting]) as server:
        refunds = client(server)
        with pytest.raises(RefundsError) as caught:
            await refunds.cancel(RE)
        await refunds.close()
    error = caught.value
    fields = [vars(error).get(name) for name in ("code", "param", "type", "message")]
    for text in [str(error), repr(error), *map(str, fields), *log.texts]:
        assert not OBEYED.search(text), ascii(text)


def test_name_in_a_database_begins_no_line_of_the_log(log: Lines) -> None:
    """Whoever may write to the database of a fleet chooses how a worker is called."""
    telemetry.log(logging.WARNING, "taken over from %s, %d open", HOSTILE, 5)
    assert log.texts[0].startswith("taken over from ")
    assert log.texts[0].endswith(", 5 open")
    for text in log.texts:
        assert not OBEYED.search(text), ascii(text)


async def test_text_of_stripe_s_is_readable_in_any_script() -> None:
    text = 'Rückgabe "unmöglich": 返金は\u3000できません。'
    act = answer(402, error_json(message=f"{text}\nTwice."), {"Request-Id": "req_1"})
    async with scripted(reads=[act]) as server, client(server) as refunds:
        with pytest.raises(RefundsError) as caught:
            await refunds.retrieve(RE)
    assert str(caught.value) == f"{RE} could not be read: {text}\\nTwice."


async def test_refund_of_an_error_says_what_it_can_without_the_address() -> None:
    no = answer(400, error_json())
    async with scripted(no, reads=[SUCCEEDED]) as server, client(server) as refunds:
        with pytest.raises(RefundNotCancelableError) as caught:
            await refunds.cancel(RE)
    refund = caught.value.refund
    assert (refund.id, refund.status, refund.amount) == (RE, "succeeded", 100)
    assert refund.instructions_email == "[e-mail]"
    assert refund.last_response.body == b""
    assert refund.last_response.attempts == caught.value.attempts


async def test_refund_returned_keeps_the_address_out_of_its_repr() -> None:
    act = answer(body=refund_json(**PERSONAL))
    async with scripted(act) as server, client(server) as refunds:
        refund = await refunds.cancel(RE)
    assert refund.instructions_email == EMAIL
    assert EMAIL.encode() in refund.last_response.body
    console = Console(file=StringIO(), width=200)
    console.print(refund, refund.last_response, refund.next_action)
    assert isinstance(console.file, StringIO)
    shown = [repr(refund), repr(refund.last_response), repr(refund.next_action)]
    for text in [*shown, console.file.getvalue()]:
        assert not spelled(text), text
    assert RE in shown[0]


@pytest.mark.parametrize("borrowed", [False, True], ids=["own", "borrowed"])
@pytest.mark.parametrize(
    "act", ["stall", "trickle", answer(body=EMAIL.encode() * 9)[:-1]]
)
async def test_cancellation_gives_nothing_away_either(
    act: Act,
    log: Lines,
    borrowed: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    async with scripted(act) as server, aiohttp.ClientSession() as own:
        refunds = client(server, session=own if borrowed else None)
        task = asyncio.create_task(refunds.cancel(RE))
        await asyncio.sleep(2.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        await refunds.close()
    frames = [
        text
        for text in traceback_of(caught.value, besides=__file__)
        if "aiohttp" in text
    ]
    assert frames, "the traceback does not lead through aiohttp any more"
    for text in [*traceback_of(caught.value, besides=__file__), *log.texts]:
        assert not spelled(text), text


@pytest.mark.parametrize(
    ("key", "options"),
    [
        (KEY, {"base_url": "http://example.com"}),
        (KEY, {"stripe_account": "nobody"}),
        (KEY, {"attempt_timeout": 0}),
        (KEY, {"session": "no session"}),
        (KEY + "\n", {}),
        (f"pk_live_{KEY}", {}),
        (f"{KEY}-{KEY}", {}),
        (KEY.encode(), {}),
        ([KEY], {}),
    ],
)
def test_constructor_that_refuses_does_not_show_the_key(
    key: Any,  # noqa: ANN401 - also what is no key
    options: dict[str, Any],
) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        RefundsClient(key, **options)
    for text in printed(caught.value, besides=__file__):
        assert not spelled(text), text


def test_constructor_that_refuses_does_not_show_what_a_callable_holds() -> None:
    provider = functools.partial(str, KEY)
    assert spelled(repr(provider))
    with pytest.raises(ValueError, match="stripe_account") as caught:
        RefundsClient(provider, stripe_account="nobody")
    for text in printed(caught.value, besides=__file__):
        assert not spelled(text), text


@pytest.mark.parametrize("way", ["refused", "407", "502"])
async def test_password_of_a_proxy_is_nowhere(way: str, log: Lines) -> None:
    answered = f"HTTP/1.1 {way} No\r\nContent-Length: 0\r\n\r\n".encode()
    async with (
        scripted(reads=[answered]) as server,
        aiohttp.ClientSession(
            proxy=server.url.replace("//", f"//{USER}@") if way != "refused" else SHUT
        ) as session,
    ):
        refunds = RefundsClient(KEY, session=session, base_url="https://stripe.example")
        with pytest.raises(RefundsError) as caught:
            await refunds.cancel(RE)
    assert "proxy" in str(caught.value) or way == "refused"
    for text in [*printed(caught.value, besides=__file__), *log.texts]:
        assert not spelled(text), text


def test_client_holds_the_key_where_no_repr_finds_it() -> None:
    refunds = RefundsClient(KEY)
    assert not spelled(repr(refunds))
    assert not spelled(repr(vars(refunds)))
    assert "live" in repr(refunds)


def test_hidden_string_is_itself_and_shows_nothing() -> None:
    hidden = SecretStr(KEY)
    assert hidden == KEY
    assert f"{hidden}" == KEY
    assert repr([hidden]) == "['***']"


def test_hidden_string_is_copied_and_never_pickled() -> None:
    hidden = SecretStr(KEY)
    assert copy.copy(hidden) is copy.deepcopy(hidden) is hidden
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(hidden)


def test_reply_shows_neither_its_headers_nor_its_body() -> None:
    reply = Response(200, NAMED, f"{KEY} {EMAIL}".encode())
    console = Console(file=StringIO(), width=200)
    console.print(reply)
    assert isinstance(console.file, StringIO)
    for text in (repr(reply), console.file.getvalue()):
        assert not spelled(text), text
        assert "status=200" in text


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"key {KEY}!", "key sk_live_***!"),
        ("SK_TEST_abc rk_x pk_test_1", "SK_TEST_*** rk_*** pk_test_***"),
        ("write to <a@b.example>, now", "write to [e-mail] now"),
        (
            "a%40b.example a&#64;b.example a\uff20b.example",
            "[e-mail] [e-mail] [e-mail]",
        ),
        ("nothing of note, 1=40, u0041 or &#640; (a) 40", None),
        ("nobody @ b.example now", "[e-mail] [e-mail] [e-mail] now"),
        ("a @b.example, a@ b.example.", "[e-mail] [e-mail] [e-mail] [e-mail]"),
        *(
            (f"write to a{sign}b.example now", "write to [e-mail] now")
            for sign in (
                *("&#x40;", "&#X0040;", "&#00064;", "&#064;", "&commat;", "&#64"),
                *(r"\u0040", r"\\u0040", r"\x40", r"\u{40}", r"\100", "U+0040"),
                *("%2540", "%252540", "&amp;#64;", "&amp;amp;#x40;", "&amp;commat;"),
                *("=40", "(at)", "[AT]", "\ufe6b"),
            )
        ),
        ("Bearer sk%5Flive%5FabcDEF and sk_org_1 whsec_x", "Bearer"),
        (r"sk\u005flive\u005fabcDEF sk&#95;live&#x5f;abcDEF", "Bearer"),
        ("sk=5Flive=5FabcDEF whsec%5FabcDEF", "Bearer"),
        ("jane%u0040b.example jane+AEA-b.example", "[e-mail] [e-mail]"),
    ],
)
def test_scrub_cuts_out_keys_and_addresses(text: str, clean: str | None) -> None:
    if clean == "Bearer":
        assert not re.search("abcDEF|org_1|whsec_x", scrub(text))
    else:
        assert scrub(text) == (text if clean is None else clean)


def test_refund_shows_no_address_that_stands_where_a_word_of_stripes_should() -> None:
    refund = Refund("re_1", "refund", 1, "jpy", 1, status="a&#64;b.example")
    assert "b.example" not in repr(refund)


@pytest.mark.parametrize("text", [KEY, f"re_{KEY}", KEY.upper(), EMAIL, SECRET])
def test_no_part_of_a_refund_shows_a_key_or_an_address(text: str) -> None:
    """Whatever a server puts where an id or a word of Stripe's should be."""
    details = DestinationDetails(text, card=CardDestination(text, text, text, text))
    asked = NextAction(text, DisplayDetails(EmailSent(1, text), 7))
    refund = Refund(
        *(text, "refund", 1, text, 1),
        status=text,
        destination_details=details,
        next_action=asked,
        presentment_details=PresentmentDetails(5, text),
    )
    console = Console(file=StringIO(), width=200)
    parts = (refund, details, details.card, asked, refund.presentment_details)
    for part in parts:
        console.print(part)
        assert text not in repr(part)
    assert isinstance(console.file, StringIO)
    assert text not in console.file.getvalue()
    assert "amount=5" in repr(refund.presentment_details)
    assert "expires_at=7" in repr(asked)


def test_secret_may_be_copied_by_a_recorder_and_stays_hidden() -> None:
    headers = copy.deepcopy({"Authorization": SecretStr(KEY)})
    assert headers["Authorization"] == KEY
    assert KEY not in repr(copy.copy(headers))
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(headers)


@pytest.mark.parametrize("prefix", ["sk", "rk", "pk", "SK", "whsec", "Whsec"])
@pytest.mark.parametrize("around", ["", "ch_1 ", "a", "_", "x" * 90])
def test_scrub_finds_a_key_in_what_looks_like_an_id(prefix: str, around: str) -> None:
    text = f"{around}{prefix}_live_abcDEF0123 pi_1"
    assert "abcDEF" not in scrub(text)
    assert scrub(f"{around}ch_1 pi_1 canceled") == f"{around}ch_1 pi_1 canceled"


def test_scrub_of_a_megabyte_without_a_space_is_linear() -> None:
    assert scrub("a" * 2**20) == "a" * 2**20


async def test_hook_that_fails_harms_nothing_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def hook(attempt: Attempt) -> None:
        raise RuntimeError("the hook's own")

    async with scripted(answer()) as server, server.client(on_attempt=hook) as refunds:
        assert (await refunds.cancel(RE)).status == "canceled"
    assert "on_attempt raised" in caplog.text
