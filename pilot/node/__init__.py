"""What this worker node has for a pilot: cores, memory, GPUs and disk, and the share of each slot."""

from __future__ import annotations

import logging
import os
import re
import resource
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pilot.node import gpus, quotas
from pilot.node.allocation import NOTHING, Allocation
from pilot.node.gpus import Gpu
from protocol.errors import PilotageError
from protocol.resources import Offer, ResourceType

logger = logging.getLogger(__name__)

MIB = 1024 * 1024
ROOT = Path("/")


@dataclass(frozen=True)
class Share:
    """What one slot has of a node."""

    cores: int
    memory_mb: int
    gpus: tuple[Gpu, ...]


@dataclass(frozen=True)
class Node:
    """What does not change while a pilot lives; the free disk is asked for anew each time."""

    name: str
    cores: int
    memory_mb: int
    resource_type: ResourceType
    gpus: tuple[Gpu, ...] = ()
    process_memory_mb: int = 0
    """Most address space of a single process (RLIMIT_AS); 0: without limit."""

    def share(self, slot: int = 1, slots: int = 1) -> Share:
        """What the slot with this number, from 1, has of `slots`; what does not divide evenly goes to the first ones."""
        memory = self.memory_mb // slots
        start, end = (_part(len(self.gpus), number, slots) for number in (slot - 1, slot))
        return Share(
            cores=max(1, _part(self.cores, slot, slots) - _part(self.cores, slot - 1, slots)),
            memory_mb=min(memory, self.process_memory_mb) if self.process_memory_mb else memory,
            gpus=self.gpus[start:end],
        )

    def offer(
        self, queue: str, label: str, work_directory: Path, seconds_left: int, slot: int = 1, slots: int = 1
    ) -> Offer:
        """What a free slot can take now."""
        share = self.share(slot, slots)
        return Offer(
            self.resource_type,
            queue,
            cores=share.cores,
            memory_mb=share.memory_mb,
            disk_mb=free_disk_mb(work_directory) // slots,
            walltime_seconds=max(1, seconds_left),
            gpus=len(share.gpus),
            label=label,
        )


def _part(whole: int, slot: int, slots: int) -> int:
    """How much of something that cannot be split the first `slot` slots have together."""
    return slot * (whole // slots) + min(slot, whole % slots)


def inspect(
    processor_type: str,
    environ: Mapping[str, str],
    name: str = "",
    given: Allocation = NOTHING,
    root: Path = ROOT,
) -> Node:
    """Look at the node. `processor_type` is cpu, gpu, or auto: gpu where there is one. A CPU pilot does not look for GPUs.

    `name` is what the node is called; "": its host name. `root`: where /proc, /sys and /dev are looked for.
    """
    found = gpus.find(environ, given.gpus, root) if processor_type != ResourceType.CPU.value else ()
    resource_type = (
        ResourceType.GPU if found or processor_type == ResourceType.GPU.value else ResourceType.CPU
    )
    return Node(
        name or node_name(),
        _least(cores(root), given.cores),
        _least(memory_mb(root), given.memory_mb),
        resource_type,
        found,
        process_memory_mb(),
    )


def _least(found: int, given: int) -> int:
    return min(found, given) if given else found


def node_name() -> str:
    return socket.gethostname() or "unknown"


def cores(root: Path = ROOT) -> int:
    """The cores that this process may run on, or what its control groups let it use if that is less; never below 1."""
    allowed = len(os.sched_getaffinity(0))
    quota = quotas.cores(root)
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def memory_mb(root: Path = ROOT) -> int:
    """All memory of the node, or what the control groups of this process may use if that is less."""
    found = re.search(r"^MemTotal:\s+(\d+) kB", (root / "proc/meminfo").read_text(), re.MULTILINE)
    total = int(found.group(1)) * 1024 if found else 0
    limit = quotas.memory_bytes(root)
    return (total if limit is None else min(total, limit)) // MIB


def process_memory_mb() -> int:
    """What `ulimit -v` leaves to each process; 0: no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return 0 if soft == resource.RLIM_INFINITY else max(1, soft // MIB)


def free_disk_mb(directory: Path) -> int:
    """What the pilot's account may still write there."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize // MIB


def check_disk(work_directory: Path, least_free_mb: int) -> None:
    """NODE_UNFIT if the work directory cannot be written, or has too little free space; before each request for a job."""
    probe = work_directory / f".probe-{threading.get_ident()}"
    text = b"written by a pilot to see whether it can\n"
    try:
        probe.write_bytes(text)
        again = probe.read_bytes()
        probe.unlink()
        free = free_disk_mb(work_directory)
    except OSError as error:
        raise unfit(f"the work directory {work_directory} cannot be written: {error.strerror}") from None
    if again != text:
        raise unfit(f"the work directory {work_directory} does not give back what was written")
    if free < least_free_mb:
        raise unfit(f"{free} MiB are free in {work_directory}; {least_free_mb} are wanted (free_disk_mb)")


def unfit(reason: str) -> PilotageError:
    return PilotageError("NODE_UNFIT", reason)


def pilot_name(pilot_id: str, name: str, process: int, mark: str) -> str:
    """The pilot's id on the server: PILOT_ID, node and process, and a mark, since containers all begin with process 1.

    Two pilots with the same PILOT_ID, on one node or on two, so stay apart.
    """
    parts = [part for part in (pilot_id, name[:100], str(process), mark) if part]
    clean = re.sub(r"[^A-Za-z0-9._:+-]", "-", "-".join(parts))
    return clean.lstrip("._:+-")[:200]
