"""A dataset is copied to another storage by jobs: each file has one more replica then, published once, as any output is."""

from __future__ import annotations

import dataclasses
import hashlib
import zlib
from pathlib import Path

import pytest

from protocol.files import local_path
from protocol.messages.pilots import JobSpec, OutputReport
from protocol.messages.requests import DatasetSpec, FileSpec, RetrySpec, StorageSpec
from protocol.states import JobState, ReplicaState
from server import catalogue, computing, job_manager, task_manager
from server.core import Core, Limits
from server.jobs import operations
from server.models import Garbage, Replica
from server.paging import Cursor
from server.upkeep import archive, garbage
from tests.auditing import assert_clean
from tests.integration.server.http import refusal
from tests.integration.server.tenants import Tenants
from tests.integration.server.world import World

CONTENT = b"the bytes of a file"
SUMS = {"md5": hashlib.md5(CONTENT).hexdigest()}
MORE = f"{zlib.adler32(CONTENT):08x}"


@pytest.fixture
def limits() -> Limits:
    return Limits(archive_after_seconds=0, garbage_seconds=0)


@pytest.fixture
def world(core: Core, storage: Path, tmp_path: Path) -> World:
    """A dataset of three files on storage LOCAL, a storage NEW, and a pilot."""
    world = World(core)

    def set_up() -> None:
        computing.create_storage(core, StorageSpec("NEW", f"file://{tmp_path}/new"))
        files = [FileSpec(f"f{n}", len(CONTENT), f"file://{tmp_path}/data/f{n}", SUMS) for n in range(3)]
        catalogue.create(core, DatasetSpec("in", files=files, close=True), "ada")
        world.pilot()

    core.database.write(set_up)
    return world


def copy(world: World, name: str = "copy", **spec: object) -> int:
    world.task(name, replicate_to="NEW", **spec)
    return world.form()


def store(job: JobSpec) -> list[OutputReport]:
    """What a pilot does at the end, and says."""
    reports = []
    for output in job.outputs:
        path = Path(local_path(output.url))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(CONTENT)
        reports.append(OutputReport(output.lfn, len(CONTENT), {**SUMS, "adler32": MORE}))
    return reports


def deliver(world: World, job: JobSpec) -> None:
    world.say(job, JobState.OBTAINED, JobState.STAGE_OUT, JobState.COMPLETED, outputs=store(job))


def places(lfn: str) -> list[tuple[str, str, str]]:
    [file] = catalogue.files(Cursor(), lfn=lfn).items
    return [(each.storage, each.state, each.url) for each in file.replicas]


def test_each_file_has_a_second_replica_when_its_job_has_completed(
    world: World, tmp_path: Path, url: str
) -> None:
    assert copy(world) == 3
    jobs = world.claim(n_jobs=3)
    [output] = jobs[0].outputs
    where = f"file://{tmp_path}/new/in/f0.{jobs[0].attempt_id}"
    assert (output.lfn, output.url, output.storage) == ("f0", where, f"file://{tmp_path}/new")
    assert jobs[0].log_url.startswith(f"file://{tmp_path}/storage/log/"), "logs go to the queue's storage"
    assert len(places("f0")) == 1, "nothing is published before the end"
    for job in jobs:
        deliver(world, job)
    world.close_tasks()
    assert places("f0") == [("", "good", f"file://{tmp_path}/data/f0"), ("NEW", "good", where)]
    task = job_manager.view(world.job())
    assert (task.state, catalogue.view(catalogue.find("in")).n_files) == ("COMPLETED", 3)
    assert_clean(url)


