"""The bodies of the native door as dataclasses: what pilots, users and the server say to each other.

An attribute `attempt_nr` travels as `attemptNr`: `wire_name` is the one rule, so that no wire name is written by hand, and
names that PanDA has too are spelt as PanDA spells them. Bounds stand in the fields' metadata; the server checks them with
its validation library, the pilot needs none. Who reads a *message* ignores fields it does not know (an older pilot and a
newer server get on); a *request* of a user is refused then, since it is more likely misspelt.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Type, TypeVar

from protocol.resources import ResourceType

PROTOCOL_VERSION = 1
BIG = 2**63 - 1
ID = {"ge": 1, "le": BIG}
NAME_FIELD = {"min_length": 1, "max_length": 200, "pattern": r"^[A-Za-z0-9][A-Za-z0-9._:+-]*$"}
OPTIONAL_NAME = {"max_length": 200, "pattern": r"^([A-Za-z0-9][A-Za-z0-9._:+-]*)?$"}
TEXT = {"max_length": 4000}
URL = {"max_length": 8000}

M = TypeVar("M")


def wire_name(attribute: str) -> str:
    """The name of an attribute on the wire: `prod_source_label` travels as `prodSourceLabel`."""
    return re.sub(r"_([a-z0-9])", lambda match: match.group(1).upper(), attribute)


_CHECKED: dict[str, Any] = {
    "alias_generator": wire_name,
    "strict": True,
    "allow_inf_nan": False,
    "hide_input_in_errors": True,
}


if TYPE_CHECKING:
    from dataclasses import dataclass as message
    from dataclasses import dataclass as request
else:

    def message(cls):
        """A dataclass between programs: fields that it does not know are ignored."""
        cls.__pydantic_config__ = {**_CHECKED, "extra": "ignore"}
        return dataclass(cls)

    def request(cls):
        """A dataclass that a person sends: a field that it does not know is an error."""
        cls.__pydantic_config__ = {**_CHECKED, "extra": "forbid"}
        return dataclass(cls)


def bounded(default: Any = dataclasses.MISSING, of: Any = None, **bounds: Any) -> Any:
    """A field with bounds (`ge`, `le`, `min_length`, `max_length`, `pattern`, `description`); `of` is the class of its elements."""
    metadata = {**bounds, "of": of}
    if isinstance(default, type) and issubclass(default, (list, dict)):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


_PLAIN = frozenset((str, int, float, bool, type(None)))


@functools.cache
def _names(cls: type) -> tuple[tuple[str, str], ...]:
    """The fields of a message with their names on the wire."""
    return tuple((each.name, wire_name(each.name)) for each in dataclasses.fields(cls))


def to_wire(value: Any) -> Any:
    """A message as plain JSON values; what is None is left out."""
    if type(value) in _PLAIN:
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((name, getattr(value, field)) for field, name in _names(type(value)))
        return {name: to_wire(content) for name, content in pairs if content is not None}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): to_wire(content) for key, content in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_wire(content) for content in value]
    return value


def from_wire(cls: Type[M], body: Mapping[str, Any]) -> M:
    """Read a message that the server sent; fields of a newer server are ignored. For the pilot, which trusts the shape."""
    values = {}
    for each in dataclasses.fields(cls):  # type: ignore[arg-type]
        name = wire_name(each.name)
        if name not in body:
            continue
        content, of = body[name], each.metadata.get("of")
        if of is not None and content is not None:
            content = (
                [_element(of, item) for item in content]
                if isinstance(content, list)
                else _element(of, content)
            )
        values[each.name] = content
    return cls(**values)


def _element(of: Any, item: Any) -> Any:
    is_message = dataclasses.is_dataclass(of)
    return from_wire(of, item) if is_message else of(item)


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


# -- what users send ------------------------------------------------------------------------------------------------------


@request
class TaskSpec:
    """A task as a user registers it: a command for each file of a dataset, or for N jobs without input."""

    name: str = bounded(description="unique name of the task", **NAME_FIELD)
    command: List[str] = bounded(
        min_length=1,
        max_length=1000,
        description="program and arguments; placeholders such as {input} are filled in on the node",
    )
    input_dataset: str = bounded(
        "", description="closed or open dataset whose files are the inputs", **OPTIONAL_NAME
    )
    n_jobs: int = bounded(
        0, ge=0, le=10_000_000, description="number of jobs of a task without input dataset"
    )
    files_per_job: int = bounded(1, ge=1, le=10_000, description="input files of one job")
    outputs: List[str] = bounded(
        list, max_length=1000, description="templates of output names, such as {stem}.md5"
    )
    output_dataset: str = bounded(
        "", description="name of the output dataset; default: the task's name with .out", **OPTIONAL_NAME
    )
    environment: Dict[str, str] = bounded(
        dict, max_length=200, description="variables for the payload; placeholders are filled in too"
    )
    resource_type: ResourceType = bounded(
        ResourceType.CPU, of=ResourceType, description="which kind of queue takes the jobs"
    )
    cores: int = bounded(1, ge=1, le=10_000, description="cores of one job")
    memory_mb: int = bounded(0, ge=0, le=100_000_000, description="memory that the node must offer; 0: any")
    disk_mb: int = bounded(
        0,
        ge=0,
        le=10_000_000_000,
        description="disk that one job may use, inputs counted; 0: the pilot's limit",
    )
    walltime_seconds: int = bounded(
        0, ge=0, le=31_536_000, description="longest run of one payload; 0: the pilot's limit"
    )
    gpus: int = bounded(0, ge=0, le=1000, description="GPUs that the node must offer; 0: any number")
    priority: int = bounded(0, ge=-1_000_000, le=1_000_000, description="higher goes first")
    max_attempts: int = bounded(3, ge=1, le=100, description="tries that the payload itself may fail")
    max_losses: int = bounded(
        10, ge=0, le=1000, description="tries that may be lost to nodes, storages and pilots"
    )
    replicate: int = bounded(
        1, ge=1, le=5, description="copies of each job, on different nodes; the first that completes counts"
    )
    queue: str = bounded("", description="bind the task to one queue", **OPTIONAL_NAME)
    site: str = bounded("", description="bind the task to one site", **OPTIONAL_NAME)
    prod_source_label: str = bounded(
        "user", description="only pilots of this label (-j) take the jobs", **OPTIONAL_NAME
    )
    working_group: str = bounded(
        "", description="whose share pays; default: the owner's group", **OPTIONAL_NAME
    )
    country_group: str = bounded(
        "", description="pilots of this country take the jobs, and others that allow it", **OPTIONAL_NAME
    )
    requires: List[str] = bounded(
        list, max_length=100, description="tags that queue or node must have (software, CVMFS, ...)"
    )
    tags: List[str] = bounded(
        list, max_length=100, description="free words about the task; the operator may favour some"
    )
    after: List[str] = bounded(
        list, max_length=100, description="tasks that must have completed before the first job is formed"
    )
    data_type: str = bounded(
        "", max_length=40, description="kind of data, checked by the experiment plugin at stage-in"
    )
    bundle: str = bounded("", pattern=DIGEST, description="SHA-256 of a bundle sent before (--ship)")
    steps: List[Step] = bounded(
        list, of=Step, max_length=50, description="pre-, co- and post-processes of each job, in their order"
    )
    image: str = bounded(
        "",
        max_length=1000,
        pattern=IMAGE,
        description="container image of the payload, where the queue lets tasks choose one",
    )
    software: str = bounded(
        "",
        max_length=8000,
        description="URL of a .tar.gz or .zip, or a path such as /cvmfs/REPOSITORY/VERSION",
    )
    software_checksum: str = bounded(
        "",
        pattern=SOFTWARE_CHECKSUM,
        description="of the software behind a URL: sha256:… or blake3:…",
    )
    pilot_settings: Dict[str, str] = bounded(
        dict,
        max_length=50,
        description="settings of the pilot for these jobs, as limits.looping_seconds: 3600",
    )


@request
class FileSpec:
    """A file to be registered: its logical name, what it is, and where it lies."""

    lfn: str = bounded(min_length=1, max_length=4000)
    size: int = bounded(ge=0, le=BIG)
    url: str = bounded(min_length=1, **URL)
    checksums: Dict[str, str] = bounded(dict, max_length=8)


@request
class DatasetSpec:
    """A new dataset; its files may come with it or later."""

    name: str = bounded(**NAME_FIELD)
    scope: str = bounded(
        "", description="namespace of the files' logical names; default: the dataset's name", **OPTIONAL_NAME
    )
    files: List[FileSpec] = bounded(list, max_length=10_000)
    close: bool = bounded(False, description="close the dataset when these files are in")


@request
class FileList:
    """Files to be added to an open dataset."""

    files: List[FileSpec] = bounded(list, max_length=10_000)
    close: bool = False


@request
class QueueSpec:
    """A computing queue as the operator defines it."""

    name: str = bounded(**NAME_FIELD)
    site: str = bounded("LOCAL", **NAME_FIELD)
    resource_type: ResourceType = bounded(ResourceType.CPU, of=ResourceType)
    storage: str = bounded(
        "", description="storage that takes the outputs; default: the server's first", **OPTIONAL_NAME
    )
    copytools: List[str] = bounded(list, max_length=20)
    lease_seconds: int = bounded(0, ge=0, le=604_800, description="0: the server's default")
    heartbeat_seconds: int = bounded(0, ge=0, le=86_400, description="0: the server's default")
    timefloor_seconds: int = bounded(0, ge=0, le=31_536_000)
    requeue_delay_seconds: int = bounded(
        0, ge=0, le=604_800, description="how long a lost job waits before another pilot may claim it"
    )
    tags: List[str] = bounded(list, max_length=100, description="what its nodes have that jobs may require")
    country_group: str = bounded("", **OPTIONAL_NAME)
    pilot_settings: Dict[str, str] = bounded(
        dict, max_length=200, description="settings of its pilots, as limits.looping_seconds: 3600"
    )


@request
class QueueChange:
    """What is to change in a queue; what is left out stays. Pilots that run keep what they were told at their start."""

    site: Optional[str] = bounded(None, **NAME_FIELD)
    resource_type: Optional[ResourceType] = bounded(
        None, of=ResourceType, description="only while nothing uses the queue"
    )
    storage: Optional[str] = bounded(None, description='"": the server\'s first', **OPTIONAL_NAME)
    copytools: Optional[List[str]] = bounded(
        None,
        max_length=20,
        description="all of them, in their order; an empty list: any that knows the address",
    )
    lease_seconds: Optional[int] = bounded(None, ge=0, le=604_800, description="0: the server's default")
    heartbeat_seconds: Optional[int] = bounded(None, ge=0, le=86_400, description="0: the server's default")
    timefloor_seconds: Optional[int] = bounded(None, ge=0, le=31_536_000, description="0: no limit")
    requeue_delay_seconds: Optional[int] = bounded(None, ge=0, le=604_800, description="0: none")
    tags: Optional[List[str]] = bounded(None, max_length=100, description="all of them")
    country_group: Optional[str] = bounded(None, description='"": none', **OPTIONAL_NAME)
    pilot_settings: Optional[Dict[str, str]] = bounded(None, max_length=200, description="the others stay")
    unset: Optional[List[str]] = bounded(
        None, max_length=200, description="settings of its pilots that are taken away"
    )


@request
class QueueStateSpec:
    """What an operator wants a queue to be: online, test, drain or offline."""

    state: str = bounded(max_length=40)
    reason: str = bounded("", max_length=1000)


@request
class NodeStateSpec:
    """What an operator wants a worker node to be: online, or offline (put aside: it gets no job)."""

    node: str = bounded(min_length=1, max_length=255)
    state: str = bounded(max_length=40)
    reason: str = bounded("", max_length=1000)


@request
class PrioritySpec:
    """A task's new priority, also for its jobs that wait."""

    priority: int = bounded(ge=-1_000_000, le=1_000_000)


