"""What a payload may use: a sample and the limits go in, a verdict comes out. Nothing is measured or killed here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from protocol.errors import PilotageError

MIB = 1024 * 1024


@dataclass(frozen=True)
class Limits:
    """What one payload may use; 0 is no limit."""

    walltime_seconds: float = 0
    disk_mb: int = 0
    stdout_mb: int = 0
    looping_seconds: float = 0


@dataclass(frozen=True)
class Sample:
    """What a payload uses at one moment. `disk_bytes` is its whole directory, `text_bytes` its stdout and stderr."""

    wall_seconds: float
    disk_bytes: int = 0
    text_bytes: int = 0
    quiet_seconds: float = 0
    """Since it last wrote anything."""


def verdict(sample: Sample, limits: Limits) -> Optional[PilotageError]:
    """The error that ends the payload, or None; the first limit that is passed counts."""
    if limits.walltime_seconds and sample.wall_seconds >= limits.walltime_seconds:
        return PilotageError(
            "WALLTIME_EXCEEDED",
            f"ended after {sample.wall_seconds:.0f} s; {limits.walltime_seconds:.0f} s are allowed",
        )
    if limits.stdout_mb and sample.text_bytes > limits.stdout_mb * MIB:
        return PilotageError(
            "STDOUT_TOO_LARGE",
            f"{sample.text_bytes / MIB:.0f} MiB of stdout and stderr; {limits.stdout_mb} MiB are allowed",
        )
    if limits.disk_mb and sample.disk_bytes > limits.disk_mb * MIB:
        return PilotageError(
            "WORK_DIRECTORY_TOO_LARGE",
            f"{sample.disk_bytes / MIB:.0f} MiB, inputs counted; {limits.disk_mb} MiB are allowed",
        )
    if limits.looping_seconds and sample.quiet_seconds >= limits.looping_seconds:
        return PilotageError(
            "LOOPING_JOB",
            f"nothing was written for {sample.quiet_seconds:.0f} s; {limits.looping_seconds:.0f} s are allowed",
        )
    return None


def next_look(wall_seconds: float, limits: Limits, period: float) -> float:
    """Seconds until the payload is to be looked at again: the period, or the end of its wall time if that is sooner."""
    if not limits.walltime_seconds:
        return period
    return max(0.0, min(period, limits.walltime_seconds - wall_seconds))
