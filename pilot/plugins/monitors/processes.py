"""How many processes the payload has, and how many threads in them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Optional

from pilot import limits
from pilot.plugins.monitors import base
from pilot.plugins.monitors.base import Look, Payload
from protocol.errors import PilotageError


class Monitor(base.Monitor):
    def __init__(self, payload: Payload) -> None:
        super().__init__(payload)
        self._threads = 0

    def sample(self, look: Look) -> Mapping[str, float]:
        self._threads = sum(_threads(each.pid) for each in look.processes)
        return {"processes": len(look.processes), "threads": self._threads}

    def verdict(self, look: Look) -> Optional[PilotageError]:
        """Where neither cgroup nor prlimit(1) could keep it below."""
        return limits.processes(self._threads, self.payload.settings.integer("payload", "processes"))


def _threads(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}/task").st_nlink - 2  # a directory for each
    except OSError:
        return 0
