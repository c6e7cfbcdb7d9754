"""The pilot's settings: one table of rows, against which the server too checks what queues and tasks set of them.

A task may set what concerns its own jobs alone, nothing that protects the node and other jobs. Where a queue sets the same, its word counts.
"""

from __future__ import annotations

from collections.abc import Mapping

from protocol.errors import PilotageError
from protocol.logs import LOGGING_ROWS
from protocol.plugins import check_known, installed
from protocol.redaction import one_line
from protocol.settings import EXPERIMENT, QUEUE, TASK, Setting
from protocol.values import Places, Type, nearest

MONITORS = (
    *("walltime", "cputime", "memory", "disk", "outputs", "text", "looping", "processes"),
    *("credentials", "free_disk", "memory_report"),
)
"""Those that are on by default, in the order in which their verdicts count."""
EXECUTORS = ("plain", "bubblewrap", "apptainer", "srun", "mpiexec")
EXPERIMENTS = ("generic", "spd")
_PLUGINS = {
    "limits.monitors": (MONITORS, "pilotage.monitors"),
    "payload.executor": (EXECUTORS, "pilotage.executors"),
    "experiment.plugin": (EXPERIMENTS, "pilotage.plugins"),
}
"""Settings that name plugins: the pilot's own ones, and the entry points of others."""
_ALL = (QUEUE, TASK, EXPERIMENT)

