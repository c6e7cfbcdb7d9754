"""Accounting: each attempt is counted once, to the millisecond and the byte, in the hot tables and in the archive."""

from __future__ import annotations

import datetime

import pytest
from flask.testing import FlaskClient

from protocol.messages.views import UsageView
from server import accounting
from server.access.tokens import Role
from server.core import Core, Limits
from server.models import Attempt, File, Job, Usage
from server.pace import Pace
from server.upkeep import archive
from tests.integration.server.http import Speaker, refusal
from tests.integration.server.lived import live
from tests.integration.server.world import Bearer, World

DAY = 86_400.0
FIRST, LAST = datetime.date(1970, 1, 1), datetime.date(9999, 12, 30)
MIDNIGHT = 20_000 * DAY
"""2024-10-04."""


@pytest.fixture
def limits() -> Limits:
    return Limits(archive_after_seconds=0)


def used(core: Core, by: str, since: datetime.date = FIRST, until: datetime.date = LAST) -> list[UsageView]:
    return accounting.report(core, by, since, until)


def spend(world: World) -> None:
    """Four attempts of two groups: 3 files of 10 bytes read twice, outputs of 3 bytes, times around a midnight."""
    world.dataset(3)
    world.task("a", outputs=["{stem}.o"], working_group="ana")
    world.task("b", n_jobs=1, max_attempts=1)
    world.form()
    world.pilot()
    jobs = world.claim(n_jobs=4)
    for job in jobs:
        if job.outputs:
            world.complete(job)
        else:
            world.fail(job)
    for attempt, (cores, began, seconds) in zip(
        Attempt.select().order_by(Attempt.id),
        [(1, MIDNIGHT - 10, 9.9996), (2, MIDNIGHT - 10, 10.0), (4, MIDNIGHT, 0.3334), (8, MIDNIGHT, -5.0)],
    ):
        Attempt.update(cores=cores, extracted_at=began, running_at=began, ended_at=began + seconds).where(
            Attempt.id == attempt.id
        ).execute()


def test_core_hours_and_bytes_by_owner_group_and_queue(world: World) -> None:
    spend(world)
    for by, names in (("owner", ["ada"]), ("group", ["", "ana"]), ("queue", ["CPU"])):
        lines = used(world.core, by)
        assert [line.name for line in lines] == names
        assert sum(line.n_attempts for line in lines) == 4
        assert sum(line.n_completed for line in lines) == 3
        assert sum(line.input_bytes for line in lines) == 30
        assert sum(line.output_bytes for line in lines) == 9
        # Ten seconds of one core, of two, a third of four; a clock that went back gives nothing and takes nothing.
        assert round(sum(line.core_hours for line in lines) * 3_600_000) == 10_000 + 20_000 + 1_334


def test_an_attempt_counts_on_the_day_of_its_end(world: World) -> None:
    spend(world)
    eve, day = datetime.date(2024, 10, 3), datetime.date(2024, 10, 4)
    for archived in (False, True):
        if archived:
            world.close_tasks()
            assert archive.run_once(world.core, 60) == 4
        assert [line.n_attempts for line in used(world.core, "owner", eve, eve)] == [2]
        assert [line.n_attempts for line in used(world.core, "owner", day, day)] == [2]
        assert [line.n_attempts for line in used(world.core, "owner", eve, day)] == [4]
        assert used(world.core, "owner", LAST, LAST) == []


def test_a_report_is_the_same_at_every_moment_of_archiving(world: World) -> None:
    held = live(world)
    before = {by: used(world.core, by) for by in accounting.BY}
    assert sum(line.n_attempts for line in before["owner"]) == Attempt.select().count() - len(held)
    moved = 0
    for task in (1, 2):
        while archive._move_some(world.core, task, Pace(1, 1)):
            moved += 1
            assert {by: used(world.core, by) for by in accounting.BY} == before
    assert moved == 7
    assert Usage.select().exists()


def test_what_is_archived_later_is_added_to_the_same_day(world: World) -> None:
    world.ready(2)
    world.pilot()
    for name in ("one", "two"):
        world.task(name, n_jobs=1)
    world.form()
    jobs = world.claim(n_jobs=4)
    for job in jobs:
        world.complete(job)
        Attempt.update(extracted_at=MIDNIGHT, ended_at=MIDNIGHT + 0.1).where(
            Attempt.id == job.attempt_id
        ).execute()
    world.close_tasks()
    archive.run_once(world.core, 60)
    (row,) = Usage.select()
    assert (row.n_attempts, row.n_completed, row.core_seconds) == (4, 4, 0.4)


def test_an_attempt_that_runs_is_not_counted_yet(world: World) -> None:
    world.ready()
    world.claim()
    assert used(world.core, "owner") == []


def test_absurd_sizes_do_not_keep_jobs_from_the_archive(world: World) -> None:
    world.dataset(3)
    world.task()
    world.form()
    world.pilot()
    File.update(size=2**63 - 1).execute()
    for job in world.claim(n_jobs=3):
        world.complete(job)
    Attempt.update(running_at=1.0).execute()
    world.close_tasks()
    assert archive.run_once(world.core, 60) == 3
    assert used(world.core, "owner")[0].input_bytes == 3 * accounting.LARGEST_FILE
    assert not Job.select().exists()


def test_the_report_over_http(world: World, client: FlaskClient, bearer: Bearer) -> None:
    spend(world)
    speaker = Speaker(client, bearer).as_(Role.ADMIN)
    answer = speaker.send("GET", "/v1/usage?by=group&since=2024-10-03&until=2024-10-04").get_json()
    assert [line["name"] for line in answer["items"]] == ["", "ana"]
    refusal(speaker.send("GET", "/v1/usage?by=colour"), 400, "BAD_REQUEST")
    refusal(speaker.send("GET", "/v1/usage?since=yesterday"), 400, "BAD_REQUEST")
