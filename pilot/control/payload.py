"""Payload control: prepare (PRE-PROCESSING), run (RUNNING, FINISHED), collect (POST-PROCESSING)."""

from __future__ import annotations

import logging
import os
import signal
import stat
import time
from pathlib import Path
from typing import Callable

from pilot import control, limits, memory_report, node, process, sourcing, workdir
from pilot.context import Context
from pilot.control import benchmarking, launch, steps
from pilot.jobrun import INPUTS, JobRun
from pilot.plugins.executors import Run
from pilot.text import last_words, tail_of
from protocol.errors import PilotageError
from protocol.messages.pilots import StepKind
from protocol.states import JobState

logger = logging.getLogger(__name__)

_SIGNAL_ERRORS = {
    int(signal.SIGSEGV): "PAYLOAD_SEGFAULT",
    int(signal.SIGBUS): "PAYLOAD_BUS_ERROR",
    int(signal.SIGFPE): "PAYLOAD_FLOATING_POINT",
    int(signal.SIGILL): "PAYLOAD_ILLEGAL_INSTRUCTION",
    int(signal.SIGABRT): "PAYLOAD_ABORTED",
    int(signal.SIGXCPU): "CPU_TIME_EXCEEDED",
}


def prepare_jobs(context: Context, step: Callable[[JobRun], None]) -> None:
    channels = context.channels
    control.serve(channels.obtained, step, channels.prepared, channels.collected)


TELL_SECONDS = 1.0
"""A server that is away holds up no payload for longer."""


def prepare(context: Context, job: JobRun) -> None:
    """The job's directory, the user's code, and a look whether the command can be started at all."""
    context.plugin.check_job(job)
    job.enter(JobState.PRE_PROCESSING)
    job.check_names()
    workdir.make(job.directory)
    if job.spec.inputs:
        workdir.make(job.directory / INPUTS)
    if job.spec.bundle is not None:
        context.bundles.unpack(job.spec.bundle, job.bundle, job.check)
    if job.spec.software:
        from pilot.control import software  # late: most jobs name none

        software.provide(context, job)
    if not job.is_brisk:  # it begins at once, and then this is seen as well
        launch.check(context, _run_of(context, job))
        steps.check(context, job)


def _run_of(context: Context, job: JobRun) -> Run:
    return launch.run_of(context, job, context.plugin.payload_command(job, job.directory))


def run(context: Context, job: JobRun) -> None:
    """Start the payload, sleep until it has ended, and judge."""
    payload = _run_of(context, job)
    launch.hand_over(context, job)
    job.enter(JobState.RUNNING)
    # A payload that kills its pilot at once is known by this state: so the server hears of it before, if it answers.
    if not job.is_brisk:
        job.running_told.wait(TELL_SECONDS)
    benchmarking.before(context, job)
    steps.run_all(context, job, StepKind.PRE)
    with steps.beside(context, job) as others:
        job.check()
        started = launch.start(context, payload, job.stdout, job.stderr)

        def kill() -> None:
            started.kill()
            others.kill()

        job.payload_started(kill)
        code = _await_end(context, job, started)
    logger.info("payload ended", extra={"exit_code": code})
    job.check()
    if code != 0:
        raise _judge(context, job, code, started)
    launch.tell_of_lost_text(started)
    collect(context, job)


def _await_end(context: Context, job: JobRun, started: process.Process) -> int:
    code = -int(signal.SIGKILL)

    def wait() -> int:
        nonlocal code
        code = started.wait()
        return code

    try:
        launch.watched(context, job, started, wait)
        job.metrics = _final_metrics(context, job, started)
    finally:  # whatever went wrong in the pilot meanwhile: until then the job's end cannot be told
        if not started.ended.is_set():
            started.kill()
        job.payload_ended(code)
    return code


def collect(context: Context, job: JobRun) -> None:
    """Look whether the payload has left what the job declares, and pack its log."""
    job.enter(JobState.POST_PROCESSING)
    process.check_directory(job.directory, "MISSING_OUTPUT")
    steps.run_all(context, job, StepKind.POST)
    process.check_directory(job.directory, "MISSING_OUTPUT")
    for output in job.spec.outputs:
        _check_output(job.output_path(output), context.settings.integer("limits", "output_mb"))
    benchmarking.after(context, job)
    pack_log(context, job)


