"""The tables, and the functions by which others add refunds to a run."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest
from procrastinate.schema import SchemaManager

from async_refunds.errors import JournalError
from async_refunds.journal.postgres import administration, schema
from async_refunds.journal.postgres.schema import VERSION, check_version, migrate

if TYPE_CHECKING:
    from collections.abc import Generator

SCOPE = "default https://a.example test"


@pytest.fixture
def database(postgres_database: str) -> Generator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres_database, autocommit=True) as connection:
        yield connection


def rows(connection: psycopg.Connection[Any], query: LiteralString) -> list[Any]:
    return connection.execute(query).fetchall()


def test_tables_are_made_once_and_those_of_others_left_alone(
    postgres_empty_database: str,
) -> None:
    with psycopg.connect(postgres_empty_database, autocommit=True) as connection:
        connection.execute("CREATE TABLE items (number integer)")
        with pytest.raises(JournalError, match="no tables of async_refunds: run"):
            check_version(connection)
        assert migrate(connection) == 0
        assert migrate(connection) == VERSION
        check_version(connection)
        others = rows(
            connection,
            "SELECT table_name FROM information_schema.tables"
            " WHERE table_schema NOT IN"
            " ('async_refunds', 'pg_catalog', 'information_schema')",
        )
        assert others == [("items",)]


def test_two_may_make_the_tables_at_once(postgres_empty_database: str) -> None:
    found: list[int] = []

    def make() -> None:
        with psycopg.connect(postgres_empty_database, autocommit=True) as connection:
            found.append(migrate(connection))

    threads = [threading.Thread(target=make) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [0, VERSION, VERSION]


def test_newer_tables_are_refused(database: psycopg.Connection[Any]) -> None:
    database.execute("UPDATE async_refunds.meta SET schema_version = 99")
    check_version(database)  # they say that this release may go on
    with pytest.raises(JournalError, match="version 99, and this release knows"):
        migrate(database)
    database.execute("UPDATE async_refunds.meta SET min_worker_version = 99")
    with pytest.raises(JournalError, match="go on with a newer release"):
        check_version(database)
    database.execute("UPDATE async_refunds.meta SET schema_version = 0")
    with pytest.raises(JournalError, match=f"needs version {VERSION}: run"):
        check_version(database)


# Of the tables and functions, by their version.
DIGESTS = {
    2: "2f4e17f091d08d69",
    3: "56d578613062686e",
    4: "746b3b5aa2293ecf",
    5: "ff360540eec82f18",
}
# Of the tables, indexes, constraints, functions and views, in any order.
STRUCTURE = """
    SELECT table_name || ' ' || column_name || ' ' || data_type || ' ' || is_nullable
            || coalesce(' ' || collation_name, '')
            || coalesce(' ' || column_default, '')
            || coalesce(' ' || generation_expression, '')
        FROM information_schema.columns WHERE table_schema = 'async_refunds'
    UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'async_refunds'
    UNION ALL SELECT conrelid::regclass || ' ' || pg_get_constraintdef(oid)
        FROM pg_constraint WHERE connamespace = 'async_refunds'::regnamespace
    UNION ALL SELECT pg_get_functiondef(oid)
        FROM pg_proc WHERE pronamespace = 'async_refunds'::regnamespace
    UNION ALL SELECT definition FROM pg_views WHERE schemaname = 'async_refunds'
    UNION ALL SELECT relname || coalesce(' ' || reloptions::text, '')
        FROM pg_class WHERE relnamespace = 'async_refunds'::regnamespace
    ORDER BY 1"""


def test_change_of_the_tables_raises_their_version() -> None:
    """Without it a database that was made before would not get the change."""
    folder = Path(schema.__file__).parent
    text = b"".join(
        (folder / name).read_bytes() for name in ("tables.sql", "functions.sql")
    )
    digest = hashlib.sha256(text).hexdigest()[:16]
    assert digest == DIGESTS.get(VERSION), (
        "raise VERSION, write an upgrade_N.sql, and note the digest of the new version"
    )


def test_older_tables_are_brought_up_and_keep_what_they_have(
    postgres_empty_database: str, database: psycopg.Connection[Any]
) -> None:
    with psycopg.connect(postgres_empty_database, autocommit=True) as older:
        older.execute(Path(__file__).with_name("version_1.sql").read_bytes())
        older.execute(
            "SELECT async_refunds.create_run('r', 'https://a.example', false)"
        )
        older.execute("SELECT async_refunds.enqueue('r', ARRAY['re_1'], NULL)")
        older.execute("UPDATE async_refunds.items SET attempts = 3, maybe_sent = true")
        older.execute("SELECT async_refunds.note_timeline()")
        seeds = rows(
            older, "SELECT salt, seed FROM async_refunds.meta, async_refunds.runs"
        )
        with pytest.raises(JournalError, match="version 1, and this release needs"):
            check_version(older)
        assert migrate(older) == 1
        check_version(older)
        assert rows(older, STRUCTURE) == rows(database, STRUCTURE)
        assert seeds == rows(
            older, "SELECT salt, seed FROM async_refunds.meta, async_refunds.runs"
        )
        assert rows(
            older,
            "SELECT refund_id, attempts, maybe_sent, uncounted, credentials"
            " FROM async_refunds.items",
        ) == [("re_1", 3, True, False, None)]
        assert rows(older, "SELECT * FROM async_refunds.metrics") != []
        history = "SELECT timeline = async_refunds.timeline(), last_number"
        assert rows(older, f"{history} FROM async_refunds.timelines") == [(True, 0)]
        # A worker of before would not know what is new in them.
        assert rows(
            older, "SELECT schema_version, min_worker_version FROM async_refunds.meta"
        ) == [(5, 3)]
        assert migrate(older) == VERSION


def test_what_was_asked_for_since_a_failover_is_known_after_an_upgrade(
    postgres_empty_database: str,
) -> None:
    """Its history has another name then. `close` would leave it to be sent again."""
    with psycopg.connect(postgres_empty_database, autocommit=True) as older:
        older.execute(Path(__file__).with_name("version_1.sql").read_bytes())
        older.execute(
            "SELECT async_refunds.create_run('r', 'https://a.example', false)"
        )
        older.execute("SELECT async_refunds.enqueue('r', ARRAY['re_1', 're_2'], NULL)")
        older.execute("UPDATE async_refunds.timelines SET timeline = 'before'")
        older.execute("SELECT async_refunds.note_timeline()")
        older.execute(
            "UPDATE async_refunds.items SET generation = 1, outcome = 'failed', "
            "known_at = now(), timeline = CASE refund_id "
            "WHEN 're_1' THEN async_refunds.timeline() ELSE 'before' END"
        )
        migrate(older)
        closed = administration.close(older, "r")
        assert closed == administration.Closed(unsent=1, left=1, dead=0)


def test_tables_that_somebody_uses_are_not_waited_for_without_an_end(
    postgres_empty_database: str,
) -> None:
    """What waits for a lock of a table makes all that come later wait too."""
    with psycopg.connect(postgres_empty_database, autocommit=True) as older:
        older.execute(Path(__file__).with_name("version_1.sql").read_bytes())
        with psycopg.connect(postgres_empty_database) as other:
            other.execute(
                "SELECT FROM async_refunds.items, async_refunds.leases, "
                "async_refunds.runs"
            )
            for number in range(2, VERSION + 1):
                name = f"upgrade_{number}.sql"
                upgrade = Path(schema.__file__).with_name(name).read_text()
                assert "lock_timeout = '10s'" in upgrade
                hasty = upgrade.replace("'10s'", "'10ms'").encode()
                with (
                    pytest.raises(psycopg.errors.LockNotAvailable),
                    older.transaction(),
                ):
                    older.execute(hasty)
        assert migrate(older) == 1


def test_run_is_made_once(database: psycopg.Connection[Any]) -> None:
    ensure: LiteralString = (
        "SELECT async_refunds.ensure_run('nightly', 'https://a.example', false)"
    )
    first = rows(database, ensure)
    assert rows(database, ensure) == first
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="another name"):
        rows(
            database,
            "SELECT async_refunds.ensure_run('nightly', 'https://a.example', true)",
        )
    with pytest.raises(psycopg.errors.UniqueViolation):
        rows(
            database,
            "SELECT async_refunds.create_run('nightly', 'https://a.example', false)",
        )
    ((scope, seed, state),) = rows(
        database, "SELECT scope, seed, state FROM async_refunds.runs"
    )
    assert (scope, len(seed), state) == (SCOPE, 32, "open")


def seed(connection: psycopg.Connection[Any], run: str = "nightly, live") -> bytes:
    ((found,),) = connection.execute(
        "SELECT seed FROM async_refunds.runs WHERE name = %s", [run]
    ).fetchall()
    assert isinstance(found, bytes)
    return found


@pytest.mark.parametrize("function", ["create_run", "ensure_run"])
def test_run_that_was_lost_has_the_same_keys_when_it_is_made_again(
    database: psycopg.Connection[Any], function: str
) -> None:
    make = f"SELECT async_refunds.{function}(%s, %s, %s, tenant => %s, priority => %s)"
    given = ("nightly, live", "https://a.example", True, "a")
    database.execute(make.encode(), [*given, 0])
    first = seed(database)
    database.execute("UPDATE async_refunds.runs SET name = 'renamed'")
    assert seed(database, "renamed") == first, "its refunds were asked for with these"
    database.execute("DELETE FROM async_refunds.runs")
    database.execute(make.encode(), [*given, 1])
    assert seed(database) == first


def test_no_two_runs_have_the_same_keys(
    database: psycopg.Connection[Any], postgres_empty_database: str
) -> None:
    """Neither of one database, nor of two with a run of the same name."""
    make = "SELECT async_refunds.create_run(%s, %s, %s, tenant => %s)"
    found: set[bytes] = set()
    runs: list[tuple[str, str, bool, str]] = [
        ("nightly, live", "https://a.example", True, "a"),
        ("nightly, live", "https://a.example", False, "a"),
        ("nightly, live", "https://a.example", True, "b"),
        ("nightly, live", "https://b.example", True, "a"),
        ("nightly, live ", "https://a.example", True, "a"),
    ]
    for given in runs:
        database.execute(make, given)
        found.add(seed(database, given[0]))
        database.execute("DELETE FROM async_refunds.runs")
    with psycopg.connect(postgres_empty_database, autocommit=True) as another:
        migrate(another)
        another.execute(make, runs[0])
        found.add(seed(another))
    assert len(found) == 6


@pytest.fixture
def run(database: psycopg.Connection[Any]) -> str:
    rows(
        database,
        "SELECT async_refunds.create_run('nightly', 'https://a.example', false)",
    )
    return "nightly"


def added(
    database: psycopg.Connection[Any],
    run: str,
    ids: list[Any] | None,
    accounts: list[Any] | None = None,
) -> int:
    values = [run, ids, accounts]
    query = "SELECT async_refunds.enqueue(%s, %s, %s)"
    ((count,),) = database.execute(query, values).fetchall()
    assert isinstance(count, int)
    return count


def items(database: psycopg.Connection[Any]) -> list[Any]:
    query = "SELECT refund_id, account FROM async_refunds.items ORDER BY number"
    return rows(database, query)


def test_refunds_are_added_once_in_the_order_given(
    database: psycopg.Connection[Any], run: str
) -> None:
    assert added(database, run, ["re_3", "re_1", "re_3"], [None, "", ""]) == 2
    assert added(database, run, ["re_1", "re_1"], [None, "acct_1"]) == 1
    assert added(database, run, ["re_2"]) == 1
    assert added(database, run, ["re_3"]) == 0
    assert added(database, run, []) == 0
    assert added(database, run, None) == 0
    assert items(database) == [
        ("re_3", ""),
        ("re_1", ""),
        ("re_1", "acct_1"),
        ("re_2", ""),
    ]
    leases = rows(
        database, "SELECT scope, account, token FROM async_refunds.leases ORDER BY 2"
    )
    assert leases == [(SCOPE, "", None), (SCOPE, "acct_1", None)]


@pytest.mark.parametrize(
    ("ids", "accounts", "why"),
    [
        (
            ["re_1", "sk_test_secret"],
            None,
            r"ids\[2\] is not a refund id \(re_... or pyr_...\)",
        ),
        (["re_1", None], None, r"ids\[2\] is not"),
        (["re_"], None, r"ids\[1\] is not"),
        (["re_1 "], None, r"ids\[1\] is not"),
        (["re_1\n"], None, r"ids\[1\] is not"),
        (["re_" + 253 * "x"], None, r"ids\[1\] is not"),
        (["re_1"], ["acct_" + 251 * "x"], r"accounts\[1\] is not an account id"),
        (["re_1"], ["sk_test_secret"], r"accounts\[1\] is not an account id"),
        (["re_1", "re_2"], ["acct_1"], "there are 2 ids and 1 accounts"),
    ],
)
def test_wrong_input_adds_nothing(
    database: psycopg.Connection[Any],
    run: str,
    ids: list[Any],
    accounts: list[Any] | None,
    why: str,
) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=why) as caught:
        added(database, run, ids, accounts)
    assert "secret" not in str(caught.value)
    assert items(database) == []


def test_unknown_or_closed_run_is_refused(
    database: psycopg.Connection[Any], run: str
) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="no run 'daily'"):
        added(database, "daily", ["re_1"])
    database.execute("UPDATE async_refunds.runs SET state = 'closed'")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="is closed"):
        added(database, run, ["re_1"])
    database.execute("UPDATE async_refunds.runs SET state = 'closing'")
    with pytest.raises(
        psycopg.errors.InvalidParameterValue,
        match="'nightly' is closing, and takes no more refunds",
    ):
        added(database, run, ["re_1"])
    assert items(database) == []


def test_adding_is_part_of_the_callers_transaction_and_wakes_listeners_after_it(
    postgres_database: str, database: psycopg.Connection[Any], run: str
) -> None:
    database.execute("LISTEN async_refunds")
    with psycopg.connect(postgres_database) as caller:
        added(caller, run, ["re_1"])
        caller.rollback()
        assert items(database) == []
        added(caller, run, ["re_2"])
        assert items(database) == []
        caller.commit()
    assert items(database) == [("re_2", "")]
    assert [each.payload for each in database.notifies(timeout=5, stop_after=1)] == [
        SCOPE
    ]


def test_adding_waits_for_no_worker_and_no_other_that_adds(
    postgres_database: str, database: psycopg.Connection[Any], run: str
) -> None:
    added(database, run, ["re_1"])
    with (
        psycopg.connect(postgres_database) as worker,
        psycopg.connect(postgres_database) as other,
    ):
        worker.execute("SELECT FROM async_refunds.leases FOR UPDATE")
        added(other, run, ["re_2"])
        database.execute("SET lock_timeout = '1s'")
        assert added(database, run, ["re_3"]) == 1


def test_two_that_add_the_same_in_other_orders_both_end(
    postgres_database: str, run: str
) -> None:
    ids = [f"re_{number}" for number in range(300)]
    counts: list[int] = []

    def add(order: list[str]) -> None:
        with psycopg.connect(postgres_database, autocommit=True) as connection:
            counts.append(added(connection, run, order))

    threads = [
        threading.Thread(target=add, args=[order]) for order in (ids, ids[::-1]) * 3
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(counts) == 6
    assert sum(counts) == 300


def jobs(database: psycopg.Connection[Any]) -> list[Any]:
    query = "SELECT task_name, args FROM procrastinate_jobs ORDER BY args->>'account'"
    return rows(database, query)


def test_procrastinate_gets_one_job_for_each_account(
    postgres_database: str, database: psycopg.Connection[Any], run: str
) -> None:
    database.execute(SchemaManager.get_schema().encode())
    added(database, run, ["re_1", "re_2", "re_1"], [None, None, "acct_1"])
    expected = [
        ("async_refunds.wake", {"scope": SCOPE, "account": ""}),
        ("async_refunds.wake", {"scope": SCOPE, "account": "acct_1"}),
    ]
    assert jobs(database) == expected
    added(database, run, ["re_3", "re_4"], [None, "acct_1"])
    assert jobs(database) == expected, "they are queued, not done"
    rows(database, "UPDATE procrastinate_jobs SET status = 'doing' RETURNING 1")
    with psycopg.connect(postgres_database) as caller:
        added(caller, run, ["re_5"])
        database.execute("SET lock_timeout = '1s'")
        assert added(database, run, ["re_6"]) == 1, "it does not wait for the other"
    ((waiting,),) = rows(
        database, "SELECT count(*) FROM procrastinate_jobs WHERE status = 'todo'"
    )
    assert waiting == 1


def test_strange_table_of_that_name_fails_nobody(
    database: psycopg.Connection[Any], run: str
) -> None:
    database.execute("CREATE TABLE procrastinate_jobs (id integer)")
    notices: list[str | None] = []
    database.add_notice_handler(lambda each: notices.append(each.message_primary))
    assert added(database, run, ["re_1"]) == 1
    assert "no job deferred" in str(notices)


@pytest.mark.parametrize(
    "body", ["RAISE EXCEPTION 'no'", "PERFORM gone()", "PERFORM FROM gone"]
)
def test_trigger_of_that_table_fails_nobody(
    database: psycopg.Connection[Any], run: str, body: LiteralString
) -> None:
    """Such as one of procrastinate's whose functions were dropped."""
    database.execute(
        """CREATE TABLE procrastinate_jobs (id integer, queue_name text, task_name text,
            lock text, queueing_lock text, args jsonb)"""
    )
    database.execute(
        f"""CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN {body}; END $$;
        CREATE TRIGGER broken BEFORE INSERT ON procrastinate_jobs
            FOR EACH ROW EXECUTE FUNCTION broken()"""
    )
    notices: list[str | None] = []
    database.add_notice_handler(lambda each: notices.append(each.message_primary))
    assert added(database, run, ["re_1"]) == 1
    assert "no job deferred" in str(notices)