@request
class RetrySpec:
    """Which jobs of a task are to be tried again; without a word all that failed or were cancelled."""

    failed: bool = bounded(False, description="those that failed")
    cancelled: bool = bounded(
        False, description="those that were cancelled; what was not formed yet is formed then"
    )
    job_nr: Optional[int] = bounded(
        None, ge=1, le=BIG, description="this one alone, by its number in the task"
    )


@request
class DebugWish:
    """What somebody wants to see of a job that runs."""

    on: Optional[bool] = bounded(
        None, description="debug mode until the end of the attempt; left out: as it is"
    )
    watch: bool = bounded(
        False, description="somebody looks now: the pilot speaks every few seconds for a minute"
    )
    file: Optional[str] = bounded(
        None, max_length=1000, description='in the job\'s directory; "": the one that was changed last'
    )
    inspect: str = bounded("", pattern="^(ps|ls|du|stack)?$", description="ask once: ps, ls, du or stack")


@request
class StorageSpec:
    """A place for outputs: `file:///srv/data`, or `file:data` under each node's data root (SCRIPT_PREFIX)."""

    name: str = bounded(**NAME_FIELD)
    url: str = bounded(min_length=1, **URL)
    site: str = bounded("", description="the site whose pilots are near it", **OPTIONAL_NAME)


