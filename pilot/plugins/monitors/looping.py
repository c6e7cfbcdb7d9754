"""A payload that does nothing: no file of the job is touched, and no CPU time used, for too long. It is looked into, then ended."""

from __future__ import annotations

from typing import Optional

from pilot import diagnosis, limits, workdir
from pilot.plugins.monitors import base
from pilot.plugins.monitors.base import Look, Payload
from protocol.errors import PilotageError

IDLE_SHARE = 0.01
"""Who only looks again and again whether something has happened uses less of a core than this."""


class Monitor(base.Monitor):
    explains = True

    def __init__(self, payload: Payload) -> None:
        super().__init__(payload)
        self._allowed = payload.settings.integer("limits", "looping_seconds")
        self._disk: Optional[workdir.Measure] = None
        self._cpu = 0.0
        self._looked = self._active = payload.process.started

    def verdict(self, look: Look) -> Optional[PilotageError]:
        """Changes are looked for, no times compared: the clock of the node may jump, a file may bring an old date along."""
        used = look.cpu_seconds - self._cpu
        is_touched = self._disk is not None and look.disk != self._disk
        if is_touched or used > IDLE_SHARE * (look.at - self._looked):
            self._active = look.at
        self._disk, self._cpu, self._looked = look.disk, look.cpu_seconds, look.at
        return limits.looping(look.at - self._active, self._allowed)

    def explanation(self, look: Look) -> str:
        processes = self.payload.process.members()
        return diagnosis.of(processes, self.payload.environ, with_debugger=not self.payload.isolated)
