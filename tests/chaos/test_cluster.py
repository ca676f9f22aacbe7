"""The cluster that the chaos stands on does what it says."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.support.postgres_cluster import (
    make_template,
    postgres_cluster,
    server_folder,
)

if TYPE_CHECKING:
    from tests.support.postgres_cluster import PostgresCluster

DB = "postgres"
pytestmark = pytest.mark.asyncio(loop_factories=["real"])


COUNT = "SELECT count(*) FROM t"


async def connected(cluster: PostgresCluster) -> psycopg.AsyncConnection[Any]:
    return await psycopg.AsyncConnection.connect(cluster.dsn(DB), autocommit=True)


async def test_failover_loses_what_was_not_replicated_and_nothing_else() -> None:
    with server_folder() as folder:
        async with postgres_cluster(await make_template(folder)) as cluster:
            await cluster.add_standby()
            connection = await connected(cluster)
            await connection.execute("CREATE TABLE t AS SELECT generate_series(1, 7)")
            await cluster.catch_up()
            cluster.stop_replication()
            await connection.execute("INSERT INTO t VALUES (8), (9)")
            assert await cluster.primary.value(DB, COUNT) == 9
            await cluster.fail_over()
            with pytest.raises(psycopg.OperationalError):
                await connection.execute("SELECT 1")
            async with await connected(cluster) as again:
                assert await (await again.execute(COUNT)).fetchone() == (7,)
            timeline = "SELECT timeline_id FROM pg_control_checkpoint()"
            assert await cluster.primary.value(DB, timeline) == 2
            await cluster.add_standby()
            assert cluster.standby is not None
            assert await cluster.standby.value(DB, COUNT) == 7


async def test_server_comes_back_with_what_was_committed() -> None:
    with server_folder() as folder:
        async with postgres_cluster(await make_template(folder)) as cluster:
            await cluster.primary.execute(DB, "CREATE TABLE t AS SELECT 1")
            for how in ("kill", "immediate"):
                cut_off = await connected(cluster)
                await cluster.restart(how, away=0)
                with pytest.raises(psycopg.OperationalError):
                    await cut_off.execute("SELECT 1")
                assert await cluster.primary.value(DB, COUNT) == 1
            connection = await connected(cluster)
            for silence, end in (
                (cluster.proxy.hold, cluster.proxy.release),
                (cluster.primary.freeze, cluster.primary.thaw),
            ):
                silence()
                asked = asyncio.create_task(connection.execute("SELECT 1"))
                assert not (await asyncio.wait({asked}, timeout=0.1))[0]
                end()
                await asked
            cluster.proxy.refuse()
            with pytest.raises(psycopg.OperationalError, match="refused"):
                await connected(cluster)
            await connection.execute("SELECT 1")
            cluster.proxy.cut()
            with pytest.raises(psycopg.OperationalError):
                await connection.execute("SELECT 1")
