"""What a job needs, what a pilot offers, and whether the one fits the other."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class ResourceType(str, enum.Enum):
    """Worker nodes differ in having a co-processor or not; each type has queues of its own."""

    CPU = "cpu"
    GPU = "gpu"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Needs:
    """What one job needs; jobs with equal needs form a class in the brokerage. Zero or "" asks for nothing in particular."""

    resource_type: ResourceType = ResourceType.CPU
    cores: int = 1
    memory_mb: int = 0
    disk_mb: int = 0
    walltime_seconds: int = 0
    gpus: int = 0
    queue: str = ""
    label: str = ""


@dataclass(frozen=True)
class Offer:
    """What a pilot has free at this moment. `walltime_seconds` 0 means without limit, a `label` of "" takes every label."""

    resource_type: ResourceType
    queue: str
    cores: int = 1
    memory_mb: int = 0
    disk_mb: int = 0
    walltime_seconds: int = 0
    gpus: int = 0
    label: str = ""


def misfits(needs: Needs, offer: Offer) -> list[str]:
    """The reasons, in plain words, why a job with these needs cannot go to this offer; an empty list means that it fits."""
    reasons = []
    if needs.resource_type != offer.resource_type:
        reasons.append(
            f"it needs a {needs.resource_type} queue and {offer.queue} is a {offer.resource_type} queue"
        )
    if needs.queue and needs.queue != offer.queue:
        reasons.append(f"it is bound to the queue {needs.queue}")
    if needs.label and offer.label and needs.label != offer.label:
        reasons.append(f"its label is {needs.label} and the pilot takes only {offer.label}")
    for what, need, have in (
        ("cores", needs.cores, offer.cores),
        ("MB of memory", needs.memory_mb, offer.memory_mb),
        ("MB of disk", needs.disk_mb, offer.disk_mb),
        ("GPUs", needs.gpus, offer.gpus),
    ):
        if need > have:
            reasons.append(f"it needs {need} {what} and {have} are offered")
    if offer.walltime_seconds and needs.walltime_seconds > offer.walltime_seconds:
        reasons.append(
            f"it needs {needs.walltime_seconds} s of wall time and {offer.walltime_seconds} s are left"
        )
    return reasons


def fits(needs: Needs, offer: Offer) -> bool:
    return not misfits(needs, offer)
