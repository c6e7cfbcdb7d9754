"""How often somebody may do something: token buckets in this process, one number each, and a bound on how many there are."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable

ROUNDING = 1e-6
"""Seconds; sums of intervals are not exact."""


class Throttle:
    """`burst` times at once and `per_second` in the long run, for each key; each process counts for itself."""

    def __init__(
        self,
        per_second: float,
        burst: int,
        largest: int = 20_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._interval = 1.0 / per_second
        self._length = burst * self._interval
        self._largest = largest
        self._clock = clock
        self._full_at: dict[Hashable, float] = {}
        """When the bucket of a key is full again; one that is full needs no entry."""
        self._lock = threading.Lock()

    def take(self, key: Hashable) -> float:
        """0 if it may be done now, which then is counted; else the seconds until it may."""
        with self._lock:
            now = self._clock()
            full_at = max(self._full_at.get(key, 0.0), now) + self._interval
            if full_at > now + self._length + ROUNDING:
                return full_at - now - self._length
            if len(self._full_at) >= self._largest:
                self._make_room(now)
            self._full_at[key] = full_at
        return 0.0

    def give_back(self, key: Hashable) -> None:
        """What was taken turned out not to count."""
        with self._lock:
            if key in self._full_at:
                self._full_at[key] -= self._interval

    def forget(self) -> None:
        with self._lock:
            self._full_at.clear()

    def __len__(self) -> int:
        return len(self._full_at)

    def _make_room(self, now: float) -> None:
        """Drop the buckets that are full; if more than half are not, the oldest half of them."""
        kept = [(key, full_at) for key, full_at in self._full_at.items() if full_at > now]
        self._full_at = dict(
            kept[len(kept) - self._largest // 2 :] if len(kept) > self._largest // 2 else kept
        )
