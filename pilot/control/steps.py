"""The steps of a job: pre-processes before its payload, co-processes beside it, post-processes after it.

They come from the task, from the experiment's plugin, and, as services beside each payload, from the queue's settings.
"""

from __future__ import annotations

import logging
import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pilot import sourcing
from pilot.context import Context
from pilot.control import launch
from pilot.jobrun import JobRun
from pilot.plugins.executors import Run
from pilot.process import Process, how_it_ended
from pilot.text import last_words, tail_of
from protocol.errors import PilotageError
from protocol.logs import bound, bound_fields
from protocol.messages.pilots import Step, StepKind
from protocol.settings import Settings

logger = logging.getLogger(__name__)

TAIL_CHARACTERS = 500
_ERRORS = {
    StepKind.PRE: "PREPROCESS_FAILED",
    StepKind.CO: "COPROCESS_FAILED",
    StepKind.POST: "POSTPROCESS_FAILED",
}


class Planned(NamedTuple):
    """A step of one job, with the name of its files."""

    name: str
    step: Step
    is_utility: bool = False
    """A service of the queue: a job does not fail because it does."""

    def files(self, job: JobRun) -> tuple[Path, Path]:
        return job.directory / f"{self.name}.stdout", job.directory / f"{self.name}.stderr"


def plan(context: Context, job: JobRun) -> list[Planned]:
    """All steps of a job, in the order in which they run."""
    planned = utilities(context.settings)
    numbers = dict.fromkeys(StepKind, 0)
    for step in (*context.plugin.steps(job), *job.spec.steps):
        numbers[step.kind] += 1
        planned.append(Planned(step.name or f"{step.kind}-{numbers[step.kind]}", step))
    return planned


def utilities(settings: Settings) -> list[Planned]:
    """The services that run beside each payload; BAD_SETTINGS, at the pilot's start, if one is not described."""
    return [
        Planned(name, _utility(settings, name), is_utility=True)
        for name in settings.items("payload", "utilities")
    ]


def _utility(settings: Settings, name: str) -> Step:
    section = f"utility:{name}"
    options = settings.open_section(section)
    unknown = set(options) - {"command", "image"}
    try:
        command = shlex.split(options.get("command", ""))
    except ValueError:
        command = []
    if unknown or not command:
        wrong = (
            f"no key {min(unknown)}" if unknown else "a command, split into words as a shell does, is needed"
        )
        raise PilotageError("BAD_SETTINGS", f"[{section}] (payload.utilities): {wrong}")
    return Step(kind=StepKind.CO, command=command, image=options.get("image", ""))


def check(context: Context, job: JobRun) -> None:
    """Before inputs are copied for nothing: raise for a step that could not be started; a service's failure is not the job's."""
    for planned in plan(context, job):
        if not planned.is_utility:
            launch.check(context, _run_of(context, job, planned))


def run_all(context: Context, job: JobRun, kind: StepKind) -> None:
    """The pre- or the post-processes, one after the other; the first that fails fails the job."""
    for planned in plan(context, job):
        if planned.step.kind is kind:
            job.check()
            _run(context, job, planned)


def _run(context: Context, job: JobRun, planned: Planned) -> None:
    timeout = planned.step.timeout_seconds or context.settings.integer("payload", "step_timeout_seconds")
    logger.info("step begins", extra={"step": planned.name})
    started = _start(context, job, planned)
    job.payload_started(started.kill)
    metrics = job.metrics
    try:
        code = launch.watched(
            context, job, started, lambda: started.wait(timeout, context.grace_seconds()), is_step=True
        )
    finally:
        job.step_ended()
        job.metrics = metrics  # those of the payload
    logger.info("step ended", extra={"step": planned.name, "exit_code": code})
    job.check()
    if started.timed_out:
        raise PilotageError(_ERRORS[planned.step.kind], f"{planned.name} did not end within {timeout} s")
    if code != 0:
        raise _failed(context, job, planned, code, started)
    launch.tell_of_lost_text(started)


class Beside:
    """The co-processes of a job that runs."""

    def __init__(self) -> None:
        self.processes: list[Process] = []
        self.are_to_end = False

    def kill(self) -> None:
        self.are_to_end = True
        for process in self.processes:
            process.kill()


@contextmanager
def beside(context: Context, job: JobRun) -> Iterator[Beside]:
    """Within this, the co-processes of a job run. One of the task that ends in failure fails the job."""
    running, threads = Beside(), []
    try:
        for planned in plan(context, job):
            if planned.step.kind is StepKind.CO:
                threads += _start_beside(context, job, planned, running)
        yield running
    finally:
        running.are_to_end = True
        for process in running.processes:
            process.tell_to_end(context.grace_seconds())
        for process in running.processes:
            process.terminate(context.grace_seconds())
        for thread in threads:
            thread.join()


def _start_beside(context: Context, job: JobRun, planned: Planned, running: Beside) -> list[threading.Thread]:
    try:
        started = _start(context, job, planned)
    except PilotageError as error:
        if not planned.is_utility:
            raise
        logger.warning("a service cannot be started", extra={"utility": planned.name, "detail": error.detail})
        return []
    running.processes.append(started)
    thread = threading.Thread(
        target=_wait_beside,
        args=(context, job, planned, started, running, dict(bound_fields())),
        name=f"{planned.name}-{job.spec.attempt_id}",
    )
    thread.start()
    return [thread]


def _wait_beside(
    context: Context,
    job: JobRun,
    planned: Planned,
    started: Process,
    running: Beside,
    fields: dict[str, object],
) -> None:
    with bound(**fields):
        code = started.wait()
        if running.are_to_end:
            return
        logger.info("co-process ended before the payload", extra={"step": planned.name, "exit_code": code})
        if code != 0 and planned.is_utility:
            logger.warning("a service failed", extra={"utility": planned.name, "exit_code": code})
        elif code != 0:
            job.fail(_failed(context, job, planned, code, started))


def _start(context: Context, job: JobRun, planned: Planned) -> Process:
    stdout, stderr = planned.files(job)
    job.step_texts += (stdout, stderr)
    return launch.start(context, _run_of(context, job, planned), stdout, stderr, is_step=True)


def _run_of(context: Context, job: JobRun, planned: Planned) -> Run:
    step = planned.step
    words = job.filled(step.command)
    command = context.plugin.in_environment(
        words if planned.is_utility else job.in_software(words), job.directory
    )
    environment = {**job.environment(step.environment), "PILOTAGE_STEP": planned.name}
    return launch.run_of(context, job, command, environment, step.image, planned.is_utility)


def _failed(context: Context, job: JobRun, planned: Planned, code: int, ended: Process) -> PilotageError:
    stdout, stderr = planned.files(job)
    tail = context.secrets.hide(tail_of(stderr) or tail_of(stdout))
    words = last_words(tail, TAIL_CHARACTERS)
    what = f"{planned.name}: {how_it_ended(code)}"
    of_executor = context.executor.explain_failure(code, tail)
    of_node = launch.fault_of_node(ended, code) if of_executor is None else None
    if of_node is not None:
        return PilotageError(of_node.name, f"{what}; {of_node.detail}{words}")
    of_software = sourcing.explain(code, tail) if job.software is not None else None
    return PilotageError(of_executor or of_software or _ERRORS[planned.step.kind], f"{what}{words}")
