"""What /proc tells of processes: one of them, the children of one, and all that live."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Optional

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


class Stat(NamedTuple):
    """The fields of /proc/PID/stat that are wanted here."""

    pid: int
    state: str
    parent: int
    session: int
    cpu_ticks: int
    """Its own, and that of the children it has waited for."""
    began_ticks: int
    pages: int

    @property
    def is_dead(self) -> bool:
        """Ended, and perhaps not waited for yet."""
        return self.state in "ZX"


def stat(pid: int) -> Optional[Stat]:
    """None if there is no such process any more."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return Stat(
        pid,
        fields[0],
        int(fields[1]),
        int(fields[3]),
        sum(map(int, fields[11:15])),
        int(fields[19]),
        int(fields[21]),
    )


def environment(pid: int) -> Optional[list[bytes]]:
    """NAME=VALUE, as it was given at the start; empty within execve(2), for a moment; None: gone, or another user's."""
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    return text.split(b"\0") if text else []


def living() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def lists_children() -> bool:
    """Whether this kernel tells the children of a process (nearly all do)."""
    return os.path.exists(f"/proc/self/task/{os.getpid()}/children")


def children(pid: int) -> list[int]:
    """None of them, where the kernel does not list them.

    While others are waited for at the same time one may be left out: who must be sure looks twice.
    """
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            found.extend(map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split()))
    except OSError:
        pass
    return found


def tree(pid: int) -> list[int]:
    """A process and its descendants, parents first."""
    found = [pid]
    for each in found:
        found.extend(children(each))
    return found


def threads_of_account() -> int:
    """How many threads all processes of this account have, on this node."""
    number = 0
    for pid in living():
        try:
            if os.stat(f"/proc/{pid}").st_uid == os.getuid():
                number += len(os.listdir(f"/proc/{pid}/task"))
        except OSError:
            continue
    return number
