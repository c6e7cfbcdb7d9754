"""The memory of each rank and process of the payload over time: in a file while it runs, in jobReport.json at its end.

A payload that ends before the first look has neither. A jobReport.json that the job declares as an output is the user's, and stays
as it is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from pilot import memory_report, proc
from pilot.plugins.monitors import base
from pilot.plugins.monitors.base import PATIENCE, Look, Payload
from pilot.proc import Stat

logger = logging.getLogger(__name__)

WRITE_SECONDS = 10.0
"""Between two states of the file; its first one is written at the first look."""
SEARCH_SECONDS = 10.0
"""Between two looks for ranks that Slurm has started, once there are some."""
MOST_RANKS = 16
"""Told one by one with the heartbeats; of more the largest and the smallest alone."""


class Monitor(base.Monitor):
    def __init__(self, payload: Payload) -> None:
        super().__init__(payload)
        self._report = memory_report.MemoryReport()
        self._processes = memory_report.Processes(payload.environ)
        self._has_srun = False
        self._ranks: list[Stat] = []
        self._write_again_at = self._search_again_at = 0.0
        self._is_writing = not payload.is_step

    def sample(self, look: Look) -> Mapping[str, float]:
        seen = self._processes.seen([*look.processes, *self._beside(look)])
        self._has_srun = any(each.name == "srun" for each in seen)
        self._report.look(look.wall_seconds, seen)
        if self._is_writing and look.at >= self._write_again_at:
            self._write()
            done = time.monotonic()
            self._write_again_at = done + max(WRITE_SECONDS, (done - look.at) * PATIENCE)
        return _of_ranks(seen)

    def _beside(self, look: Look) -> list[Stat]:
        """The ranks that srun had started on this node: they descend from Slurm, and not from the payload."""
        if self._has_srun and look.at >= self._search_again_at:
            began = time.monotonic()
            self._ranks = self.payload.process.beside()
            done = time.monotonic()
            least = SEARCH_SECONDS if self._ranks else 0.0
            self._search_again_at = done + max(least, (done - began) * PATIENCE)
        now = [(each, proc.stat(each.pid)) for each in self._ranks]
        return [
            stat for each, stat in now if stat and stat.began_ticks == each.began_ticks and not stat.is_dead
        ]

    def close(self) -> None:
        if self._is_writing:
            self._write()
        if self._is_writing and not self._is_output(memory_report.JOB_REPORT):
            why_not = memory_report.merge(self.payload.job.directory, self._report.as_json())
            if why_not:
                logger.warning("the memory report is not in the job's report", extra={"reason": why_not})

    def _write(self) -> None:
        """Where that fails once, the payload has put something in its place, or the disk is full: it is not tried again."""
        try:
            if not self._is_output(memory_report.FILE):
                memory_report.write(self.payload.job.directory, memory_report.FILE, self._report.as_json())
        except OSError as error:
            self._is_writing = False
            logger.warning("the memory report cannot be written", extra={"reason": str(error)})

    def _is_output(self, name: str) -> bool:
        return any(file.lfn == name for file in self.payload.job.spec.outputs)


def _of_ranks(seen: list[memory_report.Seen]) -> dict[str, float]:
    ranks: dict[int, float] = {}
    for each in seen:
        if each.rank is not None:
            ranks[each.rank] = ranks.get(each.rank, 0.0) + each.memory_mb
    if not ranks:
        return {}
    found = {"ranks": len(ranks), "rank_most_mb": max(ranks.values()), "rank_least_mb": min(ranks.values())}
    if len(ranks) <= MOST_RANKS:
        found.update({f"rank_{rank}_mb": memory_mb for rank, memory_mb in sorted(ranks.items())})
    return {name: round(value, 1) for name, value in found.items()}
