"""How many files of a dataset wait to be processed, as whoever fills it is told."""

from __future__ import annotations

from playhouse.test_utils import count_queries

from protocol.messages.requests import ContainerSpec
from server import backlog, catalogue, containers
from server.jobs import operations
from server.models import Dataset
from tests.integration.server.world import World, files


def waiting(name: str = "in") -> int:
    return backlog.of(Dataset.get(Dataset.name == name))


def test_without_a_task_all_files_wait(world: World) -> None:
    world.dataset(3, close=False)
    assert waiting() == 3


def test_a_file_waits_until_the_job_that_reads_it_has_ended(world: World) -> None:
    world.dataset(4, close=False)
    world.task(files_per_job=2)
    world.form()
    assert waiting() == 4
    world.pilot()
    [job] = world.claim()
    assert waiting() == 4
    world.complete(job)
    assert waiting() == 2
    catalogue.add_files(world.core, "in", files(1, first=4), close=False)
    assert waiting() == 3


def test_of_several_tasks_the_slowest_counts_and_none_that_has_ended(world: World) -> None:
    world.dataset(3, close=False)
    world.task("quick")
    world.form()
    world.pilot()
    for job in world.claim(n_jobs=3):
        world.complete(job)
    assert waiting() == 0
    world.task("slow")
    assert waiting() == 3
    operations.cancel(world.core, "slow", "ada", False)
    world.close_tasks()
    assert waiting() == 0
    operations.cancel(world.core, "quick", "ada", False)
    world.close_tasks()
    catalogue.add_files(world.core, "in", files(2, first=3), close=False)
    assert waiting() == 2


def test_of_a_container_a_dataset_waits_until_its_turn_and_not_afterwards(world: World) -> None:
    for name, n_files in (("first", 2), ("second", 3)):
        world.dataset(n_files, name)
    containers.create(world.core, ContainerSpec("c", ["first", "second"]), "ada")
    world.task(input_dataset="c")
    assert (waiting("first"), waiting("second")) == (2, 3)
    world.form()
    world.pilot()
    for job in world.claim(n_jobs=5):
        world.complete(job)
    assert (waiting("first"), waiting("second")) == (0, 0)
    world.close_tasks()
    assert (waiting("first"), waiting("second")) == (0, 0)


def test_a_container_that_was_given_up_leaves_what_it_had_not_come_to(world: World) -> None:
    for name, n_files in (("first", 2), ("second", 3)):
        world.dataset(n_files, name)
    containers.create(world.core, ContainerSpec("c", ["first", "second"]), "ada")
    world.task("t", input_dataset="c")
    operations.cancel(world.core, "t", "ada", False)
    world.close_tasks()
    assert (waiting("first"), waiting("second")) == (2, 3)


def test_tasks_that_have_ended_cost_nothing_more(world: World) -> None:
    def asked() -> int:
        with count_queries() as counted:
            waiting()
        return int(counted.count)

    world.dataset(2, close=False)
    asked_for = []
    for names in (["a"], ["b", "c", "d"]):
        for name in names:
            world.task(name)
            operations.cancel(world.core, name, "ada", False)
        world.close_tasks()
        asked_for.append(asked())
    assert asked_for[0] == asked_for[1]
    assert waiting() == 2
