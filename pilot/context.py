"""What each part of the pilot is given; made once in run.py, never changed."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Optional, Union

from copytools.base import CopyTool
from pilot.bundles import Cache
from pilot.channels import Channels
from pilot.jobrun import Jobs
from pilot.node import Node
from pilot.outbox import Outbox
from pilot.plugins.base import ExperimentPlugin
from pilot.server_client import ServerClient
from pilot.workdir import PilotDirectory
from protocol.errors import PilotageError
from protocol.messages import PilotRegistration, QueueForPilot
from protocol.redaction import Secrets
from protocol.settings import Settings

STOP_GRACE_SECONDS = 3.0
"""What a payload gets between SIGTERM and SIGKILL when the pilot itself has to go: the batch system does not wait longer."""


class Signalled(NamedTuple):
    """The pilot was told to end."""

    number: int


class ThreadEnded(NamedTuple):
    """A control has come to its end; `error` if it died."""

    name: str
    error: Optional[BaseException] = None


class JobsChanged(NamedTuple):
    """A job is done with."""


Event = Union[Signalled, ThreadEnded, JobsChanged]


class Stop:
    """Set when the pilot ends: no further job is asked for, and waits end."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._calls: list[Callable[[], None]] = []
        self.error: Optional[PilotageError] = None
        """What jobs are failed with that are held then; None while the pilot works, or if it lets them finish."""

    def set(self, error: Optional[PilotageError] = None) -> None:
        self.error = error
        self._event.set()
        for call in self._calls:
            call()

    def then(self, call: Callable[[], None]) -> None:
        """Call this when it is set: it ends a wait that is not for this event. At once if it is set already."""
        self._calls.append(call)
        if self.is_set():
            call()

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        return self._event.wait(seconds)


@dataclass(frozen=True)
class Context:
    """Everything that the controls share."""

    settings: Settings
    """With what the queue overrides."""
    environ: Mapping[str, str]
    """The environment that the pilot was started with; payloads get it without our settings and secrets."""
    pilot_id: str
    registration: PilotRegistration
    computing_queue: QueueForPilot
    node: Node
    client: ServerClient
    plugin: ExperimentPlugin
    tools: tuple[CopyTool, ...]
    """The copytools that work on this node and that the queue allows, best first."""
    directory: PilotDirectory
    outbox: Outbox
    bundles: Cache
    secrets: Secrets
    channels: Channels
    jobs: Jobs
    events: queue.SimpleQueue[Event]
    """What the pilot monitor (the main thread) sleeps on."""
    bell: threading.Event = field(default_factory=threading.Event)
    """Wakes the reporter: there is something to say."""
    stop: Stop = field(default_factory=Stop)
    drain: Stop = field(default_factory=Stop)
    """Set when the server wants the pilot to ask for no further job, and to end when those that it holds have."""
    silence: threading.Event = field(default_factory=threading.Event)
    """Set at the very end: no further heartbeat."""
    started: float = field(default_factory=time.monotonic)

    def seconds_left(self) -> float:
        """Of the pilot's lifetime."""
        return self.started + self.settings.integer("limits", "lifetime_seconds") - time.monotonic()

    def grace_seconds(self) -> float:
        """Between SIGTERM and SIGKILL for a payload that has to go."""
        grace = self.settings.number("limits", "kill_grace_seconds")
        return min(grace, STOP_GRACE_SECONDS) if self.stop.is_set() else grace

    def thread_ended(self, name: str, error: Optional[BaseException] = None) -> None:
        """Tell the pilot monitor."""
        self.events.put(ThreadEnded(name, error))
