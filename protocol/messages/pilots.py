"""What pilots and the server say to each other. The pilot imports nothing else of the messages."""

from __future__ import annotations

import enum
from typing import Dict, List, Optional

from protocol import cached
from protocol.messages import (
    BIG,
    ID,
    NAME_FIELD,
    OPTIONAL_NAME,
    PROTOCOL_VERSION,
    TEXT,
    URL,
    bounded,
    message,
    request,
)
from protocol.resources import ResourceType

# -- files ----------------------------------------------------------------------------------------------------------------


@message
class InputFile:
    """One input of a job: where it lies and what it must be."""

    lfn: str
    scope: str
    dataset: str
    size: int
    checksums: Dict[str, str]
    url: str


@message
class OutputFile:
    """One output that a job declares, and the physical name that this attempt alone may write."""

    lfn: str
    scope: str
    dataset: str
    url: str
    storage: Optional[str] = None
    """The address of its storage, if that is another one than the queue's; its directory has to be there."""


@message
class OutputReport:
    """What became of one output: the bytes are at the URL that the server gave out, whole and verified."""

    lfn: str = bounded(max_length=1000)
    size: int = bounded(ge=0, le=BIG)
    checksums: Dict[str, str] = bounded(min_length=1, max_length=8)


@message
class LogReport:
    """The log archive of an attempt, at the URL that the server gave out for it."""

    size: int = bounded(ge=0, le=BIG)
    checksums: Dict[str, str] = bounded(min_length=1, max_length=8)


# -- pilots ---------------------------------------------------------------------------------------------------------------


@message
class GpuKind:
    """GPUs of one model that a pilot has."""

    model: str = bounded("", max_length=200)
    count: int = bounded(1, ge=1, le=10_000)
    memory_mb: int = bounded(0, ge=0, le=BIG)
    """Of each; 0: not known."""


@message
class PilotRegistration:
    """First word of a pilot: who it is and what it has."""

    pilot_id: str = bounded(**NAME_FIELD)
    node: str = bounded(min_length=1, max_length=255)
    version: str = bounded(max_length=100)
    resource_type: ResourceType = bounded(ResourceType.CPU, of=ResourceType)
    queue: str = bounded("", **OPTIONAL_NAME)
    site_name: str = bounded("", **OPTIONAL_NAME)
    slots: int = bounded(1, ge=1, le=10_000)
    cores: int = bounded(1, ge=1, le=100_000)
    memory_mb: int = bounded(0, ge=0, le=BIG)
    disk_mb: int = bounded(0, ge=0, le=BIG)
    gpus: int = bounded(0, ge=0, le=10_000)
    tags: List[str] = bounded(list, max_length=100)
    """What the node has that jobs may require, beside the tags of its queue."""
    batch_system: str = bounded("", **OPTIONAL_NAME)
    batch_id: str = bounded("", max_length=200)
    """What the commands of that batch system call the job in which the pilot runs."""
    gpu_kinds: List[GpuKind] = bounded(list, of=GpuKind, max_length=100)
    protocol: int = bounded(PROTOCOL_VERSION, ge=1, le=1000)


@message
class QueueForPilot:
    """What the server tells a pilot about its queue. Times in seconds."""

    name: str
    site: str
    resource_type: ResourceType = bounded(of=ResourceType)
    state: str = "online"
    copytools: List[str] = bounded(list)
    """Names of the copytools that this queue allows, in order of preference; empty: any that knows the URL."""
    lease_seconds: int = 60
    heartbeat_seconds: int = 20
    timefloor_seconds: int = 0
    """The pilot asks for no further job after this time; 0: until its lifetime ends."""
    pilot_settings: Dict[str, str] = bounded(dict)
    """What the queue wants otherwise than its pilots' settings: section.key → value."""
    storage_url: str = ""
    """Where its outputs go; a directory has to be there, and is not made by pilots: where it is missing, it is not mounted."""
    token_role: Optional[str] = None
    """The role of the token that the pilot has shown, if that is no pilot's."""


