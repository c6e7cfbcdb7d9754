"""Datasets, files and replicas: what there is, where it lies, and what may still be added."""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from peewee import fn

from protocol.errors import PilotageError
from protocol.messages.requests import DatasetSpec, FileSpec, MetadataChange
from protocol.messages.views import DatasetView, FileView, Page
from protocol.states import DatasetState
from server import metadata, registration, replicas
from server.access import trail
from server.core import Core
from server.models import Container, Dataset, File, Job, Replica, Task, TaskInput, now
from server.pace import Pace
from server.paging import Cursor, iso, page_of_all
from server.registration import MEBIBYTE, Facts

_DELETED = DatasetState.DELETED.value
ATOMIC = 1000
"""Most files that are registered in one transaction."""


def find(name: str) -> Dataset:
    dataset = Dataset.get_or_none(Dataset.name == name)
    if dataset is None:
        raise PilotageError("NOT_FOUND", f"no dataset {name}; see 'pilotage dataset list'")
    return dataset


def refuse_name(name: str, advice: str = "") -> None:
    """ALREADY_EXISTS for the name of a container or a dataset, also of one that was deleted."""
    there = Dataset.get_or_none(Dataset.name == name)
    if there is not None and there.state == _DELETED:
        raise PilotageError(
            "ALREADY_EXISTS",
            f"there was a dataset {name}, which was deleted; its name is not given again{advice}",
        )
    if there is not None:
        raise PilotageError("ALREADY_EXISTS", f"there is a dataset {name} already{advice}")
    if Container.get_or_none(Container.name == name):
        raise PilotageError("ALREADY_EXISTS", f"there is a container {name} already{advice}")


def create(core: Core, spec: DatasetSpec, owner: str = "") -> DatasetView:
    """A new dataset with its first files: up to `ATOMIC` of them all or nothing, more as `add_files` does."""
    files = registration.all_new(core, spec.files)
    first, *rest = _parts(files) or [{}]
    if rest:
        with core.database.reading():
            registration.refuse_taken(core, spec.scope or spec.name, list(files))

    def work() -> Dataset:
        refuse_name(spec.name)
        dataset = Dataset.create(name=spec.name, scope=spec.scope or spec.name, owner=owner)
        registration.refuse_taken(core, dataset.scope, list(first))
        registration.insert(core, dataset, first)
        if spec.close and not rest:
            _close(dataset)
        return dataset

    dataset = core.database.write(work)
    _add_parts(core, spec.name, rest, spec.close)
    core.to_form.set()
    return view(dataset)


def create_output(name: str, task_id: int, owner: str = "") -> Dataset:
    """The output dataset of a task; inside `Database.write`."""
    refuse_name(name, "; name another with --output-dataset")
    return Dataset.create(name=name, scope=name, task_id=task_id, owner=owner)


def add_files(core: Core, name: str, files: Sequence[FileSpec], close: bool) -> DatasetView:
    """Add new files to an open dataset: up to `ATOMIC` of them all or nothing, more in parts of so many.

    Of more, everything that can be wrong is said before the first part is taken, but for what somebody else does meanwhile.
    """
    new = registration.all_new(core, files)
    with core.database.reading():
        dataset = find(name)
        if len(new) > ATOMIC:
            registration.refuse_taken(core, dataset.scope, list(new))
    _add_parts(core, name, _parts(new) or [{}], close)
    core.to_form.set()
    return view(dataset)


def _parts(files: Mapping[str, Facts]) -> list[dict[str, Facts]]:
    rest = iter(files.items())
    parts = []
    while part := dict(islice(rest, ATOMIC)):
        parts.append(part)
    return parts


def _add_parts(core: Core, name: str, parts: Sequence[Mapping[str, Facts]], close: bool) -> None:
    def work(files: Mapping[str, Facts], is_last: bool) -> None:
        dataset = _open_and_locked(core, name)
        registration.refuse_taken(core, dataset.scope, list(files))
        registration.insert(core, dataset, files)
        if close and is_last:
            _close(dataset)

    for index, part in enumerate(parts, start=1):
        core.database.write(functools.partial(work, part, index == len(parts)))


