"""The error catalogue: every failure has one name, one number, one to blame and one rule for a retry.

Numbers from 1000 to 1999 are PanDA's and mean what they mean there; ours begin at 3000. A number is never given twice and
never reused. Code raises `PilotageError(NAME, detail)`; text and advice stand only here.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

DETAIL_LIMIT = 1000
"""Characters kept of a detail; a longer one keeps its head and its tail."""


class Blame(enum.Enum):
    """Whose fault an error is, for statistics and for the person who reads it."""

    USER = "user"
    PAYLOAD = "payload"
    PILOT = "pilot"
    NODE = "node"
    STORAGE = "storage"
    SITE = "site"
    SERVER = "server"


class Budget(enum.Enum):
    """Which of a job's two retry budgets an error is charged to."""

    PAYLOAD = "payload"
    INFRASTRUCTURE = "infrastructure"
    NONE = "none"


class Retry(enum.Enum):
    """How a further attempt makes sense."""

    NEVER = "never"
    NOW = "now"
    LATER = "later"
    ELSEWHERE = "elsewhere"
    FRESH_INPUT = "fresh input"
    MORE_MEMORY = "more memory"


@dataclass(frozen=True)
class ErrorEntry:
    """One row of the catalogue; `advice` tells an operator or user what to do next."""

    name: str
    code: int
    blame: Blame
    budget: Budget
    retry: Retry
    text: str
    advice: str

    def advice_for(self, job_id: int) -> str:
        """The advice to somebody who looks at this job."""
        return self.advice.replace(" ID", f" {job_id}")


def _row(
    name: str, code: int, blame: Blame, budget: Budget, retry: Retry, text: str, advice: str
) -> ErrorEntry:
    return ErrorEntry(name, code, blame, budget, retry, text, advice)


_B, _C, _R = Blame, Budget, Retry

