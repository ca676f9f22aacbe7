"""A batch in a process of its own, to be killed: base URL, journal, file of ids."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from async_refunds import CancelRequest, RefundsClient, RetryPolicy, cancel_many

# Many at once and short waits, so that a kill hits much that is under way.
POLICY = RetryPolicy(deadline=10.0, initial_delay=0.05, max_delay=0.2)


def read(ids: Path) -> list[CancelRequest]:
    words = [line.split() for line in ids.read_text().splitlines()]
    return [CancelRequest(each[0], each[1] if each[1:] else None) for each in words]


async def main(base_url: str, journal: str, requests: list[CancelRequest]) -> None:
    async with RefundsClient(
        "sk_test_child", base_url=base_url, retry=POLICY, attempt_timeout=0.5
    ) as refunds:
        async for _ in cancel_many(refunds, requests, journal=journal, rate=2000):
            pass


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], read(Path(sys.argv[3]))))
