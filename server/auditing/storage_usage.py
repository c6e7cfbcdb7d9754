"""How many files and bytes there are on each storage, of which dataset or task: by the catalogue, and by a look at the disk."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import PilotageError
from protocol.files import local_path
from server.auditing.database_checks import Progress, ranges
from server.auditing.snapshot import Row, Snapshot
from server.auditing.storage_checks import addresses
from server.auditing.strangers import LOGS, Place, files_below, others
from server.registration import MEBIBYTE

BY: dict[str, Callable[[Row], str]] = {
    "storage": lambda row: "",
    "dataset": lambda row: row["dataset"],
    "task": lambda row: row["task"] or "",
}
"""What a line is about beside the storage; "": files of no task."""


@dataclass
class Line:
    storage: str
    """"" for addresses that lie in none."""
    of: str
    n_files: int = 0
    size: int = 0


@dataclass
class OnDisk:
    """What lies in a storage's directory, whoever knows of it."""

    storage: str
    n_files: int = 0
    size: int = 0
    n_logs: int = 0
    logs_size: int = 0
    unseen: str = ""
    """Why this host cannot tell."""


# Sizes in two parts: the sum of all may be more than the databases' integers hold.
_SQL = f"""
    SELECT storage, dataset, task, COUNT(*) AS n, SUM(size / {MEBIBYTE}) AS mebibytes, SUM(size & {MEBIBYTE - 1}) AS more
    FROM (
        SELECT f.size, d.name AS dataset, t.name AS task, COALESCE(r.storage_id,
            (SELECT s.name FROM storage s WHERE substr(r.url, 1, length(s.url) + 1) = s.url || '/'
             ORDER BY length(s.url) DESC LIMIT 1), '') AS storage
        FROM file f JOIN replica r ON r.file_id = f.id JOIN dataset d ON d.id = f.dataset_id
            LEFT JOIN task t ON t.id = d.task_id
        WHERE f.id BETWEEN :low AND :high AND f.state = 'available'
    ) AS placed
    GROUP BY storage, dataset, task
"""


def by_catalogue(snapshot: Snapshot, names: Sequence[str], by: str, progress: Progress) -> list[Line]:
    """Replicas and their bytes, the most first; NOT_FOUND for a storage that there is not. Memory grows with the lines alone."""
    addresses(snapshot, names)
    lines: dict[tuple[str, str], Line] = {}
    for low, high, _ in ranges(snapshot, "file", None, progress):
        for row in snapshot.rows(_SQL, low=low, high=high):
            if names and row["storage"] not in names:
                continue
            key = (row["storage"], BY[by](row))
            line = lines.setdefault(key, Line(*key))
            line.n_files += row["n"]
            line.size += int(row["mebibytes"]) * MEBIBYTE + int(row["more"])
    return sorted(lines.values(), key=lambda line: (-line.size, line.storage, line.of))


def by_disk(snapshot: Snapshot, names: Sequence[str], data_root: str) -> Iterator[OnDisk]:
    """Storage by storage; what lies in the directory of another storage is that one's."""
    wanted = addresses(snapshot, names)
    here = {place.name: place for place in places(snapshot, data_root)}
    for name, url in wanted.items():
        if name in here:
            yield _measured(here[name], list(here.values()))
        else:
            yield OnDisk(name, unseen=f"this host sees no directory at {url}")


def places(snapshot: Snapshot, data_root: str) -> list[Place]:
    """The storages that this machine reaches."""
    found = []
    for name, url in addresses(snapshot).items():
        with contextlib.suppress(PilotageError):
            place = Place(name, Path(local_path(url, data_root)))
            if place.root.is_dir():
                found.append(place)
    return found


def _measured(place: Place, places: list[Place]) -> OnDisk:
    found = OnDisk(place.name)

    def pass_over(directory: str, reason: str | None) -> None:
        found.unseen = f"{directory}: {reason or 'it cannot be read'}"

    logs = place.root / LOGS
    for path in files_below(place.root, others(place, places), pass_over):
        try:
            size = path.lstat().st_size
        except OSError:
            continue  # gone meanwhile
        found.n_files, found.size = found.n_files + 1, found.size + size
        if logs in path.parents:
            found.n_logs, found.logs_size = found.n_logs + 1, found.logs_size + size
    return found
