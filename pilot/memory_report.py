"""Memory of a program's processes over time: a series for each rank or process, kept in memory_monitor.json, merged into jobReport.json.

Bounded whatever the program does: so many points, so many series; what is more is thinned out, or counted together.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import stat
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

from pilot import plain_json, proc
from pilot.proc import Stat
from protocol.redaction import one_line

FILE, JOB_REPORT = "memory_monitor.json", "jobReport.json"
KEY = "memory_monitor"
"""Of our part in jobReport.json."""
MOST_POINTS = 120
RANK, PROCESS = "ranks", "processes"
MOST_SERIES = {RANK: 256, PROCESS: 64}
OTHERS = "others"
"""The series of all beyond those."""
LARGEST_JOB_REPORT = 2 * 1024 * 1024
"""Of a larger one nothing is read: as Python objects it would take many times its size."""
MIB = 1024 * 1024

RANKS = (
    (b"OMPI_COMM_WORLD_RANK", b"PMIX_NAMESPACE"),
    (b"PMIX_RANK", b"PMIX_NAMESPACE"),
    (b"PMI_RANK", b"PMI_JOBID"),
    (b"SLURM_PROCID", b"SLURM_STEP_ID"),
)
"""Variables by which a process knows its rank, and of which run: MPI libraries first, since srun may have started them."""


class Seen(NamedTuple):
    """A process at one moment."""

    pid: int
    name: str
    rank: Optional[int]
    memory_mb: float
    cpu_seconds: float


def rank_of(environment: Sequence[bytes], ours: Mapping[bytes, bytes]) -> Optional[int]:
    """Of a process with this environment; None if it has none, or has inherited `ours`: then it is our rank, not its own."""
    found = dict(each.partition(b"=")[::2] for each in environment)
    for name, run in RANKS:
        value = found.get(name, b"")
        is_inherited = (value, found.get(run)) == (ours.get(name), ours.get(run))
        if not is_inherited and value.isdigit() and len(value) <= 9:
            return int(value)
    return None


class Processes:
    """Names and ranks of processes, each looked up when it is new, and once more: it may be on its way to another program."""

    def __init__(self, ours: Mapping[str, str]) -> None:
        self._ours = {os.fsencode(name): os.fsencode(value) for name, value in ours.items()}
        self._known: dict[tuple[int, int], tuple[str, Optional[int], bool]] = {}

    def seen(self, found: Iterable[Stat]) -> list[Seen]:
        before, self._known = self._known, {}
        seen = []
        for each in found:
            key = (each.pid, each.began_ticks)
            name, rank, is_sure = before.get(key) or ("", None, False)
            if not is_sure:
                name, rank, is_sure = *self._look_up(each.pid), key in before
            self._known[key] = name, rank, is_sure
            memory_mb, cpu_seconds = each.pages * proc.PAGE / MIB, each.cpu_ticks / proc.TICKS
            seen.append(Seen(each.pid, name, rank, memory_mb, cpu_seconds))
        return seen

    def _look_up(self, pid: int) -> tuple[str, Optional[int]]:
        try:
            name = one_line(Path(f"/proc/{pid}/comm").read_bytes().decode(errors="replace").strip())
        except OSError:
            name = "process"
        return name, rank_of(proc.environment(pid) or (), self._ours)


class _Series:
    """One line of the report."""

    def __init__(self, n_points: int) -> None:
        self.values = array("f", [math.nan] * n_points)
        self.peak = self.sum = self.cpu_seconds = 0.0
        self.looks = 0

    def look(self, memory_mb: float, cpu_seconds: float) -> None:
        self.peak = max(self.peak, memory_mb)
        self.sum += memory_mb
        self.looks += 1
        self.cpu_seconds = max(self.cpu_seconds, cpu_seconds)

    def as_json(self) -> dict[str, Any]:
        return {
            "peak_mb": round(self.peak, 1),
            "average_mb": round(self.sum / max(1, self.looks), 1),
            "cpu_seconds": round(self.cpu_seconds, 2),
            "memory_mb": [None if math.isnan(value) else round(value, 1) for value in self.values],
        }


class MemoryReport:
    """What was seen so far. Resident memory: pages that processes share count for each of them."""

    def __init__(self) -> None:
        self._times = array("f")
        self._step = self._next_at = 0.0
        self._total = _Series(0)
        self._series: dict[tuple[str, str], _Series] = {}
        self._n_dropped = 0

    def look(self, seconds: float, seen: Sequence[Seen]) -> None:
        """So long after the begin. Peaks and averages count each look; points are kept at ever longer intervals."""
        groups = self._groups(seen)
        is_point = seconds >= self._next_at
        if is_point:
            self._add_time(seconds)
        for key in groups:
            if key not in self._series:
                self._series[key] = _Series(len(self._times) - is_point)
        self._drop(groups)
        self._total.look(sum(each.memory_mb for each in seen), sum(each.cpu_seconds for each in seen))
        for key, (memory_mb, cpu_seconds) in groups.items():
            self._series[key].look(memory_mb, cpu_seconds)
        if is_point:
            self._total.values.append(sum(each.memory_mb for each in seen))
            for key, series in self._series.items():
                series.values.append(groups[key][0] if key in groups else math.nan)

    def as_json(self) -> dict[str, Any]:
        """The dictionary; `memory_mb` of each has a value, or null, for each of `seconds`."""
        found: dict[str, dict[str, Any]] = {kind: {} for kind in MOST_SERIES}
        for (kind, name), series in self._series.items():
            found[kind][name] = series.as_json()
        return {
            "version": 1,
            "memory": "resident, MB",
            "seconds": [round(at, 1) for at in self._times],
            "total": self._total.as_json(),
            **{kind: lines for kind, lines in found.items() if lines},
            "dropped": self._n_dropped,
        }

    def _groups(self, seen: Sequence[Seen]) -> dict[tuple[str, str], tuple[float, float]]:
        """Memory and CPU time of each rank, and of each process without one; the smallest of too many are one."""
        groups: dict[tuple[str, str], tuple[float, float]] = {}
        for each in seen:
            key = (PROCESS, f"{each.name} {each.pid}") if each.rank is None else (RANK, str(each.rank))
            memory_mb, cpu_seconds = groups.get(key, (0.0, 0.0))
            groups[key] = memory_mb + each.memory_mb, cpu_seconds + each.cpu_seconds
        for kind, most in MOST_SERIES.items():
            keys = [key for key in groups if key[0] == kind]
            if len(keys) > most:
                keys.sort(key=lambda key: (key in self._series, groups[key][0]))
                rest = [groups.pop(key) for key in keys[: len(keys) - most + 1]]
                groups[kind, OTHERS] = sum(memory for memory, _ in rest), sum(cpu for _, cpu in rest)
        return groups

    def _drop(self, living: Mapping[tuple[str, str], object]) -> None:
        """Of those that have ended, the ones that took least."""
        for kind, most in MOST_SERIES.items():
            known = [key for key in self._series if key[0] == kind]
            ended = sorted(
                (key for key in known if key not in living), key=lambda key: self._series[key].peak
            )
            for key in ended[: max(0, len(known) - most)]:
                del self._series[key]
                self._n_dropped += 1

    def _add_time(self, seconds: float) -> None:
        if len(self._times) == MOST_POINTS:
            self._times = self._times[::2]
            for series in (self._total, *self._series.values()):
                series.values = series.values[::2]
            self._step = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        self._times.append(seconds)
        self._next_at = seconds + self._step


# -- files that a payload may have put something else in the place of ------------------------------------------------------------


def write(directory: Path, name: str, document: Mapping[str, Any]) -> None:
    """Replace a file in one step; nothing is followed out of the directory. OSError.

    It belongs to whom the directory belongs, and keeps its mode: the steps of a job may have another account than we.
    """
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    temporary = f".{name}.{secrets.token_hex(4)}"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            with open(os.open(temporary, flags, 0o644, dir_fd=folder), "w", encoding="ascii") as file:
                json.dump(document, file)
                owner = os.fstat(folder)
                if owner.st_uid != os.geteuid():
                    os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
                mode = _mode_of(name, folder)
                if mode is not None:
                    os.fchmod(file.fileno(), mode)
            os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            raise
    finally:
        os.close(folder)


def _mode_of(name: str, folder: int) -> Optional[int]:
    """None if there is no such plain file."""
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return None
    return status.st_mode & 0o777 if stat.S_ISREG(status.st_mode) else None


def merge(directory: Path, part: Mapping[str, Any], key: str = KEY, name: str = JOB_REPORT) -> str:
    """Put our part into the payload's report, or into one of our own; why not, in words. One that is no JSON object stays as it is."""
    try:
        report = _found(directory / name)
        write(directory, name, {**report, key: part})
    except OSError as error:
        return f"{name}: {error.strerror or error}"
    except (ValueError, RecursionError) as error:
        return f"{name} is left as it is: {one_line(str(error))[:200]}"
    return ""


def _found(path: Path) -> dict[str, Any]:
    """Empty if there is none."""
    try:
        return plain_json.read(path, LARGEST_JOB_REPORT, strictly=False)
    except FileNotFoundError:
        return {}
