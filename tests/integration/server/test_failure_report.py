"""What went wrong in a task: failures clustered by the database and told alike from the hot tables and the archive."""

from __future__ import annotations

import pytest
from flask.testing import FlaskClient

from protocol.messages.pilots import JobSpec
from protocol.messages.views import FailureView, TaskFailures
from protocol.states import JobState
from server import failure_report, task_manager
from server.access.tokens import Role
from server.core import Limits
from server.models import Job, TaskOutcome
from server.upkeep import archive
from tests.integration.server.http import Speaker
from tests.integration.server.world import Bearer, World


@pytest.fixture
def limits() -> Limits:
    return Limits(archive_after_seconds=0, black_hole_failures=1000)


def fail(world: World, job: JobSpec, detail: str, error: str = "PAYLOAD_FAILED") -> None:
    world.say(job, JobState.FAILED, error=error, error_detail=detail, exit_code=1)


def report(world: World) -> TaskFailures:
    return failure_report.report(world.core, task_manager.find("t"))


def only(world: World) -> FailureView:
    (found,) = report(world).failures
    return found


def a_bad_node(world: World) -> None:
    """Six jobs fail on n12 and complete elsewhere, as four others do."""

    def work() -> None:
        world.ready(10, max_attempts=3)
        for nr, job in enumerate(world.claim(n_jobs=6, node="n12")):
            fail(world, job, f"std::bad_alloc in reco step, event {17 * nr}, at 0x7f{nr}a")
        for node in ("n1", "n2"):
            for job in world.claim(n_jobs=5, node=node):
                world.complete(job)

    world.core.database.write(work)


def test_98_failures_are_clustered_and_the_node_is_proposed(world: World) -> None:
    a_bad_node(world)
    found = only(world)
    assert (found.n_jobs, found.n_attempts, found.n_recovered) == (6, 6, 6)
    assert found.signature == "std::bad_alloc in reco step, event N, at <hex>"
    assert found.nodes == {"n12": 6}
    assert (found.cause, found.where) == ("node", ["n12"])
    assert report(world).n_completed == 10


def test_98_the_report_stays_the_same_when_the_jobs_go_into_the_archive(world: World) -> None:
    a_bad_node(world)
    before = report(world)
    world.close_tasks()
    assert archive.run_once(world.core, 60) == 10
    assert not Job.select().exists()
    assert report(world) == before


def test_98_what_all_failures_say_is_told_as_it_is_from_the_archive_too(world: World) -> None:
    def work() -> None:
        world.ready(4, max_attempts=1)
        for job in world.claim(n_jobs=2):
            fail(world, job, "exit code 3; run 42 is not there")
        for nr, job in enumerate(world.claim(n_jobs=2)):
            fail(world, job, f"exit code 4; event {nr} of 42")

    world.core.database.write(work)
    before = report(world)
    assert sorted(each.signature for each in before.failures) == [
        "exit code 3; run 42 is not there",
        "exit code 4; event N of N",
    ]
    world.close_tasks()
    assert archive.run_once(world.core, 60) == 4
    assert report(world) == before


def test_98_jobs_that_fail_on_every_node_are_told_with_what_they_read(world: World) -> None:
    def work() -> None:
        world.dataset(4)
        world.task(max_attempts=2)
        world.form()
        world.pilot()
        jobs = world.claim(n_jobs=4, node="n1")
        for job in jobs[1:]:
            world.complete(job)
        fail(world, jobs[0], "bad event 17")
        fail(world, world.claim(node="n2")[0], "bad event 4")

    world.core.database.write(work)
    found = only(world)
    assert (found.n_jobs, found.n_attempts, found.cause) == (1, 2, "input")
    assert found.inputs == ["f00000.spd"]
    world.close_tasks()
    archive.run_once(world.core, 60)
    assert only(world) == found


def test_98_jobs_that_could_not_be_tried_are_told_too(world: World) -> None:
    world.dataset(2)
    world.task(outputs=["{stem}" + "x" * 215])
    world.form()
    found = only(world)
    assert (found.n_jobs, found.n_attempts, found.n_nodes) == (2, 2, 0)


def test_98_what_is_too_rare_is_only_counted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failure_report, "MOST_SIGNATURES", 1)

    def work() -> None:
        world.ready(3, max_attempts=1)
        for job, detail in zip(world.claim(n_jobs=3), ("red", "red", "blue")):
            fail(world, job, detail)

    world.core.database.write(work)
    assert [each.signature for each in report(world).failures] == ["red"]
    assert (report(world).n_attempts, report(world).n_other) == (3, 1)


def test_98_the_archive_keeps_a_bounded_number_of_signatures(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failure_report, "MOST_KEPT", 2)

    def work() -> None:
        world.ready(4, max_attempts=1)
        for job, detail in zip(world.claim(n_jobs=4), ("red", "blue", "green", "grey")):
            fail(world, job, detail)

    world.core.database.write(work)
    world.close_tasks()
    archive.run_once(world.core, 60)
    assert TaskOutcome.select().count() == 3
    assert report(world).n_attempts == 4


def test_98_anybody_with_a_token_may_look(world: World, client: FlaskClient, bearer: Bearer) -> None:
    a_bad_node(world)
    body = Speaker(client, bearer, Role.USER).ok("GET", "/v1/tasks/t/errors")
    assert body["failures"][0]["where"] == ["n12"]
    assert Speaker(client, bearer, Role.USER).get("/v1/tasks/none/errors").status_code == 404
