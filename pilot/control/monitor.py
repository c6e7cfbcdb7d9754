"""Heartbeats for the pilot, and for each payload a monitor that is born and dies with it: limits, metrics, and the kill."""

from __future__ import annotations

import logging
import random
import time
from typing import Any

from pilot import limits, workdir
from pilot.context import Context
from pilot.jobrun import JobRun
from pilot.limits import Limits, Sample
from pilot.process import Process
from protocol.errors import PilotageError
from protocol.messages import Command, Heartbeat, UpdateReply
from protocol.states import FINAL

logger = logging.getLogger(__name__)

_FINAL_WORDS = frozenset(state.value for state in FINAL)


def heartbeat(context: Context) -> None:
    """A word about all attempts that are held, from the pilot's first second to its end, whatever else is slow or stuck."""
    while not context.silence.wait(_period(context)):
        held = {job.spec.attempt_id: job for job in context.jobs.held()}
        word = Heartbeat(context.pilot_id, [job.held() for job in held.values()])
        try:
            reply = context.client.heartbeat(word)
        except PilotageError as error:
            logger.warning("no heartbeat", extra={"error": error.name, "detail": error.detail})
            if error.name == "NOT_FOUND":
                _register_again(context)
            continue
        if reply.drain and not context.drain.is_set():
            logger.info("the server wants this pilot to take no further job")
            context.drain.set()
        for answer in reply.answers:
            job = held.get(answer.attempt_id)
            if job is not None:
                with job.logged():
                    obey(job, answer)


def obey(job: JobRun, answer: UpdateReply) -> None:
    """What the server says about an attempt that we hold; once its outcome is on the way, only the answer to that counts."""
    if job.has_ended:
        return
    if answer.command is Command.STOP or answer.state in _FINAL_WORDS:
        job.abandon(f"the server says stop; the attempt is {answer.state or 'unknown'} there")


def _period(context: Context) -> float:
    jitter = context.settings.number("heartbeat", "jitter_percent") / 100
    return context.settings.number("heartbeat", "heartbeat_seconds") * random.uniform(1 - jitter, 1 + jitter)


def _register_again(context: Context) -> None:
    """The server does not know this pilot any more: it was restored from a backup, say."""
    try:
        context.client.register(context.registration)
    except PilotageError as error:
        logger.warning(
            "the pilot could not register again", extra={"error": error.name, "detail": error.detail}
        )


def watch(context: Context, job: JobRun, process: Process) -> None:
    """The job monitor: look at the payload now and then until it has ended; end it when it passes a limit or is over."""
    allowed = limits_of(context, job)
    period = context.settings.number("limits", "sample_seconds")
    while not process.ended.is_set():
        if job.over.is_set():
            logger.info("payload is told to end", extra={"grace_seconds": context.grace_seconds()})
            process.terminate(context.grace_seconds())
            return
        sample = _measure(context, job, process)
        verdict = limits.verdict(sample, allowed)
        if verdict is not None:
            job.fail(verdict)
        else:
            job.attention.wait(limits.next_look(sample.wall_seconds, allowed, period))


def limits_of(context: Context, job: JobRun) -> Limits:
    """What the task asks for, and where it names nothing what the settings allow."""
    settings = context.settings
    return Limits(
        walltime_seconds=job.spec.walltime_seconds or settings.integer("limits", "walltime_seconds"),
        disk_mb=job.spec.disk_mb or settings.integer("limits", "job_disk_mb"),
        stdout_mb=settings.integer("limits", "stdout_mb"),
        looping_seconds=settings.integer("limits", "looping_seconds"),
    )


def _measure(context: Context, job: JobRun, process: Process) -> Sample:
    """One sample, and from it the metrics that the next heartbeat carries."""
    wall = time.monotonic() - process.started
    usage = process.usage()
    disk = workdir.measure(job.directory)
    text = sum(path.stat().st_size for path in (job.stdout, job.stderr) if path.exists())
    metrics: dict[str, Any] = {
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(max(usage.cpu_seconds, job.metrics.get("cpu_seconds", 0.0)), 2),
        "memory_mb": round(usage.memory_mb, 1),
        "memory_peak_mb": round(max(usage.memory_mb, job.metrics.get("memory_peak_mb", 0.0)), 1),
        "disk_mb": round(disk.size / limits.MIB, 1),
        "processes": float(usage.processes),
    }
    metrics.update(context.plugin.job_metrics(job))
    job.metrics = metrics
    return Sample(wall, disk.size, text, quiet_seconds=min(wall, max(0.0, time.time() - disk.changed)))
