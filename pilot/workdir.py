"""Directories on the node: one per pilot, locked while it lives; in it one per job, its part of the log, and its log archive.

WORK_DIRECTORY/pilot-NAME/                    removed at the end, or by the next pilot if this one was killed
WORK_DIRECTORY/pilot-NAME/job-ID-ATTEMPT/     mode 0700; the payload's current directory
WORK_DIRECTORY/pilot-NAME/job-ID-ATTEMPT.log  the pilot's own records about that job
WORK_DIRECTORY/pilot-NAME.lock                held by the living pilot
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from filelock import FileLock, Timeout

from protocol.errors import PilotageError
from protocol.logs import TextFormatter, bound_fields
from protocol.messages import JobSpec
from protocol.redaction import Secrets

logger = logging.getLogger(__name__)

PREFIX = "pilot-"
KEPT = "KEPT"
"""A file of this name says that a debugging pilot's directory is to stay."""


class PilotDirectory:
    """The directory of one pilot."""

    def __init__(self, base: Path, pilot: str, keep: bool) -> None:
        self.base = base
        self.path = base / f"{PREFIX}{pilot}"
        self._keep = keep
        self._lock = _lock_of(self.path)

    def open(self) -> None:
        """Make it, and remove what dead pilots left; NODE_UNFIT if that cannot be."""
        try:
            self.base.mkdir(parents=True, exist_ok=True)
            # The lock first: a directory that is found unlocked has no living pilot.
            self._lock.acquire(timeout=0)
            self.path.mkdir(mode=0o700)
            if self._keep:
                (self.path / KEPT).touch()
        except (OSError, Timeout) as error:
            raise PilotageError(
                "NODE_UNFIT", f"the work directory {self.base} cannot be used: {error}"
            ) from None
        for leftover in self._leftovers():
            _remove_leftover(leftover)

    def close(self) -> None:
        if not self._keep:
            remove(self.path)
            Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()

    def job_path(self, spec: JobSpec) -> Path:
        return self.path / f"job-{spec.job_id}-{spec.attempt_nr}"

    def remove_job(self, directory: Path) -> None:
        if self._keep:
            return
        remove(directory)
        for beside in (log_path(directory), archive_path(directory)):
            beside.unlink(missing_ok=True)

    def _leftovers(self) -> Iterator[Path]:
        with os.scandir(self.base) as entries:
            folders = [
                entry
                for entry in entries
                if entry.name.startswith(PREFIX) and entry.is_dir(follow_symlinks=False)
            ]
        for entry in folders:
            path = self.base / entry.name
            mine = entry.stat(follow_symlinks=False).st_uid == os.geteuid()
            # Without a lock beside it, it is no pilot's, whatever its name.
            if mine and path != self.path and os.path.exists(f"{path}.lock") and not (path / KEPT).exists():
                yield path


def log_path(directory: Path) -> Path:
    """Beside the job's directory, out of the payload's way."""
    return directory.with_name(f"{directory.name}.log")


def archive_path(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.tar.gz")


def make(directory: Path) -> None:
    """A new directory that only we can enter."""
    try:
        directory.mkdir(mode=0o700)
    except OSError as error:
        raise PilotageError("MKDIR_FAILED", f"{directory}: {error.strerror}") from None


def remove(directory: Path) -> None:
    """All of it, whatever rights a payload left on it, and never through a link."""
    _open_up(str(directory))
    for folder, folders, _ in os.walk(directory):
        for name in folders:
            _open_up(os.path.join(folder, name))
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        logger.warning("a directory could not be removed", extra={"directory": str(directory)})


def _open_up(path: str) -> None:
    try:
        if stat.S_ISDIR(os.lstat(path).st_mode):
            os.chmod(path, 0o700)
    except OSError:
        pass  # gone, or not ours: removing it will show


def _remove_leftover(path: Path) -> None:
    lock = _lock_of(path)
    try:
        lock.acquire(timeout=0)
    except (OSError, Timeout):
        return  # its pilot lives
    logger.info("removing what a dead pilot left", extra={"directory": str(path)})
    remove(path)
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def _lock_of(path: Path) -> FileLock:
    return FileLock(f"{path}.lock", mode=0o600, thread_local=False)


class Measure(NamedTuple):
    """What lies in a directory: bytes on the disk, and when anything in it was last written (seconds since 1970)."""

    size: int
    changed: float


def measure(directory: Path) -> Measure:
    size, changed = 0, 0.0
    todo = [str(directory)]
    while todo:
        try:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    size += status.st_blocks * 512
                    changed = max(changed, status.st_mtime)
                    if stat.S_ISDIR(status.st_mode):
                        todo.append(entry.path)
        except OSError:
            continue  # gone while we looked, or closed to us: the payload works in there
    return Measure(size, changed)


# -- the log of a job -----------------------------------------------------------------------------------------------------------


class JobLog(logging.FileHandler):
    """Keeps the records of one attempt, told apart by the fields that its thread has bound."""

    def __init__(self, path: Path, attempt_id: int, secrets: Secrets) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self._attempt_id = attempt_id
        self.setFormatter(TextFormatter(secrets))

    def filter(self, record: logging.LogRecord) -> bool:
        return bound_fields().get("attempt_id") == self._attempt_id and bool(super().filter(record))

    def handleError(self, record: logging.LogRecord) -> None:
        pass  # a full disk: the pilot's log says so already


def pack(archive: Path, files: Sequence[Path], root: Path, limit_bytes: int) -> None:
    """Write a .tar.gz with these files; of one that is larger than its share of the limit, head and tail are kept.

    Links and special files are left out: the archive is read by the user, and must hold nothing that the pilot alone may read.
    """
    with tarfile.open(archive, "w:gz", compresslevel=4) as packed:
        for path in dict.fromkeys(files):
            try:
                number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:
                continue
            with open(number, "rb") as file:
                status = os.fstat(number)
                if stat.S_ISREG(status.st_mode):
                    name = path.relative_to(root) if root in path.parents else Path(path.name)
                    info = tarfile.TarInfo(str(name))
                    info.mtime, info.mode = int(status.st_mtime), 0o644
                    shortened = _Shortened(file, status.st_size, limit_bytes // len(files))
                    info.size = shortened.size
                    packed.addfile(info, shortened)  # type: ignore[arg-type]


class _Shortened:
    """Reads a file as it is, or its head, a line that says what is missing, and its tail."""

    def __init__(self, file: BinaryIO, size: int, limit: int) -> None:
        self._file = file
        half = limit // 2
        note = b""
        if size > limit:
            note = f"\n[... {size - 2 * half} bytes are left out here ...]\n".encode()
        self._parts = [(0, half), (size - half, half)] if note else [(0, size)]
        self._note = note
        self.size = sum(length for _, length in self._parts) + len(note)
        self._pieces = self._read_pieces()
        self._buffer = b""

    def read(self, wanted: int) -> bytes:
        while len(self._buffer) < wanted:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._buffer += piece
        data, self._buffer = self._buffer[:wanted], self._buffer[wanted:]
        return data

    def _read_pieces(self) -> Iterator[bytes]:
        for number, (start, length) in enumerate(self._parts):
            if number:
                yield self._note
            self._file.seek(start)
            while length > 0:
                # A file that was cut while we read it is filled up: the size is promised already.
                piece = self._file.read(min(length, 1 << 20)) or bytes(min(length, 1 << 20))
                length -= len(piece)
                yield piece
