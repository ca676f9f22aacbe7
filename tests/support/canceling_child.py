"""A process that cancels one refund in several calls at once, for tests with signals.

Arguments: the base URL, the number of calls, the seconds of each. It prints the outcome
of each, one a line.
"""

from __future__ import annotations

import asyncio
import sys

from async_refunds import RefundsClient, RefundsError
from tests.support.scripted import KEY, RE


async def outcome(refunds: RefundsClient, seconds: float) -> str:
    try:
        refund = await refunds.cancel(RE, timeout=seconds)
    except RefundsError as error:
        return type(error).__name__
    return str(refund.status)


async def main() -> None:
    base_url, calls, seconds = sys.argv[1:]
    async with RefundsClient(KEY, base_url=base_url) as refunds:
        ended = await asyncio.gather(
            *(outcome(refunds, float(seconds)) for _ in range(int(calls)))
        )
    sys.stdout.write("\n".join(ended) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