@message
class CacheReport:
    """The inputs that a pilot keeps on its node: how often its jobs found theirs there, and what there is."""

    hits: int = bounded(0, ge=0, le=BIG)
    misses: int = bounded(0, ge=0, le=BIG)
    hit_bytes: int = bounded(0, ge=0, le=BIG)
    miss_bytes: int = bounded(0, ge=0, le=BIG)
    n_files: int = bounded(0, ge=0, le=BIG)
    """In the directory, which pilots of one node may share."""
    n_bytes: int = bounded(0, ge=0, le=BIG)


@message
class GetJobRequest:
    """A pilot is free: what it offers. Repeated with the same `request_id` it yields the same attempts again."""

    request_id: str = bounded(min_length=3, max_length=100, pattern=r"^[A-Za-z0-9._:-]+$")
    pilot_id: str = bounded(**NAME_FIELD)
    queue: str = bounded(**NAME_FIELD)
    resource_type: ResourceType = bounded(ResourceType.CPU, of=ResourceType)
    cores: int = bounded(1, ge=1, le=100_000)
    memory_mb: int = bounded(0, ge=0, le=BIG)
    disk_mb: int = bounded(0, ge=0, le=BIG)
    walltime_seconds: int = bounded(0, ge=0, le=BIG)
    gpus: int = bounded(0, ge=0, le=10_000)
    n_jobs: int = bounded(1, ge=1, le=1000)
    site_name: str = bounded("", **OPTIONAL_NAME)
    node: str = bounded("", max_length=255)
    prod_source_label: str = bounded("", **OPTIONAL_NAME)
    working_group: str = bounded("", **OPTIONAL_NAME)
    country_group: str = bounded("", **OPTIONAL_NAME)
    allow_other_country: bool = False
    tags: List[str] = bounded(list, max_length=100)
    task_id: Optional[int] = bounded(None, **ID)
    """Jobs of this task are preferred (--allowsameuser)."""
    images: Optional[bool] = None
    """Whether it runs containers that tasks name; left out: as its queue says."""
    cached: Optional[str] = bounded(None, max_length=cached.LONGEST, pattern="^[A-Za-z0-9._]*$")
    """What its node's cache holds (`protocol.cached.summary`): jobs with such inputs are preferred."""


@message
class BundleRef:
    """The user's code that travels with a task: fetched from the server by its SHA-256 digest, verified, cached."""

    digest: str
    size: int


IMAGE = r"^([A-Za-z0-9_./][A-Za-z0-9_.:/@+%=~-]*)?$"
"""A container image: a path, a name with a tag or digest, or a URL of a registry."""
DIGEST = "^([0-9a-f]{64})?$"
SOFTWARE_CHECKSUM = "^((sha256|blake3):[0-9a-f]{64})?$"


class StepKind(str, enum.Enum):
    """When a step runs: before the payload, with the inputs there; beside it; or after it has succeeded."""

    PRE = "pre"
    CO = "co"
    POST = "post"

    def __str__(self) -> str:
        return self.value


@request
class Step:
    """A process beside the payload of a job, with its own environment, time-out and image; its text goes into files of its own."""

    kind: StepKind = bounded(of=StepKind, description="pre, co or post")
    command: List[str] = bounded(
        min_length=1,
        max_length=1000,
        description="program and arguments; placeholders as in the task's command",
    )
    name: str = bounded(
        "",
        max_length=40,
        pattern=r"^([a-z0-9][a-z0-9_-]*)?$",
        description="what its files are called; default: its kind and number",
    )
    environment: Dict[str, str] = bounded(
        dict, max_length=200, description="variables for it, beside those of the payload"
    )
    timeout_seconds: int = bounded(
        0, ge=0, le=31_536_000, description="longest run of a pre- or post-process; 0: the pilot's limit"
    )
    image: str = bounded("", max_length=1000, pattern=IMAGE, description="another image than the payload's")


