"""The lease clock: a counter in the database that only the reaper advances, so that no wall clock and no pause matters."""

from __future__ import annotations

from server.core import Core
from server.models import Counter

LEASE_CLOCK = "lease_clock"


def lease_clock() -> int:
    """Whole seconds; the counter in the database has milliseconds, so that short passes add up."""
    return int(Counter.get_by_id(LEASE_CLOCK).value // 1000)


def advance_lease_clock(core: Core, seconds: float, seen: int | None = None) -> int:
    """The reaper's right alone; the clock after it, in milliseconds. One that is not as it was `seen` stays as it is."""

    def work() -> int:
        condition = Counter.name == LEASE_CLOCK
        if seen is not None:
            condition &= Counter.value == seen
        Counter.update(value=Counter.value + int(seconds * 1000)).where(condition).execute()
        return int(Counter.get_by_id(LEASE_CLOCK).value)

    return core.database.write(work)
