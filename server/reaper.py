"""Silent pilots and missed deadlines. The reaper alone advances the lease clock, so a paused server ages nobody."""

from __future__ import annotations

from dataclasses import dataclass

from server import job_executor
from server.brokerage import broker
from server.core import Core


@dataclass
class Turn:
    """The lease clock as this process saw it last. If another one has advanced it since, the time was counted there."""

    seen: int = -1


def run_once(core: Core, elapsed_seconds: float, turn: Turn | None = None) -> int:
    """Advance the lease clock, by at most one period however long ago the last pass was, and expire what is overdue.

    Processes that share a database take turns: each gives its own `turn`, and the clock goes no faster for them all.
    """
    step = min(max(elapsed_seconds, 0.0), core.limits.reaper_seconds)
    seen = turn.seen if turn else None
    clock = job_executor.advance_lease_clock(core, step, seen)
    if turn:
        turn.seen = clock
    if seen is None or clock == seen + int(step * 1000):
        half_life = core.limits.share_half_life_seconds
        core.database.write(lambda: broker.forget_usage(step, half_life))
    return job_executor.expire(core)
