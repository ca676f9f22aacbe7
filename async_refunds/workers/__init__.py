"""The batch on several machines, which share the accounts among them."""

from .work import work

__all__ = ["work"]