def _open_and_locked(core: Core, name: str) -> Dataset:
    """A dataset to which files may be added; inside `Database.write`.

    One after the other: whoever reads the dataset in the order of the files' ids then never finds one before its place.
    """
    dataset = core.database.locked(Dataset.select().where(Dataset.name == name)).first() or find(name)
    if dataset.state != DatasetState.OPEN.value or dataset.task_id is not None:
        whose = f"filled by task {dataset.task_id}" if dataset.task_id else dataset.state
        raise PilotageError(
            "WRONG_STATE",
            f"dataset {name} is {whose}; files can be added to an open dataset of your own only",
        )
    return dataset


def add_stream(core: Core, name: str, files: Iterator[FileSpec], close: bool) -> DatasetView:
    """Add any number of files to an open dataset, as they come: a part of them is taken all or nothing, one after the other.

    A file that the dataset has is passed over, so that whoever was interrupted sends all of them again. An error says what
    was taken before it.
    """
    n_added = n_known = 0
    pace = Pace(200, ATOMIC, core.database.bulk_seconds)
    try:
        while chunk := _read_some(core, files, pace.rows):
            added = core.database.write(functools.partial(_add_some, core, name, chunk.new, pace))
            n_added, n_known = n_added + added, n_known + chunk.n_lines - added
        if close:
            core.database.write(lambda: _close(_open_and_locked(core, name)))
    except PilotageError as error:
        error.fields |= {"n_added": n_added, "n_known": n_known}
        raise
    finally:
        core.to_form.set()
    shown = view(find(name))
    shown.n_added, shown.n_known = n_added, n_known
    return shown


@dataclass
class _Chunk:
    new: dict[str, Facts] = field(default_factory=dict)
    n_lines: int = 0

    def __bool__(self) -> bool:
        return self.n_lines > 0


def _read_some(core: Core, files: Iterator[FileSpec], n: int) -> _Chunk:
    chunk = _Chunk()
    for file in islice(files, n):
        try:
            facts = registration.facts_of(core, file)
        except PilotageError as error:
            raise PilotageError(error.name, f"file {file.lfn[:200]!a}: {error.detail}") from None
        if chunk.new.setdefault(file.lfn, facts).difference(facts):
            raise PilotageError("ALREADY_EXISTS", f"file {file.lfn!a} is there twice, with different facts")
        chunk.n_lines += 1
    return chunk


def _add_some(core: Core, name: str, files: Mapping[str, Facts], pace: Pace) -> int:
    with pace.measured(len(files)):
        dataset = _open_and_locked(core, name)
        new = registration.missing(core, dataset, files)
        registration.insert(core, dataset, new)
    return len(new)


def close(core: Core, name: str) -> DatasetView:
    """Close a dataset for good; closing a closed one changes nothing."""

    def work() -> Dataset:
        dataset = find(name)
        refuse_deleted(dataset)
        if dataset.task_id is not None and dataset.state == DatasetState.OPEN.value:
            raise PilotageError(
                "WRONG_STATE", f"dataset {name} is filled by task {dataset.task_id} and closed when that ends"
            )
        _close(dataset)
        return dataset

    dataset = core.database.write(work)
    core.to_form.set()  # its last files, fewer than make a job, now do
    return view(dataset)


def refuse_deleted(dataset: Dataset) -> None:
    """WRONG_STATE."""
    if dataset.state == _DELETED:
        raise PilotageError("WRONG_STATE", f"dataset {dataset.name} was deleted")


def delete(core: Core, name: str, who: str) -> DatasetView:
    """Delete a dataset for good; WRONG_STATE while a task that has not ended reads or fills it.

    Its rows stay, so that it is still known what was made of which files; it takes no file, no task and no retry any more.
    """

    def work() -> Dataset:
        # Locked: a task that is just being registered over it, or goes on, is waited for.
        dataset = core.database.locked(Dataset.select().where(Dataset.name == name)).first() or find(name)
        if dataset.state != _DELETED:
            _refuse_used(dataset)
            mark_deleted(dataset, who, "dataset delete")
        return dataset

    return view(core.database.write(work))


