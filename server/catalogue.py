"""Datasets, files and replicas: what there is, where it lies, and what may still be added."""

from __future__ import annotations

import json
from collections.abc import Sequence

from peewee import fn

from protocol.errors import PilotageError
from protocol.files import check_checksums, check_lfn, local_path
from protocol.messages import DatasetSpec, DatasetView, FileSpec, FileView, Page
from protocol.states import DatasetState
from server.core import Core
from server.models import Dataset, File, Replica, now
from server.paging import Cursor, iso, page_of

MEBIBYTE = 2**20
CHUNK = 200
"""Files registered in one transaction."""


def find(name: str) -> Dataset:
    dataset = Dataset.get_or_none(Dataset.name == name)
    if dataset is None:
        raise PilotageError("NOT_FOUND", f"no dataset {name}; see 'pilotage dataset list'")
    return dataset


def create(core: Core, spec: DatasetSpec) -> DatasetView:
    """A new dataset with its first files, all or nothing; they come in one request of at most some thousand."""
    _check_files(spec.files)

    def work() -> Dataset:
        if Dataset.get_or_none(Dataset.name == spec.name):
            raise PilotageError("ALREADY_EXISTS", f"there is a dataset {spec.name} already")
        dataset = Dataset.create(name=spec.name, scope=spec.scope or spec.name)
        _insert(dataset, spec.files)
        if spec.close:
            _close(dataset)
        return dataset

    return view(core.database.write(work))


def create_output(name: str, task_id: int) -> Dataset:
    """The output dataset of a task; inside `Database.write`."""
    if Dataset.get_or_none(Dataset.name == name):
        raise PilotageError(
            "ALREADY_EXISTS", f"there is a dataset {name} already; name another with --output-dataset"
        )
    return Dataset.create(name=name, scope=name, task_id=task_id)


def add_files(core: Core, name: str, files: Sequence[FileSpec], close: bool) -> DatasetView:
    """Add files to an open dataset, all or nothing.

    One after the other: whoever reads the dataset in the order of the files' ids then never finds one before its place.
    """
    _check_files(files)

    def work() -> Dataset:
        dataset = core.database.locked(Dataset.select().where(Dataset.name == name)).first() or find(name)
        if dataset.state != DatasetState.OPEN.value or dataset.task_id is not None:
            whose = f"filled by task {dataset.task_id}" if dataset.task_id else dataset.state
            raise PilotageError(
                "WRONG_STATE",
                f"dataset {name} is {whose}; files can be added to an open dataset of your own only",
            )
        _insert(dataset, files)
        if close:
            _close(dataset)
        return dataset

    return view(core.database.write(work))


def close(core: Core, name: str) -> DatasetView:
    """Close a dataset for good; closing a closed one changes nothing."""

    def work() -> Dataset:
        dataset = find(name)
        if dataset.task_id is not None and dataset.state == DatasetState.OPEN.value:
            raise PilotageError(
                "WRONG_STATE", f"dataset {name} is filled by task {dataset.task_id} and closed when that ends"
            )
        _close(dataset)
        return dataset

    return view(core.database.write(work))


def close_output(dataset_id: int) -> None:
    """Close the output dataset of a task that has ended: its files are those that jobs completed, and no others."""
    File.delete().where(File.dataset == dataset_id, File.state == "declared").execute()
    _close(Dataset.get_by_id(dataset_id))


def _close(dataset: Dataset) -> None:
    Dataset.update(state=DatasetState.CLOSED.value, closed=now()).where(
        Dataset.id == dataset.id, Dataset.state == DatasetState.OPEN.value
    ).execute()


def _check_files(files: Sequence[FileSpec]) -> None:
    """Names, checksums and URLs of files to be registered; the error names the first that is wrong."""
    seen: set[str] = set()
    for index, file in enumerate(files):
        try:
            check_lfn(file.lfn)
            check_checksums(file.checksums)
            if file.url.startswith("file:"):
                local_path(file.url, data_root="/")
            elif "://" not in file.url:
                raise PilotageError(
                    "BAD_PATH", f"{file.url[:200]!a} is no URL; a file of this machine is file:///its/path"
                )
        except PilotageError as error:
            raise PilotageError(error.name, f"files[{index}]: {error.detail}") from None
        if file.lfn in seen:
            raise PilotageError("ALREADY_EXISTS", f"files[{index}]: {file.lfn!a} is there twice")
        seen.add(file.lfn)


def _insert(dataset: Dataset, files: Sequence[FileSpec]) -> None:
    for start in range(0, len(files), CHUNK):
        chunk = files[start : start + CHUNK]
        taken = (
            File.select(File.lfn)
            .where(File.scope == dataset.scope, File.lfn.in_([file.lfn for file in chunk]))
            .first()
        )
        if taken:
            raise PilotageError("ALREADY_EXISTS", f"scope {dataset.scope} has a file {taken.lfn!a} already")
        for file in chunk:
            checksums = json.dumps(check_checksums(file.checksums))
            row = File.create(
                dataset=dataset, scope=dataset.scope, lfn=file.lfn, size=file.size, checksums=checksums
            )
            Replica.create(file=row, url=file.url)


# -- views ------------------------------------------------------------------------------------------------------------------


def view(dataset: Dataset) -> DatasetView:
    dataset = Dataset.get_by_id(dataset.id)
    # In two parts, since the sum of large sizes is more than the databases' integers hold.
    n_files, mebibytes, rest = (
        File.select(
            fn.COUNT(File.id),
            fn.COALESCE(fn.SUM(File.size / MEBIBYTE), 0),
            fn.COALESCE(fn.SUM(File.size.bin_and(MEBIBYTE - 1)), 0),
        )
        .where(File.dataset == dataset.id, File.state == "available")
        .tuples()
        .first()
    )
    return DatasetView(
        name=dataset.name,
        scope=dataset.scope,
        state=dataset.state,
        n_files=n_files,
        size=int(mebibytes) * MEBIBYTE + int(rest),
        created=iso(dataset.created),
        closed=iso(dataset.closed) if dataset.closed else None,
        task_id=dataset.task_id,
    )


def datasets(cursor: Cursor, state: str = "", name: str = "") -> Page:
    query = Dataset.select()
    if state:
        query = query.where(Dataset.state == state)
    if name:
        query = query.where(Dataset.name.contains(name))
    return page_of(query, Dataset.id, cursor, view)


def files(cursor: Cursor, dataset: str = "", scope: str = "", lfn: str = "") -> Page:
    query = File.select(File, Dataset.name).join(Dataset).where(File.state == "available")
    if dataset:
        query = query.where(File.dataset == find(dataset).id)
    if scope:
        query = query.where(File.scope == scope)
    if lfn:
        query = query.where(File.lfn == lfn)
    return page_of(query, File.id, cursor, file_view)


def file_view(file: File) -> FileView:
    replica = Replica.select(Replica.url).where(Replica.file == file.id).order_by(Replica.id).first()
    return FileView(
        lfn=file.lfn,
        scope=file.scope,
        dataset=file.dataset.name,
        size=file.size,
        checksums=json.loads(file.checksums),
        url=replica.url if replica else "",
        state=file.state,
        job_id=file.job_id,
    )
