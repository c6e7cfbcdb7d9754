"""The standing checker: whether everything that must be true of an installation is, in its database and on its storages.

It reads, and changes nothing; the server may run or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from protocol.errors import PilotageError
from server.auditing import database_checks, storage_checks
from server.auditing.database_checks import Progress
from server.auditing.findings import Report
from server.auditing.snapshot import Row, Snapshot

LATE_SECONDS = 60
"""How late the reaper may be at least, in seconds of its own clock, before a lease that ran out is a finding."""


@dataclass(frozen=True)
class Options:
    """What is looked at."""

    task: str = ""
    """The name or number of the one task that is looked at; empty: everything."""
    storages: storage_checks.Options | None = storage_checks.Options()
    """None: the database alone."""
    reaper_seconds: float = 5.0
    """The longest that a pass of the reaper lets leases age at a time."""
    limit: int = 20
    """Findings that are kept of each check; 0: all."""


@contextmanager
def in_silence(title: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda more: None


def audit(url: str, options: Options = Options(), progress: Progress = in_silence) -> Report:
    """Look at an installation by the URL of its database. DATABASE_UNREADABLE and NOT_FOUND where there is nothing to look at."""
    report = Report(options.limit)
    with Snapshot(url) as snapshot:
        task = _task(snapshot, options.task) if options.task else None
        patience = max(LATE_SECONDS, int(options.reaper_seconds) + 1)
        database_checks.look(snapshot, report, task["id"] if task else None, patience, progress)
        if options.storages is not None:
            storage_checks.look(snapshot, report, task, options.storages, progress)
    return report


def _task(snapshot: Snapshot, name: str) -> Row:
    """The row of a task, by its name or its number; with the name of its output dataset."""
    number = int(name) if name.isascii() and name.isdigit() and len(name) < 19 else 0
    sql = """
        SELECT t.id, d.name AS dataset FROM task t LEFT JOIN dataset d ON d.id = t.output_dataset_id
        WHERE t.name = :name OR t.id = :number
    """
    row = snapshot.one(sql, name=name, number=number)
    if row is None:
        raise PilotageError("NOT_FOUND", f"no task {name[:200]}; see 'pilotage task list'")
    return row