@request
class TokenSpec:
    """A new token: for an account (roles user, group, admin), which is made if it is new, or for pilots."""

    name: str = bounded(description="the account; of a pilot token a name of its own", **NAME_FIELD)
    role: str = bounded(max_length=40, description="user, group (manages a working group), admin or pilot")
    group: str = bounded("", description="working group of a new account", **OPTIONAL_NAME)
    queue: str = bounded("", description="a pilot token may be for one queue only", **OPTIONAL_NAME)
    expires_seconds: int = bounded(
        0, ge=0, le=3_153_600_000, description="how long it is valid; 0: until it is revoked"
    )


@request
class GroupSpec:
    """A working group: whose share of the resources pays for a task. Shares count among the children of one parent."""

    name: str = bounded(**NAME_FIELD)
    parent: str = bounded("", **OPTIONAL_NAME)
    share: int = bounded(100, ge=1, le=1_000_000)
    max_open_jobs: int = bounded(
        0,
        ge=0,
        le=BIG,
        description="jobs formed and not ended at a time, those of groups below counted; 0: any",
    )


@request
class GroupChange:
    """What is to change in a working group; what is left out stays."""

    parent: Optional[str] = bounded(None, description='"": none', **OPTIONAL_NAME)
    share: Optional[int] = bounded(None, ge=1, le=1_000_000)
    max_open_jobs: Optional[int] = bounded(None, ge=0, le=BIG, description="0: any number")


