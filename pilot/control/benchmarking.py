"""Benchmarks: one that the pilot runs before a job with the cores of that job, and those that payloads are.

What one found goes to the server with the next word about the job, and to the collector. A benchmark that fails ends no job.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from pilot import plain_json, process
from pilot.collector import described
from pilot.context import Context
from pilot.jobrun import JobRun
from protocol import __version__
from protocol.errors import PilotageError
from protocol.files import check_lfn
from protocol.logs import bound_fields
from protocol.messages.pilots import BenchmarkReport
from protocol.redaction import one_line, redact

logger = logging.getLogger(__name__)

VARIABLE = "PILOTAGE_BENCHMARK"
"""In the environment that a task gives its jobs: the file in which the payload, itself a benchmark, leaves its dictionary."""
STDOUT, STDERR = "pilot-benchmark.json", "pilot-benchmark.stderr"
LARGEST = 64 * 1024
MOST_SCORES = 50
BY_PILOT, BY_PAYLOAD = "pilot", "payload"


def before(context: Context, job: JobRun) -> None:
    """Run one if the settings want it; with the inputs there, before anything of the task runs."""
    settings = context.settings
    if not settings.flag("services", "benchmark") or VARIABLE in job.spec.environment:
        return
    seconds = settings.number("services", "benchmark_seconds")
    from pilot.benchmark import command  # late: most pilots run none

    disk_mb = settings.integer("services", "benchmark_disk_mb")
    words = command(str(job.directory), job.spec.cores, seconds, disk_mb)
    try:
        _run(context, job, words, seconds)
        _take(context, job, STDOUT, BY_PILOT)
    except PilotageError as error:
        job.check()
        logger.warning("the benchmark failed", extra={"error": error.name, "detail": error.detail})


def after(context: Context, job: JobRun) -> None:
    """Take what a payload has left that is a benchmark."""
    if VARIABLE not in job.spec.environment:
        return
    try:
        _take(context, job, check_lfn(job.environment()[VARIABLE]), BY_PAYLOAD)
    except PilotageError as error:
        logger.warning("there is no benchmark", extra={"error": error.name, "detail": error.detail})


def _run(context: Context, job: JobRun, words: list[str], seconds: float) -> None:
    """Outside of any container: the code is ours, and it is the node that is measured. No limits of the job hold for it."""
    started = process.start(
        words, job.directory, context.inherited, job.directory / STDOUT, job.directory / STDERR,
        text_bytes=LARGEST, discards_text=True,
    )  # fmt: skip
    job.step_texts += (job.directory / STDOUT, job.directory / STDERR)
    job.payload_started(started.kill)
    try:
        with context.watches.over(job, started, math.inf, dict(bound_fields())):
            code = started.wait(60 + 5 * seconds, context.grace_seconds())
    finally:
        job.step_ended()
    if code != 0:
        raise PilotageError(
            "BENCHMARK_FAILED", f"{process.how_it_ended(code)}; see {STDERR} in the job's log"
        )


def _take(context: Context, job: JobRun, name: str, by: str) -> None:
    found = _read(job.directory / name)
    report = report_of(found, by)
    job.benchmark = report
    logger.info(
        "the benchmark is there",
        extra={"benchmark": report.name, "cores": report.cores, "by": by, **report.scores},
    )
    if context.collector is not None:
        context.collector.offer(_for_collector(context, job, found, by))


def _read(path: Path) -> Mapping[str, Any]:
    """BENCHMARK_FAILED for what is no plain file of ours with a JSON object; links are not followed."""
    try:
        return plain_json.read(path, LARGEST)
    except (OSError, ValueError, RecursionError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or one_line(str(error))[:200]
        raise PilotageError("BENCHMARK_FAILED", f"{path.name}: {reason}") from None


def report_of(found: Mapping[str, Any], by: str) -> BenchmarkReport:
    """The part of a benchmark's dictionary that the server takes, whoever wrote it; BENCHMARK_FAILED if it has no scores."""
    scores = found.get("scores")
    good = {} if not isinstance(scores, dict) else {
        one_line(str(name))[:100]: float(value) for name, value in scores.items() if _number(value) is not None
    }  # fmt: skip
    if not good:
        raise PilotageError(
            "BENCHMARK_FAILED", "the dictionary has no scores, that is numbers by their names"
        )
    return BenchmarkReport(
        name=_text(found, "name", 100),
        version=_text(found, "version", 100),
        date=_text(found, "date", 40),
        cores=int(min(max(_number(found.get("cores")) or 0, 0), 100_000)),
        seconds=min(max(_number(found.get("seconds")) or 0.0, 0.0), 1e9),
        node=_text(found, "node", 255),
        cpu_model=_text(found, "cpu_model", 200),
        scores=dict(list(good.items())[:MOST_SCORES]),
        by=by,
    )


def _number(value: object) -> Optional[float]:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _text(found: Mapping[str, Any], name: str, longest: int) -> str:
    value = found.get(name)
    return one_line(redact(str(value)))[:longest] if isinstance(value, (str, int, float)) else ""


def _for_collector(context: Context, job: JobRun, found: Mapping[str, Any], by: str) -> dict[str, Any]:
    """The whole dictionary, with what the pilot knows beside it, and without what nobody wants there."""
    spec = job.spec
    ours = {
        "kind": "benchmark",
        "by": by,
        "pilot_id": context.pilot_id,
        "pilot_version": __version__,
        "queue": context.computing_queue.name,
        "site": context.computing_queue.site,
        "pilot_node": context.node.name,
        "task_id": spec.task_id,
        "job_id": spec.job_id,
        "attempt_nr": spec.attempt_nr,
    }
    unwanted = context.settings.items("services", "collector_leave_out")
    return described(found, unwanted, **ours)
