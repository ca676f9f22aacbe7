"""One task that writes for all: what is asked at about the same time goes together."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Any

import psycopg

from async_refunds.errors import JournalError

from .connection import describe
from .rows import KnownRow, UnsentRow, encoded

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .connection import Connection, Link

_BUSY, _GATHER = 0.05, 0.02
"""Seconds, as in the writer of SQLite's journal: where the last write is no longer ago
than the first, more is about to come, and waits for this long."""

_logger = logging.getLogger("async_refunds")


class Operation:
    """A statement to be carried out, and who waits for it.

    Args:
        statement: With its values, apart from the rows.
        values: Its values.
        rows: What it writes. Operations with rows and the same statement are carried
            out as one.
        recall: Finds the answer of the statement if it was committed and its answer
            lost; nothing if it was not. Without it the statement is just repeated.
    """

    __slots__ = ("done", "recall", "rows", "statement", "values")

    def __init__(
        self,
        statement: str,
        values: dict[str, Any],
        rows: Sequence[KnownRow | UnsentRow] | None = None,
        recall: str | None = None,
    ) -> None:
        self.statement, self.values = statement, values
        self.rows, self.recall = rows, recall
        self.done: asyncio.Future[list[Any]] = (
            asyncio.get_running_loop().create_future()
        )


class Writer:
    """Carries out operations in the order given, however long the database is away.

    Args:
        link: To the database.
        scope: Whose leases are checked.
    """

    def __init__(self, link: Link, scope: str) -> None:
        self._link, self._scope = link, scope
        self._waiting: list[Operation] = []
        self._task: asyncio.Task[None] | None = None
        self._wrote_at = -math.inf
        self._closed = False
        self.transactions = 0
        """Statements carried out so far."""

    async def do(self, operation: Operation) -> list[Any]:
        """Return the rows of an operation once it is kept.

        Raises:
            JournalError: It could not be kept.
        """
        if self._closed:
            raise JournalError("the journal is closed")
        self._waiting.append(operation)
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        return await operation.done

    async def close(self, *, within: float) -> None:
        """Carry out what waits, then end. Takes no longer than so many seconds."""
        self._closed = True
        if self._task is not None:
            await asyncio.wait([self._task], timeout=within)
        await self._link.close(within=0.0)
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _work(self) -> None:
        clock = asyncio.get_running_loop().time
        while self._waiting:
            if not self._closed and clock() - self._wrote_at < _BUSY:
                await asyncio.sleep(_GATHER)
            batch, self._waiting = self._waiting, []
            for operations in _grouped(batch):
                await self._carry_out(operations)
            self._wrote_at = clock()
        self._task = None

    async def _carry_out(self, operations: list[Operation]) -> None:
        """Carry out one statement for several."""
        first = operations[0]
        values = {"scope": self._scope, **first.values}
        if first.rows is not None:
            rows = [row for each in operations for row in each.rows or ()]
            values |= _values_of(rows)

        async def work(connection: Connection, in_doubt: bool) -> list[Any]:  # noqa: FBT001 - as Link calls it
            if in_doubt and first.recall is not None:
                recalled = await connection.execute(first.recall.encode(), values)
                if found := await recalled.fetchall():
                    return found
            cursor = await connection.execute(first.statement.encode(), values)
            return await cursor.fetchall()

        try:
            found = await self._link.repeat(work)
        except (psycopg.Error, JournalError) as error:
            failure = f"the journal could not be written: {describe(error)}"
            _logger.error(failure)  # noqa: TRY400 - the text may hold too much
            for each in _awaited(operations):
                each.done.set_exception(JournalError(failure))
        else:
            self.transactions += 1
            for each in _awaited(operations):
                each.done.set_result(found)


def _awaited(operations: list[Operation]) -> list[Operation]:
    return [each for each in operations if not each.done.done()]


def _values_of(rows: Sequence[KnownRow | UnsentRow]) -> dict[str, Any]:
    leases = {(row.account, row.token) for row in rows}
    return {
        "accounts": [account for account, _ in leases],
        "tokens": [token for _, token in leases],
        "rows": encoded(rows),
    }


def _grouped(operations: Iterable[Operation]) -> list[list[Operation]]:
    """Put together what can be carried out as one."""
    together: dict[str, list[Operation]] = {}
    groups: list[list[Operation]] = []
    for each in operations:
        group = together.get(each.statement) if each.rows is not None else None
        if group is None:
            groups.append([each])
            if each.rows is not None:
                together[each.statement] = groups[-1]
        else:
            group.append(each)
    return groups
