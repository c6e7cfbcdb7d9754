"""What a job needs, what a pilot offers, and whether the one fits the other."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Tuple


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
    site: str = ""
    label: str = ""
    working_group: str = ""
    country_group: str = ""
    tags: Tuple[str, ...] = ()
    """What the node must have, sorted: software, CVMFS, ..."""
    image: bool = False
    """Its payload, or a step, is to run in a container image that its task names."""


@dataclass(frozen=True)
class Offer:
    """What a pilot has free at this moment. `walltime_seconds` 0 means without limit, a `label` of "" takes every label.

    A `working_group` takes the jobs of that group alone. A job of another country is taken where the pilot says so.
    """

    resource_type: ResourceType
    queue: str
    cores: int = 1
    memory_mb: int = 0
    disk_mb: int = 0
    walltime_seconds: int = 0
    gpus: int = 0
    site: str = ""
    label: str = ""
    working_group: str = ""
    country_group: str = ""
    allow_other_country: bool = False
    tags: Tuple[str, ...] = ()
    images: bool = False
    """Jobs may bring a container image."""


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
    if needs.site and needs.site != offer.site:
        reasons.append(f"it is bound to the site {needs.site}")
    if offer.working_group and needs.working_group != offer.working_group:
        reasons.append(
            f"its working group is {needs.working_group or 'none'} and the pilot takes only {offer.working_group}"
        )
    if needs.country_group and needs.country_group != offer.country_group and not offer.allow_other_country:
        reasons.append(f"it is for pilots of the country group {needs.country_group}")
    missing = [tag for tag in needs.tags if tag not in offer.tags]
    if missing:
        reasons.append(f"it requires {', '.join(missing)}, which the node does not have")
    if needs.image and not offer.images:
        reasons.append(
            f"it names a container image, and {offer.queue} runs no containers for tasks (payload.task_images)"
        )
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
