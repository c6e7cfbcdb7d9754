"""What users and operators send."""

from __future__ import annotations

from typing import Dict, List, Optional

from protocol.messages import BIG, ID, NAME_FIELD, OPTIONAL_NAME, TEXT, URL, bounded, request
from protocol.messages.pilots import DIGEST, IMAGE, SOFTWARE_CHECKSUM, Step
from protocol.resources import ResourceType


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
        "",
        description="closed or open dataset whose files are the inputs, or container of such",
        **OPTIONAL_NAME,
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
    replicate_to: str = bounded(
        "",
        description="storage to which the input dataset is copied: each job writes what it has read (`dataset replicate`)",
        **OPTIONAL_NAME,
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
class MetadataChange:
    """What is said of a dataset, for people and for finding it; what is left out stays as it is."""

    values: Dict[str, str] = bounded(dict, max_length=100, description="a text for each key, as run: 7")
    unset: List[str] = bounded(list, max_length=100, description="keys that are taken away")


@request
class ContainerSpec:
    """A new container: a named list of datasets, over which a task may run."""

    name: str = bounded(**NAME_FIELD)
    datasets: List[str] = bounded(list, max_length=1000, description="in the order in which tasks read them")


@request
class ContainerChange:
    """Which datasets a container is to list besides, at its end, and which no more."""

    add: List[str] = bounded(list, max_length=1000)
    remove: List[str] = bounded(list, max_length=1000)


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
class ReplicaFinding:
    """What a look at a storage found of one replica: its number and address as the catalogue has them, and what it is."""

    replica_id: int = bounded(**ID)
    url: str = bounded(min_length=1, **URL)
    state: str = bounded(max_length=40, description="good or bad")
    reason: str = bounded("", **TEXT)


@request
class ReplicaFindings:
    """What a look at storages found, to be noted in the catalogue."""

    findings: List[ReplicaFinding] = bounded(of=ReplicaFinding, min_length=1, max_length=1000)


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
