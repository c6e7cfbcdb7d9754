"""What storages hold and the catalogue does not know, after a restore from a backup that is older than they are.

An output's physical name ends with the number of the attempt that wrote it, and the catalogue's row publishes it. A file that
no row names was written by an attempt of the lost time, or by one that failed. Nobody can say that it is whole: the checksum
that its pilot had told the server is lost. So nothing is taken over; jobs that the database shows as not done run again,
under new numbers, and are in nobody's way. Which files these are is what the audit says too (`auditing.strangers`).
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from protocol.errors import PilotageError
from protocol.files import local_path
from protocol.states import FINAL
from server.auditing.snapshot import Snapshot
from server.auditing.strangers import LOG, LOGS, Kind, Place, Stranger, Strangers, files_below, others
from server.models import Attempt, Dataset, File, Job, Storage, Task
from server.paging import iso
from server.upkeep import garbage

BATCH = 500
"""Files looked up at once."""


@dataclass(frozen=True)
class Stray:
    """A file in a storage that no row of the catalogue names."""

    storage: str
    path: Path
    place: Path
    """Where it lies below the storage's directory."""
    size: int
    dataset: str
    lfn: str
    attempt_id: int | None
    """None if its name is none that an attempt gives."""
    why: str
    proof: str = ""
    """What speaks for it: the log archive of its attempt says that the attempt came to its end."""
    open: bool = False
    """Its attempt may still be at work: never moved."""
    kind: Kind = Kind.ORPHAN
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
    """Storages, and directories in them, that were not looked at, with the reason."""
    moved: int = 0
    not_moved: dict[str, str] = field(default_factory=dict)
    """Files that stay although they should have gone, with the reason."""

    def pass_over(self, what: str, why: str | None) -> None:
        self.not_reached[what] = why or "it cannot be read"

    @property
    def reruns(self) -> dict[str, list[int]]:
        """Jobs that run again although they may have been done, by the dataset that they fill."""
        found: dict[str, set[int]] = {}
        for stray in self.strays:
            if stray.rerun and stray.dataset and stray.job_id is not None:
                found.setdefault(stray.dataset, set()).add(stray.job_id)
        return {dataset: sorted(ids) for dataset, ids in sorted(found.items())}


def look(
    url: str,
    data_root: str = "",
    quarantine: Path | None = None,
    *,
    storages: Collection[str] | None = None,
    grace_seconds: float = 0.0,
    advance: Callable[[int], None] = lambda more: None,
) -> Findings:
    """Look at every storage of this machine, or at some; with `quarantine`, strays of attempts that are over are moved there.

    `url` is that of the database; within `Database.reading`. BAD_PATH for a quarantine that is in a storage itself. So
    many seconds what attempts left is garbage that the server removes; `advance` is told of files that were looked at.
    """
    findings = Findings()
    places = _places(data_root, findings)
    if quarantine is not None:
        _refuse_within(quarantine, places)
    with Snapshot(url) as snapshot:
        strangers = Strangers(snapshot, data_root, grace_seconds)
        for place in places:
            if storages is not None and place.name not in storages:
                continue
            logs = functools.cache(functools.partial(_logs, place.root))
            files = files_below(place.root, others(place, places), findings.pass_over)
            while batch := list(itertools.islice(files, BATCH)):
                findings.n_files += len(batch)
                advance(len(batch))
                snapshot.renew()  # listed before they are looked up: whoever writes one now is known by then
                for each in strangers.among([(place, path) for path in batch]):
                    findings.strays.append(_stray(each, logs()))
        findings.strays.sort(key=lambda stray: (stray.storage, stray.path))
        if quarantine is not None:
            for place in places:
                mine = [each for each in findings.strays if each.storage == place.name and not each.open]
                for start in range(0, len(mine), BATCH):
                    snapshot.renew()  # the walk may have taken hours: who has published one meanwhile is known by now
                    some = {stray.path: stray for stray in mine[start : start + BATCH]}
                    for each in strangers.among([(place, path) for path in some]):
                        if each.kind is not Kind.OPEN:
                            _move(some[each.path], quarantine, grace_seconds, findings)
    return findings