@message
class JobSpec:
    """One job handed to a pilot: everything it needs to run this attempt and to speak about it."""

    job_id: int
    job_nr: int
    task_id: int
    attempt_id: int
    attempt_nr: int
    attempt_token: str
    command: List[str]
    environment: Dict[str, str] = bounded(dict)
    inputs: List[InputFile] = bounded(list, of=InputFile)
    outputs: List[OutputFile] = bounded(list, of=OutputFile)
    log_url: str = ""
    bundle: Optional[BundleRef] = bounded(None, of=BundleRef)
    data_type: str = ""
    cores: int = 1
    gpus: int = 0
    memory_mb: int = 0
    disk_mb: int = 0
    walltime_seconds: int = 0
    prod_source_label: str = ""
    steps: List[Step] = bounded(list, of=Step)
    image: str = ""
    software: str = ""
    software_checksum: str = ""
    """As in the task."""
    pilot_settings: Dict[str, str] = bounded(dict)
    """What the task wants otherwise than the pilot's settings: section.key → value."""


@message
class GetJobReply:
    """The jobs for a pilot; none, and then after how many seconds to ask again (spread it with jitter).

    With a ticket the pilot may wait instead: `GET waitUrl?ticket=…&timeout=…` is answered when there is work for it.
    """

    jobs: List[JobSpec] = bounded(list, of=JobSpec)
    wait_seconds: float = 0.0
    drain: bool = False
    """The pilot is to take no further job, and to end when those that it holds have."""
    update: bool = False
    """It is to end so that the server's present pilot takes its place; an older one knows `drain` alone."""
    reason: str = ""
    """Why the pilot's queue hands out no jobs, if it is closed."""
    ticket: Optional[str] = None
    wait_url: Optional[str] = None


@message
class WaitReply:
    """The answer to a pilot that waited: ask for a job now, since there may be one, or its time to wait is over."""

    jobs: bool


@message
class Move:
    """A state that the attempt entered, and when, by the pilot's clock (seconds since 1970, only shown, never reckoned with)."""

    state: str = bounded(max_length=40)
    at: float = bounded(ge=0, le=1e11)


@message
class BenchmarkReport:
    """What a benchmark found on a node, with the cores of a job."""

    name: str = bounded(max_length=100)
    version: str = bounded("", max_length=100)
    date: str = bounded("", max_length=40)
    cores: int = bounded(0, ge=0, le=100_000)
    seconds: float = bounded(0.0, ge=0, le=1e9)
    node: str = bounded("", max_length=255)
    cpu_model: str = bounded("", max_length=200)
    scores: Dict[str, float] = bounded(dict, max_length=50)
    by: str = bounded("pilot", pattern="^(pilot|payload)$")
    """Who ran it: the pilot, before the payload; or it was the payload, whose word it then is."""
    job_id: Optional[int] = bounded(None, ge=0, le=BIG)
    """Where a pilot is shown with its last one: the job."""


@message
class AttemptUpdate:
    """One word about an attempt: the moves since the last one, in order, and at the end its outcome."""

    attempt_id: int = bounded(**ID)
    attempt_token: str = bounded(min_length=1, max_length=200)
    seq: int = bounded(ge=1, le=BIG)
    moves: List[Move] = bounded(list, of=Move, max_length=20)
    exit_code: Optional[int] = bounded(None, ge=-1000, le=1000)
    error: str = bounded("", max_length=100)
    """Name of the catalogue row; with the state FAILED only."""
    error_detail: str = bounded("", max_length=4000)
    input_url: str = bounded("", **URL)
    """The address of the input that could not be had, or was not as registered; with such an error only."""
    outputs: Optional[List[OutputReport]] = bounded(None, of=OutputReport, max_length=10_000)
    log: Optional[LogReport] = bounded(None, of=LogReport)
    metrics: Optional[Dict[str, float]] = bounded(None, max_length=100)
    benchmark: Optional[BenchmarkReport] = bounded(None, of=BenchmarkReport)
    next: Optional[GetJobRequest] = bounded(None, of=GetJobRequest)
    """The last word about one job may ask for the next one, with the request id ATTEMPT.SEQ."""


INSPECTIONS = ("ps", "ls", "du", "stack")
"""What a pilot can be asked about a payload that runs: its processes, the job's directory, the sizes in it, where it is."""
LONGEST_TAIL = 16_384
"""Characters of the end of a file, and of the answer to an inspection."""


