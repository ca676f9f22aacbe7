"""The batch on several machines, which share the accounts among them."""

from .app import add_sweep, add_tasks, new_app
from .sweep import sweep
from .work import work

__all__ = ["add_sweep", "add_tasks", "new_app", "sweep", "work"]
