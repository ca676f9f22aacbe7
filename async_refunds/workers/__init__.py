"""The batch on several machines, which share the accounts among them."""

from .app import add_sweep, add_tasks, new_app
from .metrics import WorkerMetrics
from .nightly import sweep
from .worker import work

__all__ = ["WorkerMetrics", "add_sweep", "add_tasks", "new_app", "sweep", "work"]
