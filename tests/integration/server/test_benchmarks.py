"""Benchmarks that pilots tell of: kept with the attempt and the pilot, bounded, and of whoever holds the attempt alone."""

from __future__ import annotations

import dataclasses

import pytest
from flask.testing import FlaskClient

from protocol.messages import to_wire
from protocol.messages.pilots import BenchmarkReport, JobSpec
from protocol.states import JobState
from server import job_executor, job_manager
from server.access.tokens import Role
from server.core import Limits
from server.models import Attempt, Pilot
from server.upkeep import archive
from tests.integration.server.http import Speaker, refusal
from tests.integration.server.world import Bearer, World

REPORT = BenchmarkReport(
    "pilotage", "1", "2026-11-21T23:00:00Z", 4, 3.1, "node1", "a processor", {"integer": 12.5, "float": 8.0}
)


def shown(world: World, job: JobSpec) -> list[BenchmarkReport | None]:
    attempts = job_manager.details(job_manager.find(job.job_id)).attempts or []
    return [attempt.benchmark for attempt in attempts]


def test_137_a_benchmark_is_kept_with_its_attempt_and_the_last_one_with_the_pilot(world: World) -> None:
    world.ready(3)
    first, second, third = world.claim(n_jobs=3)
    world.say(first, JobState.RUNNING, benchmark=REPORT)
    assert shown(world, first) == [REPORT] and shown(world, second) == [None]
    world.say(first, JobState.COMPLETED)
    later = dataclasses.replace(REPORT, scores={"integer": 11.0})
    world.say(second, JobState.RUNNING, JobState.COMPLETED, benchmark=later)
    world.fail(third, benchmark=REPORT)
    assert shown(world, first) == [REPORT] and shown(world, second) == [later]
    assert shown(world, third)[0] == REPORT
    assert job_manager.pilot("p1").benchmark == dataclasses.replace(REPORT, job_id=third.job_id)
    assert job_manager.pilot("p1").n_done == 3


def test_a_benchmark_in_a_word_without_a_move_acknowledges_and_one_in_a_repeat_is_taken_once(
    world: World,
) -> None:
    world.ready()
    [job] = world.claim()
    word = world.word(job, benchmark=REPORT)
    replies = [job_executor.update(world.core, word) for _ in range(3)]
    assert [reply.state for reply in replies] == ["OBTAINED"] * 3
    late = dataclasses.replace(word, benchmark=dataclasses.replace(REPORT, cores=99))
    job_executor.update(world.core, late)
    assert shown(world, job) == [REPORT]


def test_g3_a_benchmark_of_somebody_else_changes_nothing(world: World) -> None:
    world.ready()
    [job] = world.claim()
    stolen = dataclasses.replace(job, attempt_token="stolen")
    with world.refused("STALE_ATTEMPT"):
        world.say(stolen, JobState.RUNNING, benchmark=REPORT)
    world.complete(job)
    with world.refused("STALE_ATTEMPT"):
        world.say(job, benchmark=REPORT)
    assert shown(world, job) == [None] and Pilot.get().benchmark is None


def test_b22_the_text_of_a_benchmark_is_one_line_and_without_control_characters(world: World) -> None:
    world.ready()
    [job] = world.claim()
    bad = dataclasses.replace(REPORT, cpu_model="x\x1b[2J\ny", scores={"a\nb": 1.0}, job_id=77)
    world.say(job, JobState.RUNNING, benchmark=bad)
    [seen] = shown(world, job)
    assert seen is not None and seen.job_id is None
    assert not any(ord(letter) < 32 for letter in seen.cpu_model + "".join(seen.scores))


def test_b27_a_benchmark_that_is_too_large_is_refused(
    world: World, client: FlaskClient, bearer: Bearer
) -> None:
    speaker = Speaker(client, bearer)
    world.ready()
    [job] = world.claim()
    pilots = speaker.as_(Role.PILOT)
    right = to_wire(world.word(job, JobState.RUNNING, benchmark=REPORT))
    scores = {f"s{number}": 1.0 for number in range(51)}
    for wrong in (
        {"scores": scores},
        {"scores": {"x" * 101: 1.0}},
        {"name": "x" * 101},
        {"cores": -1},
        {"by": "me"},
    ):
        body = {**right, "benchmark": {**right["benchmark"], **wrong}}
        refusal(pilots.post("/v1/updateJob", body), 400, "BAD_REQUEST")
    assert pilots.ok("POST", "/v1/updateJob", right)["state"] == "RUNNING"
    assert speaker.ok("GET", f"/v1/jobs/{job.job_id}")["attempts"][0]["benchmark"]["cores"] == 4
    assert speaker.ok("GET", "/v1/pilots/p1")["benchmark"]["jobId"] == job.job_id


class TestWithoutDelay:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(archive_after_seconds=0)

    def test_the_archive_keeps_benchmarks(self, world: World) -> None:
        world.ready()
        [job] = world.claim()
        world.say(job, JobState.RUNNING, JobState.COMPLETED, benchmark=REPORT)
        world.close_tasks()
        assert archive.run_once(world.core, seconds=60) == 1
        assert not Attempt.select().exists()
        assert shown(world, job) == [REPORT]
