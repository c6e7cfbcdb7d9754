"""The checks of an audit that compare the catalogue with the storages of this machine.

A server that runs changes both while one looks. What seems wrong is therefore looked at a second time, after a pause and
with the database as it is then; only what is still wrong is a finding.
"""

from __future__ import annotations

import itertools
import json
import random
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Generic, NamedTuple, TypeVar

from copytools import checksum
from protocol.errors import PilotageError
from protocol.files import local_path
from server.auditing.database_checks import Progress, ranges
from server.auditing.findings import Finding, Report, finding
from server.auditing.snapshot import Row, Snapshot
from server.auditing.strangers import LOGS, Kind, Place, Strangers, files_below, others

K = TypeVar("K")

BATCH = 500
"""Files on disk that are looked up at once."""
WHOLE_FILES = 2_000
"""Outputs, up to which the bytes of all of them are read when nothing else is asked for,"""
WHOLE_BYTES = 2**30
"""if they have no more bytes than this together; of more a sample is read."""
SUSPECTS = 10_000
"""What seems wrong is kept until the second look; when there is so much of it, that look is taken at once."""


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
    all_if_few: bool = True
    """Read all where that is cheap (`WHOLE_FILES`, `WHOLE_BYTES`)."""


def addresses(snapshot: Snapshot, names: Sequence[str] = ()) -> dict[str, str]:
    """The storages of these names with their URLs, or all of them; NOT_FOUND for a name that there is not."""
    known = {row["name"]: row["url"] for row in snapshot.rows("SELECT name, url FROM storage ORDER BY name")}
    for name in names:
        if name not in known:
            raise PilotageError("NOT_FOUND", f"no storage {name[:200]}; see 'pilotage storage list'")
    return {name: known[name] for name in names or known}


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