# fmt: off
CATALOGUE: tuple[ErrorEntry, ...] = (
    # the job on its worker node: PanDA's numbers
    _row("GENERAL_ERROR", 1008, _B.PILOT, _C.INFRASTRUCTURE, _R.LATER,
         "the pilot failed in a way the catalogue does not know",
         "read the pilot's log of this attempt and report it"),
    _row("NO_LOCAL_SPACE", 1098, _B.NODE, _C.INFRASTRUCTURE, _R.ELSEWHERE,
         "not enough free disk space on the worker node",
         "free the pilot's work directory or ask for less disk"),
    _row("STAGE_IN_FAILED", 1099, _B.STORAGE, _C.INFRASTRUCTURE, _R.LATER,
         "an input file could not be copied",
         "check the storage and the file's replica"),
    _row("REPLICA_NOT_FOUND", 1100, _B.STORAGE, _C.INFRASTRUCTURE, _R.LATER,
         "the catalogue knows no replica of an input file",
         "register the file again or replicate its dataset"),
    _row("INPUT_NOT_FOUND", 1103, _B.STORAGE, _C.INFRASTRUCTURE, _R.LATER,
         "an input file is not where the catalogue says",
         "restore the file or mark its replica lost"),
    _row("WORK_DIRECTORY_TOO_LARGE", 1104, _B.PAYLOAD, _C.PAYLOAD, _R.NEVER,
         "the job's work directory grew beyond its limit",
         "ask for more disk or let the payload clean up"),
    _row("STDOUT_TOO_LARGE", 1106, _B.PAYLOAD, _C.PAYLOAD, _R.NEVER,
         "the payload wrote more output text than is allowed",
         "let the payload print less"),
    _row("SETUP_FAILED", 1110, _B.SITE, _C.INFRASTRUCTURE, _R.ELSEWHERE,
         "the software environment of the payload could not be set up",
         "check the set-up script or container image of the queue"),
    _row("OUTPUT_TOO_LARGE", 1124, _B.PAYLOAD, _C.PAYLOAD, _R.NEVER,
         "an output file is larger than is allowed",
         "split the output or raise the limit of the queue"),
    _row("STAGE_OUT_FAILED", 1137, _B.STORAGE, _C.INFRASTRUCTURE, _R.LATER,
         "an output file could not be copied to the storage",
         "check the storage, its space and the pilot's rights on it"),
    _row("KILLED_BY_SERVER", 1144, _B.USER, _C.NONE, _R.NEVER,
         "the server told the pilot to stop this job",
         "nothing: somebody cancelled the job or it was taken back"),
    _row("STAGE_IN_MD5_MISMATCH", 1145, _B.STORAGE, _C.INFRASTRUCTURE, _R.FRESH_INPUT,
         "the MD5 checksum of an input file differs from the registered one",
         "the file changed or is damaged: check the replica"),
    _row("STAGE_OUT_MD5_MISMATCH", 1141, _B.STORAGE, _C.INFRASTRUCTURE, _R.LATER,
         "the MD5 checksum of a stored output differs from the local one",
         "check the storage"),
    _row("LOOPING_JOB", 1150, _B.PAYLOAD, _C.PAYLOAD, _R.NEVER,
         "the payload did nothing for too long",
         "look into its log for where it hangs"),
    _row("STAGE_IN_TIMEOUT", 1151, _B.STORAGE, _C.INFRASTRUCTURE, _R.LATER,
         "copying an input file took too long",
         "check the load of the storage or raise the time-out"),
    _row("STAGE_OUT_TIMEOUT", 1152, _B.STORAGE, _C.INFRASTRUCTURE, _R.LATER,
         "copying an output file took too long",
         "check the load of the storage or raise the time-out"),
    _row("MISSING_OUTPUT", 1165, _B.PAYLOAD, _C.PAYLOAD, _R.NEVER,
         "the payload ended well but a declared output file is missing",
         "check the output names in the task and what the payload writes"),
    _row("STAGE_IN_ADLER32_MISMATCH", 1171, _B.STORAGE, _C.INFRASTRUCTURE, _R.FRESH_INPUT,
         "the adler32 checksum of an input file differs from the registered one",
         "the file changed or is damaged: check the replica"),
    _row("STAGE_OUT_ADLER32_MISMATCH", 1172, _B.STORAGE, _C.INFRASTRUCTURE, _R.LATER,
         "the adler32 checksum of a stored output differs from the local one",
         "check the storage"),
    _row("LFN_TOO_LONG", 1190, _B.USER, _C.PAYLOAD, _R.NEVER,
         "a logical file name is too long",
         "use names of at most 255 bytes"),
    _row("MKDIR_FAILED", 1199, _B.NODE, _C.INFRASTRUCTURE, _R.ELSEWHERE,
         "a directory could not be made on the worker node",
         "check space and rights of the pilot's work directory"),
    _row("KILL_SIGNAL", 1200, _B.SITE, _C.INFRASTRUCTURE, _R.NOW,
         "the job was ended by a signal to the pilot",
         "nothing, the job is tried again; look at the batch system if it goes on"),
    _row("PILOT_SIGTERM", 1201, _B.SITE, _C.INFRASTRUCTURE, _R.NOW,
         "the batch system told the pilot to end (SIGTERM)",
         "nothing, the job is tried again by another pilot"),
    _row("PILOT_SIGINT", 1208, _B.SITE, _C.INFRASTRUCTURE, _R.NOW,
         "somebody interrupted the pilot (SIGINT)",
         "nothing, the job is tried again by another pilot"),
    _row("PAYLOAD_OUT_OF_MEMORY", 1212, _B.PAYLOAD, _C.PAYLOAD, _R.MORE_MEMORY,
         "the payload ran out of memory",
         "ask for more memory"),
    _row("WALLTIME_EXCEEDED", 1213, _B.PAYLOAD, _C.PAYLOAD, _R.NEVER,
         "the payload ran longer than its wall time",
         "ask for more wall time or less work per job"),
    _row("OUTPUT_EXISTS", 1221, _B.STORAGE, _C.INFRASTRUCTURE, _R.NOW,
         "a file with the output's physical name exists already and differs",
         "physical names are never reused: report it"),
    _row("PAYLOAD_MEMORY_LIMIT", 1235, _B.PAYLOAD, _C.PAYLOAD, _R.MORE_MEMORY,
         "the payload used more memory than it asked for",
         "ask for more memory"),
    _row("CHECKSUM_NOT_SUPPORTED", 1242, _B.NODE, _C.INFRASTRUCTURE, _R.ELSEWHERE,
         "a checksum algorithm is not supported here",
         "use adler32, md5 or blake3; install the extra pilotage[fast] on the node"),
    _row("PILOT_EXCEPTION", 1301, _B.PILOT, _C.INFRASTRUCTURE, _R.LATER,
         "a part of the pilot stopped with an exception",
         "read the pilot's log and report it"),
    _row("PAYLOAD_FAILED", 1305, _B.PAYLOAD, _C.PAYLOAD, _R.NOW,
         "the payload ended with a non-zero exit code",
         "read its log: pilotage job log ID"),
    _row("COMMUNICATION_FAILED", 1318, _B.SERVER, _C.INFRASTRUCTURE, _R.LATER,
         "the pilot could not reach the server",
         "check the network, the server's address and its certificate"),
    _row("LOG_FAILED", 1320, _B.PILOT, _C.NONE, _R.NEVER,
         "the log archive of a job could not be made",
         "read the pilot's own log"),
    _row("UNKNOWN_COPYTOOL", 1323, _B.SITE, _C.INFRASTRUCTURE, _R.ELSEWHERE,
         "no copytool of that name or for that URL",
         "correct the queue's copytool setting"),
    _row("PAYLOAD_SEGFAULT", 1328, _B.PAYLOAD, _C.PAYLOAD, _R.NOW,
         "the payload died of a segmentation fault",
         "read its log and debug the payload"),
    _row("TRANSFORM_NOT_FOUND", 1346, _B.USER, _C.PAYLOAD, _R.NEVER,
         "the payload's program does not exist on the node",
         "correct the command of the task, or ship the program with --ship"),
    _row("PREPROCESS_FAILED", 1356, _B.PAYLOAD, _C.PAYLOAD, _R.NOW,
         "the pre-process of the payload failed",
         "read its log: pilotage job log ID"),
    _row("POSTPROCESS_FAILED", 1357, _B.PAYLOAD, _C.PAYLOAD, _R.NOW,
         "the post-process of the payload failed",
         "read its log: pilotage job log ID"),
    _row("CHECKSUM_FAILED", 1366, _B.NODE, _C.INFRASTRUCTURE, _R.ELSEWHERE,
         "a checksum could not be calculated",
         "look for I/O errors on the node"),
    _row("COPY_TIMEOUT", 1367, _B.STORAGE, _C.INFRASTRUCTURE, _R.LATER,
         "a command of a copytool took too long",
         "check the storage or raise the time-out"),
    # the job on its worker node: ours
    _row("PAYLOAD_KILLED", 3001, _B.PAYLOAD, _C.PAYLOAD, _R.NOW,
         "the payload died of a signal",
         "read its log: pilotage job log ID"),
    _row("INPUT_SIZE_MISMATCH", 3002, _B.STORAGE, _C.INFRASTRUCTURE, _R.FRESH_INPUT,
         "the size of an input file differs from the registered one",
         "the file changed or is damaged: check the replica"),
    _row("STAGE_IN_BLAKE3_MISMATCH", 3003, _B.STORAGE, _C.INFRASTRUCTURE, _R.FRESH_INPUT,
         "the BLAKE3 checksum of an input file differs from the registered one",
         "the file changed or is damaged: check the replica"),
    _row("STAGE_OUT_MISMATCH", 3004, _B.STORAGE, _C.INFRASTRUCTURE, _R.LATER,
         "size or checksum of a stored output differs from the local one",
         "check the storage"),
    _row("OUTPUT_NOT_A_FILE", 3005, _B.PAYLOAD, _C.PAYLOAD, _R.NEVER,
         "a declared output is a link, a directory or a device",
         "let the payload write a plain file"),
    _row("BUNDLE_FAILED", 3006, _B.SERVER, _C.INFRASTRUCTURE, _R.LATER,
         "the bundle with the user's code could not be fetched or verified",
         "submit the task again with --ship"),
    _row("BAD_COMMAND", 3007, _B.USER, _C.PAYLOAD, _R.NEVER,
         "the command of the task cannot be started",
         "correct the command of the task"),
    _row("INPUT_UNREADABLE", 3008, _B.STORAGE, _C.INFRASTRUCTURE, _R.ELSEWHERE,
         "an input file may not be read by the pilot",
         "give the pilot's account the right to read it"),
    _row("STORAGE_STALE", 3009, _B.STORAGE, _C.INFRASTRUCTURE, _R.LATER,
         "the network file system gave a stale handle again and again",
         "check the NFS server and its mount on the node"),
    _row("NODE_UNFIT", 3010, _B.NODE, _C.INFRASTRUCTURE, _R.ELSEWHERE,
         "the worker node failed its validation",
         "read which check failed and mend the node"),
    _row("SPD_FILE_FOREIGN", 3020, _B.USER, _C.PAYLOAD, _R.NEVER,
         "the file is not an .spd file",
         "take it out of the dataset, or use another experiment plugin"),
    _row("SPD_FILE_TRUNCATED", 3021, _B.STORAGE, _C.INFRASTRUCTURE, _R.FRESH_INPUT,
         "the .spd file ends too early",
         "copy it from its source again"),
    _row("SPD_FILE_CORRUPT", 3022, _B.STORAGE, _C.INFRASTRUCTURE, _R.FRESH_INPUT,
         "the .spd file is damaged inside",
         "copy it from its source again"),
    _row("SPD_WRONG_KIND", 3023, _B.USER, _C.PAYLOAD, _R.NEVER,
         "the .spd file holds another kind of data than the task asks for",
         "choose the dataset or the task's data type"),
    # the job as the server sees it
    _row("LOST_HEARTBEAT", 3100, _B.NODE, _C.INFRASTRUCTURE, _R.NOW,
         "the pilot fell silent for longer than its lease",
         "nothing, the job is tried again; look at the node if it goes on"),
    _row("NOT_ACKNOWLEDGED", 3101, _B.PILOT, _C.NONE, _R.NOW,
         "the pilot never acknowledged the job it was given",
         "nothing, the job is handed out again"),
    _row("NEVER_ACKNOWLEDGED", 3102, _B.SITE, _C.NONE, _R.NEVER,
         "no pilot acknowledged the job though it was handed out several times",
         "check the network between pilots and server"),
    _row("KILLS_PILOTS", 3107, _B.PAYLOAD, _C.NONE, _R.NEVER,
         "pilots fell silent again and again while they ran this job",
         "look at the memory and the processes of its payload; try it alone on a node"),
    _row("INFRASTRUCTURE_BUDGET_SPENT", 3103, _B.SITE, _C.NONE, _R.NEVER,
         "the job was lost too often for reasons outside the payload",
         "see its attempts: pilotage job show ID"),
    _row("CANCELLED_BY_USER", 3104, _B.USER, _C.NONE, _R.NEVER,
         "a user cancelled the job or its task",
         "submit it again if that was a mistake"),
    _row("ANOTHER_COPY_WON", 3108, _B.USER, _C.NONE, _R.NEVER,
         "another copy of the job completed first",
         "nothing, the job has completed"),
    _row("DUPLICATE_OUTPUT", 3105, _B.USER, _C.NONE, _R.NEVER,
         "an output of the job has a name that exists already",
         "let the output template of the task tell the jobs apart"),
    _row("OUTPUTS_REFUSED", 3106, _B.PILOT, _C.INFRASTRUCTURE, _R.LATER,
         "the pilot reported other outputs than the job declares",
         "report it with the pilot's log"),
    # requests and programs
    _row("BAD_REQUEST", 3200, _B.USER, _C.NONE, _R.NEVER,
         "the request is not valid",
         "correct what the detail names"),
    _row("NOT_FOUND", 3201, _B.USER, _C.NONE, _R.NEVER,
         "there is no such thing",
         "list what there is with the command's list verb"),
    _row("ALREADY_EXISTS", 3202, _B.USER, _C.NONE, _R.NEVER,
         "the name is taken",
         "choose another name"),
    _row("WRONG_STATE", 3203, _B.USER, _C.NONE, _R.NEVER,
         "that cannot be done in this state",
         "look at the state first"),
    _row("STALE_ATTEMPT", 3204, _B.PILOT, _C.NONE, _R.NEVER,
         "this attempt is not yours any more",
         "stop the payload and change nothing"),
    _row("UNAUTHENTICATED", 3205, _B.USER, _C.NONE, _R.NEVER,
         "no valid token",
         "send the header 'Authorization: Bearer TOKEN' with a token of this server"),
    _row("FORBIDDEN", 3206, _B.USER, _C.NONE, _R.NEVER,
         "the token's role does not allow this",
         "use a token with the role that the detail names"),
    _row("TOO_LARGE", 3207, _B.USER, _C.NONE, _R.NEVER,
         "the request is larger than the limit",
         "send less at a time"),
    _row("BODY_COMPRESSED", 3224, _B.USER, _C.NONE, _R.NEVER,
         "the body of the request is compressed",
         "send it as it is, without Content-Encoding"),
    _row("METHOD_NOT_ALLOWED", 3208, _B.USER, _C.NONE, _R.NEVER,
         "the address does not take this method",
         "use a method that the detail names"),
    _row("SERVER_ERROR", 3209, _B.SERVER, _C.NONE, _R.LATER,
         "the server failed",
         "send it again later; the operator finds the reason in the server's log"),
    _row("SERVER_UNAVAILABLE", 3210, _B.SERVER, _C.NONE, _R.LATER,
         "the server cannot do this now",
         "send it again after the time in Retry-After"),
    _row("SERVER_UNREACHABLE", 3211, _B.SERVER, _C.NONE, _R.LATER,
         "no answer from the server",
         "is it running? pilotage server status"),
    _row("BAD_SETTINGS", 3212, _B.USER, _C.NONE, _R.NEVER,
         "a setting is wrong",
         "correct what the detail names"),
    _row("BAD_LFN", 3213, _B.USER, _C.NONE, _R.NEVER,
         "that is no valid logical file name",
         "use a plain name without slashes and control characters"),
    _row("BAD_PATH", 3214, _B.USER, _C.NONE, _R.NEVER,
         "a path cannot be used",
         "correct what the detail names"),
    _row("STATE_DIRECTORY_IN_USE", 3215, _B.USER, _C.NONE, _R.NEVER,
         "another server works in this state directory",
         "stop it first: pilotage server stop"),
    _row("PORT_TAKEN", 3216, _B.USER, _C.NONE, _R.NEVER,
         "the port is taken",
         "choose another one with --port"),
    _row("STATE_DIRECTORY_UNFIT", 3217, _B.USER, _C.NONE, _R.NEVER,
         "the state directory cannot be used",
         "choose a local directory of your own with --state"),
    _row("MISSING_EXTRA", 3218, _B.USER, _C.NONE, _R.NEVER,
         "a part of Pilotage is not installed here",
         "install what the detail names"),
    _row("SERVER_NOT_STARTED", 3219, _B.SERVER, _C.NONE, _R.NEVER,
         "the server did not start",
         "read its log; the detail shows the last lines"),
    _row("PROGRAM_FAILED", 3220, _B.USER, _C.NONE, _R.NEVER,
         "a program that this command started did not do its work", "read its log, which the detail names"),
    _row("TOO_MANY_REQUESTS", 3221, _B.USER, _C.NONE, _R.LATER,
         "too many requests in a short time",
         "send it again after the time in Retry-After, and less often"),
    _row("DATABASE_UNREADABLE", 3222, _B.USER, _C.NONE, _R.NEVER,
         "the database cannot be looked at",
         "name the installation: --state DIR, or --database URL; the server keeps it in its state directory if not told otherwise"),
    _row("FOREIGN_KEY", 3223, _B.USER, _C.NONE, _R.NEVER,
         "this host has another key than the installation",
         "copy server.key from the state directory of the first host into this one's"),
    _row("DATABASE_UNREACHABLE", 3225, _B.SERVER, _C.NONE, _R.LATER,
         "the database does not answer, or not as it should",
         "see that it runs and takes connections from here, and that its address is right: --database URL, or [database] url in server.ini"),
    _row("OTHER_DATABASE", 3226, _B.USER, _C.NONE, _R.NEVER,
         "the server of this state directory works on another database",
         "give its address with --database, or as [database] url in server.ini; the one in the state directory is taken if --database names it"),
)
# fmt: on

