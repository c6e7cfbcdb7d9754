"""Memory of the payload: ended with an error of its own before the node's kernel looks for somebody to end.

Counted at each look are the resident pages of all its processes, which has pages that they share once for each. What counts
against the limit is the proportional part (PSS) of each; that costs more, so it is read now and then, and when it decides.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from typing import Optional

from pilot import limits, proc
from pilot.plugins.monitors import base
from pilot.plugins.monitors.base import PATIENCE, Look, Payload
from protocol.errors import PilotageError

PSS_SECONDS = 30.0
"""Between two readings that only go into the metrics."""
SOONEST = 0.1
"""Seconds between two looks at a payload that grows towards its limit."""


class Monitor(base.Monitor):
    def __init__(self, payload: Payload) -> None:
        super().__init__(payload)
        percent, otherwise, of_share = (
            payload.settings.integer("limits", name)
            for name in ("memory_percent", "memory_mb", "slot_memory_percent")
        )
        self._asked = payload.job.spec.memory_mb
        share = payload.share.memory_mb * of_share / 100
        self._allowed = limits.memory_allowed(self._asked, percent, otherwise, share)
        self._resident = self._before = self._peak = 0.0
        self._at = payload.process.started
        self._seconds = math.inf
        self._pss: Optional[float] = None
        self._pss_again_at = self._at + PSS_SECONDS
        self._may_decide_at = 0.0

    def sample(self, look: Look) -> Mapping[str, float]:
        self._seconds, self._at = max(0.01, look.at - self._at), look.at
        self._before = self._resident
        self._resident = _mb(sum(each.pages for each in look.processes) * proc.PAGE)
        self._peak = max(self._peak, self._resident)
        if look.at >= self._pss_again_at:
            self._read_pss(look)
        found = {"memory_mb": round(self._resident, 1), "memory_peak_mb": round(self._peak, 1)}
        if self._pss is not None:
            found["pss_mb"] = round(self._pss, 1)
        cgroup = self.payload.process.cgroup
        in_group = cgroup.memory_mb() if cgroup is not None else None
        if in_group is not None:
            found["cgroup_memory_mb"] = round(in_group, 1)
        return found

    def verdict(self, look: Look) -> Optional[PilotageError]:
        if self._resident <= self._allowed or look.at < self._may_decide_at:
            return None
        return limits.memory(self._read_pss(look), self._allowed, self._asked)

    def seconds_to_next(self, look: Look) -> float:
        if self._resident > self._allowed:
            return max(SOONEST, self._may_decide_at - look.at)
        soon = limits.seconds_until_full(self._resident, self._before, self._seconds, self._allowed)
        return max(SOONEST, soon / 2)

    def _read_pss(self, look: Look) -> float:
        began = time.monotonic()
        self._pss = sum(pss_mb(each.pid, each.pages) for each in look.processes)
        took = time.monotonic() - began
        self._pss_again_at = began + max(PSS_SECONDS, took * PATIENCE)
        self._may_decide_at = began + took * PATIENCE / 10  # close to a limit it may cost more
        return self._pss


def pss_mb(pid: int, pages: int) -> float:
    """Of one process; its resident pages where the kernel is too old or does not let us look."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            found = re.search(r"^Pss:\s+(\d+) kB", file.read(), re.MULTILINE)
    except OSError:
        found = None
    return int(found.group(1)) / 1024 if found else _mb(pages * proc.PAGE)


def _mb(size: int) -> float:
    return size / limits.MIB
