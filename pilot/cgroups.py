"""A cgroup (version 2) of its own for each payload, where the pilot may make one: ended as a whole, measured as a whole.

The group is made below the pilot's own one, so that all limits of the batch system hold in it. Where that is not allowed, as for
most accounts on most nodes, `make` answers None, and the payload is found by other means. Version 1 has nothing that ends a group.
"""

from __future__ import annotations

import logging
import os
import re
from functools import cache
from pathlib import Path
from typing import Optional

from pilot import proc

logger = logging.getLogger(__name__)

PREFIX = "pilotage-"


class Cgroup:
    """The group of one payload."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, pid: int) -> bool:
        """Take a process in; what it starts from now on is in as well."""
        return self._write("cgroup.procs", str(pid))

    def limit_processes(self, most: int) -> bool:
        """False where the group has no such limit: the controller `pids` is not handed down here."""
        return self._write("pids.max", str(most))

    def kill(self) -> bool:
        """SIGKILL to all in it at one moment: nothing can fork its way out. False before Linux 5.14."""
        return self._write("cgroup.kill", "1")

    def memory_mb(self) -> Optional[float]:
        """What all in it use, page cache counted; None where the controller `memory` is not handed down to this group."""
        number = _number(self._read("memory.current"))
        return None if number is None else number / 1024 / 1024

    def cpu_seconds(self) -> Optional[float]:
        """What all that were ever in it have used."""
        found = re.search(r"^usage_usec (\d+)", self._read("cpu.stat"), re.MULTILINE)
        return int(found.group(1)) / 1e6 if found else None

    def oom_kills(self) -> int:
        """How many of its processes the kernel has ended because memory was short; 0 also where the controller `memory` is missing."""
        return _oom_kills(self._read("memory.events"))

    def processes(self) -> list[int]:
        return [int(line) for line in self._read("cgroup.procs").split()]

    def remove(self) -> None:
        try:
            self.path.rmdir()
        except OSError as error:
            logger.debug("a cgroup stays", extra={"cgroup": str(self.path), "reason": error.strerror})

    def _read(self, name: str) -> str:
        try:
            return proc.read(f"{self.path}/{name}").decode()
        except OSError:
            return ""

    def _write(self, name: str, text: str) -> bool:
        return proc.write(f"{self.path}/{name}", text)


def make(name: str) -> Optional[Cgroup]:
    """A new group below ours; None where we may not."""
    parent = own()
    if parent is None:
        return None
    path = parent / f"{PREFIX}{name}"
    try:
        path.mkdir()
    except OSError:
        return None
    return Cgroup(path)


def remove_leftovers() -> None:
    """Groups of killed pilots beside ours; one that still has a process in it stays: the kernel refuses."""
    parent = own()
    for path in parent.glob(f"{PREFIX}*") if parent else ():
        Cgroup(path).remove()


@cache
def own() -> Optional[Path]:
    """The directory of the group in which we are, if we may make groups in it; looked for once."""
    path = find(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    return path if path is not None and os.access(path, os.W_OK | os.X_OK) else None


def find(mounts: str, groups: str) -> Optional[Path]:
    """Where a process's group of version 2 lies, from its mountinfo and its cgroup file; None if there is none, or out of sight."""
    line = re.search(r"^0::(/.*)$", groups, re.MULTILINE)
    for mount in mounts.splitlines():
        before, _, after = mount.partition(" - ")
        if line and after.split(" ", 1)[0] == "cgroup2":
            root, place = before.split()[3:5]
            relative = os.path.relpath(line.group(1), root)
            return None if relative.startswith("..") else Path(place) / relative
    return None


def oom_kills_around_us() -> int:
    """The same for the group that the batch system has put us in, or the node has: our payloads, and others that are in it."""
    file = _own_events()
    try:
        return _oom_kills(file.read_text()) if file is not None else 0
    except OSError:
        return 0


@cache
def _own_events() -> Optional[Path]:
    from pilot.node import quotas  # late: it imports more than a container needs

    return quotas.memory_events()


def _oom_kills(events: str) -> int:
    found = re.search(r"^oom_kill (\d+)", events, re.MULTILINE)
    return int(found.group(1)) if found else 0


def _number(text: str) -> Optional[int]:
    return int(text) if text.strip().isdigit() else None
