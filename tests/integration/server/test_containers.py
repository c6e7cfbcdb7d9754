"""Containers of datasets, and tasks that read one dataset after the other."""

from __future__ import annotations

import pytest

from protocol.messages.requests import ContainerChange, ContainerSpec, DatasetSpec, RetrySpec
from protocol.states import DatasetState, JobState
from server import backlog, catalogue, containers, task_manager
from server.brokerage import dependencies
from server.jobs import operations
from server.models import Dataset, File, Job, JobInput, Task
from server.paging import Cursor
from tests.auditing import assert_clean, look
from tests.integration.server.world import World, files, refusing


def make(world: World, *names: str, n_files: int = 2) -> None:
    for name in names:
        world.dataset(n_files, name)


def container(world: World, *datasets: str, name: str = "c") -> None:
    containers.create(world.core, ContainerSpec(name, list(datasets)), "ada")


def datasets_of(name: str = "c") -> list[str]:
    return [each.name for each in containers.details(containers.find(name)).datasets or []]


def inputs() -> list[tuple[str, str]]:
    """Dataset and name of what each job reads, in the order of jobs and files."""
    query = (
        JobInput.select(JobInput, File, Dataset)
        .join(File)
        .join(Dataset)
        .order_by(JobInput.job, JobInput.file)
    )
    return [(row.file.dataset.name, row.file.lfn) for row in query]


# -- the list ---------------------------------------------------------------------------------------------------------------


def test_datasets_are_listed_in_the_order_in_which_they_came(world: World) -> None:
    make(world, "a", "b", "x")
    container(world, "b", "a")
    view = containers.change(world.core, "c", ContainerChange(add=["x", "a"], remove=["b"]))
    assert [each.name for each in view.datasets or []] == ["a", "x"]
    assert view.n_datasets == 2
    [line] = containers.page(Cursor(), name="c").items
    assert (line.name, line.owner, line.n_datasets, line.datasets) == ("c", "ada", 2, None)
    containers.delete(world.core, "c")
    assert containers.page(Cursor()).items == []
    assert catalogue.find("a").state == "closed"


def test_what_is_wrong_with_a_container_is_refused(world: World) -> None:
    make(world, "a", "gone")
    catalogue.delete(world.core, "gone", "ada")
    container(world, "a")
    for name, detail, spec in (
        ("NOT_FOUND", "no dataset nope", ContainerSpec("d", ["a", "nope"])),
        ("WRONG_STATE", "gone was deleted", ContainerSpec("d", ["gone"])),
        ("ALREADY_EXISTS", "a container c already", ContainerSpec("c")),
        ("ALREADY_EXISTS", "a dataset a already", ContainerSpec("a")),
        ("ALREADY_EXISTS", "was deleted", ContainerSpec("gone")),
    ):
        with world.refused(name, detail):
            containers.create(world.core, spec, "ada")
    with world.refused("ALREADY_EXISTS", "a container c already"):
        catalogue.create(world.core, DatasetSpec("c"))
    with world.refused("NOT_FOUND", "gone is not in container c"):
        containers.change(world.core, "c", ContainerChange(remove=["gone"]))
    for call in (
        lambda: containers.change(world.core, "nope", ContainerChange()),
        lambda: containers.delete(world.core, "nope"),
        lambda: containers.find("nope"),
    ):
        with world.refused("NOT_FOUND", "no container nope"):
            call()


