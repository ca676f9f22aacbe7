"""The lines of a worker's log about accounts that change hands."""

from __future__ import annotations

from async_refunds.journal.postgres.leases import Lease
from async_refunds.workers.notices import left_open, takeovers


def lease(account: str | None, former: str | None, left: int) -> Lease:
    return Lease(account, "", None, 1, former, left)


def test_lines_name_each_worker_and_few_accounts() -> None:
    taken = [lease(f"acct_{number}", "w1", 10) for number in range(1200)]
    taken += [lease(None, "w2", 1000), lease("acct_free", None, 0)]
    first, second = takeovers(taken)
    assert first == (
        "taken over from w1, which has not released them: acct_0, acct_1, acct_2, "
        "acct_3, acct_4 and 1,195 more; 12,000 open"
    )
    assert second == (
        "taken over from w2, which has not released them: the key's own account; "
        "at least 1,000 open"
    )
    waits: dict[str | None, float] = {
        "acct_A": 60.2,
        "acct_B": 240.0,
        "acct_refused": 59.9,
    }
    held_back: dict[str | None, float] = {
        "acct_A": 15.0,
        "acct_B": 0.0,
        "acct_refused": 60.0,
    }
    assert left_open(waits, held_back) == (
        "what failed or is unknown of acct_A, acct_B is asked for again in 60 to 240 "
        "s, or at once after `async-refunds fleet retry`"
    )
    del waits["acct_A"], waits["acct_B"]
    assert not left_open(waits, held_back)