def pack_log(context: Context, job: JobRun) -> None:
    """Make the log archive, once; a failure of that is no failure of the job."""
    archive = workdir.archive_path(job.directory)
    limit = context.settings.integer("limits", "log_archive_mb") * 1024 * 1024
    wanted = job.error is not None or not context.settings.flag("limits", "log_archive_of_failed_only")
    if not limit or not job.spec.log_url or not wanted or archive.exists():
        return
    context.job_logs.write(job.spec.attempt_id)
    files = [
        job.stdout,
        job.stderr,
        *job.step_texts,
        workdir.log_path(job.directory),
        *_reports(job),
        *context.plugin.log_files(job.directory),
    ]
    try:
        workdir.pack(archive, files, job.directory, limit)
    except OSError as error:
        archive.unlink(missing_ok=True)
        logger.error("the log archive could not be made", extra={"error": "LOG_FAILED", "reason": str(error)})


def _reports(job: JobRun) -> list[Path]:
    """Files about the job that are worth keeping, where they are."""
    paths = (job.directory / name for name in (memory_report.FILE, memory_report.JOB_REPORT))
    return [path for path in paths if os.path.lexists(path)]


def _final_metrics(context: Context, job: JobRun, ended: process.Process) -> dict[str, float]:
    """What the last sample knew, made exact where the kernel has the sum."""
    peak = max(ended.used.memory_mb, job.metrics.get("memory_peak_mb", 0.0))
    return {
        **job.metrics,
        "wall_seconds": round(time.monotonic() - ended.started, 3),
        "cpu_seconds": round(ended.used.cpu_seconds, 2),
        "memory_peak_mb": round(peak, 1),
        **({"text_lost": 1.0} if ended.text_error is not None else {}),
        **context.plugin.job_metrics(job),
    }


def _judge(context: Context, job: JobRun, code: int, ended: process.Process) -> PilotageError:
    """The error for an exit code, or for the signal that it stands for, with the payload's last words."""
    tail = context.secrets.hide(tail_of(job.stderr) or tail_of(job.stdout))
    words = last_words(tail)
    what = process.how_it_ended(code)
    of_executor = context.executor.explain_failure(code, tail)
    if of_executor is not None:
        return PilotageError(of_executor, f"{what}{words}")
    of_node = launch.fault_of_node(ended, code)
    if of_node is not None:
        return PilotageError(of_node.name, f"{what}; {of_node.detail}{words}")
    of_software = sourcing.explain(code, tail) if job.software is not None else None
    if of_software is not None:
        return PilotageError(of_software, f"{what}{words}")
    nearer = context.plugin.explain_failure(job, code, tail)
    if nearer is not None:
        return PilotageError(nearer.name, f"{what}{words}")
    if _is_disk_full(job.directory):
        return PilotageError("NO_LOCAL_SPACE", f"{what}, and the disk of the work directory is full{words}")
    name = "PAYLOAD_FAILED" if code > 0 else _SIGNAL_ERRORS.get(-code, "PAYLOAD_KILLED")
    from pilot import patterns  # late: most jobs do not fail

    found = patterns.explain(context, job) if name in patterns.GENERAL else None
    if found is not None:
        return PilotageError(found.error, f"{what}; {patterns.said(found, context.secrets.hide)}{words}")
    return PilotageError(name, f"{what}{words}")


def _is_disk_full(directory: Path) -> bool:
    try:
        return node.free_disk_mb(directory) == 0
    except OSError:
        return False  # it is gone


def _check_output(path: Path, allowed_mb: int) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        raise PilotageError("MISSING_OUTPUT", f"{path.name} is not in the work directory") from None
    except OSError as error:
        raise PilotageError("MISSING_OUTPUT", f"{path.name}: {error.strerror}") from None
    mode = status.st_mode
    if not stat.S_ISREG(mode):
        kinds = (
            (stat.S_ISLNK, "link"),
            (stat.S_ISDIR, "directory"),
            (stat.S_ISFIFO, "pipe"),
            (stat.S_ISSOCK, "socket"),
        )
        kind = next((word for is_kind, word in kinds if is_kind(mode)), "device")
        raise PilotageError("OUTPUT_NOT_A_FILE", f"{path.name} is a {kind}")
    too_large = limits.output(path.name, status.st_size, allowed_mb)
    if too_large is not None:
        raise too_large
