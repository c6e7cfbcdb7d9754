"""Log archives on the storages of this machine whose tasks ended long ago: which there are, and their removal.

They lie in a folder per task. What is no log by its name, or of no task that the database knows, is not touched: `pilotage
storage check` calls it dark.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from server.auditing.snapshot import Snapshot
from server.auditing.strangers import LOG, LOGS, Place

_FOLDER = "task-"


@dataclass
class Logs:
    """The logs of one task on one storage."""

    storage: str
    task: str
    folder: Path
    names: list[str] = field(default_factory=list)
    size: int = 0
    not_removed: str = ""
    """Why some are still there."""


def find(snapshot: Snapshot, places: Sequence[Place], before: float) -> Iterator[Logs]:
    """Those of tasks that ended before this moment (seconds since 1970), task by task."""
    for place in places:
        for folder in _folders(place):
            snapshot.renew_if_old()
            number = int(folder.name[len(_FOLDER) :])
            ended = "SELECT t.name FROM task t WHERE t.id = :id AND t.ended IS NOT NULL AND t.ended < :before"
            task = snapshot.one(ended, id=number, before=before)
            if task is not None and (logs := _logs_in(Logs(place.name, task["name"], folder))).names:
                yield logs


def _folders(place: Place) -> Iterator[Path]:
    with contextlib.suppress(OSError), os.scandir(place.root / LOGS) as entries:
        for entry in entries:
            number = entry.name[len(_FOLDER) :]
            is_ours = entry.name.startswith(_FOLDER) and number.isascii() and number.isdigit()
            if is_ours and len(number) < 19 and entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)


def _logs_in(logs: Logs) -> Logs:
    with _opened(logs) as descriptor:
        if descriptor is None:
            return logs
        for name in os.listdir(descriptor):
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                if LOG.fullmatch(name) and stat.S_ISREG(status.st_mode):
                    logs.names.append(name)
                    logs.size += status.st_size
    return logs


def remove(logs: Logs) -> int:
    """Remove them, and their folder if nothing else is in it; how many are gone. What stays is told in `not_removed`."""
    removed = 0
    with _opened(logs) as descriptor:
        for name in logs.names if descriptor is not None else ():
            try:
                os.unlink(name, dir_fd=descriptor)
                removed += 1
            except FileNotFoundError:
                pass
            except OSError as error:
                logs.not_removed = f"{logs.folder / name}: {error.strerror}"
    with contextlib.suppress(OSError):
        logs.folder.rmdir()
    return removed


@contextlib.contextmanager
def _opened(logs: Logs) -> Iterator[int | None]:
    """The folder itself, and not what a link in its place leads to; None if it cannot be opened."""
    try:
        descriptor = os.open(logs.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        logs.not_removed = f"{logs.folder}: {error.strerror}"
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)
