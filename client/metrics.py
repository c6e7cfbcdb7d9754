"""The numbers of an attempt over time, each as a line of a table: names, values in their order, and a small curve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from protocol.messages.pilots import BenchmarkReport
from protocol.messages.views import AttemptMetrics

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 40


class Line(NamedTuple):
    """One number over time; the last value is the latest that is known."""

    name: str
    values: list[float]


def lines_of(attempt: AttemptMetrics) -> list[Line]:
    """By name. What is missing at a point is left out."""
    told = [*(point.metrics for point in attempt.points), *([attempt.metrics] if attempt.metrics else [])]
    names = sorted({name for metrics in told for name in metrics})
    return [Line(name, [metrics[name] for metrics in told if name in metrics]) for name in names]


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """From the least to the most; of more values than there are columns, the largest in each counts."""
    n = min(width, len(values))
    columns = [max(values[len(values) * i // n : len(values) * (i + 1) // n]) for i in range(n)]
    least, most = min(columns), max(columns)
    if most == least:
        return BARS[0] * n
    return "".join(BARS[int((value - least) / (most - least) * (len(BARS) - 1))] for value in columns)


def benchmark_line(report: BenchmarkReport | None) -> str | None:
    """What a benchmark found, in a line."""
    if report is None:
        return None
    scores = ", ".join(f"{name} {value:g}" for name, value in report.scores.items())
    whose = f" in job {report.job_id}" if report.job_id else ""
    return f"{report.name} {report.version} by the {report.by}{whose}, {report.cores} cores of {report.cpu_model}: {scores}"
