"""The payloads that run and are looked after: one thread sleeps here until the next look at any of them is due, or one has to end."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Optional

from pilot.jobrun import JobRun
from pilot.process import Process
from protocol.errors import PilotageError

if TYPE_CHECKING:
    from pilot.plugins.monitors import Monitors


class Watch:
    """One payload, or step, under watch."""

    def __init__(
        self, job: JobRun, process: Process, due: float, fields: Mapping[str, object], is_step: bool
    ) -> None:
        self.job = job
        self.process = process
        self.is_step = is_step
        self.due = due
        """When it is looked at next (time.monotonic)."""
        self.fields = fields
        """What the records about it are bound to."""
        self.monitors: Optional[Monitors] = None
        """Made at the first look: a short payload does without."""
        self.looking = threading.Lock()
        """Held while its monitors are at work."""
        self.is_left = False
        """It has ended, and its monitors are closed."""
        self.told_to_end_at: Optional[float] = None


class Watches:
    """Who runs a payload lets it be watched; the job monitor asks what is due."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._watched: list[Watch] = []
        self._sleeps_until = -math.inf
        """Minus infinity: nobody sleeps."""
        self._closed = False

    @contextmanager
    def over(
        self,
        job: JobRun,
        process: Process,
        seconds: float,
        fields: Mapping[str, object],
        is_step: bool = False,
    ) -> Iterator[Watch]:
        """Within this the payload is watched; the first look comes after so many seconds."""
        watch = Watch(job, process, time.monotonic() + seconds, fields, is_step)
        job.attention = self.wake
        with self._condition:
            self._watched.append(watch)
            # A sleeper that wakes before the first look anyway is not disturbed: most payloads may be gone by then.
            if job.over.is_set() or watch.due < self._sleeps_until:
                self._condition.notify()
            is_closed = self._closed
        if is_closed:
            job.fail(PilotageError("PILOT_EXCEPTION", "the job monitor has ended before this payload began"))
            process.kill()
        try:
            yield watch
        finally:
            with self._condition:
                self._watched.remove(watch)
            with watch.looking:
                watch.is_left = True
            if watch.monitors is not None:
                watch.monitors.close()

    def wake(self) -> None:
        """A job is over, or the pilot has less time: look whether somebody has to end."""
        with self._condition:
            self._condition.notify()

    def all(self) -> list[Watch]:
        with self._condition:
            return list(self._watched)

    def due(self) -> list[Watch]:
        """Sleep until there is something to do; those that are due, or whose job is over. Empty: it is closed."""
        with self._condition:
            while not self._closed:
                now = time.monotonic()
                found = [each for each in self._watched if each.due <= now or _is_to_be_told(each)]
                if found:
                    return found
                self._sleeps_until = min((each.due for each in self._watched), default=math.inf)
                self._condition.wait(None if self._sleeps_until == math.inf else self._sleeps_until - now)
                self._sleeps_until = -math.inf
            return []

    def publish(self, watch: Watch, metrics: dict[str, float]) -> None:
        """The numbers of a look, unless the payload has ended meanwhile: its last numbers are better."""
        with self._condition:
            if watch in self._watched:
                watch.job.metrics = metrics

    def close(self) -> None:
        """Nobody looks any more: whoever comes now is ended."""
        with self._condition:
            self._closed = True
            self._condition.notify()


def _is_to_be_told(watch: Watch) -> bool:
    return watch.told_to_end_at is None and watch.job.over.is_set()