def test_several_files_of_a_job_are_copied_together(world: World, url: str) -> None:
    assert copy(world, files_per_job=2) == 2
    for job in world.claim(n_jobs=2):
        deliver(world, job)
    world.close_tasks()
    assert Replica.select().where(Replica.storage == "NEW").count() == 3
    assert_clean(url)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        (None, "BAD_REQUEST"),
        ({"lfn": "other"}, "BAD_REQUEST"),
        ({"size": 3}, "BAD_REQUEST"),
        ({"checksums": {"md5": "0" * 32}}, "BAD_REQUEST"),
        ({"checksums": {"md5": "0"}}, "BAD_REQUEST"),
    ],
)
def test_a_copy_that_is_another_file_or_is_not_told_is_refused_and_changes_nothing(
    world: World, changes: dict[str, object] | None, error: str
) -> None:
    copy(world)
    [job] = world.claim()
    world.say(job, JobState.STAGE_OUT)
    [right] = store(job)
    outputs = None if changes is None else [dataclasses.replace(right, **changes)]  # type: ignore[arg-type]
    with world.refused(error):
        world.say(job, JobState.COMPLETED, outputs=outputs)
    world.say(job, JobState.COMPLETED, outputs=[right])
    assert world.state() is JobState.COMPLETED


def test_a_lost_attempt_publishes_nothing_and_what_it_wrote_is_removed(
    world: World, tmp_path: Path, url: str
) -> None:
    copy(world)
    lost = world.claim()[0]
    store(lost)
    world.pass_seconds(200)
    again = [job for job in world.claim(n_jobs=3) if job.job_id == lost.job_id][0]
    with world.refused("STALE_ATTEMPT"):
        world.complete(lost)
    deliver(world, again)
    with world.unchanged(ignore=("last_seen", "lease_until")):
        world.say(again, JobState.COMPLETED, seq=1, outputs=store(again))
    assert [place[2] for place in places("f0")[1:]] == [again.outputs[0].url]
    operations.cancel(world.core, "copy", "ada", cascade=False)
    world.close_tasks()
    archive.run_once(world.core, seconds=10)
    assert garbage.run_once(world.core) == 1
    left = [path.name for path in (tmp_path / "new" / "in").iterdir()]
    assert left == [f"f0.{again.attempt_id}"]
    assert_clean(url)


def test_two_tasks_that_copy_the_same_file_publish_it_once(world: World, tmp_path: Path, url: str) -> None:
    copy(world)
    copy(world, "twin")
    jobs = world.claim(n_jobs=6)
    assert len(jobs) == 6
    for job in jobs:
        deliver(world, job)
    world.close_tasks()
    assert Replica.select().where(Replica.storage == "NEW").count() == 3
    assert garbage.run_once(world.core) == 3, "the copies that came second"
    assert len(list((tmp_path / "new" / "in").iterdir())) == 3
    assert_clean(url)


def test_what_is_there_is_left_out_and_what_is_bad_there_is_replaced(
    world: World, tmp_path: Path, url: str
) -> None:
    copy(world)
    for job in world.claim(n_jobs=3):
        deliver(world, job)
    bad = Replica.get(Replica.url.contains("/f1."))
    world.core.database.write(
        lambda: Replica.update(state=ReplicaState.BAD.value).where(Replica.id == bad.id).execute()
    )
    assert copy(world, "again") == 1
    [job] = world.claim()
    assert [file.lfn for file in job.inputs] == ["f1"]
    deliver(world, job)
    world.close_tasks()
    assert [place[2] for place in places("f1")[1:]] == [job.outputs[0].url]
    assert garbage.run_once(world.core) == 1 and not Path(local_path(bad.url)).exists()
    assert_clean(url)
    assert copy(world, "third") == 0
    world.close_tasks()
    assert task_manager.view(task_manager.find("third")).state == "COMPLETED", "there was nothing to do"


