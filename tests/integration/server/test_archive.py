"""The archive: jobs of ended tasks leave the hot tables, and nobody who asks for them sees a difference."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest
from flask.testing import FlaskClient

from protocol.errors import PilotageError
from protocol.messages import from_wire, to_wire
from protocol.messages.views import JobView
from protocol.states import JobState
from server import daemons, job_executor, job_manager, task_manager
from server.access.tokens import Role
from server.core import Core, Limits
from server.models import ArchivedJob, Attempt, Job, JobEvent, JobInput, Task
from server.paging import Cursor
from server.upkeep import archive, packing
from tests.integration.server.http import Speaker
from tests.integration.server.lived import live, pictures
from tests.integration.server.world import Bearer, World


@pytest.fixture
def limits() -> Limits:
    return Limits(archive_after_seconds=0)


def archive_all(world: World) -> int:
    return archive.run_once(world.core, seconds=60)


def test_jobs_of_ended_tasks_leave_the_hot_tables_and_are_shown_as_before(world: World) -> None:
    held = live(world)
    before = pictures(world)
    assert archive_all(world) == 7
    after = pictures(world)
    assert after["jobs"] == before["jobs"]
    assert after["list"] == before["list"]
    assert after["tasks"] == before["tasks"]
    assert {job.id for job in Job.select()} >= {job.job_id for job in held}
    assert Job.select().count() == 3
    assert {attempt.job_id for attempt in Attempt.select()} == {job.job_id for job in held}
    assert not JobInput.select().exists()
    assert not JobEvent.select().exists()
    assert archive_all(world) == 0
    assert {task.name for task in Task.select().where(Task.archived)} == {"done", "mixed"}


def test_history_tells_of_losses_and_cancels_also_from_the_archive(world: World) -> None:
    live(world)
    archive_all(world)
    lines = [
        line.state
        for row in ArchivedJob.select()
        for line in job_manager.details(job_manager.find(row.id)).history or []
    ]
    assert "LOST_HEARTBEAT" in lines
    assert "CANCELLED_BY_USER" in lines


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("limit", [1, 3, 7])
def test_pages_go_on_over_hot_and_archived_jobs(world: World, descending: bool, limit: int) -> None:
    live(world)
    archive_all(world)
    seen: list[int] = []
    after = None
    for _ in range(20):
        page = job_manager.jobs(Cursor(after, limit, descending))
        assert page.total == 10
        seen += [item.job_id for item in page.items]
        after = page.next_cursor
        if after is None:
            break
    assert seen == sorted(seen, reverse=descending)
    assert len(set(seen)) == len(seen) == 10


def test_lists_by_task_state_and_error_find_archived_jobs(world: World) -> None:
    live(world)
    by = [
        {"state": JobState.FAILED.value},
        {"error": "PAYLOAD_FAILED"},
        {"task": 1},
        {"task": 2, "error": "CANCELLED_BY_USER"},
    ]
    before = [job_manager.jobs(Cursor(), **each) for each in by]  # type: ignore[arg-type]
    assert all(page.total for page in before)
    archive_all(world)
    assert [job_manager.jobs(Cursor(), **each) for each in by] == before  # type: ignore[arg-type]


def test_a_task_stays_hot_for_the_time_that_is_set(world: World) -> None:
    live(world)
    patient = dataclasses.replace(world.core, limits=Limits(archive_after_seconds=3600))
    assert archive.run_once(patient) == 0
    Task.update(ended=Task.ended - 3700).where(Task.name == "done").execute()
    assert archive.run_once(patient, seconds=60) == 4


def test_a_job_that_its_task_has_not_counted_waits(world: World) -> None:
    live(world)
    Job.update(counted=False).where(Job.task == 1).execute()
    assert archive_all(world) == 3
    assert not Task.get_by_id(1).archived


def test_numbers_of_jobs_and_attempts_are_not_given_again(world: World) -> None:
    """On SQLite a number that is gone from its table would be the next one."""
    world.ready(2)
    jobs = world.claim(n_jobs=2)
    for job in jobs:
        world.complete(job)
    world.close_tasks()
    assert archive_all(world) == 2
    assert not Job.select().exists()
    world.task("more", n_jobs=1)
    world.form()
    (job,) = world.claim()
    assert job.job_id > max(each.job_id for each in jobs)
    assert job.attempt_id > max(each.attempt_id for each in jobs)
    assert job.task_id > jobs[0].task_id


def test_f08_late_words_about_an_archived_attempt_are_refused(world: World) -> None:
    world.ready()
    (job,) = world.claim()
    word = world.completed(job)
    job_executor.update(world.core, word)
    world.close_tasks()
    archive_all(world)
    with world.refused("STALE_ATTEMPT"):
        job_executor.update(world.core, word)


def test_a_log_that_comes_while_a_job_is_being_archived_is_not_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.ready()
    (job,) = world.claim()
    world.complete(job)
    world.close_tasks()
    pack, words = packing.pack, [lambda: world.log(job)]

    def pack_late(view: JobView) -> str:
        if words:
            words.pop()()
        return pack(view)

    monkeypatch.setattr(packing, "pack", pack_late)
    assert archive_all(world) == 0
    assert archive_all(world) == 1
    (attempt,) = job_manager.details(job_manager.find(job.job_id)).attempts or []
    assert attempt.log_url is not None


def test_what_is_packed_is_read_again_and_is_short(world: World) -> None:
    live(world)
    for job in Job.select():
        view = job_manager.details(job)
        packed = packing.pack(view)
        assert packing.unpack(packed) == from_wire(JobView, to_wire(view))
        assert len(packed) < 0.3 * len(json.dumps(to_wire(view)))


def test_a_text_that_was_packed_by_the_first_version_can_be_read_for_ever() -> None:
    """The samples never change."""
    assert {name: hashlib.sha256(text).hexdigest()[:16] for name, text in packing.SAMPLES.items()} == {
        "1": "76e09f7b21f12f2f"
    }


def test_cancelling_an_archived_job_leaves_it_as_it_is(world: World) -> None:
    live(world)
    archive_all(world)
    before = pictures(world)
    assert job_executor.cancel(world.core, [1], "ada", "too late") == 0
    assert pictures(world) == before


def test_archived_jobs_answer_over_http(world: World, client: FlaskClient, bearer: Bearer) -> None:
    live(world)
    speaker = Speaker(client, bearer).as_(Role.ADMIN)
    before = speaker.send("GET", "/v1/jobs/1").get_json()
    archive_all(world)
    assert speaker.send("GET", "/v1/jobs/1").get_json() == before
    assert speaker.send("GET", "/v1/jobs/999").status_code == 404


def test_a_job_that_is_tried_again_shows_its_earlier_attempts_first(world: World) -> None:
    """What `task retry` needs of the archive: the job is hot again, and archived once more with all of its past."""
    live(world)
    archive_all(world)
    row = ArchivedJob.select().where(ArchivedJob.state == JobState.FAILED.value).get()
    old = job_manager.details(row)
    world.core.database.write(lambda: archive.revive([row]))
    assert not Task.get_by_id(row.task_id).archived
    shown = job_manager.details(job_manager.find(row.id))
    assert shown.attempts == old.attempts
    assert shown.history == old.history
    assert shown.inputs == old.inputs
    total = job_manager.jobs(Cursor()).total
    assert total == 10, "it is there once"
    assert task_manager.view(Task.get_by_id(row.task_id)).errors == {"PAYLOAD_FAILED": 1}
    assert archive_all(world) == 1
    again = job_manager.details(job_manager.find(row.id))
    assert again.attempts == old.attempts
    assert again.history == old.history
    assert Task.get_by_id(row.task_id).archived


def test_a_pass_takes_no_longer_than_it_may(world: World) -> None:
    live(world)
    assert archive.run_once(world.core, seconds=0) == 0
    assert archive_all(world) == 7


def test_the_archiver_is_one_of_the_daemons(core: Core) -> None:
    assert "archiver" in {each.name for each in daemons.Daemons(core).all}


def test_a_job_that_never_was_is_not_found(world: World) -> None:
    with pytest.raises(PilotageError, match="no job 12345"):
        job_manager.find(12345)
