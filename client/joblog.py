"""The logs of a job: the archive that each attempt left, fetched from its storage, shown and saved.

What a payload wrote is text of a stranger: control characters are spelt out, and a member of the archive never becomes a
path outside of the directory that the user named.
"""

from __future__ import annotations

import tarfile
import tempfile
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from client import tables, transfer
from protocol.errors import PilotageError
from protocol.messages.views import AttemptView, JobView
from protocol.redaction import one_line

SHOWN_LINES = 500
"""Lines of one file that are shown: its last ones."""
LONGEST_LINE = 10_000
LARGEST_FILE = 1 << 30
"""Bytes; more of one file is not unpacked."""
FIRST = ("payload.stdout", "payload.stderr")
"""These come first; the pilot's own records of the job last."""


def show(
    job: JobView, number: int | None = None, save: Path | None = None, data_root: Path | None = None
) -> None:
    """Print the logs of all attempts, or of attempt `number`; keep the files below `save`.

    `data_root`: where storages with relative addresses lie on this machine.
    """
    for attempt in chosen(job, number):
        tables.write(_title(job, attempt))
        if attempt.log_url is None:
            tables.write(_no_log(attempt))
            continue
        with tempfile.TemporaryDirectory(prefix="pilotage-log-") as folder:
            archive = Path(folder, "log.tar.gz")
            transfer.copy_in(attempt.log_url, archive, data_root=data_root)
            _show(archive, save / f"job-{job.job_id}-{attempt.attempt_nr}" if save else None)


def chosen(job: JobView, number: int | None) -> list[AttemptView]:
    """The attempt of that number, or all; NOT_FOUND if there is none."""
    attempts = [attempt for attempt in job.attempts or () if number in (None, attempt.attempt_nr)]
    if not attempts:
        which = f"no attempt {number}" if number else "no attempt yet"
        raise PilotageError(
            "NOT_FOUND",
            f"job {job.job_id} has {which}; it is {job.state}",
            advice=f"pilotage job {'show' if job.attempts else 'why'} {job.job_id}",
        )
    return attempts


def _title(job: JobView, attempt: AttemptView) -> str:
    how = f", exit code {attempt.exit_code}" if attempt.exit_code is not None else ""
    error = (
        f"\n    {attempt.error} ({attempt.error_code}): {attempt.error_detail or ''}" if attempt.error else ""
    )
    where = f"{attempt.node} by pilot {attempt.pilot_id}"
    lines = f"=== job {job.job_id}, attempt {attempt.attempt_nr}: {attempt.state}{how}, on {where}{error}"
    return "\n".join(one_line(line) for line in lines.split("\n"))


def _no_log(attempt: AttemptView) -> str:
    if attempt.ended is None:
        return "    The attempt has not ended: its log comes then."
    return "    The attempt left no log archive: its pilot stored none (it was lost, could not, or keeps none, as MiniPilot)."


def _show(archive: Path, save: Path | None) -> None:
    try:
        with tarfile.open(archive, "r:gz") as packed:
            members = [member for member in packed if member.isreg() and member.size <= LARGEST_FILE]
            for member in sorted(members, key=_order):
                if save is not None:
                    _keep(packed, member, save)
                _print(packed, member)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise PilotageError("LOG_FAILED", f"the archive is damaged: {one_line(str(error))}") from None
    if save is not None:
        tables.say(f"Saved in {save}")


def _order(member: tarfile.TarInfo) -> tuple[int, bool, str]:
    first = FIRST.index(member.name) if member.name in FIRST else len(FIRST)
    return first, member.name.endswith(".log"), member.name


def _print(packed: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    """Steps and services that said nothing are passed over, and reports for programs are named only."""
    if not member.size and member.name not in FIRST:
        return
    title = f"--- {one_line(member.name)} ({tables.size(member.size) if member.size else 'empty'})"
    if member.name.endswith(".json"):
        tables.write(f"{title}: --save DIR keeps it")
        return
    tables.write(title)
    file = packed.extractfile(member)
    assert file is not None, "a regular member has content"
    lines: deque[str] = deque(maxlen=SHOWN_LINES)
    count = 0
    for line in _lines(file):
        lines.append(line)
        count += 1
    if count > len(lines):
        tables.write(f"[... {count - len(lines)} lines before; --save DIR keeps all of it ...]")
    for line in lines:
        tables.write(line)


def _lines(file: object) -> Iterator[str]:
    stream: BinaryIO = file  # type: ignore[assignment]
    while data := stream.readline(LONGEST_LINE):
        yield one_line(data.decode("utf-8", "backslashreplace").rstrip("\n").expandtabs())


def _keep(packed: tarfile.TarFile, member: tarfile.TarInfo, directory: Path) -> None:
    parts = PurePosixPath(member.name).parts
    if not parts or parts[0] == "/" or ".." in parts or "\0" in member.name:
        raise PilotageError("LOG_FAILED", f"the archive holds {one_line(member.name)}, which leads out of it")
    path = directory.joinpath(*parts)
    file = packed.extractfile(member)
    assert file is not None, "a regular member has content"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # an earlier copy of it; never through a link
    with open(path, "xb") as kept:
        while block := file.read(1 << 20):
            kept.write(block)
