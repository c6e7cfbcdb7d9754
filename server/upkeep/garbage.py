"""Files that attempts left on the storages and that nothing publishes: noted when a job goes into the archive, removed later.

A pilot may be thought lost and still write, so that nobody knows which files there are: what is noted is every name that an
attempt might have written. Only its own attempt ever writes such a name, and an attempt that has ended publishes nothing.

After a restore that holds only for attempts handed out since: an older one is lost here, and may have completed there, in the
installation that the backup was taken of and that works on the same storages. So files of older attempts are nobody's to remove.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from protocol.errors import PilotageError
from protocol.files import UNFINISHED, local_path
from protocol.states import JobState
from server.core import Core
from server.database import Chain, Part, Rows
from server.jobs.places import is_on_disk, physical_name
from server.models import Attempt, Counter, Garbage, Job, Storage, Task, now
from server.specs import outputs_of

logger = logging.getLogger(__name__)

PASS_SECONDS = 0.2
"""After this a pass begins no further directory."""
CHUNK = 500
"""Files looked for at once."""
FOREIGN_ATTEMPT = "foreign_attempt"
"""The counter with the last number that may have been an attempt's before a restore."""
LATER_SECONDS = 3600.0
"""When a file is looked for again that could not be reached."""

Left = tuple[int, str]
"""An attempt, and the URL of a file that it may have written."""

_NOTE = Chain(
    Rows("files", {"attempt_id": "bigint", "url": "text"}),
    Part(
        "noted",
        """INSERT INTO garbage (attempt_id, url, due)
           SELECT attempt_id, url, CAST(:due AS double precision) FROM files
           RETURNING id""",
        {},
    ),
    result="noted",
    bulk=True,
)

_PUBLISHED = Chain(
    Rows("these", {"dataset": "text", "lfn": "text", "attempt_id": "text"}),
    Part(
        "published",
        """SELECT replica.url FROM these JOIN dataset ON dataset.name = these.dataset
               JOIN file ON file.scope = dataset.scope AND file.lfn = these.lfn JOIN replica ON replica.file_id = file.id
           UNION ALL
           SELECT url FROM replica WHERE storage_id IS NULL AND url <> rtrim(url, '0123456789')
               AND substr(url, length(rtrim(url, '0123456789')) + 1, 20) IN (SELECT attempt_id FROM these)""",
        {"url": "text"},
    ),
    result="published",
    bulk=True,
)
"""Where outputs of these names lie, and files that users registered with these numbers at the end of their address."""


# -- noting -----------------------------------------------------------------------------------------------------------------


def left_by(task_id: int, jobs: Sequence[Job]) -> list[Left]:
    """What attempts of these jobs of a task, which have all ended, may have written in vain."""
    attempts = (
        Attempt.select(Attempt.id, Attempt.job, Storage.url)
        .join(Storage)
        .where(Attempt.job.in_([job.id for job in jobs]), Attempt.state != JobState.COMPLETED.value)
    )
    tries = list(attempts.order_by(Attempt.id).tuples())
    if not tries:
        return []
    task = Task.get_by_id(task_id)
    of_those = {job_id for _, job_id, _ in tries}
    names = outputs_of(task, [job for job in jobs if job.id in of_those])
    if task.target_storage:  # theirs, and not the queue's
        target = Storage.get_by_id(task.target_storage).url
        tries = [(attempt_id, job_id, target) for attempt_id, job_id, _ in tries]
    dataset = task.input_dataset if task.target_storage else task.output_dataset
    return [
        (attempt_id, physical_name(url, dataset.name, lfn, attempt_id))
        for attempt_id, job_id, url in tries
        for lfn in names[job_id]
    ]


def note(core: Core, files: Sequence[Left]) -> None:
    """These may be removed when the grace time is over; inside `Database.write`, with the end of their attempts' rows.

    Only those that lie on a disk, and everywhere at the same place: nobody here could remove others.
    """
    on_disk = [(attempt_id, url) for attempt_id, url in files if is_on_disk(url)]
    if on_disk:
        core.database.run(_NOTE, files=on_disk, due=now() + core.limits.garbage_seconds)


def due(path: Path, attempt_id: int) -> float | None:
    """When this file may be removed, in seconds since 1970; None for one that is left alone. Within `Database.reading`."""
    if attempt_id <= _last_foreign_attempt():
        return None
    rows = Garbage.select().where(Garbage.attempt_id == attempt_id)
    return next((row.due for row in rows if _place(row) == path), None)


# -- removing ---------------------------------------------------------------------------------------------------------------


@dataclass
class _Swept:
    """Rows of files that are not there any more, are published or not ours, rows to look at again, and how many files were removed."""

    done: list[int] = field(default_factory=list)
    later: list[int] = field(default_factory=list)
    n_files: int = 0


