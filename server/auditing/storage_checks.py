"""The checks of an audit that compare the catalogue with the storages of this machine.

A server that runs changes both while one looks. What seems wrong is therefore looked at a second time, after a pause and
with the database as it is then; only what is still wrong is a finding.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Any

from copytools import checksum
from protocol.errors import PilotageError
from protocol.files import UNFINISHED, local_path
from protocol.states import JobState
from server.auditing.database_checks import Progress, ranges
from server.auditing.findings import Finding, Report, finding
from server.auditing.snapshot import Row, Snapshot

BATCH = 500
"""Files on disk that are looked up at once."""
SUSPECTS = 10_000
"""What seems wrong is kept until the second look; when there is so much of it, that look is taken at once."""

_OUTPUT = re.compile(r"(?P<lfn>.+)\.(?P<attempt>[0-9]{1,18})", re.DOTALL)
_LOG = re.compile(r"job-(?P<job>[0-9]{1,18})\.(?P<attempt>[0-9]{1,18})\.tar\.gz")


@dataclass(frozen=True)
class Options:
    """How thoroughly the storages are looked at."""

    checksums: int | None = 100
    """How many files are read for their checksums; None: all."""
    data_root: str = ""
    """Where relative file: addresses lie on this machine."""
    grace_seconds: float = 86_400.0
    """How long files of attempts that failed are garbage, and no orphans."""
    pause_seconds: float = 2.0
    """Between the two looks at what seems wrong."""


@dataclass(frozen=True)
class Place:
    """A storage that this machine reaches."""

    name: str
    root: Path


def look(snapshot: Snapshot, report: Report, task: Row | None, options: Options, progress: Progress) -> None:
    """Both ways: from the catalogue to the disk, and back. `task` is its row, if only one is looked at."""
    places = list(_places(snapshot, report, options, task))
    catalogue = _Catalogue(snapshot, report, options, {place.name for place in places})
    catalogue.look(task["id"] if task else None, progress)
    disk = _Disk(snapshot, report, options, places)
    disk.look(task, progress)


def _places(snapshot: Snapshot, report: Report, options: Options, task: Row | None) -> Iterator[Place]:
    """The storages of this machine; one that is missing is a finding if an output lies there, of the task if there is one."""
    theirs = (
        "SELECT replica.id FROM replica JOIN file ON file.id = replica.file_id WHERE storage_id = :storage"
    )
    of_task = {"task": task["id"]} if task else {}
    if task:
        theirs += " AND file.dataset_id = (SELECT output_dataset_id FROM task WHERE id = :task)"
    for row in list(snapshot.rows("SELECT name AS storage, url FROM storage ORDER BY name")):
        name, url = row["storage"], row["url"]
        try:
            root = Path(local_path(url, options.data_root))
        except PilotageError as error:
            report.pass_over(f"storage {name}: {error.detail}")
            continue
        report.looked("lost-storage", 1)
        if root.is_dir():
            yield Place(name, root)
        elif snapshot.one(f"{theirs} LIMIT 1", storage=name, **of_task):
            report.add(
                finding(
                    "lost-storage",
                    "storage {storage} has outputs, and there is no directory {path}",
                    {**row, "path": str(root)},
                )
            )


class _Suspects:
    """What seems wrong at the first look, each under the key by which it is looked at again."""

    def __init__(
        self,
        snapshot: Snapshot,
        report: Report,
        options: Options,
        examine: Callable[[list[Any]], Iterable[tuple[Any, Finding]]],
    ) -> None:
        self._snapshot, self._report, self._options = snapshot, report, options
        self._examine = examine
        self._keys: list[Any] = []

    def note(self, found: Iterable[tuple[Any, Finding]]) -> None:
        for key, each in found:
            if each.is_note:
                self._report.add(each)
            else:
                self._keys.append(key)

    def settle_if_many(self) -> None:
        if len(self._keys) >= SUSPECTS:
            self.settle()

    def settle(self) -> None:
        """The second look, at the database as it is now."""
        if not self._keys:
            return
        sleep(self._options.pause_seconds)
        self._snapshot.renew()
        for start in range(0, len(self._keys), BATCH):
            for _, each in self._examine(self._keys[start : start + BATCH]):
                self._report.add(each)
        self._keys = []


# -- from the catalogue to the disk ---------------------------------------------------------------------------------------

_OUTPUTS = """
    SELECT f.id, f.lfn AS file, f.job_id AS job, f.size, f.checksums, r.url, r.storage_id AS storage
    FROM file f JOIN replica r ON r.file_id = f.id
    WHERE f.job_id IS NOT NULL AND f.state = 'available' AND
