"""Free space on the disk of the work directory: before it is full for everybody, who writes on is ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Optional

from pilot import limits, node
from pilot.plugins.monitors import base
from pilot.plugins.monitors.base import Look, Payload
from protocol.errors import PilotageError


class Monitor(base.Monitor):
    def __init__(self, payload: Payload) -> None:
        super().__init__(payload)
        self._free = 0
        self._size: Optional[int] = None
        self._grows = False

    def sample(self, look: Look) -> Mapping[str, float]:
        try:
            self._free = node.free_disk_mb(self.payload.job.directory)
        except OSError:
            self._grows = False
            return {}  # it has removed its own directory, say
        self._grows = self._size is not None and look.disk.size > self._size
        self._size = look.disk.size
        return {"free_disk_mb": self._free}

    def verdict(self, look: Look) -> Optional[PilotageError]:
        least = self.payload.settings.integer("limits", "full_disk_mb")
        return limits.free_disk(self._free, least, self._grows)
