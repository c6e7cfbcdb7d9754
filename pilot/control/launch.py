"""How a payload or one of its steps is started: its environment, what the queue's executor puts around it, and who watches it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Callable, Optional

from pilot import process
from pilot.context import Context
from pilot.jobrun import INPUTS, JobRun
from pilot.node import gpus
from pilot.plugins.executors import Run
from protocol.errors import PilotageError
from protocol.logs import bound_fields
from protocol.redaction import is_secret_name

logger = logging.getLogger(__name__)

CREDENTIALS = frozenset(("X509_USER_PROXY", "BEARER_TOKEN", "BEARER_TOKEN_FILE"))
"""Variables of the pilot's environment that say who the pilot is; the payload is somebody else."""
MIB = 1024 * 1024


def run_of(
    context: Context,
    job: JobRun,
    command: Sequence[str],
    environment: Optional[Mapping[str, str]] = None,
    image: str = "",
    is_utility: bool = False,
) -> Run:
    """A command of the job as it would run on the bare node; `environment` and `image` are those of a step.

    That of a service of the queue is its operator's own choice.
    """
    said = {**_said(context, job), **(environment or {})}
    settings = context.settings
    resolved = (job.input_path(file).resolve() for file in job.spec.inputs)
    readable = [job.directory / INPUTS, job.bundle, *map(Path, settings.items("payload", "readable"))]
    # A copytool may have made a link to a file of the node.
    readable += [path for path in resolved if job.directory.resolve() not in path.parents]
    return Run(
        command=tuple(command),
        directory=job.directory,
        environment={name: value for name, value in said.items() if value is not None},
        inherited={
            name: value for name, value in _inherited(context).items() if said.get(name, "") is not None
        },
        readable=tuple(path for path in readable if path.exists()),
        image=image if is_utility and image else _image(context, job, image),
        network=settings.flag("payload", "network"),
        cores=job.spec.cores,
        gpus=job.spec.gpus,
        ranks=settings.integer("payload", "ranks"),
    )


def check(context: Context, run: Run) -> None:
    """Before inputs are copied for nothing: raise if it is known already that the command cannot be started."""
    context.executor.check(run)
    if not run.image and not (run.command and run.command[0].startswith(str(run.directory / INPUTS))):
        process.check_program(run.command, run.directory, run.whole_environment)


def start(context: Context, run: Run, stdout: Path, stderr: Path, is_step: bool = False) -> process.Process:
    wrapped = context.executor.wrap(run, is_step)
    started = process.start(
        wrapped.command,
        run.directory,
        wrapped.whole_environment,
        stdout,
        stderr,
        text_bytes=context.settings.integer("limits", "stdout_mb") * MIB,
        most_processes=context.settings.integer("payload", "processes"),
        discards_text=is_step,
    )
    _first_to_die(started.pid)
    return started


def _first_to_die(pid: int) -> None:
    """Should the node run out of memory, the kernel ends a payload before its pilot, which can then tell."""
    try:
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000")
    except OSError as error:
        logger.debug("the payload is no likelier to be ended by the kernel", extra={"reason": str(error)})


def watched(context: Context, job: JobRun, started: process.Process, wait: Callable[[], int]) -> int:
    """Wait for a process while the job monitor looks after it: the limits of the job hold for steps too."""
    settings = context.settings
    sooner = [kind.seconds_to_first(job, settings) for kind in context.monitors]
    first_look = min([settings.number("limits", "sample_seconds"), *sooner])
    with context.watches.over(job, started, first_look, dict(bound_fields())):
        return wait()


def _image(context: Context, job: JobRun, of_step: str) -> str:
    wanted = of_step or job.spec.image
    if wanted and not context.settings.flag("payload", "task_images"):
        raise PilotageError(
            "QUEUE_WITHOUT_CONTAINERS",
            "the task names an image, and the queue does not let tasks do so (task_images)",
        )
    return wanted or context.settings.text("payload", "image")


def _inherited(context: Context) -> dict[str, str]:
    """The pilot's environment without its settings and credentials."""
    return {
        name: value
        for name, value in context.environ.items()
        if not name.startswith("PILOTAGE_") and name not in CREDENTIALS and not is_secret_name(name)
    }


def _said(context: Context, job: JobRun) -> dict[str, Optional[str]]:
    """What the task and the plugin add, and who the job is; None: not to be inherited.

    It sees the GPUs of its slot and no others, whatever the task says: they are other jobs'.
    """
    slots = context.settings.integer("node_settings", "slots")
    return {
        **context.plugin.payload_environment(job, job.directory),
        **gpus.environment(context.node.share(job.slot, slots).gpus),
        "PILOTAGE_JOB_ID": str(job.spec.job_id),
        "PILOTAGE_ATTEMPT_NR": str(job.spec.attempt_nr),
        "PILOTAGE_TASK_ID": str(job.spec.task_id),
    }
