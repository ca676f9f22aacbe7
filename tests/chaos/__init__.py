"""A seeded chaos on the fleet: real workers, a real database, and what befalls them.

`python -m tests.chaos --runs 100 --seed 7 --jobs 2` kills, freezes and ends workers,
ends, cuts off and fails over the database, and judges what became of each refund by the
books of a server of its own that shares no code with async_refunds.
"""