def _places(data_root: str, findings: Findings) -> list[Place]:
    places = []
    for storage in Storage.select().order_by(Storage.name):
        try:
            root = Path(local_path(storage.url, data_root))
        except PilotageError as error:
            findings.pass_over(storage.name, error.detail)
            continue
        if root.is_dir():
            places.append(Place(storage.name, root))
        else:
            findings.pass_over(storage.name, f"{root} is not there")
    return places


def _refuse_within(quarantine: Path, places: list[Place]) -> None:
    for place in places:
        if quarantine.resolve().is_relative_to(place.root.resolve()):
            raise PilotageError(
                "BAD_PATH",
                f"{quarantine} is within storage {place.name} ({place.root}), where its files would be strays again;"
                " name a directory elsewhere",
            )


def _logs(root: Path) -> dict[int, int]:
    """The job of each attempt that has left a log archive."""
    found = (LOG.fullmatch(path.name) for path in root.glob(f"{LOGS}/task-*/job-*.tar.gz"))
    return {int(each["attempt"]): int(each["job"]) for each in found if each}


def _stray(stranger: Stranger, logs: dict[int, int]) -> Stray:
    name, path = stranger.name, stranger.path
    attempt = Attempt.get_or_none(Attempt.id == name.attempt) if name.attempt else None
    file = None
    if name.lfn:
        file = File.select().join(Dataset).where(Dataset.name == name.dataset, File.lfn == name.lfn).first()
    known = file.job_id if file else attempt.job_id if attempt else None
    job_id = known or name.job or logs.get(name.attempt)
    job = Job.get_or_none(Job.id == job_id) if job_id else None
    due = garbage.due(path, name.attempt) if name.attempt else None
    has_log = name.attempt in logs and not name.is_log
    try:
        size = path.lstat().st_size
    except OSError:
        size = 0  # it is gone again
    return Stray(
        storage=stranger.place.name,
        path=path,
        place=path.relative_to(stranger.place.root),
        size=size,
        dataset=name.dataset,
        lfn=name.lfn,
        attempt_id=name.attempt or None,
        why=_why(stranger, attempt, file),
        proof=f"the log of its attempt is there (job {logs[name.attempt]})" if has_log else "",
        open=stranger.kind is Kind.OPEN,
        kind=stranger.kind,
        job_id=job_id,
        rerun=job is not None and job.state not in {state.value for state in FINAL},
        removed_after=None if due is None else iso(due),
    )


def _why(stranger: Stranger, attempt: Attempt | None, file: File | None) -> str:
    name = stranger.name
    if not name.attempt:
        return "no attempt gives a file such a name in such a place"
    if stranger.kind is Kind.OPEN:
        return f"attempt {name.attempt} has not ended"
    if attempt is not None and name.is_log and attempt.job_id != name.job:
        return f"attempt {name.attempt} is one of job {attempt.job_id}"
    if attempt is not None:
        error = f" ({attempt.error})" if attempt.error else ""
        return f"attempt {name.attempt} ended as {attempt.state}{error}"
    if file is None and name.lfn:
        return f"neither its dataset and name nor attempt {name.attempt} are known"
    if file is not None and file.state == "available":
        return f"attempt {name.attempt} is not the one whose output was registered"
    return f"attempt {name.attempt} is not known"


def _move(stray: Stray, quarantine: Path, grace_seconds: float, findings: Findings) -> None:
    """Out of the storage, to the same place below the storage's name; one that is gone, fresh or in the way stays as it is."""
    place = quarantine / stray.storage / stray.place
    try:
        if time.time() - stray.path.lstat().st_mtime < grace_seconds:
            if stray.kind is Kind.ORPHAN:  # of garbage nobody expects anything before that time
                findings.not_moved[str(stray.path)] = "it was changed within the grace time"
            return
        if os.path.lexists(place):
            raise FileExistsError(errno.EEXIST, f"{place} is there already")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(stray.path, place)
        findings.moved += 1
    except FileNotFoundError:
        pass  # gone meanwhile
    except OSError as error:
        findings.not_moved[str(stray.path)] = error.strerror or str(error)


def open_tasks(datasets: list[str]) -> dict[str, str]:
    """The task that fills each of these datasets."""
    rows = Dataset.select(Dataset.name, Task.name).join(Task, on=(Task.id == Dataset.task_id))
    return dict(rows.where(Dataset.name.in_(datasets)).tuples())
