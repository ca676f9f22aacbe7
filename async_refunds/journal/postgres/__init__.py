"""A journal in PostgreSQL, which several machines share."""

from .connection import Database
from .enqueue import enqueue, ensure_run
from .journal import PostgresJournal
from .leases import Lease, Leases
from .reader import AccountStatus, FleetReader
from .schema import check_version, migrate

__all__ = [
    "AccountStatus",
    "Database",
    "FleetReader",
    "Lease",
    "Leases",
    "PostgresJournal",
    "check_version",
    "enqueue",
    "ensure_run",
    "migrate",
]
