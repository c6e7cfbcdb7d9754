"""Sizes of the declared outputs, while they are written: one that is too large would only be refused at the end."""

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
        self._sizes: dict[str, int] = {}

    def sample(self, look: Look) -> Mapping[str, float]:
        job = self.payload.job
        self._sizes = {}
        for file in job.spec.outputs:
            try:
                self._sizes[file.lfn] = job.output_path(file).lstat().st_size
            except OSError:
                continue  # not there yet
        return {"output_mb": round(sum(self._sizes.values()) / limits.MIB, 1)} if self._sizes else {}

    def verdict(self, look: Look) -> Optional[PilotageError]:
        allowed = self.payload.settings.integer("limits", "output_mb")
        found = (limits.output(name, size, allowed) for name, size in self._sizes.items())
        return next((error for error in found if error is not None), None)