# fmt: off
NODE_ROWS = (
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
    Setting("limits", "looping_seconds", Type.INTEGER, 7200,
            "a payload that touches no file and uses no CPU time for so long is looping; 0: not looked for",
            minimum=0, maximum=31_536_000, overridable=_ALL),
    Setting("limits", "memory_percent", Type.INTEGER, 150,
            "most memory of a payload, in percent of what its task asks for; 0: as much as the slot has",
            minimum=0, maximum=100_000, overridable=_ALL),
    Setting("limits", "memory_mb", Type.INTEGER, 0,
            "most memory of a payload whose task asks for none; 0: as much as the slot has",
            minimum=0, maximum=100_000_000, overridable=_ALL),
    Setting("limits", "cpu_seconds", Type.INTEGER, 0, "most CPU time of a payload; 0: no limit",
            minimum=0, maximum=1_000_000_000, overridable=_ALL),
    Setting("limits", "output_mb", Type.INTEGER, 0, "largest size of one output; 0: no limit",
            minimum=0, maximum=1_000_000_000, overridable=_ALL),
    Setting("limits", "credentials_warn_seconds", Type.INTEGER, 3600,
            "the job's log has a warning when the pilot's proxy or token ends within this",
            minimum=0, maximum=31_536_000, overridable=_ALL),
    Setting("limits", "credentials_needed", Type.FLAG, False,
            "a job ends when the pilot's proxy or token has expired", overridable=_ALL),
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

CONNECTION_ROWS = (
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
    Setting("copytools", "direct_access", Type.LIST, "",
            "schemes, as root, https, whose inputs stay where they are: the payload gets their addresses; file: it reads the file itself",
            overridable=_ALL),
    Setting("copytools", "addresses", Type.LIST, "",
            "how nodes reach a storage by another way: root://eos.example//store -> file:///eos/store, ...",
            overridable=(QUEUE,)),
    Setting("copytools", "retries", Type.INTEGER, 3, "further tries for one file", minimum=0, maximum=100,
            overridable=(QUEUE, EXPERIMENT)),
    Setting("copytools", "backoff_seconds", Type.NUMBER, 2, "before the second try; doubled each time, with jitter",
            minimum=0, maximum=3600, overridable=(QUEUE, EXPERIMENT)),
    Setting("copytools", "backoff_max_seconds", Type.NUMBER, 60, "the longest such wait", minimum=0, maximum=3600,
            overridable=(QUEUE, EXPERIMENT)),
    Setting("copytools", "timeout_seconds", Type.INTEGER, 3600, "for one try of one file, and of a task's software",
            minimum=1, maximum=604_800, overridable=_ALL),
)

_CACHE = (
    Setting("cache", "directory", Type.PATH, "",
            "keeps inputs for further jobs; the account's pilots on a node may share it; empty: none are kept",
            overridable=(QUEUE,)),
    Setting("cache", "max_mb", Type.INTEGER, 10_240, "space for them; what was not used for longest goes first",
            minimum=1, maximum=1_000_000_000, overridable=(QUEUE,)),
    Setting("cache", "free_mb", Type.INTEGER, 2048, "and it goes while the disk of the directory has less free space",
            minimum=0, maximum=1_000_000_000, overridable=(QUEUE,)),
    Setting("cache", "verify_hours", Type.NUMBER, 24,
            "each is read and verified again after so long; 0: after a start of the node alone",
            minimum=0, maximum=87_600, overridable=(QUEUE,)),
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
            f"how payloads and their steps run, the outermost first: {', '.join(EXECUTORS)}",
            options=("--executor",), overridable=(QUEUE,)),
    Setting("payload", "image", Type.TEXT, "", "container image in which payloads run; for bubblewrap an unpacked one",
            overridable=(QUEUE,)),
    Setting("payload", "task_images", Type.FLAG, False,
            "a task may name another image; the server hands such jobs to queues alone that set it", overridable=(QUEUE,)),
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
    Setting("services", "benchmark", Type.FLAG, False,
            "a short benchmark of the node, with the cores of the job, runs before each job's payload", overridable=_ALL),
    Setting("services", "benchmark_seconds", Type.NUMBER, 3, "about how long it takes", minimum=0.1, maximum=3600,
            overridable=_ALL),
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
# fmt: on

ROWS = (
    *NODE_ROWS,
    *LOGGING_ROWS,
    *_GET_JOB,
    *_LIMITS,
    *_HEARTBEAT,
    *CONNECTION_ROWS,
    *_COPYTOOLS,
    *_CACHE,
    *_PAYLOAD,
    *_SERVICES,
    *_PATTERNS,
    *_VALIDATION,
    *_EXPERIMENTS,
)

_BY_NAME = {".".join(row.name): row for row in ROWS}
_FROM_AFAR = Places(None, None)


def check(level: str, wanted: Mapping[str, str]) -> None:
    """BAD_REQUEST unless a queue, or a task, may set all of these, SECTION.KEY → value, and each value is one."""
    for name, text in wanted.items():
        row = _BY_NAME.get(name)
        if row is None or level not in row.overridable:
            shown = one_line(name[:80])
            raise PilotageError(
                "BAD_REQUEST",
                f"pilotSettings: {shown!r} is not for a {level} to set; {_instead(level, name[:80])}",
            )
        try:
            value = row.parse(text, _FROM_AFAR)
        except ValueError as error:
            raise PilotageError("BAD_REQUEST", f"pilotSettings: {name} {error}") from None
        if name in _PLUGINS:
            ours, group = _PLUGINS[name]
            for each in value if isinstance(value, tuple) else (str(value),):
                check_known(each, {*ours, *installed(group)}, f"pilotSettings: {name}")


def _instead(level: str, name: str) -> str:
    row = _BY_NAME.get(name)
    if row is not None:
        return f"{'its queue' if QUEUE in row.overridable else 'pilot.ini on the node'} may"
    may = [".".join(row.name) for row in ROWS if level in row.overridable]
    section, _, key = name.partition(".")
    keys = [each.partition(".")[2] for each in may if each.startswith(f"{section}.")]
    elsewhere = next((each for each in may if each.endswith(f".{key}")), None)
    in_section = nearest(key, keys)
    near = elsewhere or (f"{section}.{in_section}" if in_section else None if keys else nearest(name, may))
    if near:
        return f"did you mean {near}?"
    if keys:
        return f"of [{section}] it may set {', '.join(keys)}"
    sections = dict.fromkeys(each.partition(".")[0] for each in may)
    return f"it is SECTION.KEY, and the sections are {', '.join(sections)}"


def lets_tasks_name_images(of_queue: Mapping[str, str]) -> bool:
    """Whether a queue with these settings of its pilots runs the containers that tasks ask for."""
    try:
        return bool(
            _BY_NAME["payload.task_images"].parse(of_queue.get("payload.task_images", "no"), _FROM_AFAR)
        )
    except ValueError:  # kept by a version that did not look at it
        return False
