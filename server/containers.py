"""Containers: named lists of datasets. A task over one reads the datasets that it lists at that moment, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

from peewee import fn

from protocol.errors import PilotageError
from protocol.messages.requests import ContainerChange, ContainerSpec
from protocol.messages.views import ContainerView, Page
from protocol.states import DatasetState
from server import catalogue
from server.core import Core
from server.models import Container, ContainerMember, Dataset, File, Task, TaskInput
from server.paging import Cursor, iso, page_of_all

MOST = 1000
"""Datasets of one container."""


def find(name: str) -> Container:
    container = Container.get_or_none(Container.name == name)
    if container is None:
        raise PilotageError("NOT_FOUND", f"no container {name}; see 'pilotage dataset container list'")
    return container


def create(core: Core, spec: ContainerSpec, owner: str) -> ContainerView:
    """Datasets and containers share their names, so that a task's input is clear."""

    def work() -> Container:
        if Container.get_or_none(Container.name == spec.name):
            raise PilotageError("ALREADY_EXISTS", f"there is a container {spec.name} already")
        catalogue.refuse_name(spec.name)
        container = Container.create(name=spec.name, owner=owner)
        _add(container, spec.datasets)
        return container

    return details(core.database.write(work))


def change(core: Core, name: str, wish: ContainerChange) -> ContainerView:
    """Tasks that were submitted over it before are not changed."""

    def work() -> Container:
        container = _locked(core, name)
        members = ContainerMember.container == container.number
        for dataset in _datasets(wish.remove):
            gone = ContainerMember.delete().where(members, ContainerMember.dataset == dataset.id).execute()
            if not gone:
                raise PilotageError("NOT_FOUND", f"dataset {dataset.name} is not in container {name}")
        _add(container, wish.add)
        return container

    return details(core.database.write(work))


def delete(core: Core, name: str) -> None:
    """The list alone: the datasets stay."""

    def work() -> None:
        container = _locked(core, name)
        ContainerMember.delete().where(ContainerMember.container == container.number).execute()
        container.delete_instance()

    core.database.write(work)


def _locked(core: Core, name: str) -> Container:
    return core.database.locked(Container.select().where(Container.name == name)).first() or find(name)


def _datasets(names: Sequence[str]) -> list[Dataset]:
    """In this order."""
    found = {dataset.name: dataset for dataset in Dataset.select().where(Dataset.name.in_(list(names)))}
    for name in names:
        if name not in found:
            raise PilotageError("NOT_FOUND", f"no dataset {name}; see 'pilotage dataset list'")
    return [found[name] for name in dict.fromkeys(names)]


def _add(container: Container, names: Sequence[str]) -> None:
    """At the end of the list; what is there already stays where it is."""
    new = _datasets(names)
    there = {dataset.id for dataset in _members(container)}
    for dataset in new:
        catalogue.refuse_deleted(dataset)
    rows = [{"container": container.number, "dataset": each.id} for each in new if each.id not in there]
    if len(there) + len(rows) > MOST:
        raise PilotageError("BAD_REQUEST", f"a container has at most {MOST} datasets")
    if rows:
        ContainerMember.insert_many(rows).execute()


def _members(container: Container) -> list[Dataset]:
    members = Dataset.select().join(ContainerMember, on=(ContainerMember.dataset == Dataset.id))
    return list(members.where(ContainerMember.container == container.number).order_by(ContainerMember.number))


# -- inputs of tasks --------------------------------------------------------------------------------------------------------


def resolve(core: Core, name: str) -> list[Dataset]:
    """The datasets that a task over a dataset or a container of this name would read; inside `Database.write`.

    They are locked, so that nobody deletes one meanwhile. Raises NOT_FOUND, WRONG_STATE for a deleted one, and BAD_REQUEST
    where there would never be a job.
    """
    container = None
    datasets = list(Dataset.select().where(Dataset.name == name))
    if not datasets:
        container = Container.get_or_none(Container.name == name)
        if container is None:
            raise PilotageError(
                "NOT_FOUND", f"no dataset {name}, and no container of that name; see 'pilotage dataset list'"
            )
        datasets = _members(container)
    ids = [dataset.id for dataset in datasets]
    now = {
        dataset.id: dataset
        for dataset in core.database.locked(Dataset.select().where(Dataset.id.in_(ids)).order_by(Dataset.id))
    }
    datasets = [now[dataset_id] for dataset_id in ids]
    for dataset in datasets:
        catalogue.refuse_deleted(dataset)
    if not any(_may_give_jobs(dataset) for dataset in datasets):
        what = (
            f"container {name} has no files in closed datasets"
            if container
            else f"dataset {name} is closed and has no files"
        )
        raise PilotageError("BAD_REQUEST", f"{what}: there would be no job")
    return datasets


def _may_give_jobs(dataset: Dataset) -> bool:
    if dataset.state == DatasetState.DELETED.value:
        return False  # nobody would ever close it, and the task would wait for ever
    return (
        dataset.state != DatasetState.CLOSED.value
        or File.select(File.id).where(File.dataset == dataset.id).exists()
    )


def keep(task_id: int, datasets: Sequence[Dataset]) -> None:
    """Note what a task over a container reads, in this order."""
    rows = [{"task": task_id, "position": nr, "dataset": each.id} for nr, each in enumerate(datasets)]
    TaskInput.insert_many(rows).execute()


def after(task: Task) -> int | None:
    """The dataset that comes after the one which the task reads now; None after the last. Those that give no job are passed over."""
    mine = TaskInput.alias()
    place = mine.select(mine.position).where(mine.task == task.id, mine.dataset == task.input_dataset_id)
    following = Dataset.select().join(TaskInput, on=(TaskInput.dataset == Dataset.id))
    for dataset in following.where(TaskInput.task == task.id, TaskInput.position > place).order_by(
        TaskInput.position
    ):
        if _may_give_jobs(dataset):
            return int(dataset.id)
    return None


def inputs_of(task: Task) -> list[Dataset]:
    """All that a task reads, has read or will read, in that order."""
    if task.input_container is None:
        return [task.input_dataset] if task.input_dataset_id is not None else []
    inputs = Dataset.select().join(TaskInput, on=(TaskInput.dataset == Dataset.id))
    return list(inputs.where(TaskInput.task == task.id).order_by(TaskInput.position))


# -- views ------------------------------------------------------------------------------------------------------------------


def details(container: Container) -> ContainerView:
    """With its datasets."""
    shown = views([container])[0]
    shown.datasets = catalogue.views(_members(container))
    return shown


def views(shown: Sequence[Container]) -> list[ContainerView]:
    numbers = [container.number for container in shown]
    query = ContainerMember.select(ContainerMember.container, fn.COUNT(ContainerMember.number))
    n_datasets = dict(
        query.where(ContainerMember.container.in_(numbers)).group_by(ContainerMember.container).tuples()
    )
    return [
        ContainerView(each.name, each.owner, iso(each.created), n_datasets.get(each.number, 0))
        for each in shown
    ]


def page(cursor: Cursor, name: str = "") -> Page:
    query = Container.select()
    if name:
        query = query.where(Container.name.contains(name))
    return page_of_all(query, Container.number, cursor, views)
