"""What the parts of the server are given: the database, the key of the attempt tokens, limits, and a place for bundles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from server.database import Database


@dataclass(frozen=True)
class Limits:
    """Bounds and periods that the operator may set; seconds, unless the name says otherwise."""

    lease_seconds: int = 60
    """A pilot that is silent for longer loses its jobs, in queues that do not say otherwise."""
    heartbeat_seconds: int = 20
    """How often pilots are told to speak, in queues that do not say otherwise."""
    acknowledge_seconds: int = 60
    """How long an EXTRACTED job waits for its pilot's first word."""
    unacknowledged: int = 5
    """After so many hand-overs that nobody acknowledged the job fails."""
    ready_stock: int = 1000
    """READY jobs kept per class of needs and priority; more are formed only as these are taken."""
    retry_seconds: int = 10
    """First pause before a retry that makes sense *later*; it doubles with each loss, up to ten minutes."""
    bundle_bytes: int = 64 * 2**20
    body_bytes: int = 16 * 2**20
    idle_wait_seconds: float = 1.0
    """When a pilot that got no job is told to ask again."""
    reaper_seconds: float = 5.0
    executor_seconds: float = 0.5
    closer_seconds: float = 0.5


@dataclass(frozen=True)
class Core:
    """Passed to every function that changes something; holds no state of its own."""

    database: Database
    key: bytes
    state_directory: Path
    limits: Limits = Limits()
