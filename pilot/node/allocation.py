"""What a batch system has given to this pilot, in the words of all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class Allocation:
    """On this node. Zero, "" and None: the batch system does not say."""

    system: str = "plain"
    """Name of the resource plugin that was asked."""
    batch_id: str = ""
    """What the batch system's own commands call this job."""
    nodes: tuple[str, ...] = ()
    cores: int = 0
    memory_mb: int = 0
    gpus: Optional[tuple[str, ...]] = None
    """Names of the GPUs, as far as no variable of their vendor has them."""
    seconds_left: Optional[float] = None
    """Until the batch system ends the job, at the moment of asking."""
    queue: str = ""
    """Or partition."""


NOTHING = Allocation()
"""No batch system, or none that we know."""
