"""The batch on several machines, which share the accounts among them."""

from .app import add_sweep, add_tasks, new_app
from .nightly import sweep
from .worker import work

__all__ = ["add_sweep", "add_tasks", "new_app", "sweep", "work"]