def run_once(core: Core, seconds: float = PASS_SECONDS) -> int:
    """One pass over what is due; how many files were removed. A directory that was begun is brought to its end.

    A row goes after its file: whoever is killed in between finds no file the next time.
    """
    deadline = time.monotonic() + seconds
    removed, more = 0, True
    while more and time.monotonic() < deadline:
        with core.database.reading():
            due = Garbage.select().where(Garbage.due <= now())
            rows = list(due.order_by(Garbage.due).limit(CHUNK))
            foreign = _last_foreign_attempt()
            ours = [row for row in rows if row.attempt_id > foreign]
            published = _published(core, ours)
        swept = _sweep(ours, published, deadline)
        swept.done += [row.id for row in rows if row.attempt_id <= foreign]
        if swept.done or swept.later:
            core.database.write(functools.partial(_settle, swept))
        removed, more = removed + swept.n_files, len(rows) == CHUNK
    if removed:
        logger.info("removed what attempts had left on storages", extra={"files": removed})
    return removed


def _last_foreign_attempt() -> int:
    row = Counter.get_or_none(Counter.name == FOREIGN_ATTEMPT)
    return row.value if row else 0


def _settle(swept: _Swept) -> None:
    Garbage.delete().where(Garbage.id.in_(swept.done)).execute()
    Garbage.update(due=now() + LATER_SECONDS).where(Garbage.id.in_(swept.later)).execute()


def _place(row: Garbage) -> Path | None:
    """Where the file lies; None if that is not on a disk, or no attempt's name."""
    path = _path(row.url)
    return path if path is not None and path.name.endswith(f".{row.attempt_id}") else None


def _path(url: str) -> Path | None:
    try:
        return Path(local_path(url))
    except PilotageError:
        return None


def _published(core: Core, rows: Sequence[Garbage]) -> set[tuple[str, str]]:
    """Which of these somebody relies on, by directory and name: a storage may be known by several paths."""
    these = [
        (path.parent.name, path.name.removesuffix(f".{row.attempt_id}"), str(row.attempt_id))
        for row in rows
        if (path := _place(row))
    ]
    found = set()
    for (url,) in core.database.run(_PUBLISHED, these=these) if these else ():
        place = _place_of(url)
        found.add((place.parent.name, place.name))
    return found


def _place_of(url: str) -> PurePosixPath:
    """The path in a URL of whatever scheme: other protocols may lead to the same disk."""
    with contextlib.suppress(PilotageError):
        return local_path(url, "/")
    with contextlib.suppress(ValueError):
        return PurePosixPath(unquote(urlsplit(url).path))
    return PurePosixPath(url)


def _sweep(rows: Sequence[Garbage], published: Collection[tuple[str, str]], deadline: float) -> _Swept:
    swept = _Swept()
    directories: dict[Path, dict[str, int]] = defaultdict(dict)
    for row in rows:
        path = _place(row)
        if path is None:
            swept.later.append(row.id)
        elif (path.parent.name, path.name) in published:
            swept.done.append(row.id)
        else:
            directories[path.parent][path.name] = row.id
    for index, (directory, names) in enumerate(directories.items()):
        if index and time.monotonic() > deadline:
            break
        _sweep_directory(directory, names, swept)
    return swept


def _sweep_directory(directory: Path, names: dict[str, int], swept: _Swept) -> None:
    """Remove files with these names, each with its row's id; what cannot be done is left for later."""
    try:
        with _opened(directory) as descriptor:
            if descriptor is None:
                swept.done += names.values()
                return
            twins = _unfinished(descriptor, names)
            for name, row_id in names.items():
                try:
                    for each in (*twins[name], name):
                        swept.n_files += _removed(each, descriptor)
                    swept.done.append(row_id)
                except OSError as error:
                    _tell(directory / name, error)
                    swept.later.append(row_id)
    except _NotHere:
        swept.later += names.values()
    except OSError as error:
        _tell(directory, error)
        swept.later += names.values()


class _NotHere(Exception):
    """This host does not see the storage."""


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int | None]:
    """A dataset's directory, which may not be a link to another place; None if the storage has none of that name.

    A storage without anything in it is a place where nothing is mounted.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    with contextlib.ExitStack() as stack:
        try:
            root = os.open(directory.parent, flags)
        except (FileNotFoundError, NotADirectoryError):
            raise _NotHere from None
        stack.callback(os.close, root)
        try:
            descriptor = os.open(directory.name, flags | os.O_NOFOLLOW, dir_fd=root)
        except FileNotFoundError:
            with os.scandir(root) as entries:
                if next(entries, None) is None:
                    raise _NotHere from None
            yield None
            return
        stack.callback(os.close, descriptor)
        yield descriptor


def _unfinished(descriptor: int, names: Collection[str]) -> dict[str, list[str]]:
    """Of each of these files, those that were to become it."""
    found: dict[str, list[str]] = {name: [] for name in names}
    with os.scandir(descriptor) as entries:
        for entry in entries:
            match = UNFINISHED.fullmatch(entry.name)
            if match and match["name"] in found:
                found[match["name"]].append(entry.name)
    return found


def _removed(name: str, descriptor: int) -> bool:
    """Whether there was such a file; a link is removed itself."""
    try:
        os.unlink(name, dir_fd=descriptor)
    except FileNotFoundError:
        return False
    return True


def _tell(path: Path, error: OSError) -> None:
    logger.warning(
        "cannot remove what an attempt has left", extra={"path": str(path), "reason": error.strerror}
    )
