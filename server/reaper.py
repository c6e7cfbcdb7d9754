"""Silent pilots and missed deadlines. The reaper alone advances the lease clock, so a paused server ages nobody."""

from __future__ import annotations

from server import job_executor
from server.core import Core
from server.job_executor import LEASE_CLOCK
from server.models import Counter


def run_once(core: Core, elapsed_seconds: float) -> int:
    """Advance the lease clock, by at most one period however long ago the last pass was, and expire what is overdue."""
    step = int(min(elapsed_seconds, core.limits.reaper_seconds) + 0.5)
    core.database.write(
        lambda: Counter.update(value=Counter.value + step).where(Counter.name == LEASE_CLOCK).execute()
    )
    expired = 0
    while batch := job_executor.expire(core):
        expired += batch
    return expired