"""


class _Catalogue:
    """Whether each output is where its row says, with its size and, of some, the checksums."""

    def __init__(self, snapshot: Snapshot, report: Report, options: Options, storages: set[str]) -> None:
        self._snapshot, self._report, self._options, self._storages = snapshot, report, options, storages
        self._suspects = _Suspects(snapshot, report, options, self._again)
        self._read: set[int] = set()
        """Files among the suspects whose bytes were read at the first look."""

    def look(self, task: int | None, progress: Progress) -> None:
        is_read = self._sample(task)
        for low, high, _ in ranges(self._snapshot, "file", task, progress):
            of_task = (
                ""
                if task is None
                else "AND f.dataset_id = (SELECT output_dataset_id FROM task WHERE id = :task)"
            )
            sql = f"{_OUTPUTS} f.id BETWEEN :low AND :high {of_task}"
            for row in self._snapshot.rows(sql, low=low, high=high, task=task):
                if row["storage"] in self._storages:
                    self._first(row, is_read())
            self._suspects.settle_if_many()
        self._suspects.settle()
        for name in ("lost-file", "wrong-size", "wrong-checksum"):
            self._report.looked(name, 0)

    def _sample(self, task: int | None) -> Callable[[], bool]:
        """Whether the next output is one whose bytes are read: as many as are wanted, spread over all of them."""
        wanted = self._options.checksums
        if wanted is None or wanted == 0:
            return lambda: wanted is None
        of_task = (
            "" if task is None else "AND f.dataset_id = (SELECT output_dataset_id FROM task WHERE id = :task)"
        )
        sql = (
            f"SELECT COUNT(*) AS n FROM file f WHERE f.job_id IS NOT NULL AND f.state = 'available' {of_task}"
        )
        n_files = (self._snapshot.one(sql, task=task) or {"n": 0})["n"]
        step = max(1, -(-n_files // wanted))
        numbers = itertools.count(random.randrange(step))
        return lambda: next(numbers) % step == 0

    def _first(self, row: Row, is_read: bool) -> None:
        self._report.looked("lost-file", 1)
        self._report.looked("wrong-size", 1)
        self._report.looked("wrong-checksum", int(is_read))
        if is_read:
            self._read.add(row["id"])
        found = self._wrong(row, is_read)
        if found is None:
            self._read.discard(row["id"])
        else:
            self._suspects.note([(row["id"], found)])

    def _again(self, ids: list[int]) -> Iterator[tuple[int, Finding]]:
        for row in self._snapshot.rows(f"{_OUTPUTS} f.id IN :ids", ids=ids):
            found = self._wrong(row, row["id"] in self._read)
            self._read.discard(row["id"])
            if found is not None:
                yield row["id"], found

    def _wrong(self, row: Row, is_read: bool) -> Finding | None:
        try:
            path = Path(local_path(row["url"], self._options.data_root))
            facts = {**row, "path": str(path)}
            state = path.lstat()
        except PilotageError as error:
            return finding(
                "lost-file",
                "file {file} of job {job} lies nowhere: {reason}",
                {**row, "reason": error.detail},
            )
        except PermissionError:
            self._report.pass_over(f"{path.parent}: permission denied")
            return None
        except OSError as error:
            reason = error.strerror or str(error)
            return finding(
                "lost-file",
                "file {file} of job {job} is not at {path}: {reason}",
                {**facts, "reason": reason},
            )
        if not stat.S_ISREG(state.st_mode):
            return finding(
                "lost-file", "file {file} of job {job}: what lies at {path} is no plain file", facts
            )
        if state.st_size != row["size"]:
            sentence = "file {file} of job {job} at {path} has {found} bytes, {size} are registered"
            return finding("wrong-size", sentence, {**facts, "found": state.st_size})
        return self._wrong_bytes(path, facts) if is_read else None

    def _wrong_bytes(self, path: Path, facts: Row) -> Finding | None:
        registered = json.loads(facts["checksums"])
        known = [name for name in registered if name in checksum.available()]
        if not known:
            self._report.pass_over(f"checksums of files that have only {', '.join(registered) or 'none'}")
            return None
        try:
            found = checksum.of(path, known)
        except PilotageError as error:
            if isinstance(error.__cause__, PermissionError):
                self._report.pass_over(f"checksums of files in {path.parent}: permission denied")
                return None
            sentence = "file {file} of job {job} at {path} cannot be read: {reason}"
            return finding("wrong-checksum", sentence, {**facts, "reason": error.detail})
        wrong = next((name for name in known if found[name] != registered[name]), None)
        if wrong is None:
            return None
        sentence = "file {file} of job {job} at {path} has {name} {found}, {registered} is registered"
        facts = {**facts, "name": wrong, "found": found[wrong], "registered": registered[wrong]}
        return finding("wrong-checksum", sentence, facts)


# -- from the disk to the catalogue ---------------------------------------------------------------------------------------


class _Disk:
    """Whether each file on a storage has a row, or an attempt that may still get one."""

    def __init__(self, snapshot: Snapshot, report: Report, options: Options, places: list[Place]) -> None:
        self._snapshot, self._report, self._options, self._places = snapshot, report, options, places
        self._suspects = _Suspects(snapshot, report, options, self._without_row)

    def look(self, task: Row | None, progress: Progress) -> None:
        about = self._snapshot.one("SELECT COUNT(*) AS n FROM replica WHERE storage_id IS NOT NULL") or {
            "n": 0
        }
        with progress("files on disk", about["n"]) as advance:
            for place in self._places:
                for batch in self._batches(place, task):
                    self._report.looked("orphan", len(batch))
                    self._report.looked("garbage", len(batch))
                    self._suspects.note(self._without_row([(place, path) for path in batch]))
                    advance(len(batch))
                    self._snapshot.renew_if_old()
                    self._suspects.settle_if_many()
        self._suspects.settle()
        self._report.looked("orphan", 0)
        self._report.looked("garbage", 0)

    def _batches(self, place: Place, task: Row | None) -> Iterator[list[Path]]:
        """What lies on a storage and is no directory, some at a time; of one task, what lies in its directories."""
        roots = [place.root]
        if task is not None:
            roots = [place.root / name for name in (task["dataset"], f"log/task-{task['id']}") if name]
        others = {str(each.root) for each in self._places if each != place}
        for root in roots:
            paths = _files_below(root, others, self._report)
            while batch := list(itertools.islice(paths, BATCH)):
                yield batch

    def _without_row(self, files: list[tuple[Place, Path]]) -> Iterator[tuple[tuple[Place, Path], Finding]]:
        names = {path: _Name.of(path, place) for place, path in files}
        published = self._published(names.values())
        attempts = self._attempts(names.values())
        archived = self._archived_jobs(names.values())
        past = self._archived_datasets(names.values())
        garbage = self._garbage(names.values())
        for place, path in files:
            name = names[path]
            if path in published or name.job in archived or path.name.startswith(".nfs"):
                continue  # the last is what NFS calls a file that was removed while somebody has it open
            if path.with_name(name.whole) in garbage:
                facts = {"storage": place.name, "path": str(path), "attempt": name.attempt}
                yield (place, path), finding("garbage", "{path} of attempt {attempt} is to be removed", facts)
                continue
            found = self._stranger(place, path, name, attempts.get(name.attempt), name.dataset in past)
            if found is not None:
                yield (place, path), found

    def _stranger(
        self, place: Place, path: Path, name: _Name, attempt: Row | None, is_past: bool
    ) -> Finding | None:
        """A file that is no output of the catalogue: may it be there? Attempts of the past have left the tables."""
        facts = {"storage": place.name, "path": str(path), "attempt": name.attempt or None}
        try:
            written = path.lstat().st_mtime
        except OSError:
            return None  # gone meanwhile
        is_fresh = time.time() - written < self._options.grace_seconds
        if attempt is None:
            if is_fresh and (name.is_unfinished or is_past):
                return finding("garbage", "{path} was left behind by an attempt that has ended", facts)
            return finding("orphan", "{path} belongs to no output and to no attempt", facts)
        facts["state"] = attempt["state"]
        if name.is_log:
            if attempt["job"] == name.job:
                return None
            return finding("orphan", "{path} is not where attempt {attempt} has its log", facts)
        if attempt["ended_at"] is None:
            return None
        is_fresh = is_fresh or time.time() - attempt["ended_at"] < self._options.grace_seconds
        if attempt["state"] == JobState.COMPLETED.value:
            is_garbage = is_fresh and name.is_unfinished
        else:  # what lies among its outputs is removed a while after its job has gone into the archive
            is_garbage = is_fresh or name.dataset == attempt["dataset"]
        if is_garbage:
            return finding("garbage", "{path} was left behind by attempt {attempt}, which is {state}", facts)
        return finding(
            "orphan", "{path} is no output, and attempt {attempt}, which wrote it, is {state}", facts
        )

    def _published(self, names: Iterable[_Name]) -> set[Path]:
        """Where the outputs with such names lie, by the catalogue."""
        outputs = [name for name in names if name.lfn]
        if not outputs:
            return set()
        sql = """
            SELECT r.url FROM dataset d JOIN file f ON f.scope = d.scope AND f.lfn IN :lfns JOIN replica r ON r.file_id = f.id
            WHERE d.name IN :datasets AND f.state = 'available'
        """
        lfns, datasets = ({getattr(name, part) for name in outputs} for part in ("lfn", "dataset"))
        rows = self._snapshot.rows(sql, lfns=sorted(lfns), datasets=sorted(datasets))
        return {path for row in rows if (path := self._path(row["url"]))}

    def _attempts(self, names: Iterable[_Name]) -> dict[int, Row]:
        ids = sorted({name.attempt for name in names if name.attempt})
        sql = """
            SELECT a.id, a.job_id AS job, a.state, a.ended_at, d.name AS dataset
            FROM attempt a LEFT JOIN job j ON j.id = a.job_id LEFT JOIN task t ON t.id = j.task_id
                LEFT JOIN dataset d ON d.id = t.output_dataset_id
            WHERE a.id IN :ids
        """
        return {row["id"]: row for row in self._snapshot.rows(sql, ids=ids)} if ids else {}

    def _archived_jobs(self, names: Iterable[_Name]) -> set[int]:
        """Jobs whose attempts are not in the tables any more; their logs stay."""
        ids = sorted({name.job for name in names if name.job})
        sql = "SELECT x.id FROM archived_job x WHERE x.id IN :ids"
        return {row["id"] for row in self._snapshot.rows(sql, ids=ids)} if ids else set()

    def _archived_datasets(self, names: Iterable[_Name]) -> set[str]:
        """Output datasets of tasks whose jobs, or some of them, are in the archive."""
        datasets = sorted({name.dataset for name in names if name.dataset})
        sql = """
            SELECT d.name FROM dataset d WHERE d.name IN :datasets
            AND EXISTS (SELECT 1 FROM archived_job x WHERE x.task_id = d.task_id)
        """
        return {row["name"] for row in self._snapshot.rows(sql, datasets=datasets)} if datasets else set()

    def _garbage(self, names: Iterable[_Name]) -> set[Path]:
        """What attempts of archived jobs may have left behind, and is to be removed."""
        ids = sorted({name.attempt for name in names if name.attempt})
        rows = self._snapshot.rows("SELECT g.url FROM garbage g WHERE g.attempt_id IN :ids", ids=ids)
        return {path for row in rows if (path := self._path(row["url"]))} if ids else set()

    def _path(self, url: str) -> Path | None:
        try:
            return Path(local_path(url, self._options.data_root))
        except PilotageError:
            return None


@dataclass(frozen=True)
class _Name:
    """What the name of a file on a storage says of it; 0 and "" where it says nothing."""

    dataset: str = ""
    lfn: str = ""
    attempt: int = 0
    job: int = 0
    is_log: bool = False
    is_unfinished: bool = False
    whole: str = ""
    """The file's name, or that which it was to have when it is whole."""

    @staticmethod
    def of(path: Path, place: Place) -> _Name:
        *folders, name = path.relative_to(place.root).parts
        unfinished = UNFINISHED.fullmatch(name)
        if unfinished:
            name = unfinished["name"]
        log = _LOG.fullmatch(name) if len(folders) == 2 and folders[0] == "log" else None
        output = _OUTPUT.fullmatch(name) if len(folders) == 1 else None
        if log:
            return _Name(
                attempt=int(log["attempt"]),
                job=int(log["job"]),
                is_log=not unfinished,
                is_unfinished=bool(unfinished),
                whole=name,
            )
        if output:
            lfn = "" if unfinished else output["lfn"]
            attempt = int(output["attempt"])
            return _Name(folders[0], lfn, attempt, is_unfinished=bool(unfinished), whole=name)
        return _Name(is_unfinished=bool(unfinished), whole=name)


def _files_below(root: Path, others: set[str], report: Report) -> Iterator[Path]:
    """Everything in a directory tree that is no directory, in the order in which it is met; not within `others`."""
    open_ones = []
    try:
        open_ones.extend(_open(str(root), report))
        while open_ones:
            entry = next(open_ones[-1], None)
            if entry is None:
                open_ones.pop().close()
            elif not entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)
            elif entry.path not in others:
                open_ones.extend(_open(entry.path, report))
    finally:
        for each in open_ones:
            each.close()


def _open(directory: str, report: Report) -> list[Any]:
    """What lists a directory; none if it is gone or may not be read, which is said."""
    try:
        return [os.scandir(directory)]
    except FileNotFoundError:
        return []
    except OSError as error:
        report.pass_over(f"{directory}: {error.strerror}")
        return []
