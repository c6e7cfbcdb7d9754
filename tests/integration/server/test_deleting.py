"""Deleted datasets: used by nobody, known by name, and without effect on what was made of them."""

from __future__ import annotations

import pytest

from protocol.errors import PilotageError
from protocol.messages.requests import DatasetSpec, RetrySpec
from server import catalogue, job_manager, task_manager
from server.core import Core
from server.jobs import operations
from server.models import AdminEvent, Dataset, Task
from server.paging import Cursor
from tests.auditing import assert_clean
from tests.integration.server.world import World, at_once, files


def done_task(world: World) -> None:
    """A task over `in` that has ended with one failed and one completed job."""
    world.dataset(2)
    world.task(outputs=["{stem}.out"], max_attempts=1)
    world.form()
    world.pilot()
    good, bad = world.claim(n_jobs=2)
    world.complete(good)
    world.fail(bad)
    world.close_tasks()


@pytest.mark.parametrize("name", ["in", "t.out"])
def test_a_dataset_is_not_deleted_while_a_task_reads_or_fills_it(world: World, name: str) -> None:
    world.dataset(2)
    world.task(outputs=["{stem}.out"])
    with world.refused("WRONG_STATE", f"dataset {name} is used by tasks that have not ended: t"):
        catalogue.delete(world.core, name, "ada")
    world.form()
    with world.refused("WRONG_STATE", "used"):
        catalogue.delete(world.core, name, "ada")


def test_a_deleted_dataset_takes_nothing_and_no_task(world: World) -> None:
    world.dataset(1, "wide", close=False)
    view = catalogue.delete(world.core, "wide", "ada")
    assert (view.state, view.n_files, view.deleted is not None) == ("deleted", 1, True)
    with world.unchanged():
        assert catalogue.delete(world.core, "wide", "ada").deleted == view.deleted
    with world.refused("WRONG_STATE", "is deleted"):
        catalogue.add_files(world.core, "wide", files(1, first=5), close=False)
    with world.refused("WRONG_STATE", "was deleted"):
        catalogue.close(world.core, "wide")
    with world.refused("WRONG_STATE", "was deleted"):
        world.task(input_dataset="wide")
    with world.refused("ALREADY_EXISTS", "which was deleted; its name is not given again"):
        catalogue.create(world.core, DatasetSpec("wide"))
    world.dataset()
    with world.refused("ALREADY_EXISTS", "was deleted"):
        world.task(outputs=["{stem}.out"], output_dataset="wide")
    assert [(row.who, row.action, row.subject) for row in AdminEvent.select()] == [
        ("ada", "dataset delete", "wide")
    ]


@pytest.mark.parametrize(("name", "what"), [("in", "input"), ("t.out", "output")])
def test_a_task_whose_data_are_deleted_is_not_tried_again(
    world: World, url: str, name: str, what: str
) -> None:
    done_task(world)
    catalogue.delete(world.core, name, "ada")
    for call in (
        lambda: operations.retry(world.core, "t", RetrySpec(failed=True), "ada"),
        lambda: operations.retry_job(world.core, 2, "ada"),
    ):
        with world.refused("WRONG_STATE", f"{name}, the {what} of task t, was deleted"):
            call()
    assert_clean(url, storages=False)


def test_what_was_made_of_its_files_stays_known(world: World) -> None:
    done_task(world)
    catalogue.delete(world.core, "in", "ada")
    assert [dataset.name for dataset in catalogue.datasets(Cursor()).items] == ["t.out"]
    assert [dataset.name for dataset in catalogue.datasets(Cursor(), state="deleted").items] == ["in"]
    assert {file.state for file in catalogue.files(Cursor(), dataset="in").items} == {"deleted"}
    assert {file.state for file in catalogue.files(Cursor(), dataset="t.out").items} == {"available"}
    [read] = job_manager.details(world.job(1)).inputs or []
    assert (read.lfn, read.dataset, read.state) == ("f00000.spd", "in", "deleted")
    assert task_manager.view(Task.get()).input_dataset == "in"


def test_a_dataset_is_deleted_or_read_but_not_both(postgres_core: Core) -> None:
    """Whoever comes first: the other one is refused."""
    world = World(postgres_core)
    with postgres_core.database.reading():
        for number in range(5):
            name = f"d{number}"
            world.dataset(1, name)
            futures = at_once(
                [
                    lambda name=name: catalogue.delete(postgres_core, name, "ada").state,  # type: ignore[misc]
                    lambda name=name: world.task(f"over-{name}", input_dataset=name).state,  # type: ignore[misc]
                ]
            )
            errors = [future.exception() for future in futures]
            assert errors.count(None) == 1, errors
            assert {error.name for error in errors if isinstance(error, PilotageError)} == {"WRONG_STATE"}
            state = Dataset.get(Dataset.name == name).state
            assert (state == "deleted") == (Task.select().where(Task.name == f"over-{name}").count() == 0)