def mark_deleted(dataset: Dataset, who: str, action: str, detail: str = "") -> None:
    Dataset.update(state=_DELETED, deleted=now()).where(Dataset.id == dataset.id).execute()
    trail.note(who, action, dataset.name, detail)


def reads(dataset_id: int) -> Any:
    """The condition on tasks that they read this dataset: by itself or in a container, now, earlier or later."""
    listed = TaskInput.select(TaskInput.task).where(TaskInput.dataset == dataset_id)
    return (Task.input_dataset == dataset_id) | Task.id.in_(listed)


def _refuse_used(dataset: Dataset) -> None:
    uses = reads(dataset.id) | (Task.output_dataset == dataset.id)
    using = list(Task.select(Task.name).where(uses, Task.ended.is_null()).order_by(Task.id).limit(6))
    if using:
        names = ", ".join(task.name for task in using[:5]) + (", …" if len(using) > 5 else "")
        raise PilotageError(
            "WRONG_STATE",
            f"dataset {dataset.name} is used by tasks that have not ended: {names}",
            advice="wait for them, or cancel them: pilotage task cancel TASK",
        )


def set_metadata(core: Core, name: str, wish: MetadataChange) -> DatasetView:
    """Say something of a dataset, whatever its state, unless it was deleted."""

    def work() -> Dataset:
        dataset = core.database.locked(Dataset.select().where(Dataset.name == name)).first() or find(name)
        refuse_deleted(dataset)
        metadata.change(dataset, wish)
        return dataset

    return view(core.database.write(work))


def close_output(dataset_id: int) -> None:
    """Close the output dataset of a task that has ended and whose jobs are counted: what others declared has gone with that."""
    _close(Dataset.get_by_id(dataset_id))


def _close(dataset: Dataset) -> None:
    Dataset.update(state=DatasetState.CLOSED.value, closed=now()).where(
        Dataset.id == dataset.id, Dataset.state == DatasetState.OPEN.value
    ).execute()


# -- views ------------------------------------------------------------------------------------------------------------------


def view(dataset: Dataset) -> DatasetView:
    return views([Dataset.get_by_id(dataset.id)])[0]


def views(shown: Sequence[Dataset]) -> list[DatasetView]:
    found = sizes(shown)
    said = metadata.of([dataset.id for dataset in shown])
    return [
        DatasetView(
            name=dataset.name,
            scope=dataset.scope,
            state=dataset.state,
            n_files=found[dataset.id][0],
            size=found[dataset.id][1],
            created=iso(dataset.created),
            closed=iso(dataset.closed) if dataset.closed else None,
            deleted=iso(dataset.deleted) if dataset.deleted else None,
            task_id=dataset.task_id,
            owner=dataset.owner,
            metadata=said.get(dataset.id),
        )
        for dataset in shown
    ]


def sizes(shown: Sequence[Dataset]) -> dict[int, tuple[int, int]]:
    """By id, the available files of datasets and their bytes: as counted, and of jobs that the closer has not counted yet."""
    ids = [dataset.id for dataset in shown]
    # Read together: a job is counted meanwhile, or it is not.
    kept = Dataset.select(Dataset.id, Dataset.n_files, Dataset.mebibytes, Dataset.bytes_more).where(
        Dataset.id.in_(ids)
    )
    uncounted = (
        Job.select(
            File.dataset,
            fn.COUNT(File.id),
            fn.SUM(File.size / MEBIBYTE),
            fn.SUM(File.size.bin_and(MEBIBYTE - 1)),
        )
        .join(File, on=(File.job_id == Job.id))
        .where(
            Job.task.in_([dataset.task_id for dataset in shown if dataset.task_id is not None]),
            Job.ended_at.is_null(False),
            ~Job.counted,
            File.state == "available",
            File.dataset.in_(ids),
        )
        .group_by(File.dataset)
    )
    found = dict.fromkeys(ids, (0, 0))
    for dataset_id, n_files, mebibytes, more in (kept + uncounted).tuples():
        n, size = found[dataset_id]
        found[dataset_id] = (n + int(n_files), size + int(mebibytes) * MEBIBYTE + int(more))
    return found


