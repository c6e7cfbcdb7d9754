"""What storages hold and the catalogue does not know, after a restore from a backup that is older than they are.

An output's physical name ends with the number of the attempt that wrote it, and the catalogue's row publishes it. A file that
no row names was written by an attempt of the lost time, or by one that failed. Nobody can say that it is whole: the checksum
that its pilot had told the server is lost. So nothing is taken over; jobs that the database shows as not done run again,
under new numbers, and are in nobody's way.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from protocol.errors import PilotageError
from protocol.files import local_path
from protocol.states import FINAL
from server.models import Attempt, Dataset, File, Job, Replica, Storage, Task
from server.paging import iso
from server.upkeep import garbage

BATCH = 500
"""Files looked up at once."""
_OUTPUT = re.compile(r"(?P<lfn>.+)\.(?P<attempt>[0-9]{1,18})", re.DOTALL)
_LOG = re.compile(r"job-(?P<job>[0-9]{1,18})\.(?P<attempt>[0-9]{1,18})\.tar\.gz")
LOGS = "log"
"""The folder of a storage with the attempts' log archives."""


@dataclass(frozen=True)
class Stray:
    """A file in a storage that no row of the catalogue names."""

    storage: str
    path: Path
    size: int
    dataset: str
    lfn: str
    attempt_id: int
    why: str
    proof: str = ""
    """What speaks for it: the log archive of its attempt says that the attempt came to its end."""
    open: bool = False
    """Its attempt may still be at work: never moved."""
    job_id: int | None = None
    rerun: bool = False
    """Its job is not done as the database sees it, and runs again."""
    removed_after: str | None = None
    """When a server that sees it removes it by itself; None for one that stays until somebody moves it."""


@dataclass
class Findings:
    """What was looked at and found; storages that this machine does not reach are named with the reason."""

    n_files: int = 0
    strays: list[Stray] = field(default_factory=list)
    not_reached: dict[str, str] = field(default_factory=dict)
    moved: int = 0

    @property
    def reruns(self) -> dict[str, list[int]]:
        """Jobs that run again although they may have been done, by the dataset that they fill."""
        found: dict[str, set[int]] = {}
        for stray in self.strays:
            if stray.rerun and stray.job_id is not None:
                found.setdefault(stray.dataset, set()).add(stray.job_id)
        return {dataset: sorted(ids) for dataset, ids in sorted(found.items())}


def look(data_root: str = "", quarantine: Path | None = None) -> Findings:
    """Look at every storage of this machine; with `quarantine`, strays of attempts that are over are moved there.

    Within `Database.reading`. Files are listed before they are looked up: whoever writes one now is known by then.
    """
    findings = Findings()
    for storage in Storage.select().order_by(Storage.name):
        try:
            root = Path(local_path(storage.url, data_root))
        except PilotageError as error:
            findings.not_reached[storage.name] = error.detail
            continue
        if not root.is_dir():
            findings.not_reached[storage.name] = f"{root} is not there"
            continue
        _look_at(storage.name, root, data_root, findings)
    if quarantine is not None:
        findings.moved = sum(_move(stray, quarantine) for stray in findings.strays if not stray.open)
    return findings


def _look_at(storage: str, root: Path, data_root: str, findings: Findings) -> None:
    logs = functools.cache(lambda: _logs(root))
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and path.name != LOGS):
        files = _outputs(folder)
        while batch := list(itertools.islice(files, BATCH)):
            findings.n_files += len(batch)
            for path, lfn, attempt_id in _unregistered(folder.name, batch, data_root):
                findings.strays.append(_stray(storage, folder.name, path, lfn, attempt_id, logs()))


def _outputs(folder: Path) -> Iterator[tuple[Path, str, int]]:
    """Files with an attempt's number at the end: path, logical name, number."""
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            found = None if name.startswith(".") else _OUTPUT.fullmatch(name)
            if found:
                path = Path(place, name)
                lfn = str(path.relative_to(folder))[: -len(found["attempt"]) - 1]
                yield path, lfn, int(found["attempt"])


def _logs(root: Path) -> dict[int, int]:
    """The job of each attempt that has left a log archive."""
    found = (_LOG.fullmatch(path.name) for path in root.glob(f"{LOGS}/task-*/job-*.tar.gz"))
    return {int(each["attempt"]): int(each["job"]) for each in found if each}


def _unregistered(
    dataset: str, batch: list[tuple[Path, str, int]], data_root: str
) -> Iterator[tuple[Path, str, int]]:
    lfns = {lfn for _, lfn, _ in batch}
    rows = (
        Replica.select(Replica.url)
        .join(File)
        .join(Dataset)
        .where(Dataset.name == dataset, File.scope == Dataset.scope, File.lfn.in_(lfns))
        .tuples()
    )
    registered = {_path(url, data_root) for (url,) in rows}
    for path, lfn, attempt_id in batch:
        if path not in registered:
            yield path, lfn, attempt_id


def _path(url: str, data_root: str) -> Path | None:
    try:
        return Path(local_path(url, data_root))
    except PilotageError:
        return None


def _stray(storage: str, dataset: str, path: Path, lfn: str, attempt_id: int, logs: dict[int, int]) -> Stray:
    attempt = Attempt.get_or_none(Attempt.id == attempt_id)
    file = File.select().join(Dataset).where(Dataset.name == dataset, File.lfn == lfn).first()
    job_id = file.job_id if file else attempt.job_id if attempt else logs.get(attempt_id)
    job = Job.get_or_none(Job.id == job_id) if job_id else None
    due = garbage.due(path, attempt_id)
    try:
        size = path.stat().st_size
    except OSError:
        size = 0  # it is gone again
    return Stray(
        storage=storage,
        path=path,
        size=size,
        dataset=dataset,
        lfn=lfn,
        attempt_id=attempt_id,
        why=_why(attempt, file, attempt_id),
        proof=f"the log of its attempt is there (job {logs[attempt_id]})" if attempt_id in logs else "",
        open=attempt is not None and attempt.ended_at is None,
        job_id=job_id,
        rerun=job is not None and job.state not in {state.value for state in FINAL},
        removed_after=None if due is None else iso(due),
    )


def _why(attempt: Attempt | None, file: File | None, attempt_id: int) -> str:
    if attempt is not None and attempt.ended_at is None:
        return f"attempt {attempt_id} has not ended"
    if attempt is not None:
        return f"attempt {attempt_id} ended as {attempt.state}" + (
            f" ({attempt.error})" if attempt.error else ""
        )
    if file is None:
        return f"neither its dataset and name nor attempt {attempt_id} are known"
    if file.state == "available":
        return f"attempt {attempt_id} is not the one whose output was registered"
    return f"attempt {attempt_id} is not known"


def _move(stray: Stray, quarantine: Path) -> bool:
    """Out of the storage, under its storage and dataset; a file that is gone or in the way stays as it is."""
    place = quarantine / stray.storage / stray.dataset / f"{stray.lfn}.{stray.attempt_id}"
    if place.exists() or not stray.path.is_file():
        return False
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(stray.path, place)
    return True


def open_tasks(datasets: list[str]) -> dict[str, str]:
    """The task that fills each of these datasets."""
    rows = Dataset.select(Dataset.name, Task.name).join(Task, on=(Task.id == Dataset.task_id))
    return dict(rows.where(Dataset.name.in_(datasets)).tuples())