BY_NAME: dict[str, ErrorEntry] = {entry.name: entry for entry in CATALOGUE}
BY_CODE: dict[int, ErrorEntry] = {entry.code: entry for entry in CATALOGUE}
assert len(BY_NAME) == len(BY_CODE) == len(CATALOGUE), "names and codes of the catalogue must be unique"


FOR_PROGRAMS = frozenset(
    {
        "ALREADY_EXISTS",
        "BAD_PATH",
        "BAD_REQUEST",
        "BAD_SETTINGS",
        "FORBIDDEN",
        "MISSING_EXTRA",
        "NOT_FOUND",
        "PROGRAM_FAILED",
        "SERVER_NOT_STARTED",
        "SERVER_UNAVAILABLE",
        "TOO_MANY_REQUESTS",
        "UNAUTHENTICATED",
        "WRONG_STATE",
    }
)
"""Errors whose advice is for who speaks HTTP, or says no more than the detail: of no use to a person at a command line."""


def shorten(text: str, limit: int = DETAIL_LIMIT) -> str:
    """Cut the middle out of a text that is longer than `limit` characters: its head and its tail tell most."""
    if len(text) <= limit:
        return text
    half = (limit - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


class PilotageError(Exception):
    """An error of the catalogue with one sentence of detail: what was tried, on what, what came back; no secrets."""

    def __init__(self, name: str, detail: str = "", **fields: Any) -> None:
        """`fields` are facts that a program may read (they travel in the error body of the native door)."""
        self.entry = BY_NAME[name]
        self.detail = shorten(detail)
        self.fields = fields
        super().__init__(f"{self.entry.text}: {self.detail}" if detail else self.entry.text)

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def next_step(self) -> str:
        """What a person at a command line does next: said where it was raised, or by the catalogue where that fits; or ""."""
        general = "" if self.name in FOR_PROGRAMS else self.entry.advice
        return str(self.fields.get("advice") or general)

    @property
    def code(self) -> int:
        return self.entry.code


class PilotExit(enum.IntEnum):
    """The exit code of a pilot process, and so of its wrapper; PanDA's number where it has one (64–83)."""

    DONE = 0
    FAILED = 1
    BAD_SETTINGS = 2
    NO_CREDENTIALS = 68
    NODE_UNFIT = 69
    BROKEN = 70
    SERVER_UNREACHABLE = 79
    NO_JOBS = 82
    INTERRUPTED = 130
    TERMINATED = 143


PILOT_EXIT_TEXT: dict[PilotExit, str] = {
    PilotExit.DONE: "the pilot ran at least one job and ended in order",
    PilotExit.FAILED: "an error that no other code stands for",
    PilotExit.BAD_SETTINGS: "an option or a setting is wrong; nothing was asked from the server",
    PilotExit.NO_CREDENTIALS: "the server refused the pilot's token",
    PilotExit.NODE_UNFIT: "the node failed its validation; no job was asked for",
    PilotExit.BROKEN: "a control thread died; its job was reported",
    PilotExit.SERVER_UNREACHABLE: "the server could not be reached; results that wait lie in the outbox",
    PilotExit.NO_JOBS: "the server had no job for this pilot (the wrapper turns this into 0)",
    PilotExit.INTERRUPTED: "SIGINT; running jobs were given back",
    PilotExit.TERMINATED: "SIGTERM; running jobs were given back",
}
