"""How many rows a transaction takes: as many as fit into some milliseconds, measured as it goes, so that pilots are not held up."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

TRANSACTION_SECONDS = 0.01
"""Half of what a transaction on SQLite may take: some are slower than the one before."""


class Pace:
    """Of one piece of work, for as long as it lasts."""

    def __init__(
        self, first: int = 100, most: int = 2000, seconds: float = TRANSACTION_SECONDS, least: int = 20
    ) -> None:
        """With fewer rows than `least` a transaction is no shorter, for what it costs by itself."""
        self.rows = first
        self._seconds = seconds
        self._most = most
        self._least = min(least, first)

    @contextlib.contextmanager
    def measured(self, rows: int) -> Iterator[None]:
        """What is done with so many rows, within the transaction: waiting for it does not count."""
        began = time.perf_counter()
        yield
        per_row = (time.perf_counter() - began) / max(rows, 1)
        self.rows = max(self._least, min(int(self._seconds / max(per_row, 1e-9)), 2 * self.rows, self._most))