def datasets(cursor: Cursor, state: str = "", name: str = "", where: Sequence[str] = ()) -> Page:
    """Those that were deleted only where their state is asked for."""
    query = Dataset.select()
    if state:
        query = query.where(Dataset.state == state)
    else:
        query = query.where(Dataset.state != _DELETED)
    if name:
        query = query.where(Dataset.name.contains(name))
    for condition in where:
        query = query.where(metadata.where(condition))
    return page_of_all(query, Dataset.id, cursor, views)


def files(cursor: Cursor, dataset: str = "", scope: str = "", lfn: str = "") -> Page:
    """None of these questions takes longer because there are many files: each goes along an index, and none is counted."""
    within = find(dataset) if dataset else None
    if lfn:
        return _files_named(cursor, lfn, scope, within)
    query = _FILES.where(File.state == "available")
    if scope:
        query = query.where(File.dataset.in_([each.id for each in _datasets_of(scope, within)]))
    elif within is not None:
        query = query.where(File.dataset == within.id)
    total = sum(n for n, _ in sizes(_datasets_of(scope, within)).values()) if scope or within else _n_files()
    return page_of_all(query, File.id, cursor, _listed, total)


_FILES = File.select(File, Dataset.name, Dataset.state).join(Dataset)


def _datasets_of(scope: str, within: Dataset | None) -> list[Dataset]:
    """A file is in the scope of its dataset."""
    if within is not None:
        return [within] if scope in ("", within.scope) else []
    return list(Dataset.select().where(Dataset.scope == scope))


def _n_files() -> int:
    """All available ones, as `sizes` counts them."""
    kept = Dataset.select(fn.COALESCE(fn.SUM(Dataset.n_files), 0))
    # By job, or SQLite goes through all files to find the few.
    made = File.select(fn.COUNT(File.id)).where(File.job_id == Job.id, File.state == "available")
    uncounted = Job.select(fn.COALESCE(fn.SUM(made), 0)).where(Job.ended_at.is_null(False), ~Job.counted)
    return sum(int(n) for (n,) in kept.union_all(uncounted).tuples())


def _files_named(cursor: Cursor, lfn: str, scope: str, within: Dataset | None) -> Page:
    """A name is looked up in each scope, in the index that keeps names unique: there are far fewer scopes than files."""
    same = File.alias()
    found = same.select(same.id).where(
        same.scope == Dataset.scope, same.lfn == lfn, same.state == "available"
    )
    scopes = Dataset.select(found.alias("file_id")).distinct()
    if within is not None:
        found = found.where(same.dataset == within.id)
        scopes = Dataset.select(found.alias("file_id")).where(Dataset.id == within.id)
    if scope:
        scopes = scopes.where(Dataset.scope == scope)
    ids = sorted(file_id for (file_id,) in scopes.tuples() if file_id is not None)
    total, after = len(ids), cursor.after
    if after is not None:
        ids = [each for each in ids if (each < after if cursor.descending else each > after)]
    ids = ids[-cursor.limit - 1 :] if cursor.descending else ids[: cursor.limit + 1]
    return page_of_all(_FILES.where(File.id.in_(ids)), File.id, cursor, _listed, total)


def _listed(files: Sequence[File]) -> list[FileView]:
    return file_views(files, with_replicas=True)


def file_views(files: Sequence[File], *, with_replicas: bool = False) -> list[FileView]:
    """Of many files at once; their datasets have been read with them.

    Replicas come and go: what is shown of a job, which the archive keeps as it is, leaves them out.
    """
    of_files: dict[int, list[Replica]] = defaultdict(list)
    for replica in Replica.select().where(Replica.file.in_([file.id for file in files])):
        of_files[replica.file_id].append(replica)
    places = {file_id: replicas.in_order(found) for file_id, found in of_files.items()}
    return [
        FileView(
            lfn=file.lfn,
            scope=file.scope,
            dataset=file.dataset.name,
            size=file.size,
            checksums=json.loads(file.checksums),
            url=places[file.id][0].url if file.id in places else "",
            state=_DELETED if file.dataset.state == _DELETED else file.state,
            job_id=file.job_id,
            replicas=[replicas.view(each) for each in places.get(file.id, ())] if with_replicas else None,
        )
        for file in files
    ]
