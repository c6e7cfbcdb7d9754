"""Size of the job's directory, inputs counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Optional

from pilot import limits
from pilot.plugins.monitors import base
from pilot.plugins.monitors.base import Look, Payload
from protocol.errors import PilotageError


class Monitor(base.Monitor):
    def __init__(self, payload: Payload) -> None:
        super().__init__(payload)
        self._allowed = payload.job.spec.disk_mb or payload.settings.integer("limits", "job_disk_mb")

    def sample(self, look: Look) -> Mapping[str, float]:
        return {"disk_mb": round(look.disk.size / limits.MIB, 1)}

    def verdict(self, look: Look) -> Optional[PilotageError]:
        return limits.work_directory(look.disk.size, self._allowed, look.disk.is_whole)
