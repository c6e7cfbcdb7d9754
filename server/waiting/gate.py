"""How fast pilots are woken: as many a second as a dispatcher can serve beside others. All at once would hold everybody up."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable

WAKES_PER_CORE = 30
"""A second; a getJob takes a few milliseconds of a core, and half of each is left to others."""
AT_ONCE_SECONDS = 0.1
"""What may pass without waiting, as a part of a second's."""


class Gate:
    """Lets actions pass in order, at most so many a second; the first few at once."""

    def __init__(
        self,
        clock: Callable[[], float],
        later: Callable[[float, Callable[[], None]], object],
        per_second: float = 0.0,
    ) -> None:
        """`later(seconds, action)` is the loop's; 0 a second: what this machine's cores allow."""
        self._clock = clock
        self._later = later
        self._interval = 1 / (per_second or WAKES_PER_CORE * len(os.sched_getaffinity(0)))
        self._waiting: deque[Callable[[], None]] = deque()
        self._next = 0.0
        """When the next action would pass if none were let through ahead of time."""

    def let(self, action: Callable[[], None]) -> None:
        self._waiting.append(action)
        if len(self._waiting) == 1:
            self._open()

    def _open(self) -> None:
        while self._waiting:
            now = self._clock()
            self._next = max(self._next, now)
            wait = self._next - now - AT_ONCE_SECONDS
            if wait > 0.001:  # less is no time for a loop
                self._later(wait, self._open)
                return
            self._next += self._interval
            self._waiting.popleft()()
