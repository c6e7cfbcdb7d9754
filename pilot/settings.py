"""The settings tables of the pilot, of the daemon that starts pilots on a node, and of the bridge that speaks for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Optional
from urllib.parse import urlsplit

from protocol import per_task
from protocol.logs import LOGGING_ROWS
from protocol.settings import EXPERIMENT, QUEUE, Setting, Settings, Table, load_program, with_defaults
from protocol.values import Type

MONITORS = (
    *("walltime", "cputime", "memory", "disk", "outputs", "text", "looping", "processes"),
    *("credentials", "free_disk", "memory_report"),
)
"""Those that are on by default, in the order in which their verdicts count."""

# fmt: off
_NODE = (
    Setting("node_settings", "SERVER_ADDRESS", Type.URL, "http://127.0.0.1:8080",
            "address of the server; a port follows a colon", synonyms=("SERVER_ADRESS",), options=("--url",)),
    Setting("node_settings", "PORT", Type.INTEGER, 0,
            "port of the server, where SERVER_ADDRESS names none or another; 0: as in SERVER_ADDRESS",
            minimum=0, maximum=65535, options=("-p", "--port")),
    Setting("node_settings", "PROCESSOR_TYPE", Type.CHOICE, "auto",
            "the jobs to ask for; auto: gpu on a node with a GPU, cpu on any other",
            choices=("cpu", "gpu", "auto"), options=("--processor-type",)),
    Setting("node_settings", "PILOT_ID", Type.NAME, "",
            "first part of this pilot's name on the server; node, process number and a mark follow",
            options=("--pilot-id",)),
    Setting("node_settings", "SCRIPT_PREFIX", Type.PATH, "",
            "the data root: relative file: addresses are resolved under it on this node; empty: they are refused",
            options=("--script-prefix",)),
    Setting("node_settings", "QUEUE", Type.NAME, "", "computing queue to pull jobs from", options=("-q", "--queue")),
    Setting("node_settings", "NODE_NAME", Type.NAME, "",
            "name of the node told to the server, for containers whose host name says nothing; empty: the host name",
            options=("--node-name",)),
    Setting("node_settings", "SITE", Type.NAME, "", "site name told to the server; empty: the queue's site",
            options=("-s", "--site")),
    Setting("node_settings", "LABEL", Type.NAME, "user", "job label: user, managed, ptest", options=("-j", "--label")),
    Setting("node_settings", "WORKFLOW", Type.NAME, "generic",
            "kind of work, which has defaults of its own: generic, production, user (analysis), or a workflow of an installed package",
            options=("-w", "--workflow")),
    Setting("node_settings", "BATCH_SYSTEM", Type.NAME, "auto",
            "resource plugin that knows what the batch system gave: htcondor, slurm, pbs, kubernetes, plain; auto: as the environment shows",
            options=("--batch-system",)),
    Setting("node_settings", "WORK_DIRECTORY", Type.PATH, ".",
            "each job gets a directory of its own in here", options=("-a", "--work-directory")),
    Setting("node_settings", "OUTBOX_DIRECTORY", Type.PATH, "",
            "keeps results while the server cannot be reached; must outlive the pilot; empty: in WORK_DIRECTORY",
            overridable=(QUEUE,)),
    Setting("node_settings", "CACHE_DIRECTORY", Type.PATH, "",
            "keeps shipped code and software for further jobs; the account's pilots on a node may share it; empty: in WORK_DIRECTORY",
            overridable=(QUEUE,)),
    Setting("node_settings", "TOKEN_FILE", Type.PATH, "", "file (mode 0600) with the pilot's token",
            options=("--token-file",)),
    Setting("node_settings", "BRIDGE_DIRECTORY", Type.PATH, "",
            "on nodes that do not reach the server: the directory in which a bridge takes its place (docs/offline-nodes.md)",
            options=("--bridge",)),
    Setting("node_settings", "SLOTS", Type.INTEGER, 1, "jobs that run at the same time",
            minimum=1, maximum=1024, options=("--slots",)),
    Setting("node_settings", "CA_FILE", Type.PATH, "",
            "certificate authorities that vouch for the server; empty: X509_USER_PROXY, then /tmp/x509up_uUID",
            options=("--cacert",)),
    Setting("node_settings", "CA_PATH", Type.PATH, "",
            "directory of such certificates; empty: X509_CERT_DIR, then /etc/grid-security/certificates",
            options=("--capath",)),
)

_GET_JOB = (
    Setting("get_job", "country_group", Type.TEXT, "", "country group sent with getJob; the server ignores it so far",
            options=("--countrygroup",)),
    Setting("get_job", "working_group", Type.TEXT, "", "working group sent with getJob; the server ignores it so far",
            options=("--workinggroup",)),
    Setting("get_job", "allow_other_country", Type.FLAG, False,
            "may others than the country group use this resource; the server ignores it so far",
            options=("--allowothercountry",)),
    Setting("get_job", "allow_same_user", Type.FLAG, False,
            "further jobs of the first job's task go before others of the same priority", options=("--allowsameuser",)),
    Setting("get_job", "stage_ahead", Type.INTEGER, 0,
            "jobs that a slot holds beside the one that runs: their inputs are staged meanwhile, and the outputs of the last one",
            minimum=0, maximum=10, overridable=(QUEUE,)),
    Setting("get_job", "claim_ahead", Type.INTEGER, 0,
            "the same while payloads last less than a second: most jobs claimed ahead, a second of work at most; 0: one by one",
            minimum=0, maximum=100, overridable=(QUEUE,)),
)

_LIMITS = (
    Setting("limits", "lifetime_seconds", Type.INTEGER, 324_000,
            "the pilot ends after this; running jobs are given back", minimum=1, maximum=31_536_000,
            options=("-l", "--lifetime")),
    Setting("limits", "run_before_seconds", Type.INTEGER, 0,
            "what the pilots before this one have used of lifetime and timefloor, in whose place the wrapper has started it",
            minimum=0, maximum=31_536_000),
    Setting("limits", "walltime_margin_seconds", Type.INTEGER, 300,
            "so long before the end of the batch job a payload must have ended: for its outputs to be stored and told",
            minimum=0, maximum=86_400, overridable=(QUEUE,)),
    Setting("limits", "timefloor_seconds", Type.INTEGER, 0,
            "no further job is asked for once the pilot has run this long; 0: lifetime_seconds alone counts",
            minimum=0, maximum=31_536_000, overridable=(QUEUE,)),
    Setting("limits", "drain_seconds", Type.INTEGER, 0,
            "no further job is asked for when less is left of the pilot's lifetime, so that those it has may end; 0: until it is over",
            minimum=0, maximum=31_536_000, overridable=(QUEUE,)),
    Setting("limits", "idle_seconds", Type.INTEGER, 600, "the pilot ends after so long without a job",
            minimum=0, maximum=31_536_000, options=("--idle",), overridable=(QUEUE,)),
    Setting("limits", "max_jobs", Type.INTEGER, 0, "the pilot ends after so many jobs; 0: any number",
            minimum=0, maximum=1_000_000, options=("--max-jobs",)),
    Setting("limits", "kill_grace_seconds", Type.NUMBER, 5,
            "between SIGTERM and SIGKILL when a payload has to go", minimum=0, maximum=600, overridable=(QUEUE, EXPERIMENT)),
    Setting("limits", "walltime_seconds", Type.INTEGER, 0,
            "longest run of a payload whose task names none; 0: no limit", minimum=0, maximum=31_536_000,
            overridable=(QUEUE, EXPERIMENT)),
    Setting("limits", "job_disk_mb", Type.INTEGER, 0,
            "most disk of a job's directory whose task names none; 0: no limit", minimum=0, maximum=1_000_000_000,
            overridable=(QUEUE, EXPERIMENT)),
    Setting("limits", "slot_memory_percent", Type.INTEGER, 95,
            "what a slot has for its payload, in percent of its share of the node; 0: no limit",
            minimum=0, maximum=100_000, overridable=(QUEUE,)),
    Setting("limits", "full_disk_mb", Type.INTEGER, 64,
            "a payload that writes on when the work directory's disk has less free space is ended; 0: not looked at",
            minimum=0, maximum=1_000_000_000, overridable=(QUEUE, EXPERIMENT)),
    Setting("limits", "free_disk_mb", Type.INTEGER, 512,
            "no job is asked for while the work directory's disk has less free space",
            minimum=0, maximum=1_000_000_000, overridable=(QUEUE,)),
    Setting("limits", "stdout_mb", Type.INTEGER, 1024, "most text a payload may print; 0: no limit",
            minimum=0, maximum=1_000_000, overridable=(QUEUE, EXPERIMENT)),
    Setting("limits", "log_archive_of_failed_only", Type.FLAG, False, "store log archives of failed jobs alone",
            overridable=(QUEUE, EXPERIMENT)),
    Setting("limits", "log_archive_mb", Type.INTEGER, 64, "most that is kept of a job's log files, head and tail",
            minimum=0, maximum=1_000_000, overridable=(QUEUE, EXPERIMENT)),
    Setting("limits", "monitors", Type.LIST, ", ".join(MONITORS),
            "what is measured of a running payload and may end it: modules of pilot/plugins/monitors, or of installed packages",
            overridable=(QUEUE, EXPERIMENT)),
    Setting("limits", "sample_seconds", Type.NUMBER, 2, "how often the payload's use of time, memory and disk is looked at",
            minimum=0.1, maximum=600),
    Setting("limits", "bundle_cache_mb", Type.INTEGER, 1024,
            "space for shipped code and software that are kept for further jobs; what was not used for longest goes first",
            minimum=0, maximum=1_000_000),
    Setting("limits", "software_mb", Type.INTEGER, 4096,
            "largest software that a task may name by a URL, packed and unpacked", minimum=1, maximum=1_000_000,
            overridable=(QUEUE,)),
    Setting("limits", "keep_work_directories", Type.FLAG, False, "keep each job's directory after its end, to look into",
            options=("--keep-work-directories",)),
)

_HEARTBEAT = (
    Setting("heartbeat", "heartbeat_seconds", Type.NUMBER, 20, "between two words about a running job",
            minimum=0.1, maximum=3600, overridable=(QUEUE,)),
    Setting("heartbeat", "jitter_percent", Type.NUMBER, 10,
            "each wait is longer or shorter by up to this, so that pilots do not speak in step", minimum=0, maximum=50),
    Setting("heartbeat", "poll_seconds", Type.NUMBER, 5,
            "between two requests for a job while the server has none and does not say when to ask again; doubled each time",
            minimum=0.1, maximum=3600, overridable=(QUEUE,)),
    Setting("heartbeat", "poll_max_seconds", Type.NUMBER, 30, "the longest such wait", minimum=0.1, maximum=3600,
            overridable=(QUEUE,)),
    Setting("heartbeat", "waiting_seconds", Type.NUMBER, 120,
            "how long at a time a pilot waits for the server to tell it of new jobs; then it asks", minimum=1, maximum=600,
            overridable=(QUEUE,)),
)

_CONNECTION = (
    Setting("connection", "connect_timeout_seconds", Type.NUMBER, 10, "to reach the server", minimum=0.1, maximum=600),
    Setting("connection", "read_timeout_seconds", Type.NUMBER, 60, "to wait for an answer", minimum=0.1, maximum=600),
    Setting("connection", "backoff_seconds", Type.NUMBER, 1,
            "before a request is sent again; doubled each time, with jitter", minimum=0.01, maximum=600),
    Setting("connection", "backoff_max_seconds", Type.NUMBER, 60, "the longest such wait", minimum=0.01, maximum=3600),
    Setting("connection", "give_up_seconds", Type.INTEGER, 600,
            "a pilot without a job ends when the server was silent for so long; one with a job goes on",
            minimum=1, maximum=31_536_000, options=("--give-up",)),
    Setting("connection", "directory_poll_seconds", Type.NUMBER, 0.25,
            "longest wait between two looks into BRIDGE_DIRECTORY, of a pilot that waits for an answer and of the bridge",
            minimum=0.01, maximum=60),
)

_COPYTOOLS = (
    Setting("copytools", "names", Type.LIST, "", "copytools that may be used, best first; empty: all that fit the address",
            overridable=(QUEUE,)),
    Setting("copytools", "retries", Type.INTEGER, 3, "further tries for one file", minimum=0, maximum=100,
            overridable=(QUEUE, EXPERIMENT)),
    Setting("copytools", "backoff_seconds", Type.NUMBER, 2, "before the second try; doubled each time, with jitter",
            minimum=0, maximum=3600, overridable=(QUEUE, EXPERIMENT)),
    Setting("copytools", "backoff_max_seconds", Type.NUMBER, 60, "the longest such wait", minimum=0, maximum=3600,
            overridable=(QUEUE, EXPERIMENT)),
)

_VALIDATION = (
    Setting("validation", "tools", Type.LIST, "", "programs that must be on PATH, or no job is asked for",
            overridable=(QUEUE, EXPERIMENT)),
    Setting("validation", "mounts", Type.LIST, "",
            "directories that must be there and not empty, as /cvmfs/sft.cern.ch, or no job is asked for",
            overridable=(QUEUE, EXPERIMENT)),
    Setting("validation", "clock_skew_seconds", Type.INTEGER, 0,
            "a node whose clock differs more from the server's is not fit; 0: it is only warned about",
            minimum=0, maximum=31_536_000, overridable=(QUEUE, EXPERIMENT)),
    Setting("validation", "gpu", Type.FLAG, True, "a GPU pilot on a node that shows no GPU is not fit",
            overridable=(QUEUE, EXPERIMENT)),
)

_PATTERNS = (
    Setting("patterns", "files", Type.LIST, "",
            "files with further patterns of known errors, before those of the pilot; in the format of pilot/patterns.ini",
            overridable=(QUEUE, EXPERIMENT)),
    Setting("patterns", "search_seconds", Type.NUMBER, 10,
            "for the search in the text of one failed job; 0: it is not searched", minimum=0, maximum=600,
            overridable=(QUEUE, EXPERIMENT)),
    Setting("patterns", "text_kib", Type.INTEGER, 256,
            "most that is looked at of each text, a quarter of it from its head and the rest from its tail",
            minimum=1, maximum=16_384, overridable=(QUEUE, EXPERIMENT)),
    Setting("patterns", "log_names", Type.LIST, "*.log, log.*",
            "files in the job's directory that are looked at beside standard output and standard error; * stands for anything",
            overridable=(QUEUE, EXPERIMENT)),
)

_PAYLOAD = (
    Setting("payload", "executor", Type.LIST, "plain",
            "how payloads and their steps run, the outermost first: plain, bubblewrap, apptainer, srun, mpiexec",
            options=("--executor",), overridable=(QUEUE,)),
    Setting("payload", "image", Type.TEXT, "", "container image in which payloads run; for bubblewrap an unpacked one",
            overridable=(QUEUE,)),
    Setting("payload", "task_images", Type.FLAG, False, "a task may name another image", overridable=(QUEUE,)),
    Setting("payload", "image_directories", Type.LIST, "/cvmfs",
            "where the images on the node lie that a task may name with task_images", overridable=(QUEUE,)),
    Setting("payload", "readable", Type.LIST, "", "directories that payloads in a container may read, beside their inputs",
            overridable=(QUEUE,)),
    Setting("payload", "software_paths", Type.LIST, "/cvmfs", "directories below which software lies that tasks may name by its path",
            overridable=(QUEUE,)),
    Setting("payload", "network", Type.FLAG, False, "payloads in bubblewrap have the node's network", overridable=(QUEUE,)),
    Setting("payload", "ranks", Type.INTEGER, 0,
            "processes of a payload that srun or mpiexec starts; 0: srun one per node, mpiexec one per core",
            minimum=0, maximum=1_000_000, overridable=(QUEUE,)),
    Setting("payload", "processes", Type.INTEGER, 0, "most processes and threads of a payload; 0: as many as the account may have",
            minimum=0, maximum=1_000_000, overridable=(QUEUE,)),
    Setting("payload", "users", Type.LIST, "",
            "accounts that payloads run as, one for each slot, where the pilot is root; empty: all run as the pilot",
            overridable=(QUEUE,)),
    Setting("payload", "users_locks", Type.PATH, "/run/pilotage",
            "directory, written by root alone, for one lock per account of users: one pilot of a node uses it at a time"),
    Setting("payload", "utilities", Type.LIST, "", "services that run beside each payload, each described by a section [utility:NAME]",
            overridable=(QUEUE,)),
    Setting("payload", "step_timeout_seconds", Type.INTEGER, 3600, "longest run of a pre- or post-process that names none",
            minimum=1, maximum=31_536_000, overridable=(QUEUE, EXPERIMENT)),
)

_SERVICES = (
    Setting("services", "benchmark_disk_mb", Type.INTEGER, 64,
            "size of the file that it writes and reads in the job's directory; 0: none", minimum=0, maximum=1_000_000,
            overridable=(QUEUE, EXPERIMENT)),
    Setting("services", "collector", Type.TEXT, "",
            "address to which benchmarks are posted as JSON, as http://elastic:9200/pilotage/_doc; empty: none"),
    Setting("services", "collector_token_file", Type.PATH, "", "file (mode 0600) with the bearer token for it"),
    Setting("services", "collector_timeout_seconds", Type.NUMBER, 10, "for one report", minimum=0.1, maximum=600),
    Setting("services", "collector_leave_out", Type.LIST, "", "keys that the collector does not get, as node, cpu_model"),
)

_EXPERIMENTS = (
    Setting("experiment", "plugin", Type.NAME, "generic", "experiment plugin, a module of pilot/plugins",
            options=("--pilotuser",), overridable=(QUEUE,)),
    Setting("spd", "software_setup", Type.PATH, "", "script that sets up the payload's environment, as one on CVMFS",
            overridable=(QUEUE,)),
    Setting("spd", "container_image", Type.TEXT, "", "image in which payloads run; empty: no container",
            overridable=(QUEUE,)),
)

_DAEMON = (
    Setting("node_settings", "SCRIPT_DELAY", Type.NUMBER, 10, "seconds between the starts of two pilots",
            minimum=0, maximum=86_400),
    Setting("daemon", "pilots", Type.INTEGER, 1, "pilots kept running at the same time", minimum=1, maximum=1024),
    Setting("daemon", "wrapper", Type.PATH, "",
            "run_pilot.sh: each pilot is then the one that the server has at the time; empty: the one that is installed here"),
    Setting("daemon", "pilot_settings", Type.PATH, "", "ini file given to each pilot (--config); empty: pilots look for theirs"),
)
_BRIDGE = (
    *(row for row in _NODE if row.key in ("SERVER_ADDRESS", "PORT", "TOKEN_FILE", "CA_FILE", "CA_PATH")),
    Setting("node_settings", "BRIDGE_DIRECTORY", Type.PATH, "",
            "directory that the nodes see too; it is made if it is not there", options=("--directory",)),
)
# fmt: on

_PILOT = (
    *_NODE,
    *LOGGING_ROWS,
    *_GET_JOB,
    *_LIMITS,
    *per_task.ROWS,
    *_HEARTBEAT,
    *_CONNECTION,
    *_COPYTOOLS,
    *_PAYLOAD,
    *_SERVICES,
    *_PATTERNS,
    *_VALIDATION,
    *_EXPERIMENTS,
)
_RABBIT = ("USERNAME", "PASSWORD", "HOST", "EXCHANGE", "VIRTUAL_HOST", "PORT")
_BROKER = {"rabbit_settings": tuple(f"rabbitmq_{key.lower()}" for key in _RABBIT)}
_NO_BROKER = "pilots fetch their jobs from the server over HTTP, there is no message broker"

TABLE = Table(
    "pilot",
    _PILOT,
    ignored=_BROKER,
    ignored_because=_NO_BROKER,
    open_sections=("copytool:", "utility:"),
    sisters=_DAEMON,
)

DAEMON_TABLE = Table(
    "daemon",
    (*_DAEMON, *LOGGING_ROWS),
    ignored=_BROKER,
    ignored_because=_NO_BROKER,
    sisters=_PILOT,
)

BRIDGE_TABLE = Table("bridge", (*_BRIDGE, *_CONNECTION, *LOGGING_ROWS), sisters=(*_PILOT, *_DAEMON))


def load(
    command_line: Optional[Mapping[str, object]] = None,
    config: Optional[Path] = None,
    environ: Optional[Mapping[str, str]] = None,
    start: Optional[Path] = None,
) -> Settings:
    """The pilot's settings, with the defaults of its workflow; `command_line` maps `Setting.parameter` to the option's value."""
    from pilot.plugins import workflows  # late: --help needs none

    settings = load_program(TABLE, command_line, config, environ, start)
    name = settings.text("node_settings", "workflow")
    return with_defaults(settings, workflows.load(name).defaults, f"workflow {name}")


def load_daemon(
    command_line: Optional[Mapping[str, object]] = None,
    config: Optional[Path] = None,
    environ: Optional[Mapping[str, str]] = None,
    start: Optional[Path] = None,
) -> Settings:
    return load_program(DAEMON_TABLE, command_line, config, environ, start)


def load_bridge(
    command_line: Optional[Mapping[str, object]] = None,
    config: Optional[Path] = None,
    environ: Optional[Mapping[str, str]] = None,
    start: Optional[Path] = None,
) -> Settings:
    return load_program(BRIDGE_TABLE, command_line, config, environ, start)


def server_url(settings: Settings) -> str:
    """SERVER_ADDRESS, with PORT in the place of its port if one was set."""
    address = settings.text("node_settings", "server_address")
    port = settings.integer("node_settings", "port")
    if not port:
        return address
    parts = urlsplit(address)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return parts._replace(netloc=f"{host}:{port}").geturl()
