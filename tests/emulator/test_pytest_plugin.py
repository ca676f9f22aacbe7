"""The pytest plugin in projects of its users: each is run by a pytest of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unmeasured

ROOT = Path(__file__).parents[2]

# Plugins that only this suite needs: they take longer to load than these tests take.
UNUSED = ("schemathesis", "valkey", "faker", "hypothesispytest", "cacheprovider")
ARGUMENTS = tuple(word for name in UNUSED for word in ("-p", f"no:{name}"))

OFFICIAL = """
import stripe


def test_refund_is_canceled(stripe_emulator):
    refund_id = stripe_emulator.add_refund()
    base = {"api": stripe_emulator.base_url}
    client = stripe.StripeClient("sk_test_123", base_addresses=base)
    assert client.v1.refunds.cancel(refund_id).status == "canceled"


def test_faults_requests_books_and_clock(stripe_emulator):
    refund_id = stripe_emulator.add_refund()
    base = {"api": stripe_emulator.base_url}
    client = stripe.StripeClient(
        "sk_test_123", base_addresses=base, max_network_retries=0
    )
    stripe_emulator.faults.script("503")
    try:
        client.v1.refunds.cancel(refund_id)
    except stripe.APIError as error:
        assert error.http_status == 503
    stripe_emulator.clock.advance(46 * 24 * 3600)
    assert client.v1.refunds.retrieve(refund_id).status == "failed"
    assert [entry.endpoint for entry in stripe_emulator.requests] == [
        "cancel", "retrieve"
    ]
    assert stripe_emulator.books.faults == {"503": 1}


def test_each_test_has_its_own(stripe_emulator):
    assert not stripe_emulator.requests
    assert stripe_emulator.refund(stripe_emulator.add_refund())
"""

SHARED = """
urls = []


def test_one(stripe_emulator_session):
    stripe_emulator_session.add_refund(refund_id="re_1")
    urls.append(stripe_emulator_session.base_url)


def test_two(stripe_emulator_session, stripe_emulator):
    assert stripe_emulator_session.refund("re_1")
    assert stripe_emulator_session.base_url in urls
    assert stripe_emulator.base_url not in urls
"""

OURS = """
{imports}
from async_refunds import RefundsClient


{mark}
async def test_lost_answer(stripe_emulator):
    refund_id = stripe_emulator.add_refund()
    stripe_emulator.faults.script("reset_after")
    base_url = stripe_emulator.base_url
    async with RefundsClient("sk_test_123", base_url=base_url) as refunds:
        assert (await refunds.cancel(refund_id)).status == "canceled"
    assert stripe_emulator.books.cancellations[refund_id] == 1
"""

LIGHT = """
import sys


def test_nothing_is_imported():
    assert "pytest_async_refunds" in sys.modules
    for name in ("async_refunds", "aiohttp", "msgspec"):
        assert name not in sys.modules, name
"""


def passes(
    pytester: pytest.Pytester, source: str, *arguments: str, count: int = 1
) -> None:
    pytester.makepyfile(source)
    ran = pytester.runpytest_subprocess(*ARGUMENTS, *arguments, timeout=60)
    ran.assert_outcomes(passed=count)


def test_test_without_a_loop_has_an_emulator(pytester: pytest.Pytester) -> None:
    passes(pytester, OFFICIAL, "-p", "no:asyncio", "-p", "no:anyio", count=3)


@pytest.mark.parametrize(
    ("mode", "imports", "mark"),
    [
        ("strict", "import pytest", "@pytest.mark.asyncio"),
        ("auto", "", ""),
    ],
)
def test_test_of_pytest_asyncio_has_an_emulator(
    mode: str, imports: str, mark: str, pytester: pytest.Pytester
) -> None:
    source = OURS.format(imports=imports, mark=mark)
    passes(pytester, source, "-p", "no:anyio", "-o", f"asyncio_mode={mode}")


def test_test_of_anyio_has_an_emulator(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        "import pytest\n\n@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n"
    )
    source = OURS.format(imports="import pytest", mark="@pytest.mark.anyio")
    passes(pytester, source, "-p", "no:asyncio")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package is installed from a wheel, as its users have it."""
    site = tmp_path_factory.mktemp("site")
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site))
    subprocess.run(  # noqa: S603 - our own package
        [sys.executable, *pip, str(ROOT)], check=True, timeout=300
    )
    return site


@pytest.fixture
def site(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, for the children of this test to import."""
    monkeypatch.setenv("PYTHONPATH", str(installed))
    # What is measured is the package as it is worked on.
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
    return installed


@pytest.mark.usefixtures("site")
def test_pytest_that_uses_no_emulator_loads_none(pytester: pytest.Pytester) -> None:
    plugins = ("asyncio", "anyio", "pytest_cov")
    without = [argument for name in plugins for argument in ("-p", f"no:{name}")]
    passes(pytester, LIGHT, *without)


@pytest.mark.usefixtures("site")
def test_tests_of_a_session_may_share_an_emulator(pytester: pytest.Pytester) -> None:
    passes(pytester, SHARED, "-p", "no:asyncio", "-p", "no:anyio", count=2)


@pytest.mark.usefixtures("site")
def test_fixture_explains_itself(pytester: pytest.Pytester) -> None:
    ran = pytester.runpytest_subprocess(*ARGUMENTS, "--fixtures", timeout=60)
    ran.stdout.fnmatch_lines(
        [
            "*fixtures defined from pytest_async_refunds*",
            "stripe_emulator_session*session scope*",
            "    A local Stripe for refunds*",
            "stripe_emulator --*",
            "    A local Stripe for refunds*",
        ]
    )


def test_installed_package_brings_the_plugin(
    pytester: pytest.Pytester, site: Path
) -> None:
    passes(
        pytester,
        "import async_refunds, pytest_async_refunds\n\n"
        "def test_place(stripe_emulator):\n"
        "    assert stripe_emulator.base_url.startswith('http://127.0.0.1:')\n"
        "    for module in (async_refunds, pytest_async_refunds):\n"
        f"        assert module.__file__.startswith({str(site)!r})\n",
    )
    assert not (site / "async_refunds" / "emulator" / "pytest_plugin.py").exists()
