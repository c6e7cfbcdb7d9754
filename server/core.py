"""What the parts of the server are given: the database, the key of the attempt tokens, limits, and a place for bundles."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

from server.access.callers import Callers
from server.brokerage.broker import Broker
from server.database import Database
from server.healing import Healing
from server.jobs.series import Gathering
from server.recent import Recent
from server.urls import URL_SCHEMES


@dataclass(frozen=True)
class Limits:
    """Bounds and periods that the operator may set; seconds, unless the name says otherwise."""

    lease_seconds: int = 60
    """A pilot that is silent for longer loses its jobs, in queues that do not say otherwise."""
    heartbeat_seconds: int = 20
    """How often pilots are told to speak, in queues that do not say otherwise."""
    acknowledge_seconds: int = 60
    """How long an EXTRACTED job waits for its pilot's first word."""
    unacknowledged: int = 5
    """After so many hand-overs that nobody acknowledged the job fails."""
    killed_pilots: int = 3
    """A job during whose payload so many pilots fell silent fails: it may have killed them."""
    black_hole_failures: int = 5
    """A node on which so many jobs in a row fail within seconds gets no more of them."""
    share_half_life_seconds: float = 86_400.0
    """After this time what a group has used counts half."""
    ready_stock: int = 1000
    """READY jobs kept per class of needs and priority; more are formed only as these are taken."""
    metrics_seconds: float = 60.0
    """Between two points that are kept of a running attempt's numbers; 0: none are."""
    retry_seconds: int = 10
    """First pause before a retry that makes sense *later*; it doubles with each loss, up to ten minutes."""
    bundle_bytes: int = 64 * 2**20
    body_bytes: int = 16 * 2**20
    proxies: tuple[str, ...] = ()
    """Addresses of balancers, whose word on where a request comes from is believed."""
    allowed_paths: tuple[str, ...] = ()
    """Directories below which files may be registered by `file:` URLs; none: everywhere but where systems keep their own."""
    url_schemes: tuple[str, ...] = URL_SCHEMES
    idle_wait_seconds: float = 1.0
    """When a pilot that got no job is told to ask again."""
    chain_boost: int = 0
    """Added to the priority for each step that lies before a task in its chain."""
    tag_boosts: tuple[tuple[str, int], ...] = ()
    """Tags of tasks, and what each adds to the priority."""
    judged_attempts: int = 20
    """A queue is judged by so many of its last attempts."""
    judged_percent: float = 50.0
    """More of them failed by node, site or storage: the queue is put to the test."""
    test_successes: int = 5
    """So many jobs in a row that complete bring it back."""
    availability_seconds: float = 10.0
    reaper_seconds: float = 5.0
    executor_seconds: float = 0.5
    closer_seconds: float = 0.5
    archiver_seconds: float = 1.0
    archive_after_seconds: float = 3600.0
    """How long the jobs of a task stay in the hot tables after its end."""
    garbage_seconds: float = 86_400.0
    """How long files that attempts left behind stay on the storages after that."""


@dataclass(frozen=True)
class Waiting:
    """Where pilots wait for work (`server/waiting/process.py`)."""

    port: int
    ticket_key: bytes
    scheme: str = "http"
    url: str = ""
    """The whole address as pilots reach it; "": at this port of the host by which they reach the server."""


@dataclass(frozen=True)
class Core:
    """Passed to every function that changes something; holds no state of its own but what may be forgotten at any time."""

    database: Database
    key: bytes
    state_directory: Path
    limits: Limits = Limits()
    healing: Healing = Healing()
    waiting: Waiting | None = None
    """None: pilots poll."""
    broker: Broker = field(default_factory=Broker, compare=False)
    recent: Recent = field(default_factory=Recent, compare=False)
    series: Gathering = field(default_factory=Gathering, compare=False)
    callers: Callers = field(default_factory=Callers, compare=False)
    to_form: threading.Event = field(default_factory=threading.Event, compare=False)
    """Set when there may be jobs to form: the task-executor of this process looks at once, and not at its next turn."""
