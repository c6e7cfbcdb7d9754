"""Data control: stage-in and stage-out of the files of jobs, by the Data API (pilot/api/data.py), and their reports."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Callable, Optional

from copytools.base import CopyTool, FileTool
from pilot import addresses, control, workdir
from pilot.api.data import Copied, Data, File, Stopped
from pilot.context import Context
from pilot.control.payload import pack_log
from pilot.jobrun import JobOver, JobRun
from pilot.patience import Patience
from protocol.errors import PilotageError
from protocol.files import local_path
from protocol.messages.pilots import InputFile, LogReport, OutputReport
from protocol.states import JobState

logger = logging.getLogger(__name__)


def stage_in_jobs(context: Context, step: Callable[[JobRun], None]) -> None:
    channels = context.channels
    control.serve(channels.prepared, step, channels.staged_in, channels.collected)


def stage_out_jobs(context: Context, step: Callable[[JobRun], None]) -> None:
    """Jobs that have failed come by as well, for their log archive."""
    for job in context.channels.collected:
        try:
            if not job.over.is_set():
                control.attempt(job, "stage-out", step)
            if job.error is not None:
                job.told.wait()  # the server hears of the failure first
                if not job.abandoned:
                    control.attempt(job, "log archive", partial(store_log, context.of(job)))
        finally:
            context.channels.ended.put(job)


def stage_in(context: Context, job: JobRun) -> None:
    """Copy each input, verify it, and let the experiment look at it; what stays where it is only has to be readable."""
    job.enter(JobState.STAGE_IN)
    stay = context.settings.items("copytools", "direct_access")
    for file in job.spec.inputs:
        try:
            _bring(context, job, file, _address(context, file.url), stay)
        except PilotageError as error:
            error.fields["input_url"] = file.url  # the server may know of another copy
            raise


def _bring(context: Context, job: JobRun, file: InputFile, url: str, stay: Sequence[str]) -> None:
    path = job.input_path(file)
    known = File(url, path, file.size, file.checksums, file.lfn)
    if url.partition(":")[0].lower() in stay:
        _leave(context, job, known)
        return
    copied = _copied(_data(context).bring, known, job)
    try:
        context.plugin.check_input(job, file, path)
    except OSError as error:
        raise PilotageError("STAGE_IN_FAILED", f"{file.lfn}: {error}") from None
    if path.is_symlink():
        job.linked.append(Path(os.path.realpath(path)))
    found = {"from_cache": copied.from_cache} if context.cache is not None else {}
    logger.info("input is there", extra={"lfn": file.lfn, "size": file.size, **found})


def stage_out(context: Context, job: JobRun) -> None:
    """Copy each output to the name that this attempt alone may write, then the log archive, and report both."""
    job.enter(JobState.STAGE_OUT)
    for output in job.spec.outputs:
        file = File(_address(context, output.url), job.output_path(output), name=output.lfn)
        copied = _copied(_data(context, storage=output.storage or "").take_away, file, job)
        job.outputs.append(OutputReport(output.lfn, copied.size, copied.checksums))
        logger.info("output is stored", extra={"lfn": output.lfn, "size": copied.size})
    store_log(context, job)
    job.complete()


def store_log(context: Context, job: JobRun) -> None:
    """Store the log archive, also of a job that is over; a failure of that changes nothing for the job."""
    pack_log(context, job)
    archive = workdir.archive_path(job.directory)
    if not archive.exists():
        return
    try:
        copied = _data(context, retries=0).take_away(
            File(_address(context, job.spec.log_url), archive), context.silence
        )
        job.log = LogReport(copied.size, copied.checksums)
    except (PilotageError, Stopped) as error:
        logger.error(
            "the log archive could not be stored", extra={"error": "LOG_FAILED", "detail": str(error)}
        )


def _leave(context: Context, job: JobRun, file: File) -> None:
    """An input stays on its storage: the payload gets its address, or its path where that is a file of this node."""
    _copied(_data(context).look, file, job)
    text = file.url
    if file.url.startswith("file:"):
        prefix = context.settings.optional_path("node_settings", "script_prefix")
        path = Path(local_path(file.url, str(prefix or "")))
        job.linked.append(Path(os.path.realpath(path)))
        text = str(path)
    job.remote[file.name] = text
    logger.info("input stays where it is", extra={"lfn": file.name, "url": file.url})


def _address(context: Context, url: str) -> str:
    return addresses.rewritten(url, _rules(context))


def _rules(context: Context) -> Sequence[addresses.Rule]:
    return addresses.rules(context.settings.items("copytools", "addresses"))


def _copied(copy: Callable[..., Copied], file: File, job: JobRun) -> Copied:
    """The copy ends when the job does; JobOver if it did."""
    job.check()
    try:
        return copy(file, job.over)
    except Stopped:
        raise JobOver from None


def _data(context: Context, retries: Optional[int] = None, storage: str = "") -> Data:
    """With the tools of the queue and the settings as they are for its jobs; `storage`: another one than the queue's."""
    patience = Patience.of(context.settings)
    return Data(
        [_for(tool, addresses.directory(storage, _rules(context))) for tool in context.tools]
        if storage
        else context.tools,
        retries=patience.retries if retries is None else retries,
        timeout_seconds=context.settings.integer("copytools", "timeout_seconds"),
        backoff_seconds=patience.backoff_seconds,
        backoff_max_seconds=patience.backoff_max_seconds,
        cache=context.cache,
    )


def _for(tool: CopyTool, storage: str) -> CopyTool:
    """The same tool, for outputs that go there."""
    if isinstance(tool, FileTool):
        tool = copy.copy(tool)
        tool.storage = storage if storage.startswith("file:") else ""
    return tool
