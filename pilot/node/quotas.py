"""What the control groups of this process allow: cores and memory, the least of its own group and of all around it; and what they count.

Versions 1 and 2, mixed too. A batch system often limits a group somewhere above the pilot's own, and a container shows
only a part of the tree: so every level that can be seen is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Optional

ROOT = Path("/")


class _Mount(NamedTuple):
    """One line of mountinfo: the part of the tree that lies at `point`, and the controllers of version 1."""

    root: str
    point: str
    version: int
    controllers: frozenset[str]


def memory_bytes(root: Path = ROOT) -> Optional[int]:
    """The least limit of memory; None: no group has one. `root`: where /proc and /sys are looked for."""
    found = [_number(place / "memory.max") for place in _groups(root, 2, "memory")]
    found += [_number(place / "memory.limit_in_bytes") for place in _groups(root, 1, "memory")]
    return min((each for each in found if each is not None), default=None)


def cores(root: Path = ROOT) -> Optional[float]:
    """The least share of processor time, as a number of cores; None: no group has one."""
    found = [_quota(_words(place / "cpu.max")) for place in _groups(root, 2, "cpu")]
    for place in _groups(root, 1, "cpu"):
        found.append(_quota(_words(place / "cpu.cfs_quota_us") + _words(place / "cpu.cfs_period_us")))
    return min((each for each in found if each is not None), default=None)


def memory_events(root: Path = ROOT) -> Optional[Path]:
    """The file in which our own group counts the processes that the kernel has ended because memory was short; None: none does."""
    files = [place / "memory.events" for place in _groups(root, 2, "memory")]
    files += [place / "memory.oom_control" for place in _groups(root, 1, "memory")]
    return next((file for file in files if file.is_file()), None)


def _groups(root: Path, version: int, controller: str) -> Iterator[Path]:
    """The directories of this process's group and of those around it, innermost first."""
    own = _own_group(root, version, controller)
    for mount in _mounts(root):
        if mount.version != version or (version == 1 and controller not in mount.controllers):
            continue
        top = root / mount.point.lstrip("/")
        place = top / _below(own, mount.root)
        if not place.is_dir():
            place = top  # a container that sees its own group as the top of the tree, but still reads the host's name
        yield place
        while place != top:
            place = place.parent
            yield place


def _own_group(root: Path, version: int, controller: str) -> str:
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        is_it = controller in names.split(",") if version == 1 else number == "0" and not names
        if is_it:
            return path
    return "/"


def _below(own: str, mounted: str) -> str:
    """The group's place below the mount point: a mount may show a part of the tree only, and then ours begins with its root."""
    if mounted != "/" and (own == mounted or own.startswith(mounted + "/")):
        own = own[len(mounted) :]
    return "" if ".." in own.split("/") else own.strip("/")


def _mounts(root: Path) -> Iterator[_Mount]:
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) > 4 and len(kind) > 2 and kind[0] in ("cgroup", "cgroup2"):
            version = 2 if kind[0] == "cgroup2" else 1
            yield _Mount(fields[3], fields[4], version, frozenset(kind[2].split(",")))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:  # no such controller, or not for us to see
        return []


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _number(path: Path) -> Optional[int]:
    words = _words(path)
    return int(words[0]) if len(words) == 1 and words[0].isdigit() else None  # "max" is no limit


def _quota(words: list[str]) -> Optional[float]:
    """Microseconds that may be used in each period, and the period; "max" and -1 stand for no limit."""
    if len(words) != 2 or not all(word.isdigit() for word in words) or int(words[1]) == 0:
        return None
    return int(words[0]) / int(words[1])
