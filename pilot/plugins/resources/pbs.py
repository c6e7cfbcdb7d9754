"""PBS, OpenPBS and Torque: variables and the node file; qstat, where a node has it, for memory and time."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Optional

from pilot.plugins.resources.base import ResourcePlugin, seconds_of

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class Plugin(ResourcePlugin):
    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__(environ)
        self._facts = facts_of(self.output_of("qstat", "-f", self.batch_id())) if self.batch_id() else {}

    @classmethod
    def is_here(cls, environ: Mapping[str, str]) -> bool:
        return "PBS_JOBID" in environ

    def batch_id(self) -> str:
        return self.text("PBS_JOBID")

    def nodes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._lines("PBS_NODEFILE")))

    def cores(self) -> int:
        """Torque writes a line per core into the node file; the other ones set NCPUS."""
        told = self.number("PBS_NUM_PPN", "NCPUS")
        here = socket.gethostname().partition(".")[0]
        return told or sum(line.partition(".")[0] == here for line in self._lines("PBS_NODEFILE"))

    def memory_mb(self) -> int:
        """What was asked for is for the whole job."""
        return size_of(self._facts.get("Resource_List.mem", "")) // (1 << 20) // max(1, len(self.nodes()))

    def gpus(self) -> Optional[tuple[str, ...]]:
        """Torque's file has lines as n1-gpu0."""
        lines = self._lines("PBS_GPUFILE")
        found = [re.search(r"-gpu(\d+)$", line) for line in lines]
        return tuple(each[1] for each in found if each) if lines else None

    def seconds_left(self) -> Optional[float]:
        """Torque counts down; others tell what is allowed and what is used. Without qstat the job has just begun."""
        remaining = seconds_of(self._facts.get("Walltime.Remaining", ""))
        if remaining is not None:
            return remaining
        allowed = seconds_of(self._facts.get("Resource_List.walltime") or self.text("PBS_WALLTIME"))
        used = seconds_of(self._facts.get("resources_used.walltime", "")) or 0.0
        return None if allowed is None else allowed - used

    def queue(self) -> str:
        return self.text("PBS_QUEUE")

    def _lines(self, variable: str) -> list[str]:
        try:
            return Path(self.text(variable)).read_text(errors="replace").split()
        except OSError:
            return []


def facts_of(text: str) -> dict[str, str]:
    """`qstat -f`: lines of a name and a value; long ones go on in the next line, after a tab."""
    pairs = re.findall(r"^\s+([\w.]+) = (.*)$", text.replace("\n\t", ""), re.MULTILINE)
    return {name: value.strip() for name, value in pairs}


def size_of(text: str) -> int:
    """Bytes of 8gb, 2048mb, 8388608kb; 0 for what is no size."""
    found = re.fullmatch(r"(\d+)([kmgt]?)b?", text.strip().lower())
    return int(found[1]) * _UNITS[found[2]] if found else 0
