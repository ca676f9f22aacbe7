"""An event loop on real sockets whose time stands still while there is work.

Time moves only when no socket is ready: then to the next timer. So what a case sees
does not depend on how busy the machine is, and a time-out of 30 seconds takes none.
"""

from __future__ import annotations

import asyncio
import selectors
import time

# Real seconds. The kernel carries a packet over the loopback while it is sent, and
# rarely a little later. epoll waits for whole milliseconds, which is most of a call.
_GRACE = 0.00005
# Seconds of fake time that a jump goes too far: timers that end at nearly the same time
# then end together, and the kernel is asked less often.
_QUANTUM = 0.02


# Real seconds until a loop that waits for nothing is taken for stuck.
_STUCK = 10.0


# Turns of the loop without a jump: a crowd of cases has a few hundred.
_MANY = 3000


class StuckError(Exception):
    """Tasks wait for each other, and nothing can wake them."""


class _Selector(selectors.DefaultSelector):
    now = 0.0
    _busy = 0
    _always: set[int] | None = None

    def select(
        self, timeout: float | None = None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._waited(timeout)
        self._busy += 1
        if self._busy > _MANY:
            self._drop(ready)
        return ready

    def _waited(self, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return super().select(0)
        if timeout is None:
            # No timer and no thread: what is not ready now never will be.
            ready = super().select(_STUCK)
            if not ready:
                raise StuckError([*asyncio.all_tasks()])
            return ready
        ready = super().select(0)
        if not ready:
            time.sleep(_GRACE)
            ready = super().select(0)
        if not ready:
            self.now += timeout + _QUANTUM
            self._busy, self._always = 0, None
        return ready

    def _drop(self, ready: list[tuple[selectors.SelectorKey, int]]) -> None:
        """Forget a socket that is always ready and that nobody reads.

        A transport whose `close` met a full stack is left like that by asyncio. On a
        real clock it costs CPU until it is collected; here time would stand still.
        """
        found = {key.fd for key, _ in ready}
        self._always = found if self._always is None else self._always & found
        if self._busy > 2 * _MANY:
            for fd in self._always:
                self.unregister(fd)
            self._busy, self._always = 0, None


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """The loop that cases of calls run in. It starts at 1,000 seconds."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        self._virtual.now = 1000.0
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now
