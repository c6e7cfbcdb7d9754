"""What /proc tells of processes: one of them, the children of one, and all that live."""

from __future__ import annotations

import os
from collections.abc import Iterator
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


def read(path: str) -> bytes:
    """A file of the kernel, with as few calls as can be: it is asked several times for each payload."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = []
        while piece := os.read(descriptor, 1 << 16):
            pieces.append(piece)
    finally:
        os.close(descriptor)
    return b"".join(pieces)


def write(path: str, text: str) -> bool:
    """To a file of the kernel, which is never created: one that is missing is a controller or a kernel that is missing."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(descriptor, text.encode())
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def stat(pid: int) -> Optional[Stat]:
    """None if there is no such process any more."""
    try:
        text = read(f"/proc/{pid}/stat").decode(errors="replace")
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
        text = read(f"/proc/{pid}/environ")
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
            found.extend(_of_thread(pid, task))
    except OSError:
        pass
    return found


def adopted(pid: int) -> list[int]:
    """Of the children of a process those of its first thread: orphans that the kernel hands over become its children."""
    try:
        return _of_thread(pid, str(pid))
    except OSError:
        return []


def _of_thread(pid: int, task: str) -> list[int]:
    return [int(number) for number in read(f"/proc/{pid}/task/{task}/children").split()]


def tree(pid: int) -> list[int]:
    """A process and its descendants, parents first."""
    found = [pid]
    for each in found:
        found.extend(children(each))
    return found


def threads_of_account(uid: int) -> int:
    """How many threads all processes of an account have, on this node."""
    number = 0
    for pid in living():
        try:
            if os.stat(f"/proc/{pid}").st_uid == uid:
                number += len(os.listdir(f"/proc/{pid}/task"))
        except OSError:
            continue
    return number
