"""``async-refunds fleet``: the commands for several machines, over PostgreSQL."""
