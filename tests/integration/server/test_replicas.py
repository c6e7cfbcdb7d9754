"""Copies of a file: one that a pilot found wrong is noted against its storage, and the next attempt is given another one."""

from __future__ import annotations

import pytest

from protocol.messages.pilots import JobSpec
from protocol.messages.requests import QueueSpec, StorageSpec
from protocol.messages.views import FileView
from protocol.states import JobState, ReplicaState
from server import catalogue, computing, job_manager
from server.models import File, Replica, Site
from server.paging import Cursor
from tests.integration.server.world import World

FIRST = "file:///data/f00000.spd"
"""Where `World.dataset` has its first file."""
OTHER = "file:///far/in/f00000.spd.1"
MISMATCH = "STAGE_IN_MD5_MISMATCH"


@pytest.fixture
def copied(world: World) -> World:
    """A job whose only input lies at an address that a user registered, and on a storage of another site."""

    def set_up() -> None:
        Site.create(name="FAR")
        computing.create_storage(world.core, StorageSpec("FAR", "file:///far", "FAR"))
        world.dataset(2)
        Replica.create(file=File.get(File.lfn == "f00000.spd"), storage="FAR", url=OTHER)
        world.task()
        world.form()
        world.pilot()

    world.core.database.write(set_up)
    return world


def claim(world: World, job_nr: int = 1, **offer: str) -> JobSpec:
    [job] = [job for job in world.claim(n_jobs=2, **offer) if job.job_nr == job_nr]
    return job


def shown() -> FileView:
    return catalogue.files(Cursor(), lfn="f00000.spd").items[0]


def states() -> dict[str, str]:
    return {replica.url: replica.state for replica in shown().replicas or ()}


def test_an_input_that_is_not_as_registered_is_noted_and_the_next_attempt_gets_another_replica(
    copied: World,
) -> None:
    job = claim(copied)
    assert job.inputs[0].url == FIRST
    copied.fail(job, MISMATCH, input_url=FIRST)
    file = shown()
    assert file.url == OTHER
    [good, wrong] = file.replicas or []
    assert (good.storage, good.state, good.reason, good.changed) == ("FAR", "good", "", None)
    assert (wrong.url, wrong.state) == (FIRST, "suspect")
    assert wrong.reason == f"{MISMATCH}: a test says so (attempt {job.attempt_id} of job 1 on node node1)"
    assert wrong.changed
    again = claim(copied)
    assert (again.attempt_nr, again.inputs[0].url) == (2, OTHER)
    history = [line.detail for line in job_manager.details(copied.job()).history or []]
    assert f"{MISMATCH}: with another replica of its input" in history


def test_every_replica_is_tried_though_the_error_is_the_same_and_no_further_one(copied: World) -> None:
    """Without another replica, an input that is wrong twice in a row is wrong wherever it is read."""
    for url in (FIRST, OTHER):
        assert copied.state() is JobState.READY
        job = claim(copied)
        assert job.inputs[0].url == url
        copied.fail(job, MISMATCH, input_url=url)
    assert states() == {FIRST: "suspect", OTHER: "suspect"}
    assert (copied.state(), copied.job().error) == (JobState.FAILED, MISMATCH)


def test_an_input_that_is_not_there_is_read_elsewhere_at_once_and_not_later(copied: World) -> None:
    copied.fail(claim(copied), "INPUT_NOT_FOUND", input_url=FIRST)
    assert claim(copied).inputs[0].url == OTHER, "without the pause that INPUT_NOT_FOUND asks for"
    assert copied.job().losses == 1, "it is charged as any other loss"


def test_a_job_whose_only_replica_is_wrong_is_given_it_again(copied: World) -> None:
    job = claim(copied, job_nr=2)
    [file] = job.inputs
    copied.fail(job, MISMATCH, input_url=file.url)
    assert [each.state for each in catalogue.files(Cursor(), lfn=file.lfn).items[0].replicas] == ["suspect"]
    assert claim(copied, job_nr=2).inputs[0].url == file.url, "somebody may have mended it meanwhile"


@pytest.mark.parametrize(
    ("error", "url"),
    [
        ("STAGE_IN_TIMEOUT", FIRST),
        ("PAYLOAD_FAILED", FIRST),
        (MISMATCH, ""),
        (MISMATCH, "file:///data/f00001.spd"),
        (MISMATCH, "file:///etc/passwd"),
    ],
)
def test_what_says_nothing_about_a_replica_of_the_job_is_no_reason_to_suspect_one(
    copied: World, error: str, url: str
) -> None:
    """An error of the way to it, another job's input, an address of nobody."""
    copied.fail(claim(copied), error, input_url=url)
    assert not Replica.select().where(Replica.state != ReplicaState.GOOD.value).exists()


def test_a_word_of_an_attempt_that_was_taken_away_changes_no_replica(copied: World) -> None:
    job = claim(copied)
    copied.pass_seconds(120)
    claim(copied)
    with copied.refused("STALE_ATTEMPT"):
        copied.fail(job, MISMATCH, input_url=FIRST)


def test_what_a_look_at_the_storage_found_is_not_changed_by_a_pilot(copied: World) -> None:
    job = claim(copied)
    bad = {"state": ReplicaState.BAD.value, "reason": "it was looked at"}
    copied.core.database.write(lambda: Replica.update(bad).where(Replica.url == FIRST).execute())
    copied.fail(job, MISMATCH, input_url=FIRST)
    assert (states()[FIRST], (shown().replicas or [])[1].reason) == ("bad", "it was looked at")


def test_a_suspect_replica_is_better_than_a_bad_one(copied: World) -> None:
    for url, state in ((FIRST, ReplicaState.BAD), (OTHER, ReplicaState.SUSPECT)):
        change = Replica.update(state=state.value).where(Replica.url == url)
        copied.core.database.write(change.execute)
    assert claim(copied).inputs[0].url == OTHER == shown().url


def test_a_pilot_is_given_the_replica_at_its_own_site_and_again_when_it_asks_again(copied: World) -> None:
    computing.create_queue(copied.core, QueueSpec("THERE", "FAR"))
    copied.pilot("p2", "THERE")
    request = {"pilot_id": "p2", "queue": "THERE", "request_id": "the-same"}
    assert [claim(copied, **request).inputs[0].url for _ in range(2)] == [OTHER, OTHER]
    copied.pass_seconds(120)
    assert claim(copied).inputs[0].url == FIRST, "to whom none is near the oldest is given"


def test_storages_tell_how_many_files_on_them_are_not_good(copied: World) -> None:
    copied.core.database.write(lambda: Replica.update(state="bad").where(Replica.url == OTHER).execute())
    told = {view.name: (view.n_suspect, view.n_bad) for view in computing.storages().items}
    assert told == {"FAR": (0, 1), "LOCAL": (0, 0)}


def test_what_is_shown_of_a_job_tells_no_replicas_for_those_come_and_go(copied: World) -> None:
    """The archive keeps it as it was."""
    with copied.core.database.reading():
        [file] = job_manager.details(copied.job()).inputs or []
    assert (file.url, file.replicas) == (FIRST, None)
