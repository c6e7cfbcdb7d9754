"""The numbers of running attempts over time: bounded, written seldom, shown while they run, dropped by the archive."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
from flask.testing import FlaskClient

from protocol.messages import from_wire
from protocol.messages.pilots import Heartbeat, HeldAttempt, JobSpec
from protocol.messages.views import JobMetrics
from protocol.states import JobState
from server import job_executor
from server.access.tokens import Role
from server.core import Core, Limits
from server.jobs import series
from server.models import Attempt, Job, MetricPoint
from server.upkeep import archive
from tests.integration.server.http import Speaker
from tests.integration.server.world import Bearer, World


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(series, "time", SimpleNamespace(monotonic=made, time=made))
    return made


@pytest.fixture
def limits() -> Limits:
    return Limits(archive_after_seconds=0)


def beat(core: Core, *jobs: JobSpec, **metrics: float) -> None:
    held = [HeldAttempt(job.attempt_id, job.attempt_token, metrics or None) for job in jobs]
    job_executor.heartbeat(core, Heartbeat("p1", held))


def run_for(world: World, clock: Clock, seconds: int, *jobs: JobSpec, period: int = 20) -> None:
    for _ in range(0, seconds, period):
        clock.now += period
        beat(world.core, *jobs, memory_mb=clock.now % 1000)


def test_a_point_a_minute_is_kept_and_none_of_a_short_job(world: World, clock: Clock) -> None:
    world.ready(2)
    short, long = world.claim(n_jobs=2)
    run_for(world, clock, 60, short, long)
    assert not MetricPoint.select().exists()
    run_for(world, clock, 600, long)
    points = list(MetricPoint.select().order_by(MetricPoint.at).tuples())
    assert {attempt_id for attempt_id, _, _ in points} == {long.attempt_id}
    assert [at - points[0][1] for _, at, _ in points] == [60 * n for n in range(len(points))]
    assert len(points) in (9, 10)


def test_the_points_of_many_attempts_are_written_together(world: World, clock: Clock) -> None:
    world.ready(3)
    jobs = world.claim(n_jobs=3)
    written = []
    count = world.core.database.write

    def write(work, **rest):  # type: ignore[no-untyped-def]
        written.append(work)
        return count(work, **rest)

    object.__setattr__(world.core.database, "write", write)
    for _ in range(60):
        clock.now += 1
        beat(world.core, *jobs, memory_mb=1)
    assert len(written) == 60, "a heartbeat is one transaction as long as no point is due"
    for _ in range(60):
        clock.now += 1
        beat(world.core, *jobs, memory_mb=1)
    assert len(written) == 121, "and a further one for all points together"
    assert MetricPoint.select().count() == 3


def test_a_long_life_gives_no_more_points_than_are_kept(world: World, clock: Clock) -> None:
    world.ready()
    (job,) = world.claim()
    run_for(world, clock, 86_400, job, period=60)
    n_points = MetricPoint.select().count()
    assert 60 <= n_points <= series.MOST_POINTS + series.LOOK_AFTER
    first, last = (
        MetricPoint.select(MetricPoint.at).order_by(order).scalar()
        for order in (MetricPoint.at, MetricPoint.at.desc())
    )
    assert last - first > 80_000, "they tell of the whole life"


def test_numbers_of_strangers_and_of_ended_attempts_are_not_kept(world: World, clock: Clock) -> None:
    world.ready()
    (job,) = world.claim()
    beat(world.core, job, memory_mb=1)
    clock.now += 60
    beat(world.core, dataclasses.replace(job, attempt_token="stolen"), memory_mb=2)
    assert world.core.series.take() == ([], [])
    clock.now += 60
    world.core.series.offer(job.attempt_id, {"memory_mb": 3.0}, 60)
    Attempt.update(ended_at=1.0).execute()
    series.keep(world.core.database, world.core.series)
    assert not MetricPoint.select().exists()


def test_none_are_kept_if_the_operator_wants_none(world: World, clock: Clock) -> None:
    world.ready()
    (job,) = world.claim()
    core = dataclasses.replace(world.core, limits=Limits(metrics_seconds=0))
    for _ in range(10):
        clock.now += 60
        beat(core, job, memory_mb=1)
    assert not MetricPoint.select().exists()
    assert "memory_mb" in Attempt.get().metrics


def test_177_a_user_sees_the_numbers_of_a_running_job_and_of_one_in_the_archive_the_last(
    world: World, clock: Clock, client: FlaskClient, bearer: Bearer
) -> None:
    world.ready()
    (job,) = world.claim()
    run_for(world, clock, 300, job)
    speaker = Speaker(client, bearer, Role.USER)
    shown = from_wire(JobMetrics, speaker.ok("GET", f"/v1/jobs/{job.job_id}/metrics"))
    (attempt,) = shown.attempts
    assert attempt.metrics == {"memory_mb": clock.now % 1000}
    assert len(attempt.points) >= 3 and attempt.points[0].metrics["memory_mb"] > 0
    assert attempt.points == sorted(attempt.points, key=lambda point: point.at)
    world.say(job, JobState.COMPLETED, outputs=[])
    world.close_tasks()
    assert archive.run_once(world.core, seconds=60) == 1
    assert not Job.select().exists() and not MetricPoint.select().exists()
    shown = from_wire(JobMetrics, speaker.ok("GET", f"/v1/jobs/{job.job_id}/metrics"))
    assert shown.attempts[0].metrics == attempt.metrics and not shown.attempts[0].points
