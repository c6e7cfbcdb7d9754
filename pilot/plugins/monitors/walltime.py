"""How long the payload has run: what its task allows, or else the settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Optional

from pilot import limits
from pilot.jobrun import JobRun
from pilot.plugins.monitors import base
from pilot.plugins.monitors.base import Look, Payload
from protocol.errors import PilotageError
from protocol.settings import Settings


class Monitor(base.Monitor):
    def __init__(self, payload: Payload) -> None:
        super().__init__(payload)
        self._allowed = _allowed(payload.job, payload.settings)

    @classmethod
    def seconds_to_first(cls, job: JobRun, settings: Settings) -> float:
        return _allowed(job, settings) or math.inf

    def sample(self, look: Look) -> Mapping[str, float]:
        return {"wall_seconds": round(look.wall_seconds, 1)}

    def verdict(self, look: Look) -> Optional[PilotageError]:
        return limits.walltime(look.wall_seconds, self._allowed)

    def seconds_to_next(self, look: Look) -> float:
        return self._allowed - look.wall_seconds if self._allowed else math.inf


def _allowed(job: JobRun, settings: Settings) -> float:
    return job.spec.walltime_seconds or settings.integer("limits", "walltime_seconds")