# -- tasks ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files_per_job", [1, 2, 3])
def test_a_task_reads_each_file_of_each_dataset_once_and_no_job_reads_of_two(
    world: World, url: str, files_per_job: int
) -> None:
    make(world, "b", "a", n_files=3)
    world.dataset(0, "empty")
    container(world, "a", "empty", "b")
    view = world.task(input_dataset="c", files_per_job=files_per_job, outputs=["{job_nr}.out"])
    n_jobs = 2 * -(-3 // files_per_job)
    assert (view.input_dataset, view.n_jobs) == ("c", n_jobs)
    while world.form():
        pass
    assert inputs() == [(name, f"f{nr:05}.spd") for name in ("a", "b") for nr in range(3)]
    of_jobs = {(row.job_id, row.file.dataset_id) for row in JobInput.select(JobInput, File).join(File)}
    assert len(of_jobs) == n_jobs == Job.select().count()
    world.pilot()
    for job in world.claim(n_jobs=n_jobs):
        world.complete(job)
    world.close_tasks()
    ended = task_manager.view(Task.get())
    assert (ended.state, ended.n_jobs, ended.input_dataset) == ("COMPLETED", n_jobs, "c")
    assert_clean(url, storages=False)


def test_a_file_of_a_container_that_was_passed_over_is_found_by_the_audit(world: World, url: str) -> None:
    make(world, "a", "b")
    container(world, "a", "b")
    world.task(input_dataset="c")
    while world.form():
        pass
    world.core.database.write(lambda: JobInput.delete().where(JobInput.job == 1).execute())
    [finding] = look(url, storages=False).findings
    assert (finding.check, finding.subject["file"]) == ("job-inputs", "f00000.spd")


def test_a_container_is_read_as_it_was_when_the_task_was_submitted(world: World) -> None:
    make(world, "a", "b", "late")
    container(world, "a", "b")
    world.task(input_dataset="c")
    containers.change(world.core, "c", ContainerChange(add=["late"], remove=["b"]))
    while world.form():
        pass
    assert {name for name, _ in inputs()} == {"a", "b"}
    containers.delete(world.core, "c")
    assert task_manager.view(Task.get()).input_dataset == "c"


def test_an_open_dataset_is_waited_for_before_the_next_one(world: World) -> None:
    world.dataset(1, "open", close=False)
    make(world, "after")
    container(world, "open", "after")
    world.task(input_dataset="c")
    assert world.form() == 1
    assert world.form() == 0
    catalogue.add_files(world.core, "open", files(1, first=7), close=True)
    while world.form():
        pass
    assert [name for name, _ in inputs()] == ["open", "open", "after", "after"]
    assert Task.get().all_formed


def test_the_output_of_a_task_in_a_container_is_read_when_that_has_ended(world: World) -> None:
    make(world, "in")
    world.task("first", outputs=["{stem}.a"])
    container(world, "in", "first.out")
    world.task("second", input_dataset="c")
    while world.form():
        pass
    assert dependencies.dependents(Task.get(Task.name == "first").id) == [2]
    world.pilot()
    jobs = world.claim(n_jobs=4)
    assert len(jobs) == 4
    for job in jobs:
        world.complete(job)
    world.close_tasks()
    while world.form():
        pass
    assert [name for name, _ in inputs()] == ["in"] * 4 + ["first.out"] * 2


def test_a_task_over_nothing_is_refused(world: World) -> None:
    container(world, name="nothing")
    world.dataset(0, "empty")
    container(world, "empty", name="hollow")
    for name in ("nothing", "hollow"):
        with world.refused("BAD_REQUEST", f"container {name} has no files"):
            world.task(input_dataset=name)
    make(world, "a", "b")
    container(world, "a", "b")
    catalogue.delete(world.core, "b", "ada")
    with world.refused("WRONG_STATE", "dataset b was deleted"):
        world.task(input_dataset="c")
    with world.refused("NOT_FOUND", "no dataset nope, and no container"):
        world.task(input_dataset="nope")


def test_a_dataset_that_a_task_will_read_or_has_read_is_not_deleted_and_not_filled_again(
    world: World,
) -> None:
    make(world, "a", "b")
    container(world, "a", "b")
    world.task(input_dataset="c", max_attempts=1)
    for name in ("a", "b"):
        with world.refused("WRONG_STATE", "used by tasks that have not ended: t"):
            catalogue.delete(world.core, name, "ada")
    while world.form():
        pass
    world.pilot()
    for job in world.claim(n_jobs=4):
        world.fail(job)
    world.close_tasks()
    catalogue.delete(world.core, "a", "ada")
    with refusing("WRONG_STATE", "a, the input of task t, was deleted"):
        operations.retry(world.core, "t", RetrySpec(failed=True), "ada")
    assert {JobState(job.state) for job in Job.select()} == {JobState.FAILED}


@pytest.mark.parametrize("gone", ["a", "b"])
def test_a_deleted_dataset_in_a_container_does_not_keep_a_task_waiting(world: World, gone: str) -> None:
    make(world, "a", "b", "c1")
    container(world, "a", "b", "c1")
    world.task(input_dataset="c")
    deleted = Dataset.update(state=DatasetState.DELETED.value).where(Dataset.name == gone)
    world.core.database.write(deleted.execute)
    for _ in range(4):
        world.form()
    assert Task.get().all_formed
    assert {name for name, _ in inputs()} == {"a", "b", "c1"} - {gone}


def test_what_waits_in_each_dataset_of_a_container_is_known(world: World) -> None:
    make(world, "a", "b", "d")
    container(world, "a", "b", "d")
    world.task(input_dataset="c")
    task = Task.get()
    assert [backlog.of(catalogue.find(name)) for name in ("a", "b", "d")] == [2, 2, 2]
    while world.form():
        pass
    world.pilot()
    for job in world.claim(n_jobs=6):
        world.complete(job)
    assert task.input_dataset.name == "a" and Task.get().input_dataset.name == "d"
    assert [backlog.of(catalogue.find(name)) for name in ("a", "b", "d")] == [0, 0, 0]
