"""Payload control: prepare (PRE-PROCESSING), run (RUNNING, FINISHED), collect (POST-PROCESSING)."""

from __future__ import annotations

import logging
import os
import signal
import stat
import threading
import time
from functools import partial
from pathlib import Path

from pilot import control, node, process, workdir
from pilot.context import Context
from pilot.control import monitor
from pilot.jobrun import INPUTS, JobRun
from protocol.errors import PilotageError, shorten
from protocol.logs import bound, bound_fields
from protocol.redaction import is_secret_name, one_line
from protocol.states import JobState

logger = logging.getLogger(__name__)

TAIL_BYTES = 4096
TAIL_CHARACTERS = 700
"""How much of a failed payload's last lines goes into the error's detail."""

CREDENTIALS = frozenset(("X509_USER_PROXY", "BEARER_TOKEN", "BEARER_TOKEN_FILE"))
"""Variables of the pilot's environment that say who the pilot is; the payload is somebody else."""

_SIGNAL_ERRORS = {int(signal.SIGSEGV): "PAYLOAD_SEGFAULT"}


def prepare_jobs(context: Context) -> None:
    channels = context.channels
    control.serve(channels.obtained, partial(prepare, context), channels.prepared, channels.collected)


TELL_SECONDS = 1.0
"""A server that is away holds up no payload for longer."""


def run_jobs(context: Context) -> None:
    channels = context.channels
    control.serve(channels.staged_in, partial(run, context), channels.collected, channels.collected)


def prepare(context: Context, job: JobRun) -> None:
    """The job's directory, the user's code, and a look whether the command can be started at all."""
    job.enter(JobState.PRE_PROCESSING)
    job.check_names()
    workdir.make(job.directory)
    workdir.make(job.directory / INPUTS)
    if job.spec.bundle is not None:
        context.bundles.unpack(job.spec.bundle, job.bundle)
    command = context.plugin.payload_command(job, job.directory)
    if command and not command[0].startswith(str(job.directory / INPUTS)):
        process.check_program(command, job.directory, environment_of(context, job))


def run(context: Context, job: JobRun) -> None:
    """Start the payload and its monitor, sleep until both have ended, and judge."""
    command = context.plugin.payload_command(job, job.directory)
    job.enter(JobState.RUNNING)
    # A payload that kills its pilot at once is known by this state: so the server hears of it before, if it answers.
    job.running_told.wait(TELL_SECONDS)
    job.check()
    started = process.start(command, job.directory, environment_of(context, job), job.stdout, job.stderr)
    job.payload_started(started.kill)
    watcher = threading.Thread(
        target=_watch,
        args=(context, job, started, dict(bound_fields())),
        name=f"monitor-{job.spec.attempt_id}",
    )
    watcher.start()
    code = _await_end(context, job, started)
    watcher.join()
    logger.info("payload ended", extra={"exit_code": code})
    job.check()
    if code != 0:
        raise _judge(context, job, code)
    collect(context, job)


def _await_end(context: Context, job: JobRun, started: process.Process) -> int:
    code = started.wait()
    try:
        job.metrics = _final_metrics(context, job, started)
    finally:
        job.payload_ended(code)
    return code


def collect(context: Context, job: JobRun) -> None:
    """Look whether the payload has left what the job declares, and pack its log."""
    job.enter(JobState.POST_PROCESSING)
    for output in job.spec.outputs:
        _check_output(job.output_path(output))
    pack_log(context, job)


def pack_log(context: Context, job: JobRun) -> None:
    """Make the log archive, once; a failure of that is no failure of the job."""
    archive = workdir.archive_path(job.directory)
    limit = context.settings.integer("limits", "log_archive_mb") * 1024 * 1024
    if archive.exists() or not limit or not job.spec.log_url:
        return
    files = [
        job.stdout,
        job.stderr,
        workdir.log_path(job.directory),
        *context.plugin.log_files(job.directory),
    ]
    try:
        workdir.pack(archive, files, job.directory, limit)
    except OSError as error:
        archive.unlink(missing_ok=True)
        logger.error("the log archive could not be made", extra={"error": "LOG_FAILED", "reason": str(error)})