@request
class AccountSpec:
    """A person or service that owns tasks and datasets."""

    name: str = bounded(**NAME_FIELD)
    working_group: str = bounded("", **OPTIONAL_NAME)
    max_open_jobs: int = bounded(0, ge=0, le=BIG, description="jobs formed and not ended at a time; 0: any")


@request
class AccountChange:
    """What is to change in an account; what is left out stays."""

    working_group: Optional[str] = bounded(None, description='"": none', **OPTIONAL_NAME)
    max_open_jobs: Optional[int] = bounded(None, ge=0, le=BIG, description="0: any number")


# -- what users see -------------------------------------------------------------------------------------------------------


@message
class FileView:
    lfn: str
    scope: str
    dataset: str
    size: int
    checksums: Dict[str, str]
    url: str
    state: str
    job_id: Optional[int] = None


@message
class DatasetView:
    name: str
    scope: str
    state: str
    n_files: int
    size: int
    created: str
    closed: Optional[str] = None
    task_id: Optional[int] = None
    owner: str = ""
    n_added: Optional[int] = None
    n_known: Optional[int] = None
    """Of files that were sent in a stream: how many are new, and how many were there already."""


@message
class TaskView:
    """A task as the server reports it; `counts` holds the number of jobs in each state that occurs."""

    task_id: int
    name: str
    owner: str
    state: str
    n_jobs: int
    counts: Dict[str, int]
    n_attempts: int
    created: str
    resource_type: str
    priority: int
    input_dataset: Optional[str] = None
    output_dataset: Optional[str] = None
    output_state: Optional[str] = None
    n_outputs: int = 0
    started: Optional[str] = None
    ended: Optional[str] = None
    errors: Dict[str, int] = bounded(dict)
    spec: Optional[Dict[str, Any]] = None
    paused: bool = False
    boost: int = 0
    working_group: str = ""
    waiting: Optional[str] = None
    """Why none of its jobs is formed or handed out, in a line; told of one task, not in lists."""


