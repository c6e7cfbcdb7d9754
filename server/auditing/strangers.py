"""The one definition of what does not belong on a storage: by it `pilotage audit` finds and `pilotage db reconcile` moves.

A file belongs if it is an output of the catalogue, the log of an attempt, or a file that a user registered by its address.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import quote

from protocol.errors import PilotageError
from protocol.files import UNFINISHED, local_path
from protocol.states import JobState
from server.auditing.snapshot import Row, Snapshot

LOGS = "log"
"""The folder of a storage with the attempts' log archives."""
_TASK = re.compile("task-[0-9]{1,18}")
LOG = re.compile(r"job-(?P<job>[0-9]{1,18})\.(?P<attempt>[0-9]{1,18})\.tar\.gz")
_OUTPUT = re.compile(r"(?P<lfn>.+)\.(?P<attempt>[0-9]{1,18})", re.DOTALL)


@dataclass(frozen=True)
class Place:
    """A storage that this machine reaches."""

    name: str
    root: Path


class Kind(Enum):
    """Why a file is a stranger; the last two are names of checks."""

    OPEN = "open"
    """The attempt that writes it lives, and may publish it."""
    GARBAGE = "garbage"
    ORPHAN = "orphan"


@dataclass(frozen=True)
class Name:
    """What the name of a file on a storage says of it; 0 and "" where it says nothing."""

    dataset: str = ""
    lfn: str = ""
    attempt: int = 0
    job: int = 0
    folder: str = ""
    """Of a log: task-N."""
    is_log: bool = False
    is_unfinished: bool = False
    whole: str = ""
    """The file's name, or that which it was to have when it is whole."""

    @staticmethod
    def of(path: Path, place: Place) -> Name:
        *folders, name = path.relative_to(place.root).parts
        unfinished = UNFINISHED.fullmatch(name)
        if unfinished:
            name = unfinished["name"]
        log = LOG.fullmatch(name) if len(folders) == 2 and folders[0] == LOGS else None
        output = _OUTPUT.fullmatch(name) if len(folders) == 1 else None
        if log:
            return Name(
                attempt=int(log["attempt"]),
                job=int(log["job"]),
                folder=folders[1],
                is_log=not unfinished,
                is_unfinished=bool(unfinished),
                whole=name,
            )
        if output and _is_text(path):
            lfn = "" if unfinished else output["lfn"]
            attempt = int(output["attempt"])
            return Name(folders[0], lfn, attempt, is_unfinished=bool(unfinished), whole=name)
        return Name(is_unfinished=bool(unfinished), whole=name)


@dataclass(frozen=True)
class Stranger:
    """A file on a storage that does not belong there, or not yet; `sentence` is a template over `facts`."""

    place: Place
    path: Path
    name: Name
    kind: Kind
    sentence: str
    facts: dict[str, Any]