def environment_of(context: Context, job: JobRun) -> dict[str, str]:
    """The pilot's environment without its settings and credentials, what the task and the plugin add, and who the job is."""
    inherited = {
        name: value
        for name, value in context.environ.items()
        if not name.startswith("PILOTAGE_") and name not in CREDENTIALS and not is_secret_name(name)
    }
    return {
        **inherited,
        **context.plugin.payload_environment(job, job.directory),
        "PILOTAGE_JOB_ID": str(job.spec.job_id),
        "PILOTAGE_ATTEMPT_NR": str(job.spec.attempt_nr),
        "PILOTAGE_TASK_ID": str(job.spec.task_id),
    }


def _watch(context: Context, job: JobRun, started: process.Process, fields: dict[str, object]) -> None:
    """The top of a job monitor's thread: if it dies, so do the payload, which nobody watches now, and the pilot."""
    with bound(**fields):
        try:
            monitor.watch(context, job, started)
        except Exception as error:
            context.thread_ended(threading.current_thread().name, error)
            job.fail(PilotageError("PILOT_EXCEPTION", f"job monitor: {type(error).__name__}: {error}"))
            logger.exception("the job monitor died")
            started.terminate(context.grace_seconds())


def _final_metrics(context: Context, job: JobRun, ended: process.Process) -> dict[str, float]:
    """What the last sample knew, made exact where the kernel has the sum."""
    peak = max(ended.used.memory_mb, job.metrics.get("memory_peak_mb", 0.0))
    return {
        **job.metrics,
        "wall_seconds": round(time.monotonic() - ended.started, 2),
        "cpu_seconds": round(ended.used.cpu_seconds, 2),
        "memory_peak_mb": round(peak, 1),
        **context.plugin.job_metrics(job),
    }


def _judge(context: Context, job: JobRun, code: int) -> PilotageError:
    """The error for an exit code, or for the signal that it stands for, with the payload's last words."""
    tail = context.secrets.hide(tail_of(job.stderr) or tail_of(job.stdout))
    words = f"; its last words: {shorten(one_line(tail), TAIL_CHARACTERS)}" if tail else ""
    what = f"exit code {code}" if code > 0 else _signal_name(-code)
    nearer = context.plugin.explain_failure(job, code, tail)
    if nearer is not None:
        return PilotageError(nearer.name, f"{what}{words}")
    if node.free_disk_mb(job.directory) == 0:
        return PilotageError("NO_LOCAL_SPACE", f"{what}, and the disk of the work directory is full{words}")
    name = "PAYLOAD_FAILED" if code > 0 else _SIGNAL_ERRORS.get(-code, "PAYLOAD_KILLED")
    return PilotageError(name, f"{what}{words}")


def _signal_name(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:  # a real-time signal
        return f"signal {number}"


def tail_of(path: Path) -> str:
    """The last lines of a text, without the blank ones at its end."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    with open(number, "rb") as file:
        size = os.fstat(number).st_size
        file.seek(max(0, size - TAIL_BYTES))
        return file.read(TAIL_BYTES).decode("utf-8", "backslashreplace").strip()[-TAIL_CHARACTERS:]


def _check_output(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        raise PilotageError("MISSING_OUTPUT", f"{path.name} is not in the work directory") from None
    except OSError as error:
        raise PilotageError("MISSING_OUTPUT", f"{path.name}: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        kinds = (
            (stat.S_ISLNK, "link"),
            (stat.S_ISDIR, "directory"),
            (stat.S_ISFIFO, "pipe"),
            (stat.S_ISSOCK, "socket"),
        )
        kind = next((word for is_kind, word in kinds if is_kind(mode)), "device")
        raise PilotageError("OUTPUT_NOT_A_FILE", f"{path.name} is a {kind}")
