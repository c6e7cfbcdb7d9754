"""Silent pilots and missed deadlines. The reaper alone advances the lease clock, so a paused server ages nobody."""

from __future__ import annotations

from server import job_executor
from server.core import Core


def run_once(core: Core, elapsed_seconds: float) -> int:
    """Advance the lease clock, by at most one period however long ago the last pass was, and expire what is overdue."""
    job_executor.advance_lease_clock(core, min(max(elapsed_seconds, 0.0), core.limits.reaper_seconds))
    expired = 0
    while batch := job_executor.expire(core):
        expired += batch
    return expired