def sampler(options: Options, about: Row) -> Callable[[], bool]:
    """Whether the next of so many files (`n`, with `size` bytes) is one whose bytes are read: spread over all of them."""
    wanted = options.checksums
    if not wanted:
        return lambda: wanted is None
    if options.all_if_few and about["n"] <= WHOLE_FILES and about["size"] <= WHOLE_BYTES:
        return lambda: True
    step = max(1, -(-about["n"] // wanted))
    numbers = itertools.count(random.randrange(step))
    return lambda: next(numbers) % step == 0


class Suspects(Generic[K]):
    """What seems wrong at the first look, each under the key by which it is looked at again."""

    def __init__(
        self, snapshot: Snapshot, pause_seconds: float, settle_some: Callable[[list[K]], object]
    ) -> None:
        """`settle_some` takes the second look at some of them, at the database as it is then."""
        self._snapshot, self._pause_seconds, self._settle_some = snapshot, pause_seconds, settle_some
        self._keys: list[K] = []

    def note(self, key: K) -> None:
        self._keys.append(key)

    def settle_if_many(self) -> None:
        if len(self._keys) >= SUSPECTS:
            self.settle()

    def settle(self) -> None:
        if not self._keys:
            return
        sleep(self._pause_seconds)
        self._snapshot.renew()
        for start in range(0, len(self._keys), BATCH):
            self._settle_some(self._keys[start : start + BATCH])
        self._keys = []


# -- one file ----------------------------------------------------------------------------------------------------------------


class Wrong(NamedTuple):
    """What is wrong with a file on a disk: the name of a check, and words that follow the name of the file."""

    check: str
    words: str
    path: str = ""


class Unseen(NamedTuple):
    """A file, or its bytes, could not be looked at: that is no fault of the file."""

    reason: str


def compare(url: str, size: int, checksums: str, data_root: str, is_read: bool) -> Wrong | Unseen | None:
    """Hold what lies at an address against size and checksums (JSON); the bytes are read only if that is wanted."""
    try:
        path = Path(local_path(url, data_root))
        state = path.lstat()
    except PilotageError as error:
        return Wrong("lost-file", f" lies nowhere: {error.detail}")
    except PermissionError:
        return Unseen(f"{path.parent}: permission denied")
    except OSError as error:
        return Wrong("lost-file", f" is not at {path}: {error.strerror or error}", str(path))
    if not stat.S_ISREG(state.st_mode):
        return Wrong("lost-file", f": what lies at {path} is no plain file", str(path))
    if state.st_size != size:
        words = f" at {path} has {state.st_size} bytes, {size} are registered"
        return Wrong("wrong-size", words, str(path))
    return _compare_bytes(path, json.loads(checksums)) if is_read else None


def _compare_bytes(path: Path, registered: dict[str, str]) -> Wrong | Unseen | None:
    known = [name for name in registered if name in checksum.available()]
    if not known:
        return Unseen(f"checksums of files that have only {', '.join(registered) or 'none'}")
    try:
        found = checksum.of(path, known)
    except PilotageError as error:
        if isinstance(error.__cause__, PermissionError):
            return Unseen(f"checksums of files in {path.parent}: permission denied")
        return Wrong("wrong-checksum", f" at {path} cannot be read: {error.detail}", str(path))
    wrong = next((name for name in known if found[name] != registered[name]), None)
    if wrong is None:
        return None
    words = f" at {path} has {wrong} {found[wrong]}, {registered[wrong]} is registered"
    return Wrong("wrong-checksum", words, str(path))


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
        self._suspects: Suspects[int] = Suspects(snapshot, options.pause_seconds, self._again)
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
        of_task = (
            "" if task is None else "AND f.dataset_id = (SELECT output_dataset_id FROM task WHERE id = :task)"
        )
        sql = f"""
            SELECT COUNT(*) AS n, COALESCE(SUM(f.size), 0) AS size FROM file f
            WHERE f.job_id IS NOT NULL AND f.state = 'available' {of_task}
        """
        return sampler(self._options, self._snapshot.one(sql, task=task) or {"n": 0, "size": 0})

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
            self._suspects.note(row["id"])

    def _again(self, ids: list[int]) -> None:
        for row in self._snapshot.rows(f"{_OUTPUTS} f.id IN :ids", ids=ids):
            found = self._wrong(row, row["id"] in self._read)
            self._read.discard(row["id"])
            if found is not None:
                self._report.add(found)

    def _wrong(self, row: Row, is_read: bool) -> Finding | None:
        came = compare(row["url"], row["size"], row["checksums"], self._options.data_root, is_read)
        if isinstance(came, Unseen):
            self._report.pass_over(came.reason)
            self._report.looked("wrong-checksum", -int(is_read))
        if not isinstance(came, Wrong):
            return None
        facts = {**row, "path": came.path or None, "words": came.words}
        return finding(came.check, "file {file} of job {job}{words}", facts)


# -- from the disk to the catalogue ---------------------------------------------------------------------------------------


class _Disk:
    """Whether each file on a storage has a row, or an attempt that may still get one."""

    def __init__(self, snapshot: Snapshot, report: Report, options: Options, places: list[Place]) -> None:
        self._snapshot, self._report, self._options, self._places = snapshot, report, options, places
        self._strangers = Strangers(snapshot, options.data_root, options.grace_seconds)
        self._suspects: Suspects[tuple[Place, Path]] = Suspects(snapshot, options.pause_seconds, self._again)

    def look(self, task: Row | None, progress: Progress) -> None:
        about = self._snapshot.one("SELECT COUNT(*) AS n FROM replica WHERE storage_id IS NOT NULL") or {
            "n": 0
        }
        with progress("files on disk", about["n"]) as advance:
            for place in self._places:
                for batch in self._batches(place, task):
                    self._report.looked("orphan", len(batch))
                    self._report.looked("garbage", len(batch))
                    self._first([(place, path) for path in batch])
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
            roots = [place.root / name for name in (task["dataset"], f"{LOGS}/task-{task['id']}") if name]
        for root in roots:
            paths = files_below(
                root,
                others(place, self._places),
                lambda directory, reason: self._report.pass_over(f"{directory}: {reason}"),
            )
            while batch := list(itertools.islice(paths, BATCH)):
                yield batch

    def _first(self, files: list[tuple[Place, Path]]) -> None:
        for key, each in self._without_row(files):
            if each.is_note:
                self._report.add(each)
            else:
                self._suspects.note(key)

    def _again(self, files: list[tuple[Place, Path]]) -> None:
        for _, each in self._without_row(files):
            self._report.add(each)

    def _without_row(self, files: list[tuple[Place, Path]]) -> Iterator[tuple[tuple[Place, Path], Finding]]:
        for each in self._strangers.among(files):
            if each.kind != Kind.OPEN:
                yield (each.place, each.path), finding(each.kind.value, each.sentence, each.facts)
