"""What a monitor is: it looks at a running payload now and then, gives numbers, and may say that the payload has to end."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Optional

from pilot import proc, workdir
from pilot.jobrun import JobRun
from pilot.node import Share
from pilot.proc import Stat
from pilot.process import Process
from protocol.errors import PilotageError
from protocol.settings import Settings

PATIENCE = 200
"""What takes a second to measure is measured every 200 s: half a percent of a core."""


@dataclass
class Payload:
    """A running payload, or step, as its monitors know it."""

    job: JobRun
    process: Process
    settings: Settings
    environ: Mapping[str, str]
    """The pilot's own."""
    share: Share
    """What the slot has of the node."""
    isolated: bool = False
    """It runs in a container of its own: a debugger of ours rather stays away from it."""
    is_step: bool = False
    """A pre- or post-process, and not the payload itself."""
    _disk: Optional[workdir.Measure] = None
    _disk_again_at: float = 0.0

    def disk(self) -> workdir.Measure:
        """Its directory; a large one is not measured at each look."""
        now = time.monotonic()
        if self._disk is None or now >= self._disk_again_at:
            self._disk = workdir.measure(self.job.directory, workdir.scratch_path(self.job.directory))
            done = time.monotonic()
            self._disk_again_at = done + (done - now) * PATIENCE
        return self._disk


class Look:
    """What is seen at one moment. What several monitors want is measured once, and not at all if none wants it."""

    def __init__(self, payload: Payload) -> None:
        self.payload = payload
        self.at = time.monotonic()

    @property
    def wall_seconds(self) -> float:
        return self.at - self.payload.process.started

    @cached_property
    def processes(self) -> list[Stat]:
        """All that the payload has started and that lives."""
        return self.payload.process.members()

    @cached_property
    def cpu_seconds(self) -> float:
        """Of its cgroup where it has one; else of those that live, and of those that they have waited for."""
        cgroup = self.payload.process.cgroup
        of_group = cgroup.cpu_seconds() if cgroup is not None else None
        return of_group or sum(each.cpu_ticks for each in self.processes) / proc.TICKS

    @cached_property
    def disk(self) -> workdir.Measure:
        return self.payload.disk()


class Monitor:
    """A monitor is a class `Monitor` in a module of this folder that derives from this one; it overrides what differs.

    Each payload has one of its own, made at the first look, so it may remember what it saw. All hooks are called by one
    thread for all payloads of the pilot: none may take long. What cannot be read is not told.
    """

    explains = False
    """Whether `explanation` is worth a thread of its own."""

    def __init__(self, payload: Payload) -> None:
        self.payload = payload

    @classmethod
    def seconds_to_first(cls, job: JobRun, settings: Settings) -> float:
        """The first look comes this soon, if that is sooner than the period; asked for each payload, also the shortest."""
        return math.inf

    def sample(self, look: Look) -> Mapping[str, float]:
        """Numbers for the next heartbeat; names with a unit at their end, as memory_mb."""
        return {}

    def verdict(self, look: Look) -> Optional[PilotageError]:
        """After `sample`: the error with which the payload is ended, if it has to be."""
        return None

    def seconds_to_next(self, look: Look) -> float:
        """The next look comes this soon, if that is sooner than the period."""
        return math.inf

    def explanation(self, look: Look) -> str:
        """After a verdict, before the payload is told to end: text for the job's log archive. It may take its time."""
        return ""

    def close(self) -> None:
        """The payload has ended: the last call, by the thread that waited for it, after all others."""
