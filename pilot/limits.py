"""What a payload may use: what is used and what is allowed go in, an error comes out. Nothing is measured or killed here."""

from __future__ import annotations

import errno
import math
from typing import Optional

from protocol.errors import PilotageError

MIB = 1024 * 1024


def walltime(seconds: float, allowed: float) -> Optional[PilotageError]:
    """For this and all others: what is allowed is no limit if it is 0."""
    if not allowed or seconds < allowed:
        return None
    return PilotageError("WALLTIME_EXCEEDED", f"ended after {seconds:.0f} s; {allowed:.0f} s are allowed")


def cpu_time(seconds: float, allowed: float) -> Optional[PilotageError]:
    if not allowed or seconds < allowed:
        return None
    return PilotageError("CPU_TIME_EXCEEDED", f"{seconds:.0f} s of CPU time; {allowed:.0f} s are allowed")


def text(size: int, allowed_mb: int) -> Optional[PilotageError]:
    return _size("STDOUT_TOO_LARGE", size, "MiB of stdout and stderr", allowed_mb)


def work_directory(size: int, allowed_mb: int, is_whole: bool = True) -> Optional[PilotageError]:
    """What lies too deep to be measured could be any size."""
    if allowed_mb and not is_whole:
        deep = "it has paths of more than 4,096 bytes, so that its size cannot be measured"
        return PilotageError("WORK_DIRECTORY_TOO_LARGE", f"{deep}; {allowed_mb} MiB are allowed")
    return _size("WORK_DIRECTORY_TOO_LARGE", size, "MiB, inputs counted", allowed_mb)


def output(name: str, size: int, allowed_mb: int) -> Optional[PilotageError]:
    return _size("OUTPUT_TOO_LARGE", size, f"MiB of {name}", allowed_mb)


def _size(error: str, size: int, what: str, allowed_mb: int) -> Optional[PilotageError]:
    if not allowed_mb or size <= allowed_mb * MIB:
        return None
    return PilotageError(error, f"{size / MIB:.0f} {what}; {allowed_mb} MiB are allowed")


def looping(quiet_seconds: float, allowed: float) -> Optional[PilotageError]:
    if not allowed or quiet_seconds < allowed:
        return None
    return PilotageError(
        "LOOPING_JOB",
        f"no file was touched and no CPU time used for {quiet_seconds:.0f} s; {allowed:.0f} s are allowed",
    )


def processes(number: int, allowed: int) -> Optional[PilotageError]:
    if not allowed or number <= allowed:
        return None
    return PilotageError("TOO_MANY_PROCESSES", f"{number} processes and threads; {allowed} are allowed")


def memory_allowed(asked_mb: int, percent: float, otherwise_mb: int, share_mb: float) -> float:
    """MiB that a payload may use; infinite: as much as it likes.

    `percent` of what its task asks for, or `otherwise_mb` if it asks for none (0: no limit); and in either case no more than
    `share_mb` of the node, lest the kernel ends something else. What was asked for is always granted.
    """
    wanted = asked_mb * percent / 100 if asked_mb else otherwise_mb
    return min(wanted or math.inf, max(share_mb or math.inf, asked_mb))


def memory(used_mb: float, allowed_mb: float, asked_mb: int) -> Optional[PilotageError]:
    if used_mb <= allowed_mb:
        return None
    said = f"{used_mb:.0f} MiB of memory; {allowed_mb:.0f} are allowed"
    if asked_mb:
        return PilotageError("PAYLOAD_MEMORY_LIMIT", f"{said}, and {asked_mb} were asked for")
    return PilotageError("PAYLOAD_OUT_OF_MEMORY", f"{said}, since the task asks for none in particular")


DISK_FAULTS = {
    errno.ENOSPC: "NO_LOCAL_SPACE",
    errno.EDQUOT: "NO_LOCAL_SPACE",
    errno.EROFS: "NODE_UNFIT",
    errno.EIO: "NODE_UNFIT",
    errno.ESTALE: "NODE_UNFIT",
}
"""What the node's own disk says."""


def disk_refuses(error: OSError, what: str) -> Optional[PilotageError]:
    """The node's disk is at fault, not the payload, nor a mistake of ours; None if the error says something else."""
    name = DISK_FAULTS.get(error.errno or 0)
    return None if name is None else PilotageError(name, f"{what}: {error.strerror}")


KILLED = (-9, 128 + 9)
"""Ended by SIGKILL; what stands around a payload, a shell or a container, says so in its exit code."""


def kernel_memory(code: int, kills: int, kills_around: int) -> Optional[PilotageError]:
    """How many processes the kernel has ended for want of memory: in the payload's own group, and in the one around the pilot."""
    if kills:
        return PilotageError(
            "PAYLOAD_OOM_KILLED",
            f"{kills} of its processes were ended by the kernel, which was short of memory",
        )
    if kills_around > 0 and code in KILLED:
        said = f"that ended {kills_around} processes of the pilot's control group meanwhile"
        return PilotageError(
            "PAYLOAD_OOM_KILLED", f"probably by the kernel, which was short of memory: {said}"
        )
    return None


def seconds_until_full(used: float, before: float, seconds: float, allowed: float) -> float:
    """When a limit is reached if use grows on as between two looks so many seconds apart; infinite if it does not grow."""
    if used <= before or allowed == math.inf:
        return math.inf
    return max(0.0, (allowed - used) * seconds / (used - before))


def free_disk(free_mb: int, least_mb: int, grows: bool) -> Optional[PilotageError]:
    """Only a payload that writes is ended: the others are not at fault, and it does not help."""
    if free_mb >= least_mb or not grows:
        return None
    return PilotageError(
        "NO_LOCAL_SPACE", f"{free_mb} MiB are free on the disk of the work directory; {least_mb} are kept"
    )


def credentials(seconds_left: float, what: str, needed: bool) -> Optional[PilotageError]:
    if seconds_left > 0 or not needed:
        return None
    return PilotageError("CREDENTIALS_EXPIRED", f"{what} expired {-seconds_left:.0f} s ago")
