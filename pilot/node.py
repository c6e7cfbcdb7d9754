"""What this worker node has, and whether it is fit for work."""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import PilotageError
from protocol.resources import Offer, ResourceType

logger = logging.getLogger(__name__)

MIB = 1024 * 1024
NVIDIA_SMI_SECONDS = 20
_CGROUP_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Node:
    """What does not change while a pilot lives; the free disk is asked for anew each time."""

    name: str
    cores: int
    memory_mb: int
    resource_type: ResourceType
    gpus: tuple[str, ...] = ()

    def offer(self, queue: str, label: str, work_directory: Path, seconds_left: int, share: int = 1) -> Offer:
        """What a free slot can take now; with several slots each has its equal share."""
        return Offer(
            self.resource_type,
            queue,
            cores=max(1, self.cores // share),
            memory_mb=self.memory_mb // share,
            disk_mb=free_disk_mb(work_directory) // share,
            walltime_seconds=max(1, seconds_left),
            gpus=len(self.gpus) // share,
            label=label,
        )


def inspect(processor_type: str, environ: Mapping[str, str]) -> Node:
    """Look at the node. `processor_type` is cpu, gpu, or auto: gpu where there is one. A CPU pilot does not look for GPUs."""
    gpus = find_gpus(environ) if processor_type != ResourceType.CPU.value else ()
    resource_type = ResourceType.GPU if gpus or processor_type == ResourceType.GPU.value else ResourceType.CPU
    if resource_type is ResourceType.GPU and not gpus:
        logger.warning("this pilot was told to ask for GPU jobs, and this node shows no GPU")
    return Node(node_name(), len(os.sched_getaffinity(0)), memory_mb(), resource_type, gpus)


def node_name() -> str:
    return socket.gethostname() or "unknown"


def memory_mb(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """All memory of the node, or what its container may use if that is less."""
    found = re.search(r"^MemTotal:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
    total = int(found.group(1)) * 1024 if found else 0
    for name in _CGROUP_LIMITS:
        try:
            limit = int((cgroup / name).read_text())
        except (OSError, ValueError):  # not this version of cgroups; or "max"
            continue
        total = min(total, limit)
    return total // MIB


def free_disk_mb(directory: Path) -> int:
    """What the pilot's account may still write there."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize // MIB


def find_gpus(environ: Mapping[str, str], proc: Path = Path("/proc/driver/nvidia/gpus")) -> tuple[str, ...]:
    """A name per GPU, as nvidia-smi lists them, else as the driver does; only those that the batch system gave to this job."""
    found = _from_nvidia_smi(environ) or _from_driver(proc)
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    given = [each.strip() for each in visible.split(",") if each.strip() not in ("", "-1", "NoDevFiles")]
    return found[: len(given)]


def _from_nvidia_smi(environ: Mapping[str, str]) -> tuple[str, ...]:
    program = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if program is None:
        return ()
    try:
        done = subprocess.run(
            [program, "-L"], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=NVIDIA_SMI_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.warning("nvidia-smi does not answer", extra={"reason": str(error)})
        return ()
    return tuple(re.findall(r"^GPU \d+: (.*?)(?: \(UUID: .*)?$", done.stdout, re.MULTILINE))


def _from_driver(proc: Path) -> tuple[str, ...]:
    try:
        return tuple(sorted(os.listdir(proc)))
    except OSError:
        return ()


def check_disk(work_directory: Path, least_free_mb: int) -> None:
    """NODE_UNFIT if the work directory cannot be written, or has too little free space; before each request for a job."""
    probe = work_directory / ".probe"
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