class Strangers:
    """Tells the files on storages that do not belong there, by the database at the moment of a snapshot."""

    def __init__(self, snapshot: Snapshot, data_root: str, grace_seconds: float) -> None:
        """`grace_seconds`: how long files of attempts that failed are garbage, and no orphans."""
        self._snapshot, self._data_root, self._grace_seconds = snapshot, data_root, grace_seconds

    def among(self, files: Sequence[tuple[Place, Path]]) -> Iterator[Stranger]:
        names = {path: Name.of(path, place) for place, path in files}
        published = self._published(names.values())
        attempts = self._attempts(names.values())
        archived = self._archived_jobs(names.values())
        past = self._archived_datasets(names.values())
        pruned = self._pruned(names.values())
        garbage = self._garbage(names.values())
        found = []
        for place, path in files:
            name = names[path]
            if (
                path in published
                or name.job in archived
                or name.folder in pruned
                or path.name.startswith(".nfs")
            ):
                continue  # the last is what NFS calls a file that was removed while somebody has it open
            if path.with_name(name.whole) in garbage:
                facts = {"storage": place.name, "path": str(path), "attempt": name.attempt}
                sentence = "{path} of attempt {attempt} is to be removed"
                found.append(Stranger(place, path, name, Kind.GARBAGE, sentence, facts))
            elif stranger := self._judge(place, path, name, attempts.get(name.attempt), name.dataset in past):
                found.append(stranger)
        registered = self._registered([each.path for each in found])
        yield from (each for each in found if each.path not in registered)

    def _judge(
        self, place: Place, path: Path, name: Name, attempt: Row | None, is_past: bool
    ) -> Stranger | None:
        """A file that is no output of the catalogue: may it be there? Attempts of the past have left the tables."""
        facts = {"storage": place.name, "path": str(path), "attempt": name.attempt or None}

        def told(kind: Kind, sentence: str) -> Stranger:
            return Stranger(place, path, name, kind, sentence, facts)

        try:
            written = path.lstat().st_mtime
        except OSError:
            return None  # gone meanwhile
        is_fresh = time.time() - written < self._grace_seconds
        if attempt is None:
            if is_fresh and (name.is_unfinished or is_past):
                return told(Kind.GARBAGE, "{path} was left behind by an attempt that has ended")
            return told(Kind.ORPHAN, "{path} belongs to no output and to no attempt")
        facts["state"] = attempt["state"]
        if name.is_log:
            if attempt["job"] == name.job:
                return None
            return told(Kind.ORPHAN, "{path} is not where attempt {attempt} has its log")
        if attempt["ended_at"] is None:
            return told(Kind.OPEN, "attempt {attempt} is {state}, and may publish {path}")
        is_fresh = is_fresh or time.time() - attempt["ended_at"] < self._grace_seconds
        if attempt["state"] == JobState.COMPLETED.value:
            is_garbage = is_fresh and name.is_unfinished
        else:  # what lies among its outputs is removed a while after its job has gone into the archive
            is_garbage = is_fresh or name.dataset == attempt["dataset"]
        if is_garbage:
            return told(Kind.GARBAGE, "{path} was left behind by attempt {attempt}, which is {state}")
        return told(Kind.ORPHAN, "{path} is no output, and attempt {attempt}, which wrote it, is {state}")

    def _published(self, names: Iterable[Name]) -> set[Path]:
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

    def _attempts(self, names: Iterable[Name]) -> dict[int, Row]:
        ids = sorted({name.attempt for name in names if name.attempt})
        sql = """
            SELECT a.id, a.job_id AS job, a.state, a.ended_at, d.name AS dataset
            FROM attempt a LEFT JOIN job j ON j.id = a.job_id LEFT JOIN task t ON t.id = j.task_id
                LEFT JOIN dataset d
                    ON d.id = CASE WHEN t.target_storage IS NULL THEN t.output_dataset_id ELSE t.input_dataset_id END
            WHERE a.id IN :ids
        """
        return {row["id"]: row for row in self._snapshot.rows(sql, ids=ids)} if ids else {}

    def _archived_jobs(self, names: Iterable[Name]) -> set[int]:
        """Jobs whose attempts are not in the tables any more; their logs stay."""
        ids = sorted({name.job for name in names if name.job})
        sql = "SELECT x.id FROM archived_job x WHERE x.id IN :ids"
        return {row["id"] for row in self._snapshot.rows(sql, ids=ids)} if ids else set()

    def _archived_datasets(self, names: Iterable[Name]) -> set[str]:
        """Output datasets of tasks whose jobs, or some of them, are in the archive."""
        datasets = sorted({name.dataset for name in names if name.dataset})
        sql = """
            SELECT d.name FROM dataset d WHERE d.name IN :datasets
            AND (EXISTS (SELECT 1 FROM archived_job x WHERE x.task_id = d.task_id)
                OR EXISTS (SELECT 1 FROM task t WHERE t.id = d.task_id AND t.pruned))
        """
        return {row["name"] for row in self._snapshot.rows(sql, datasets=datasets)} if datasets else set()

    def _pruned(self, names: Iterable[Name]) -> set[str]:
        """Folders of the logs of tasks whose jobs have left the archive as well; the logs stay."""
        ids = sorted({int(name.folder.partition("-")[2]) for name in names if _TASK.fullmatch(name.folder)})
        sql = "SELECT t.id FROM task t WHERE t.id IN :ids AND t.pruned"
        return {f"task-{row['id']}" for row in self._snapshot.rows(sql, ids=ids)} if ids else set()

    def _garbage(self, names: Iterable[Name]) -> set[Path]:
        """What attempts of archived jobs may have left behind, and is to be removed."""
        ids = sorted({name.attempt for name in names if name.attempt})
        rows = self._snapshot.rows("SELECT g.url FROM garbage g WHERE g.attempt_id IN :ids", ids=ids)
        return {path for row in rows if (path := self._path(row["url"]))} if ids else set()

    def _registered(self, paths: Sequence[Path]) -> set[Path]:
        """Which of these users have registered by their addresses, in whatever spelling. It reads all addresses: only for few."""
        urls = {url for path in paths for url in self._spellings(path)}
        sql = "SELECT r.url FROM replica r WHERE r.storage_id IS NULL AND r.url IN :urls"
        rows = self._snapshot.rows(sql, urls=sorted(urls)) if urls else ()
        return {path for row in rows if (path := self._path(row["url"]))}

    def _spellings(self, path: Path) -> Iterator[str]:
        names = [quote(os.fsencode(path)), *([str(path)] if _is_text(path) else [])]
        for name in names:
            yield from (f"file://{name}", f"file://localhost{name}", f"file:{name}")
        if self._data_root and path.is_relative_to(self._data_root):
            below = path.relative_to(self._data_root)
            yield f"file:{quote(os.fsencode(below))}"
            if _is_text(below):
                yield f"file:{below}"

    def _path(self, url: str) -> Path | None:
        try:
            return Path(local_path(url, self._data_root))
        except PilotageError:
            return None


def _is_text(path: Path) -> bool:
    """A name of other bytes is in no row, and cannot be asked for."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def others(place: Place, places: Iterable[Place]) -> set[str]:
    """The directories of the other storages: what lies there is theirs."""
    return {str(each.root) for each in places if each != place}


def files_below(
    root: Path, without: set[str], pass_over: Callable[[str, str | None], None]
) -> Iterator[Path]:
    """Everything in a directory tree that is no directory, in the order in which it is met; not within `without`."""
    open_ones = []
    try:
        open_ones.extend(_open(str(root), pass_over))
        while open_ones:
            entry = next(open_ones[-1], None)
            if entry is None:
                open_ones.pop().close()
            elif not entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)
            elif entry.path not in without:
                open_ones.extend(_open(entry.path, pass_over))
    finally:
        for each in open_ones:
            each.close()


def _open(directory: str, pass_over: Callable[[str, str | None], None]) -> list[Any]:
    """What lists a directory; none if it is gone or may not be read, which is said."""
    try:
        return [os.scandir(directory)]
    except FileNotFoundError:
        return []
    except OSError as error:
        pass_over(directory, error.strerror)
        return []
