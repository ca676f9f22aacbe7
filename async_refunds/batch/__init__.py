"""Cancel many refunds, each account at its own pace, and account for every id."""

from .runner import Batch, Progress, cancel_many

__all__ = ["Batch", "Progress", "cancel_many"]