@message
class InspectionOrder:
    """Asked once; a pilot that does not know the kind answers nothing."""

    number: int
    kind: str


@message
class DebugOrder:
    """Somebody looks at an attempt: what its pilot sends with its heartbeats, and how often at least. Absent: nothing."""

    period_seconds: float
    file: str = ""
    """In the job's directory; "": the one that was changed last."""
    inspect: List[InspectionOrder] = bounded(list, of=InspectionOrder)


@message
class InspectionAnswer:
    number: int = bounded(ge=1, le=BIG)
    kind: str = bounded(max_length=40)
    text: str = bounded(max_length=LONGEST_TAIL)


@message
class DebugReport:
    """The ends of standard output and of one more file, as text, without secrets; and what was found out."""

    stdout: str = bounded("", max_length=LONGEST_TAIL)
    stdout_size: int = bounded(0, ge=0, le=BIG)
    """Bytes of the whole file."""
    file: str = bounded("", max_length=1000)
    text: str = bounded("", max_length=LONGEST_TAIL)
    size: int = bounded(0, ge=0, le=BIG)
    answers: List[InspectionAnswer] = bounded(list, of=InspectionAnswer, max_length=10)


class Command(str, enum.Enum):
    """What the server tells a pilot about an attempt, in the answer to any word about it."""

    CONTINUE = "continue"
    STOP = "stop"


@message
class UpdateReply:
    """The answer to a word about an attempt: its state on the server now, and what to do."""

    attempt_id: int
    state: str
    command: Command = bounded(Command.CONTINUE, of=Command)
    error: Optional[str] = None
    """In the answer to several words: the name of the error with which this one was refused, changing nothing."""
    detail: Optional[str] = None
    """More about that error; with STOP, why the server ended the attempt."""
    next: Optional[GetJobReply] = bounded(None, of=GetJobReply)
    debug: Optional[DebugOrder] = bounded(None, of=DebugOrder)
    """In the answer to a heartbeat, as what follows."""
    soft_stop: Optional[bool] = None
    """The payload is to be told to end (SIGTERM), and what it makes of that counts."""


@message
class AttemptUpdates:
    """Words about several attempts at once, at most one about each; refused or taken each by itself."""

    updates: List[AttemptUpdate] = bounded(of=AttemptUpdate, min_length=1, max_length=1000)
    next: Optional[GetJobRequest] = bounded(None, of=GetJobRequest)


@message
class UpdateReplies:
    """One answer per word, in its order, and the next jobs if they were asked for."""

    answers: List[UpdateReply] = bounded(list, of=UpdateReply)
    next: Optional[GetJobReply] = bounded(None, of=GetJobReply)


@message
class HeldAttempt:
    """One attempt that a pilot holds, as its heartbeat names it."""

    attempt_id: int = bounded(**ID)
    attempt_token: str = bounded(min_length=1, max_length=200)
    metrics: Optional[Dict[str, float]] = bounded(None, max_length=100)
    debug: Optional[DebugReport] = bounded(None, of=DebugReport)


@message
class Heartbeat:
    """A pilot is alive and holds these attempts."""

    pilot_id: str = bounded(**NAME_FIELD)
    attempts: List[HeldAttempt] = bounded(list, of=HeldAttempt, max_length=10_000)
    cache: Optional[CacheReport] = bounded(None, of=CacheReport)
    """If it keeps inputs, and there is news of that."""


@message
class HeartbeatReply:
    """One answer per attempt that the heartbeat named, in its order."""

    answers: List[UpdateReply] = bounded(list, of=UpdateReply)
    drain: bool = False
    """As in the answer to getJob; for a pilot that waits for work."""
    update: bool = False


@message
class PilotEnd:
    """Last word of a pilot."""

    pilot_id: str = bounded(**NAME_FIELD)
    exit_code: int = bounded(ge=0, le=255)
    reason: str = bounded("", **TEXT)
    cache: Optional[CacheReport] = bounded(None, of=CacheReport)
