"""How many files of a dataset wait to be processed, as whoever fills it is told."""

from __future__ import annotations

from server import backlog, catalogue
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
