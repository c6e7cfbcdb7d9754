"""Outputs that are not wanted any more: they leave the catalogue, and the sweeper removes their files from the storages.

A dataset whose outputs are cleaned away is deleted: its name, and the names of its files, are remembered and stay taken, so
that what was made of it can still be told. Files that users registered are theirs, and never touched.
"""

from __future__ import annotations

import functools
import time
from typing import Any

from protocol.errors import PilotageError
from protocol.messages.views import DatasetCleaned
from protocol.states import DatasetState
from server import catalogue
from server.core import Core
from server.jobs.places import attempt_of, is_on_disk
from server.models import Dataset, File, Garbage, Replica, Storage, Task, now
from server.pace import Pace
from server.registration import MEBIBYTE

ANSWER_SECONDS = 5.0
"""After this the answer is due: whoever wants the rest gone asks again."""
GONE = "deleted"
"""The state of a file that was cleaned away."""


def clean(core: Core, name: str, caller: str, *, dry: bool) -> DatasetCleaned:
    """Take the outputs of a dataset away, for some seconds; what is left then is in the answer. `dry`: only tell what would go.

    Where that may not be, the answer says why, and nothing is changed.
    """
    with core.database.reading():
        dataset = catalogue.find(name)
        n_files, size = catalogue.sizes([dataset])[dataset.id]
        why_not = _why_not(dataset)
        is_something = _available(dataset.id).exists()
    if dry or why_not or not is_something:
        return DatasetCleaned(name, n_files, size, n_files if is_something else 0, why_not)
    core.database.write(functools.partial(_delete, core, name, caller, n_files))
    deadline, pace = time.monotonic() + ANSWER_SECONDS, Pace(seconds=core.database.bulk_seconds)
    while core.database.write(functools.partial(_remove_some, core, dataset.id, pace)):
        if time.monotonic() > deadline:
            break
    with core.database.reading():
        n_left = _available(dataset.id).count()
    return DatasetCleaned(name, n_files, size, n_left)


def _available(dataset_id: int) -> Any:
    """The files that are still to go. They are looked at themselves: the count in the dataset's row may be another one."""
    return File.select(File.id, File.size).where(File.dataset == dataset_id, File.state == "available")


def _why_not(dataset: Dataset) -> str:
    """Why its files may not go, in words, or ""."""
    if dataset.task_id is None:
        return "its files were registered by a user: they are not this system's to remove"
    if dataset.state == DatasetState.OPEN.value:
        return f"task {dataset.task_id} still fills it"
    reader = Task.select().where(catalogue.reads(dataset.id), Task.ended.is_null()).first()
    if reader is not None:
        return f"task {reader.name}, which has not ended, reads it"
    for storage in Storage.select():
        mine = Replica.select().join(File).where(Replica.storage == storage.name, File.dataset == dataset.id)
        if not is_on_disk(storage.url) and mine.exists():
            return f"files of it lie on storage {storage.name} ({storage.url}), where the server cannot remove any"
    return ""


def _delete(core: Core, name: str, caller: str, n_files: int) -> None:
    dataset = core.database.locked(Dataset.select().where(Dataset.name == name)).get()
    if why_not := _why_not(dataset):
        raise PilotageError("WRONG_STATE", f"dataset {name}: {why_not}")
    if dataset.state != DatasetState.DELETED.value:
        catalogue.mark_deleted(dataset, caller, "storage clean", f"{n_files} files")


def _remove_some(core: Core, dataset_id: int, pace: Pace) -> int:
    """The next files go out of the catalogue, and what the sweeper is to remove is noted; how many."""
    with pace.measured(pace.rows):
        # Locked: of two requests at once each takes other files, and none is counted twice.
        core.database.locked(Dataset.select().where(Dataset.id == dataset_id)).get()
        sizes = dict(_available(dataset_id).order_by(File.id).limit(pace.rows).tuples())
        if not sizes:
            return 0
        of_these = Replica.file.in_(list(sizes))
        outputs = Replica.select(Replica.url).where(of_these, Replica.storage.is_null(False))
        left = [(attempt_of(url), url) for (url,) in outputs.tuples()]
        rows = [
            {"attempt_id": attempt_id, "url": url, "due": now()} for attempt_id, url in left if attempt_id
        ]
        if rows:
            Garbage.insert_many(rows).execute()
        Replica.delete().where(of_these).execute()
        File.update(state=GONE).where(File.id.in_(list(sizes)), File.state == "available").execute()
        Dataset.update(
            n_files=Dataset.n_files - len(sizes),
            mebibytes=Dataset.mebibytes - sum(size // MEBIBYTE for size in sizes.values()),
            bytes_more=Dataset.bytes_more - sum(size % MEBIBYTE for size in sizes.values()),
        ).where(Dataset.id == dataset_id).execute()
    return len(sizes)