def test_a_bad_replica_stays_unless_a_checksum_says_that_the_copy_is_the_file(world: World) -> None:
    copy(world)
    for job in world.claim(n_jobs=3):
        deliver(world, job)
    bad = Replica.get(Replica.url.contains("/f1."))
    world.core.database.write(
        lambda: Replica.update(state=ReplicaState.BAD.value).where(Replica.id == bad.id).execute()
    )
    copy(world, "again")
    [job] = world.claim()
    world.say(job, JobState.OBTAINED, JobState.STAGE_OUT)
    [report] = store(job)
    with world.refused("BAD_REQUEST", "no checksum says"):
        world.say(job, JobState.COMPLETED, outputs=[dataclasses.replace(report, checksums={"adler32": MORE})])
    assert Replica.get_by_id(bad.id).url == bad.url and not Garbage.select().exists()
    world.say(job, JobState.COMPLETED, outputs=[report])
    assert [place[2] for place in places("f1")[1:]] == [job.outputs[0].url]


def test_copies_that_the_server_cannot_remove_are_not_noted_for_the_sweeper(world: World) -> None:
    computing.create_storage(world.core, StorageSpec("FAR", "root://eos.example//spd"))
    for name in ("one", "two"):
        world.task(name, replicate_to="FAR")
    world.form()
    for job in world.claim(n_jobs=6):
        reports = [OutputReport(each.lfn, len(CONTENT), SUMS) for each in job.outputs]
        world.say(job, JobState.OBTAINED, JobState.STAGE_OUT, JobState.COMPLETED, outputs=reports)
    assert Replica.select().where(Replica.storage == "FAR").count() == 3
    assert not Garbage.select().exists()


def test_outputs_of_a_task_are_copied_and_the_audit_has_nothing_against_it(world: World, url: str) -> None:
    world.task("make", outputs=["{stem}.o"])
    world.form()
    for job in world.claim(n_jobs=3):
        reports = store(job)
        world.say(job, JobState.OBTAINED, JobState.COMPLETED, outputs=reports)
    world.close_tasks()
    assert copy(world, input_dataset="make.out") == 3
    for job in world.claim(n_jobs=3):
        deliver(world, job)
    world.close_tasks()
    assert [place[0] for place in places("f0.o")] == ["LOCAL", "NEW"]
    assert_clean(url)


def test_a_copy_that_failed_is_tried_again_by_the_user(world: World, url: str) -> None:
    copy(world, max_attempts=1)
    jobs = world.claim(n_jobs=3)
    for job in jobs:
        world.fail(job)
    world.close_tasks()
    assert operations.retry(world.core, "copy", RetrySpec(), "ada").n_jobs == 3
    for job in world.claim(n_jobs=3):
        deliver(world, job)
    world.close_tasks()
    assert Replica.select().where(Replica.storage == "NEW").count() == 3
    assert not Garbage.select().exists()
    assert_clean(url)


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ({"replicate_to": "OLD"}, "NOT_FOUND"),
        ({"replicate_to": "NEW", "outputs": ["{stem}.o"]}, "BAD_REQUEST"),
        ({"replicate_to": "NEW", "replicate": 2}, "BAD_REQUEST"),
        ({"replicate_to": "NEW", "n_jobs": 3}, "BAD_REQUEST"),
    ],
)
def test_a_task_that_cannot_copy_is_refused(world: World, spec: dict[str, object], error: str) -> None:
    with world.refused(error):
        world.task(**spec)  # type: ignore[arg-type]


def test_replicas_are_added_to_a_dataset_by_those_alone_who_may_change_it(
    world: World, tenants: Tenants
) -> None:
    """Its files may have no checksums, and then whoever copies them could put anything in their place."""
    body = {"command": ["true"], "inputDataset": "in", "replicateTo": "NEW"}
    ada, bob = tenants.token("ada"), tenants.token("bob")
    refusal(bob.post("/v1/tasks", {**body, "name": "bobs"}), 403, "FORBIDDEN")
    refusal(bob.post("/v1/tasks", {**body, "name": "bobs", "inputDataset": "no"}), 404, "NOT_FOUND")
    ada.ok("POST", "/v1/tasks", {**body, "name": "adas"})
    tenants.admin.ok("POST", "/v1/tasks", {**body, "name": "roots"})
    bob.ok("POST", "/v1/tasks", {"command": ["true"], "inputDataset": "in", "name": "reads"})
