"""Processor time of the payload and all that it has started."""

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
        self._used = 0.0

    def sample(self, look: Look) -> Mapping[str, float]:
        # The time of a process goes with it if nobody has waited for it.
        self._used = max(self._used, look.cpu_seconds)
        return {"cpu_seconds": round(self._used, 2)}

    def verdict(self, look: Look) -> Optional[PilotageError]:
        return limits.cpu_time(self._used, self.payload.settings.integer("limits", "cpu_seconds"))