@message
class FailureView:
    """Failed attempts of a task with one error and one signature: how many, where they lie, and what is probably at fault."""

    error: str
    signature: str
    """The detail, without what differs from job to job."""
    n_jobs: int
    n_attempts: int
    cause: str
    """A blame of the catalogue, or "input"; proposed from where the failures lie and where jobs complete."""
    why: str
    where: List[str] = bounded(list)
    """Which node, storage or site it is."""
    error_code: Optional[int] = None
    example: str = ""
    n_recovered: int = 0
    """Those of the jobs that have completed since."""
    n_nodes: int = 0
    nodes: Dict[str, int] = bounded(dict)
    """Failed attempts on each; the first ones, as of queues, storages and sites."""
    queues: Dict[str, int] = bounded(dict)
    storages: Dict[str, int] = bounded(dict)
    sites: Dict[str, int] = bounded(dict)
    job_ids: List[int] = bounded(list)
    """Some of the jobs."""
    inputs: List[str] = bounded(list)
    """What those read."""


@message
class TaskFailures:
    """What went wrong in a task, clustered; the signature with most jobs first."""

    task_id: int
    task: str
    n_attempts: int
    """Attempts that failed, and below those that completed."""
    n_completed: int
    failures: List[FailureView] = bounded(list, of=FailureView)
    n_other: int = 0
    """Failed attempts with rarer signatures, which are not listed."""


@message
class RetryReply:
    """How many jobs are tried again, how many were left as they were, and why."""

    n_jobs: int
    n_left: int = 0
    reason: str = ""
    more: bool = False
    """There are so many that the request is to be repeated for the rest."""


@message
class StateTime:
    """One line of a job's history: the state, when it was entered (UTC), and by whose word."""

    state: str
    at: str
    attempt_nr: int = 0
    by: str = ""
    detail: str = ""


@message
class AttemptView:
    attempt_id: int
    attempt_nr: int
    state: str
    pilot_id: str
    node: str
    queue: str
    exit_code: Optional[int] = None
    error: Optional[str] = None
    error_code: Optional[int] = None
    error_detail: Optional[str] = None
    started: Optional[str] = None
    ended: Optional[str] = None
    log_url: Optional[str] = None
    metrics: Optional[Dict[str, float]] = None
    benchmark: Optional[BenchmarkReport] = bounded(None, of=BenchmarkReport)


@message
class JobView:
    job_id: int
    job_nr: int
    task_id: int
    task: str
    state: str
    resource_type: str
    priority: int
    attempt_nr: int
    created: str
    changed: str
    pilot_id: Optional[str] = None
    node: Optional[str] = None
    error: Optional[str] = None
    error_code: Optional[int] = None
    error_detail: Optional[str] = None
    replicate: int = 1
    """Copies of it that may run at the same time."""
    inputs: Optional[List[FileView]] = bounded(None, of=FileView)
    outputs: Optional[List[FileView]] = bounded(None, of=FileView)
    attempts: Optional[List[AttemptView]] = bounded(None, of=AttemptView)
    history: Optional[List[StateTime]] = bounded(None, of=StateTime)


@message
class MetricPoint:
    """The numbers of an attempt at one moment (UTC)."""

    at: str
    metrics: Dict[str, float]


@message
class AttemptMetrics:
    """The numbers of one attempt: the last ones, and some points on the way there."""

    attempt_id: int
    attempt_nr: int
    state: str
    metrics: Optional[Dict[str, float]] = None
    points: List[MetricPoint] = bounded(list, of=MetricPoint)


@message
class JobMetrics:
    """What the pilots measured of a job's attempts over time. Of a job in the archive only the last numbers are left."""

    job_id: int
    attempts: List[AttemptMetrics] = bounded(list, of=AttemptMetrics)


@message
class InspectionView:
    """What a pilot found out; `text` is absent until it has answered."""

    number: int
    kind: str
    at: Optional[str] = None
    text: Optional[str] = None


@message
class DebugView:
    """What is seen of an attempt that somebody looks at: the ends of its files as its pilot sent them last."""

    job_id: int
    attempt_id: int
    attempt_nr: int
    state: str
    node: str
    pilot_id: str
    on: bool
    """Debug mode until the end of the attempt."""
    heartbeat_seconds: int
    """How soon the pilot hears of it at the latest."""
    ended: bool = False
    at: Optional[str] = None
    """When the pilot sent what follows; absent until it has."""
    stdout: str = ""
    stdout_size: int = 0
    file: str = ""
    text: str = ""
    size: int = 0
    inspections: List[InspectionView] = bounded(list, of=InspectionView)


@message
class QueueFit:
    """What one queue has to say to a job: whether it hands out jobs, and what is missing there, in plain words."""

    queue: str
    site: str
    state: str
    n_pilots: int = 0
    """Pilots that are alive there."""
    n_fitting: int = 0
    """Those of them that could take the job."""
    missing: List[str] = bounded(list)


