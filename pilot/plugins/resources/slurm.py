"""Slurm: variables of the job; squeue for the time that is left, which older versions do not tell otherwise."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Optional

from pilot.plugins.resources.base import ResourcePlugin, seconds_of


class Plugin(ResourcePlugin):
    @classmethod
    def is_here(cls, environ: Mapping[str, str]) -> bool:
        return "SLURM_JOB_ID" in environ

    def batch_id(self) -> str:
        """As scancel takes it; of an array 17_3, not the number that the element has beside it."""
        array, element = self.text("SLURM_ARRAY_JOB_ID"), self.text("SLURM_ARRAY_TASK_ID")
        return f"{array}_{element}" if array and element else self.text("SLURM_JOB_ID")

    def nodes(self) -> tuple[str, ...]:
        return expand(self.text("SLURM_JOB_NODELIST", "SLURM_NODELIST"))

    def cores(self) -> int:
        on_node = self.number("SLURM_CPUS_ON_NODE")
        if "SLURM_STEP_ID" not in self.environ:
            return on_node
        # Started with srun: the pilot is one of several tasks, perhaps, and each has its own cores.
        return self.number("SLURM_CPUS_PER_TASK") or on_node // self._tasks_here()

    def memory_mb(self) -> int:
        on_node = self.number("SLURM_CPUS_ON_NODE")
        whole = self.number("SLURM_MEM_PER_NODE")
        if not whole:
            per_gpu = self.number("SLURM_MEM_PER_GPU") * self.number("SLURM_GPUS_ON_NODE")
            whole = self.number("SLURM_MEM_PER_CPU") * on_node or per_gpu
        return whole * self.cores() // on_node if on_node else whole

    def gpus(self) -> Optional[tuple[str, ...]]:
        given = self.text("SLURM_STEP_GPUS", "SLURM_JOB_GPUS")
        return tuple(given.split(",")) if given else None

    def seconds_left(self) -> Optional[float]:
        end = self.number("SLURM_JOB_END_TIME")
        if end:
            return end - time.time()
        return seconds_of(self.output_of("squeue", "-h", "-j", self.text("SLURM_JOB_ID"), "-o", "%L"))

    def queue(self) -> str:
        return self.text("SLURM_JOB_PARTITION")

    def _tasks_here(self) -> int:
        """SLURM_STEP_TASKS_PER_NODE as 2(x3),1: all nodes but the last have the same number, mostly; the largest is meant."""
        counts = re.findall(r"(\d+)(?:\(x\d+\))?", self.text("SLURM_STEP_TASKS_PER_NODE"))
        return max(1, *map(int, counts)) if counts else 1


def expand(nodes: str) -> tuple[str, ...]:
    """Slurm's short form of names: n[01-03,7],gpu1 is n01, n02, n03, n7, gpu1."""
    names = []
    for word in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodes):
        names += _expand_one(word)
    return tuple(names)


def _expand_one(word: str) -> list[str]:
    found = re.search(r"\[([0-9,-]+)\]", word)
    if found is None:
        return [word]
    names = []
    for part in found[1].split(","):
        first, _, last = part.partition("-")
        for number in range(int(first), int(last or first) + 1):
            names += _expand_one(f"{word[: found.start()]}{number:0{len(first)}}{word[found.end() :]}")
    return names
