"""The controls of a pilot: threads joined by channels, one duty each."""

from __future__ import annotations

from typing import Callable, Union

from pilot import limits
from pilot.channels import Channel, Slots
from pilot.jobrun import JobOver, JobRun
from protocol.errors import PilotageError


def serve(
    inbox: Channel[JobRun],
    work: Callable[[JobRun], None],
    onward: Union[Channel[JobRun], Slots],
    failed: Channel[JobRun],
) -> None:
    """The loop of a control: do one step with each job that comes, and pass it on; a job that has ended goes the short way."""
    for job in inbox:
        pass_on(job, inbox.name, work, onward, failed)


def pass_on(
    job: JobRun,
    step: str,
    work: Callable[[JobRun], None],
    onward: Union[Channel[JobRun], Slots],
    failed: Channel[JobRun],
) -> None:
    """Do one step with a job, unless it has ended, and hand it over."""
    try:
        if not job.over.is_set():
            attempt(job, step, work)
    finally:
        (failed if job.over.is_set() else onward).put(job)


def attempt(job: JobRun, step: str, work: Callable[[JobRun], None]) -> None:
    """Do one step with a job. An error of the catalogue ends the job, and so does a disk of the node that fails.

    Any other exception is a mistake in the pilot: the job is reported, and the exception ends this thread and so the pilot.
    """
    with job.logged():
        try:
            work(job)
        except JobOver:
            pass
        except PilotageError as error:
            job.fail(error)
        except BaseException as error:
            refused = limits.disk_refuses(error, step) if isinstance(error, OSError) else None
            if refused is not None:
                job.fail(refused)
                return
            job.fail(PilotageError("PILOT_EXCEPTION", f"{step}: {type(error).__name__}: {error}"))
            raise
