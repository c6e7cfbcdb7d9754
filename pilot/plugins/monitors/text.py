"""How much the payload prints. Beyond the limit nothing is kept any more, and the payload has to wait: here it is ended."""

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
        self._size = 0

    def sample(self, look: Look) -> Mapping[str, float]:
        job = self.payload.job
        self._size = 0
        for path in (job.stdout, job.stderr):
            try:
                self._size += path.stat().st_size
            except OSError:
                continue  # a pre-process runs, or the payload has removed it
        return {"text_mb": round(self._size / limits.MIB, 2)}

    def verdict(self, look: Look) -> Optional[PilotageError]:
        return limits.text(self._size, self.payload.settings.integer("limits", "stdout_mb"))
