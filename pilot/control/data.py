"""Data control: stage-in and stage-out. It chooses the copytool, retries, verifies and reports, once for all tools."""

from __future__ import annotations

import errno
import logging
import random
from functools import partial
from pathlib import Path
from typing import Callable, TypeVar

from copytools import checksum
from copytools.base import Checksums, CopyTool
from pilot import control, workdir
from pilot.context import Context
from pilot.control.payload import pack_log
from pilot.jobrun import JobRun
from protocol.errors import PilotageError, Retry
from protocol.messages import InputFile, LogReport, OutputFile, OutputReport
from protocol.redaction import one_line, redact
from protocol.states import JobState

logger = logging.getLogger(__name__)

T = TypeVar("T")

ALWAYS = "adler32"
"""Every output gets this checksum, whoever reads it later; and blake3 where the node has it."""

MISMATCH = {
    "adler32": "STAGE_IN_ADLER32_MISMATCH",
    "md5": "STAGE_IN_MD5_MISMATCH",
    "blake3": "STAGE_IN_BLAKE3_MISMATCH",
}

HOPELESS = frozenset((Retry.NEVER, Retry.ELSEWHERE))
"""Errors that another try on this node does not mend."""


def stage_in_jobs(context: Context) -> None:
    channels = context.channels
    control.serve(channels.prepared, partial(stage_in, context), channels.staged_in, channels.collected)


def stage_out_jobs(context: Context) -> None:
    """Jobs that have failed come by as well, for their log archive."""
    for job in context.channels.collected:
        try:
            if not job.over.is_set():
                control.attempt(job, "stage-out", partial(stage_out, context))
            if job.error is not None:
                job.told.wait()  # the server hears of the failure first
                if not job.abandoned:
                    control.attempt(job, "log archive", partial(store_log, context))
        finally:
            context.channels.ended.put(job)


def stage_in(context: Context, job: JobRun) -> None:
    """Copy each input, verify it, and let the experiment look at it."""
    job.enter(JobState.STAGE_IN)
    for file in job.spec.inputs:
        path = job.input_path(file)
        patiently(context, job, "STAGE_IN_FAILED", partial(bring, context, job, file, path))
        try:
            context.plugin.check_input(job, file, path)
        except OSError as error:
            raise PilotageError("STAGE_IN_FAILED", f"{file.lfn}: {error}") from None
        logger.info("input is there", extra={"lfn": file.lfn, "size": file.size})


def bring(context: Context, job: JobRun, file: InputFile, path: Path) -> None:
    """One try for one input. What is not as registered is removed again."""
    tool = tool_for(context, job, file.url, _best(file.checksums))
    try:
        learned = tool.copy_in(file.url, path, _timeout(context))
        _verify(file, path, learned or {})
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def stage_out(context: Context, job: JobRun) -> None:
    """Copy each output to the name that this attempt alone may write, then the log archive, and report both."""
    job.enter(JobState.STAGE_OUT)
    for output in job.spec.outputs:
        path = job.output_path(output)
        report = patiently(context, job, "STAGE_OUT_FAILED", partial(take_away, context, job, output, path))
        job.outputs.append(report)
        logger.info("output is stored", extra={"lfn": output.lfn, "size": report.size})
    store_log(context, job)
    job.complete()


def take_away(context: Context, job: JobRun, output: OutputFile, path: Path) -> OutputReport:
    """One try for one output: its size, and its checksums as they were learned while it was copied."""
    wanted = _for_our_files()
    tool = tool_for(context, job, output.url, wanted)
    size = path.stat().st_size
    learned = tool.copy_out(path, output.url, _timeout(context)) or {}
    checksums = {**_missing(path, wanted, learned), **learned}
    if path.stat().st_size != size:
        raise PilotageError("STAGE_OUT_MISMATCH", f"{output.lfn} changed while it was copied")
    return OutputReport(output.lfn, size, checksums)


