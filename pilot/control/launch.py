"""How a payload or one of its steps is started: its environment, what the queue's executor puts around it, and who watches it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Callable, Optional

from pilot import accounts, limits, proc, process, sourcing, workdir
from pilot.context import Context
from pilot.jobrun import BRISK_SECONDS, INPUTS, SOFTWARE, JobRun
from pilot.node import gpus
from pilot.plugins.executors import Run
from protocol.errors import PilotageError
from protocol.logs import bound_fields
from protocol.redaction import one_line

logger = logging.getLogger(__name__)

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
    return Run(
        command=tuple(command),
        directory=job.directory,
        environment={name: value for name, value in said.items() if value is not None},
        inherited={
            name: value
            for name, value in {**context.inherited, **_of_account(context, job)}.items()
            if said.get(name, "") is not None
        },
        readable=(*_parts_of(job), *(path for path in _of_node(context, job) if os.path.exists(path))),
        image=image if is_utility and image else _image(context, job, image),
        network=settings.flag("payload", "network"),
        cores=job.spec.cores,
        gpus=job.spec.gpus,
        ranks=settings.integer("payload", "ranks"),
        scratch=workdir.scratch_path(job.directory),
        account=accounts.of_slot(settings, job.slot),
    )


def _parts_of(job: JobRun) -> list[Path]:
    """Of the job's directory what no command of the job may change: shown to each of them, from the first one on.

    So each is a mount in every container of the job, which cannot be renamed. Nothing is looked for: what has such a name in a job
    that has no such part was put there by the payload, and may be a link.
    """
    parts = [job.directory / INPUTS] if job.spec.inputs else []
    parts += [job.bundle] if job.spec.bundle is not None else []
    fetched = job.directory / SOFTWARE
    is_fetched = job.software is not None and fetched in (
        job.software.directory,
        *job.software.directory.parents,
    )
    return [*parts, fetched] if is_fetched else parts


def _of_node(context: Context, job: JobRun) -> list[Path]:
    """What it may read of the node; of CVMFS the whole repository, in which software refers to other software."""
    readable = [*map(Path, context.settings.items("payload", "readable")), *job.linked]
    software = job.software.directory if job.software is not None else job.directory
    if job.directory in (software, *software.parents):
        return readable
    is_cvmfs = software.parts[:2] == ("/", "cvmfs")
    return [*readable, Path(*software.parts[:3]) if is_cvmfs else software]


def check(context: Context, run: Run) -> None:
    """Before inputs are copied for nothing: raise if it is known already that the command cannot be started."""
    context.executor.check(run)
    if not run.image and not (run.command and run.command[0].startswith(str(run.directory / INPUTS))):
        process.check_program(run.command, run.directory, run.whole_environment)


def hand_over(context: Context, job: JobRun) -> None:
    """Before anything of a job runs: its files, and a place for temporary ones, to the account that it runs as."""
    account = accounts.of_slot(context.settings, job.slot)
    if account is None:
        return
    scratch = workdir.scratch_path(job.directory)
    workdir.make(scratch)
    for place in (job.directory, scratch):
        accounts.give(place, account)


def start(context: Context, run: Run, stdout: Path, stderr: Path, is_step: bool = False) -> process.Process:
    process.check_directory(run.directory)
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
        account=run.account,
    )
    _first_to_die(started.pid)
    return started


def _first_to_die(pid: int) -> None:
    """Should the node run out of memory, the kernel ends a payload before its pilot, which can then tell."""
    if not proc.write(f"/proc/{pid}/oom_score_adj", "1000"):
        logger.debug("the payload is no likelier than the pilot to be ended by the kernel")


def watched(
    context: Context, job: JobRun, started: process.Process, wait: Callable[[], int], is_step: bool = False
) -> int:
    """Wait for a process while the job monitor looks after it: the limits of the job hold for steps too."""
    settings = context.settings
    sooner = [kind.seconds_to_first(job, settings) for kind in context.monitors]
    if settings.integer("get_job", "claim_ahead"):
        sooner.append(BRISK_SECONDS)
    first_look = min([settings.number("limits", "sample_seconds"), *sooner])
    with context.watches.over(job, started, first_look, dict(bound_fields()), is_step):
        return wait()


def fault_of_node(ended: process.Process, code: int) -> Optional[PilotageError]:
    """Why a process failed, if the kernel ended it for want of memory, or the disk did not take what it printed; else None."""
    if ended.text_error is not None:
        return process.cannot_write(ended.text_error, "what it printed")
    return limits.kernel_memory(code, ended.oom_kills, ended.oom_kills_around)


def tell_of_lost_text(ended: process.Process) -> None:
    """It went well; but who reads its text is to know."""
    if ended.text_error is not None:
        logger.warning(
            "not all that the payload printed could be kept", extra={"reason": str(ended.text_error)}
        )


def _image(context: Context, job: JobRun, of_step: str) -> str:
    wanted = of_step or job.spec.image
    if wanted and not context.settings.flag("payload", "task_images"):
        raise PilotageError(
            "QUEUE_WITHOUT_CONTAINERS",
            "the task names an image, and the queue does not let tasks do so (task_images)",
        )
    if wanted and "://" not in wanted:
        # Any other directory would show the payload what lies there: the pilot's own, say.
        places = [os.path.realpath(place) for place in context.settings.items("payload", "image_directories")]
        if not any(os.path.realpath(wanted).startswith(f"{place}/") for place in places):
            raise PilotageError(
                "IMAGE_NOT_FOUND",
                f"{one_line(wanted[:200])} does not lie where images are (image_directories)",
            )
    return wanted or context.settings.text("payload", "image")


def _of_account(context: Context, job: JobRun) -> dict[str, str]:
    """Who the payload is, where that is somebody else than the pilot; what it leaves in /tmp of others nobody would remove."""
    account = accounts.of_slot(context.settings, job.slot)
    if account is None:
        return {}
    return {
        "HOME": str(job.directory),
        "TMPDIR": str(workdir.scratch_path(job.directory)),
        "USER": account.name,
        "LOGNAME": account.name,
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
        **({sourcing.VARIABLE: str(job.software.directory)} if job.software is not None else {}),
    }
