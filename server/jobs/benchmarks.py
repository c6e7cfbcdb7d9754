"""What benchmarks found on nodes: kept with the attempt that they ran in, and with its pilot the last one."""

from __future__ import annotations

import dataclasses
import json
import math

from protocol.errors import PilotageError
from protocol.messages import from_wire, to_wire
from protocol.messages.pilots import BenchmarkReport
from protocol.redaction import one_line, redact
from server.models import Attempt, Pilot

LONGEST_NAME = 100
_TEXTS = ("name", "version", "date", "node", "cpu_model")


def keep(attempt_id: int, job_id: int, pilot_id: str, report: BenchmarkReport) -> None:
    """Inside `Database.write`, with the attempt taken by this word."""
    report = _clean(report)
    Attempt.update(benchmark=json.dumps(to_wire(report))).where(Attempt.id == attempt_id).execute()
    of_job = dataclasses.replace(report, job_id=job_id)
    Pilot.update(benchmark=json.dumps(to_wire(of_job))).where(Pilot.pilot_id == pilot_id).execute()


def of(row: Attempt | Pilot) -> BenchmarkReport | None:
    return from_wire(BenchmarkReport, json.loads(row.benchmark)) if row.benchmark else None


def check(report: BenchmarkReport | None) -> None:
    """BAD_REQUEST for scores that cannot be shown."""
    for name, value in (report.scores if report else {}).items():
        if len(name) > LONGEST_NAME or not math.isfinite(value):
            raise PilotageError(
                "BAD_REQUEST", f"benchmark: the score {name[:40]!a} is too long a name, or no number"
            )


def _clean(report: BenchmarkReport) -> BenchmarkReport:
    """Pilots do the same; but who holds the token may be no pilot of ours."""
    cleaned = dataclasses.replace(
        report, scores={one_line(name): value for name, value in report.scores.items()}, job_id=None
    )
    for name in _TEXTS:
        setattr(cleaned, name, one_line(redact(getattr(report, name))))
    return cleaned
