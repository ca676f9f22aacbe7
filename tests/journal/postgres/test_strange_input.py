"""What other programs may bring into the tables, by mistake: it stops nobody."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import psycopg
import pytest
from procrastinate.schema import SchemaManager

from async_refunds.errors import JournalError
from async_refunds.journal.postgres import Database
from async_refunds.journal.postgres.given_out import ClaimedRow, GivenOut
from async_refunds.journal.postgres.leases import Lease
from tests.support.fleets import worker

if TYPE_CHECKING:
    from tests.support.fleets import Fleet


HOUR = 3600.0
ENQUEUE = "SELECT async_refunds.enqueue(%s, %s::text[], %s::text[])"
KEY = "sk_test_51Secret"


@pytest.fixture
def run(fleet: Fleet) -> str:
    fleet.add([])
    (name,) = fleet.value("SELECT array_agg(name) FROM async_refunds.runs")
    assert isinstance(name, str)
    return name


def with_procrastinate(fleet: Fleet) -> None:
    """Make its tables beside ours."""
    with psycopg.connect(fleet.address, autocommit=True) as connection:
        connection.execute(SchemaManager.get_schema().encode())


@pytest.mark.parametrize(
    ("refund_id", "account"),
    [
        ("re_" + 252 * "x", ""),
        ("pyr_" + 252 * "x", ""),
        (f"re_{KEY}", ""),
        ("re_whsec_51Secret", ""),
        ("re_1", f"acct_{KEY}"),
        ("re_1", "acct_RK_LIVE_51Secret"),
        ("re_1", "acct_" + 251 * "x"),
    ],
)
def test_what_a_worker_could_not_send_is_not_added(
    fleet: Fleet, run: str, refund_id: str, account: str
) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue) as caught:
        fleet.value(ENQUEUE, run, ["re_2", refund_id], ["", account])
    assert "Secret" not in str(caught.value)
    assert fleet.value("SELECT count(*) FROM async_refunds.items") == 0


def test_longest_ids_and_words_like_a_key_are_added(fleet: Fleet, run: str) -> None:
    refunds = ["re_" + 251 * "x", "pyr_" + 251 * "x", "re_task_1", "re_1"]
    accounts = ["", "", "", "acct_" + 250 * "x"]
    assert fleet.value(ENQUEUE, run, refunds, accounts) == len(refunds)


GOOD: dict[str, object] = {
    "name": "r",
    "base_url": "https://a.example",
    "livemode": False,
    "tenant": "t",
}


@pytest.mark.parametrize("make", ["create_run", "ensure_run"])
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("name", "", "a run needs a name"),
        ("name", None, "a run needs a name"),
        *(
            ("base_url", value, "base_url must be like https://api.stripe.com")
            for value in (
                *("https://a.example/", "HTTPS://a.example", "a.example", "https://"),
                *("https://user:Secret@a.example", None),
            )
        ),
        ("livemode", None, "livemode must be true or false"),
        ("tenant", "a b", "a tenant needs a name without spaces"),
        ("tenant", None, "a tenant needs a name without spaces"),
    ],
)
def test_run_that_no_client_can_have_is_not_made(
    fleet: Fleet, make: str, name: str, value: object, words: str
) -> None:
    given = {**GOOD, name: value}
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=words) as caught:
        fleet.do(f"SELECT async_refunds.{make}(%s, %s, %s, %s)", *given.values())
    assert caught.value.diag.message_detail is None, "it would tell the seed"
    assert "Secret" not in str(caught.value)


def test_accounts_of_one_transaction_take_no_more_locks_than_there_is_room_for(
    fleet: Fleet, run: str
) -> None:
    with_procrastinate(fleet)
    accounts = [f"acct_{number}" for number in range(20_000)]
    others = [f"acct_other{number}" for number in range(400)]
    with psycopg.connect(fleet.address) as caller:
        for part in (accounts[:10_000], accounts[10_000:]):
            caller.execute(ENQUEUE, [run, ["re_1"] * len(part), part])
        assert fleet.value(ENQUEUE, run, ["re_1"] * 400, others) == 400, (
            "nor does it take the room of another"
        )
    jobs = "SELECT count(*) FROM procrastinate_jobs"
    assert fleet.value(jobs) == 400
    with psycopg.connect(fleet.address) as caller:
        for number in range(6):
            part = accounts[400 + 100 * number :][:100]
            caller.execute(ENQUEUE, [run, ["re_2"] * 100, part])
    assert fleet.value(jobs) == 900, "of all that one transaction adds, 500"


def test_migration_of_procrastinate_makes_nobody_wait(fleet: Fleet, run: str) -> None:
    with_procrastinate(fleet)
    with psycopg.connect(fleet.address) as migration:
        migration.execute("LOCK TABLE procrastinate_jobs")
        assert fleet.value(ENQUEUE, run, ["re_1"], None) == 1
    assert fleet.value("SELECT count(*) FROM procrastinate_jobs") == 0


@pytest.mark.asyncio(loop_factories=["real"])
async def test_clock_of_this_machine_that_is_set_makes_no_key_older(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.add(["re_1"])
    async with worker(fleet.address) as one, worker(fleet.address, "two") as two:
        await one.acquire()
        await one.claim()
        fleet.do("UPDATE async_refunds.items SET claimed_at = now() - interval '1 h'")
        fleet.expire()
        await two.acquire()
        (claim,) = await two.claim()
        for wrong in (0.0, 200_000.0, -200_000.0):
            there = time.monotonic() + wrong
            monkeypatch.setattr(time, "time", lambda there=there: there)
            age = two.journal.now() - claim.key_created_at
            assert age == pytest.approx(HOUR, abs=60)


def test_clock_is_that_of_the_database_that_claimed_last() -> None:
    """After a failover it is another machine's."""
    given_out, lease = GivenOut(), Lease(None, "token", None, 0)
    given_out.learn_runs([("run", b"seed", 1, 1000.0)])
    for number, at in enumerate((1000.0, 9000.0, 5000.0), 1):
        row = ClaimedRow(
            *("run", f"re_{number}", number, 1, at, None),
            same_credentials=True,
            dead=False,
        )
        claim = given_out.give_out(lease, number, row)
        assert claim is not None
        assert claim.key_created_at == at
        assert given_out.now() == pytest.approx(at, abs=60)


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://pw:S3cr@tSecret@127.0.0.1/t1",
        "postgresql://pw:S3cr:Secret@Secret@127.0.0.1/t1",
        "postgresql://pw@127.0.0.1:Secret/t1",
        "host=127.0.0.1 port=Secret",
    ],
)
def test_part_of_a_password_in_the_wrong_place_is_not_shown(address: str) -> None:
    with pytest.raises(JournalError, match="cannot be understood") as caught:
        _ = Database(address).conninfo
    assert "Secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_abstract_socket_is_an_address() -> None:
    assert "@pg" in Database("host=@pg dbname=refunds").conninfo