@message
class Explanation:
    """Why a job or a task is where it is: sentences, the most important first, and what each queue has to say."""

    task_id: int
    task: str
    state: str
    since: str
    reasons: List[str]
    job_id: Optional[int] = None
    job_nr: Optional[int] = None
    n_before: Optional[int] = None
    """Jobs that go before it; counted up to a bound."""
    retry_seconds: Optional[int] = None
    """Until it may be handed out again."""
    queues: List[QueueFit] = bounded(list, of=QueueFit)


@message
class JobLog:
    """Where the log archive of each attempt of a job lies."""

    job_id: int
    attempts: List[AttemptView] = bounded(list, of=AttemptView)


@message
class PilotView:
    pilot_id: str
    state: str
    node: str
    queue: str
    site: str
    resource_type: str
    version: str
    slots: int
    cores: int
    memory_mb: int
    gpus: int
    n_held: int
    n_done: int
    first_seen: str
    last_seen: str
    exit_code: Optional[int] = None
    reason: Optional[str] = None
    draining: bool = False
    """It takes no further job and ends when those that it holds have."""
    updating: bool = False
    """Whoever started it will start the server's present pilot in its place."""
    batch_system: str = ""
    batch_id: str = ""
    gpu_kinds: List[GpuKind] = bounded(list, of=GpuKind)
    benchmark: Optional[BenchmarkReport] = bounded(None, of=BenchmarkReport)
    """The last one."""


@message
class PilotsDrained:
    """How many pilots were told to take no further job, or to be replaced."""

    n_pilots: int


@message
class NodeView:
    """A worker node that jobs have failed on within seconds, or that an operator put aside.

    `state`: online; held for a minute, while other nodes show whether the jobs are at fault; offline, that is put aside.
    """

    queue: str
    node: str
    state: str
    quick_failures: int = 0
    since: Optional[str] = None
    reason: str = ""


@message
class SiteView:
    name: str
    state: str
    state_reason: str = ""


@message
class QueueView:
    name: str
    site: str
    resource_type: str
    state: str
    storage: str
    copytools: List[str]
    lease_seconds: int
    heartbeat_seconds: int
    timefloor_seconds: int
    n_ready: int = 0
    n_held: int = 0
    n_pilots: int = 0
    requeue_delay_seconds: int = 0
    tags: List[str] = bounded(list)
    country_group: str = ""
    state_reason: str = ""
    state_by: str = ""
    pilot_settings: Dict[str, str] = bounded(dict)


@message
class StorageView:
    name: str
    url: str
    site: str = ""


@message
class UsageView:
    """What an owner, a group or a queue used in a time; only attempts that have ended are counted."""

    name: str
    n_attempts: int
    n_completed: int
    core_hours: float
    input_bytes: int
    output_bytes: int


@message
class TokenView:
    """A token as it may be seen; the token itself only in the answer that made it."""

    token_id: int
    name: str
    role: str
    created: str
    account: str = ""
    queue: str = ""
    expires: Optional[str] = None
    revoked: Optional[str] = None
    valid: bool = True
    token: Optional[str] = None


@message
class GroupView:
    """A working group; `usage` in core-seconds, halved each half-life, with that of the groups below."""

    name: str
    parent: str = ""
    share: int = 100
    fraction: float = 0.0
    """Its part of all resources while every group has jobs that wait."""
    usage: float = 0.0
    max_open_jobs: int = 0
    n_open: int = 0
    """Jobs formed and not ended, with those of the groups below."""


@message
class AccountView:
    name: str
    created: str
    working_group: str = ""
    max_open_jobs: int = 0
    n_open: int = 0


@message
class TrailEntry:
    """One administrative action."""

    entry_id: int
    at: str
    who: str
    action: str
    subject: str = ""
    detail: str = ""


@message
class Page:
    """One page of a list. `next_cursor` is given back as `after=` for the following page; absent at the end."""

    items: List[Any]
    total: Optional[int] = None
    next_cursor: Optional[int] = None


@message
class ErrorReply:
    """The one shape of a failure on every route; `error` is a name of the catalogue, `detail` is for people."""

    error: str
    code: int
    text: str
    detail: str
    advice: str
    fields: Optional[Dict[str, Any]] = None
