"""Where attempts write: names on storages that no other attempt ever gives."""

from __future__ import annotations

from urllib.parse import quote

from protocol.errors import PilotageError
from protocol.files import local_path


def physical_name(storage: str, dataset: str, lfn: str, attempt_id: int) -> str:
    """The URL that this attempt alone may write: it contains the attempt's id, which is never used again."""
    return f"{storage}/{quote(dataset)}/{quote(lfn)}.{attempt_id}"


def is_on_disk(url: str) -> bool:
    """Whether it lies on a disk, and everywhere at the same place: nobody here could remove anything else."""
    try:
        local_path(url)
    except PilotageError:
        return False
    return True


def attempt_of(url: str) -> int:
    """The attempt that wrote a file, by its physical name; 0 for a name that none gives."""
    number = url.rpartition(".")[2]
    return int(number) if number.isascii() and number.isdigit() and len(number) < 19 else 0


def log_url(storage: str, task_id: int, job_id: int, attempt_id: int) -> str:
    """Where an attempt's log archive goes."""
    return f"{storage}/log/task-{task_id}/job-{job_id}.{attempt_id}.tar.gz"
