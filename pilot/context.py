"""What each part of the pilot is given; made once in run.py, never changed."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Optional, Union

from copytools.base import CopyTool
from pilot.bundles import Cache
from pilot.channels import Channels
from pilot.collector import Collector
from pilot.jobrun import JobRun, Jobs
from pilot.node import Node
from pilot.node.allocation import NOTHING, Allocation
from pilot.outbox import Outbox
from pilot.plugins.base import ExperimentPlugin
from pilot.plugins.executors import Chain
from pilot.plugins.monitors import Monitor
from pilot.server_client import ServerClient
from pilot.watching import Watches
from pilot.workdir import JobLogs, PilotDirectory
from protocol.errors import PilotageError
from protocol.messages.pilots import PilotRegistration, QueueForPilot
from protocol.redaction import Secrets, is_secret_name
from protocol.settings import Settings

if TYPE_CHECKING:
    from pilot.cache import InputCache

IDENTITY = frozenset(
    (
        *("X509_USER_PROXY", "X509_USER_CERT", "X509_USER_KEY", "BEARER_TOKEN", "BEARER_TOKEN_FILE"),
        *("XrdSecSSSKT", "XrdSecCREDS", "XrdSecGSIUSERPROXY", "XrdSecGSIUSERCERT", "XrdSecGSIUSERKEY"),
        *("KRB5CCNAME", "GOOGLE_APPLICATION_CREDENTIALS", "BOTO_CONFIG"),
    )
)
"""Variables of the pilot's environment that say who the pilot is, and all AWS_…; a payload is somebody else."""
STOP_GRACE_SECONDS = 3.0
"""What a payload gets between SIGTERM and SIGKILL when the pilot itself has to go: the batch system does not wait longer."""
BATCH_END_SECONDS = 15.0
"""Before the end of the batch job the pilot ends what still runs, while it can still tell."""


def are_isolated(executor: Chain, settings: Settings) -> bool:
    """Whether payloads can neither read nor signal what is the pilot's, nor write to their inputs if these are not given to them."""
    return executor.isolates or bool(settings.items("payload", "users"))


class Signalled(NamedTuple):
    """The pilot was told to end."""

    number: int


class ThreadEnded(NamedTuple):
    """A control has come to its end; `error` if it died."""

    name: str
    error: Optional[BaseException] = None


class JobsChanged(NamedTuple):
    """No job is held any more."""


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
    executor: Chain
    """How payloads and their steps are run."""
    monitors: tuple[type[Monitor], ...]
    """What looks at each payload."""
    tools: tuple[CopyTool, ...]
    """The copytools that work on this node and that the queue allows, best first."""
    unusable_tools: Mapping[str, str]
    """The other ones that it allows: name → why it does not work."""
    directory: PilotDirectory
    outbox: Outbox
    bundles: Cache
    secrets: Secrets
    channels: Channels
    jobs: Jobs
    job_logs: JobLogs
    """The pilot's own records about each job."""
    events: queue.SimpleQueue[Event]
    """What the pilot monitor (the main thread) sleeps on."""
    watches: Watches = field(default_factory=Watches)
    """The payloads that run and are looked after."""
    bell: threading.Event = field(default_factory=threading.Event)
    """Wakes the reporter: there is something to say."""
    stop: Stop = field(default_factory=Stop)
    drain: Stop = field(default_factory=Stop)
    """Set when the server wants the pilot to ask for no further job, and to end when those that it holds have."""
    update: threading.Event = field(default_factory=threading.Event)
    """Set, before `drain`, when the server's present pilot is to take this one's place then."""
    silence: threading.Event = field(default_factory=threading.Event)
    """Set at the very end: no further heartbeat."""
    started: float = field(default_factory=time.monotonic)
    collector: Optional[Collector] = None
    """Where reports go beside the server."""
    cache: Optional[InputCache] = None
    """Where inputs are kept for further jobs; None: nowhere."""
    allocation: Allocation = NOTHING
    """What the batch system had given when the pilot started."""

    @property
    def isolates(self) -> bool:
        """Payloads can neither read nor signal what is the pilot's."""
        return are_isolated(self.executor, self.settings)

    def of(self, job: JobRun) -> Context:
        """The same with what the job's task wants otherwise: what works on a job is given this one."""
        return self if job.settings is None else replace(self, settings=job.settings)

    @cached_property
    def inherited(self) -> Mapping[str, str]:
        """The environment that payloads get: the pilot's own without its settings and credentials."""
        return {
            name: value
            for name, value in self.environ.items()
            if not name.startswith(("PILOTAGE_", "AWS_"))
            and name not in IDENTITY
            and not is_secret_name(name)
        }

    def seconds_left(self) -> float:
        """Of the pilot's lifetime, which ends with the batch job at the latest."""
        return min(self._of_lifetime(), self.batch_seconds_left() - BATCH_END_SECONDS)

    def seconds_to_offer(self) -> float:
        """The longest payload that may begin now: a margin of the batch job's time is kept for what comes after it."""
        margin = self.settings.integer("limits", "walltime_margin_seconds")
        return min(self._of_lifetime(), self.batch_seconds_left() - margin)

    def batch_seconds_left(self) -> float:
        """Until the batch system ends us; infinite if it does not say."""
        given = self.allocation.seconds_left
        return math.inf if given is None else self.started + given - time.monotonic()

    def age(self) -> float:
        """Seconds for which it has run, those of the pilots included whose place it took."""
        return self.settings.integer("limits", "run_before_seconds") + time.monotonic() - self.started

    def _of_lifetime(self) -> float:
        return self.settings.integer("limits", "lifetime_seconds") - self.age()

    def grace_seconds(self) -> float:
        """Between SIGTERM and SIGKILL for a payload that has to go."""
        grace = self.settings.number("limits", "kill_grace_seconds")
        return min(grace, STOP_GRACE_SECONDS) if self.stop.is_set() else grace

    def thread_ended(self, name: str, error: Optional[BaseException] = None) -> None:
        """Tell the pilot monitor."""
        self.events.put(ThreadEnded(name, error))
