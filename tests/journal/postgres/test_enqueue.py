"""Adding refunds from Python, with the driver that the caller has."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg  # pyright: ignore[reportMissingTypeStubs] - it has none
import psycopg
import pytest
import sqlalchemy
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from async_refunds.journal.postgres import enqueue, ensure_run
from async_refunds.results import CancelRequest
from tests.support.fleets import URL

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractAsyncContextManager

    from tests.support.fleets import Fleet

pytestmark = pytest.mark.asyncio(loop_factories=["real"])


def sqlalchemy_url(address: str, driver: str) -> sqlalchemy.URL:
    parts = conninfo_to_dict(address)
    return sqlalchemy.URL.create(
        f"postgresql+{driver}",
        username=str(parts["user"]),
        database=str(parts["dbname"]),
        query={"host": str(parts["host"])},
    )


@asynccontextmanager
async def of_psycopg(address: str) -> AsyncGenerator[Any]:
    async with await psycopg.AsyncConnection.connect(address) as connection:
        yield connection


@asynccontextmanager
async def cursor_of_psycopg(address: str) -> AsyncGenerator[Any]:
    async with (
        await psycopg.AsyncConnection.connect(address) as connection,
        connection.cursor() as cursor,
    ):
        yield cursor


@asynccontextmanager
async def of_asyncpg(address: str) -> AsyncGenerator[Any]:
    parts = conninfo_to_dict(address)
    connect: Any = getattr(asyncpg, "connect")  # noqa: B009 - it has no types
    connection = await connect(
        host=parts["host"], user=parts["user"], database=parts["dbname"]
    )
    try:
        async with connection.transaction():
            yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def of_sqlalchemy(address: str, driver: str = "psycopg") -> AsyncGenerator[Any]:
    engine = create_async_engine(sqlalchemy_url(address, driver), poolclass=NullPool)
    async with engine.begin() as connection:
        yield connection


@asynccontextmanager
async def of_sqlalchemy_on_asyncpg(address: str) -> AsyncGenerator[Any]:
    async with of_sqlalchemy(address, "asyncpg") as connection:
        yield connection


@asynccontextmanager
async def session_of_sqlalchemy(address: str) -> AsyncGenerator[Any]:
    engine = create_async_engine(sqlalchemy_url(address, "psycopg"), poolclass=NullPool)
    async with AsyncSession(engine) as session, session.begin():
        yield session


ASYNCHRONOUS = [
    *(of_psycopg, cursor_of_psycopg, of_asyncpg, of_sqlalchemy),
    *(of_sqlalchemy_on_asyncpg, session_of_sqlalchemy),
]


def found(fleet: Fleet) -> list[tuple[str, str]]:
    query = "SELECT refund_id, account FROM async_refunds.items ORDER BY number"
    return fleet.rows(query)


REQUESTS: list[str | CancelRequest] = [
    "re_2",
    CancelRequest("re_1", "acct_1"),
    "re_2",
    CancelRequest("pyr_1"),
]
ADDED = [("re_2", "acct_0"), ("re_1", "acct_1"), ("pyr_1", "acct_0")]


def make_run(fleet: Fleet) -> None:
    fleet.do("SELECT async_refunds.create_run('run', %s, false)", URL)


@pytest.mark.parametrize("of_driver", ASYNCHRONOUS, ids=lambda each: each.__name__)
async def test_refunds_are_added_in_the_transaction_of_the_caller(
    fleet: Fleet, of_driver: Callable[[str], AbstractAsyncContextManager[Any]]
) -> None:
    make_run(fleet)
    async with of_driver(fleet.address) as connection:
        added = await enqueue(connection, REQUESTS, run="run", stripe_account="acct_0")
        assert added == 3
        assert found(fleet) == []
        assert await enqueue(connection, [], run="run") == 0
    assert found(fleet) == ADDED


@pytest.mark.parametrize("of_driver", ASYNCHRONOUS, ids=lambda each: each.__name__)
async def test_run_is_made_once_in_the_transaction_of_the_caller(
    fleet: Fleet, of_driver: Callable[[str], AbstractAsyncContextManager[Any]]
) -> None:
    runs = """SELECT name, base_url, livemode, tenant, priority
        FROM async_refunds.runs ORDER BY name"""
    async with of_driver(fleet.address) as connection:
        await ensure_run(
            *(connection, "run"),
            livemode=False,
            base_url=f"{URL}/",
            tenant="shop",
            priority=3,
        )
        await ensure_run(connection, "real", livemode=True)
        assert await enqueue(connection, ["re_1"], run="run") == 1
        assert fleet.rows(runs) == []
    made = fleet.rows(runs)
    assert made == [
        ("real", "https://api.stripe.com", True, "default", 0),
        ("run", URL, False, "shop", 3),
    ]
    async with of_driver(fleet.address) as connection:
        await ensure_run(connection, "real", livemode=True, priority=9)
    assert fleet.rows(runs) == made


async def test_run_that_is_there_otherwise_is_refused(fleet: Fleet) -> None:
    async with of_psycopg(fleet.address) as connection:
        await ensure_run(connection, "run", livemode=True)
        with pytest.raises(ValueError, match="https"):
            await ensure_run(
                connection, "run", livemode=True, base_url="http://a.example"
            )
        with pytest.raises(
            psycopg.errors.InvalidParameterValue, match="give another name"
        ):
            await ensure_run(connection, "run", livemode=False)


@pytest.mark.parametrize("name", ["", "night sk_live_51Secret"])
async def test_name_that_nobody_can_use_is_refused(fleet: Fleet, name: str) -> None:
    async with of_psycopg(fleet.address) as connection:
        with pytest.raises(ValueError, match=r"^run ") as caught:
            await ensure_run(connection, name, livemode=False)
    assert "51Secret" not in str(caught.value)
    assert fleet.value("SELECT count(*) FROM async_refunds.runs") == 0


async def test_others_call_the_function(fleet: Fleet) -> None:
    make_run(fleet)
    engine = create_engine(sqlalchemy_url(fleet.address, "psycopg"), poolclass=NullPool)
    with Session(engine) as session, session.begin():
        statement = text("SELECT async_refunds.enqueue(:run, :ids)")
        session.execute(statement, {"run": "run", "ids": ["re_2", "re_1"]})
        assert found(fleet) == []
    assert found(fleet) == [("re_2", ""), ("re_1", "")]


async def test_long_input_is_sent_in_parts(fleet: Fleet) -> None:
    make_run(fleet)
    async with of_psycopg(fleet.address) as connection:
        many = (f"re_{number}" for number in range(10_001))
        assert await enqueue(connection, many, run="run") == 10_001
    assert fleet.value("SELECT max(number) FROM async_refunds.items") == 10_001


async def test_what_is_no_id_is_refused_before_it_is_sent(fleet: Fleet) -> None:
    make_run(fleet)
    async with of_psycopg(fleet.address) as connection:
        with pytest.raises(ValueError, match="a charge"):
            await enqueue(connection, ["re_1", "ch_1"], run="run")
        with pytest.raises(ValueError, match="stripe_account"):
            await enqueue(connection, [CancelRequest("re_1", "acct-1")], run="run")
        with pytest.raises(ValueError, match="stripe_account"):
            await enqueue(connection, ["re_1"], run="run", stripe_account="x")
    assert found(fleet) == []


async def test_unknown_run_is_the_drivers_error(fleet: Fleet) -> None:
    async with of_psycopg(fleet.address) as connection:
        with pytest.raises(
            psycopg.errors.InvalidParameterValue, match="no run 'run'"
        ) as caught:
            await enqueue(connection, ["re_1"], run="run")
    told = str(caught.value).partition("\n")[0]
    make = told[told.index("SELECT") : told.index(", where")]
    fleet.do(make)  # as it is
    async with of_psycopg(fleet.address) as connection:
        assert await enqueue(connection, ["re_1"], run="run") == 1
    ((livemode, url),) = fleet.rows("SELECT livemode, base_url FROM async_refunds.runs")
    assert (livemode, url) == (True, "https://api.stripe.com")
    assert told.endswith("where true is live mode")