def store_log(context: Context, job: JobRun) -> None:
    """Store the log archive; a failure of that changes nothing for the job."""
    pack_log(context, job)
    archive = workdir.archive_path(job.directory)
    if not archive.exists():
        return
    try:
        tool = tool_for(context, job, job.spec.log_url, _for_our_files(), stoppable=False)
        learned = tool.copy_out(archive, job.spec.log_url, _timeout(context)) or {}
        checksums = {**_missing(archive, (ALWAYS,), learned), **learned}
        job.log = LogReport(archive.stat().st_size, checksums)
    except (PilotageError, OSError) as error:
        logger.error(
            "the log archive could not be stored", extra={"error": "LOG_FAILED", "detail": str(error)}
        )


def tool_for(
    context: Context, job: JobRun, url: str, algorithms: tuple[str, ...], stoppable: bool = True
) -> CopyTool:
    """The first copytool of the queue's list that understands the URL, made for this job: it ends when the job does."""
    scheme = url.partition(":")[0].lower()  # not urlsplit: that raises for some URLs that users register
    for tool in context.tools:
        if scheme in tool.schemes:
            mine = tool.until(job.over.is_set if stoppable else context.silence.is_set)
            if algorithms:
                mine.algorithms = algorithms
            return mine
    raise PilotageError("UNKNOWN_COPYTOOL", f"none of the usable copytools takes {_shown(url)}")


def patiently(context: Context, job: JobRun, otherwise: str, work: Callable[[], T]) -> T:
    """Try again after a failure that may pass, with waits that double; a file that is not as registered gets one more try.

    `otherwise` names the error for a failure of the node's own disk that has no name yet.
    """
    settings = context.settings
    further = settings.integer("copytools", "retries")
    wait = settings.number("copytools", "backoff_seconds")
    failures = 0
    while True:
        job.check()
        try:
            return work()
        except OSError as error:
            name = "NO_LOCAL_SPACE" if error.errno == errno.ENOSPC else otherwise
            failed = PilotageError(name, one_line(str(error)))
        except PilotageError as error:
            failed = error
        job.check()
        failures += 1
        retry = failed.entry.retry
        if retry in HOPELESS or failures > (min(1, further) if retry is Retry.FRESH_INPUT else further):
            raise failed
        pause = min(wait * 2.0 ** (failures - 1), settings.number("copytools", "backoff_max_seconds"))
        logger.warning(
            "a copy failed",
            extra={"error": failed.name, "detail": failed.detail, "again_in": round(pause, 1)},
        )
        job.pause(pause * random.uniform(0.75, 1.25))


def _verify(file: InputFile, path: Path, learned: Checksums) -> None:
    """Size, and the best registered checksum that this node can calculate; raise the mismatch that is found."""
    size = path.stat().st_size
    if size != file.size:
        raise PilotageError(
            "INPUT_SIZE_MISMATCH", f"{file.lfn}: {file.size} bytes are registered, {size} arrived"
        )
    wanted = _best(file.checksums)
    if file.checksums and not wanted:
        known = ", ".join(file.checksums)
        raise PilotageError(
            "CHECKSUM_NOT_SUPPORTED",
            f"{file.lfn}: only {known} is registered, which this node cannot calculate",
        )
    found = {**_missing(path, wanted, learned), **learned}
    for algorithm in wanted:
        if found[algorithm] != file.checksums[algorithm].lower():
            raise PilotageError(
                MISMATCH[algorithm],
                f"{file.lfn}: {algorithm} {file.checksums[algorithm]} is registered, {found[algorithm]} arrived",
            )


def _missing(path: Path, wanted: tuple[str, ...], learned: Checksums) -> Checksums:
    """What the copytool did not learn is calculated from the local file."""
    rest = tuple(algorithm for algorithm in wanted if algorithm not in learned)
    return checksum.of(path, rest) if rest else {}


def _best(checksums: Checksums) -> tuple[str, ...]:
    """One is enough, and each costs a pass over the bytes: the first of the node's, from the strongest down."""
    return tuple(algorithm for algorithm in checksum.available() if algorithm in checksums)[:1]


def _for_our_files() -> tuple[str, ...]:
    return tuple(dict.fromkeys((checksum.preferred(), ALWAYS)))


def _timeout(context: Context) -> float:
    return context.settings.integer("copytools", "timeout_seconds")


def _shown(url: str) -> str:
    return one_line(redact(url))
