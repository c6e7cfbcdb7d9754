"""What `pilotage job show` says about copies of a job, and what was measured of it."""

from __future__ import annotations

from typing import Any

import pytest

from client.commands import common, jobs
from protocol.messages.views import (
    AttemptMetrics,
    AttemptView,
    Explanation,
    JobMetrics,
    JobView,
    MetricPoint,
    QueueFit,
)


@pytest.mark.parametrize(
    ("replicate", "ends", "said"),
    [
        (3, [None, None], "2 of 3 copies run"),
        (2, [None, "2026-01-01T00:00:00Z"], "1 of 2 copies run"),
        (2, ["2026-01-01T00:00:00Z"], ""),
        (1, [None], ""),
    ],
)
def test_a_job_with_copies_says_how_many_run(
    capsys: pytest.CaptureFixture[str], replicate: int, ends: list[str | None], said: str
) -> None:
    class Session:
        def job(self, job_id: int) -> JobView:
            tries = [
                AttemptView(nr, nr, "RUNNING", "p", "n", "CPU", ended=end)
                for nr, end in enumerate(ends, start=1)
            ]
            return JobView(
                job_id, 1, 1, "t", "RUNNING", "cpu", 0, len(ends), "", "", replicate=replicate, attempts=tries
            )

    show: Any = jobs.show.callback
    show.__wrapped__(Session(), job_id=1, metrics=False, as_json=False)
    out = capsys.readouterr().out
    assert said in out
    assert ("copies run" in out) == bool(said)


def test_a_copy_that_was_never_made_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    class Session:
        def job(self, job_id: int) -> JobView:
            tries = [AttemptView(1, 1, "COMPLETED", "p", "n", "CPU", ended="2026-01-01T00:00:00Z")]
            return JobView(job_id, 1, 1, "t", "COMPLETED", "cpu", 0, 1, "", "", replicate=2, attempts=tries)

    show: Any = jobs.show.callback
    show.__wrapped__(Session(), job_id=1, metrics=False, as_json=False)
    assert "1 of 2 copies were handed out: no pilot of another node asked" in capsys.readouterr().out


def test_what_was_measured_is_shown_over_time(capsys: pytest.CaptureFixture[str]) -> None:
    points = [MetricPoint(f"2026-01-01T00:0{n}:00Z", {"memory_mb": 100.0 * n}) for n in range(1, 4)]
    attempts = [AttemptMetrics(7, 2, "RUNNING", {"memory_mb": 250.0}, points), AttemptMetrics(6, 1, "FAILED")]

    class Session:
        def job_metrics(self, job_id: int) -> JobMetrics:
            return JobMetrics(job_id, attempts)

    show: Any = jobs.show.callback
    show.__wrapped__(Session(), job_id=1, metrics=True, as_json=False)
    out = capsys.readouterr().out
    assert "attempt 2, RUNNING: 3 points" in out and "attempt 1" not in out
    (line,) = (line for line in out.splitlines() if "memory_mb" in line)
    assert line.split() == ["memory_mb", "▁▄█▆", "100", "300", "250"]
    del attempts[:]
    show.__wrapped__(Session(), job_id=1, metrics=True, as_json=False)
    assert "Nothing was measured of job 1 yet" in capsys.readouterr().out


def test_many_queues_that_lack_the_same_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    bound = [QueueFit(f"Q{nr}", "S", "online", missing=["it is bound to the queue CPU"]) for nr in range(9)]
    mine = QueueFit("CPU", "LOCAL", "online", missing=["no pilot is alive there"])
    common.print_explanation(
        Explanation(1, "t", "READY", "2026-01-01T00:00:00Z", [], queues=[mine, *bound]), False
    )
    shown = capsys.readouterr().out
    assert "no pilot is alive there" in shown and "Q3" not in shown
    assert shown.endswith("9 further queues: it is bound to the queue CPU\n")
    common.print_explanation(Explanation(1, "t", "READY", "2026-01-01T00:00:00Z", [], queues=bound), False)
    assert capsys.readouterr().out.endswith("\n9 queues: it is bound to the queue CPU\n")
