"""Directories on the node: one per pilot, locked while it lives; in it one per job, its part of the log, and its log archive.

WORK_DIRECTORY/pilot-NAME/                    removed at the end, or by the next pilot if this one was killed
WORK_DIRECTORY/pilot-NAME/job-ID-ATTEMPT/     mode 0700; the payload's current directory
WORK_DIRECTORY/pilot-NAME/job-ID-ATTEMPT.scratch/  its temporary files, where it has a /tmp of its own
WORK_DIRECTORY/pilot-NAME/job-ID-ATTEMPT.log  the pilot's own records about that job
WORK_DIRECTORY/pilot-NAME.lock                held by the living pilot
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Optional

from filelock import FileLock, Timeout

from copytools import checksum
from pilot import memory_report, process
from protocol.errors import PilotageError
from protocol.logs import TextFormatter, bound_field
from protocol.messages.pilots import JobSpec
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
        self.keeps = keep
        self._lock = _lock_of(self.path)

    def open(self) -> None:
        """Make it, and remove what dead pilots left; NODE_UNFIT if that cannot be."""
        try:
            self.base.mkdir(parents=True, exist_ok=True)
            # The lock first: a directory that is found unlocked has no living pilot.
            self._lock.acquire(timeout=0)
            self.path.mkdir(mode=0o700)
            if self.keeps:
                (self.path / KEPT).touch()
        except (OSError, Timeout) as error:
            raise PilotageError(
                "NODE_UNFIT", f"the work directory {self.base} cannot be used: {error}"
            ) from None
        for leftover in self._leftovers():
            _remove_leftover(leftover)

    def let_through(self) -> None:
        """Payloads run as other accounts: each gets to its own directory, and may list none."""
        self.path.chmod(0o711)

    def close(self) -> None:
        if not self.keeps:
            remove(self.path)
            _unlink(Path(self._lock.lock_file))
        self._lock.release()

    def job_path(self, spec: JobSpec) -> Path:
        return self.path / f"job-{spec.job_id}-{spec.attempt_nr}"

    def remove_job(self, directory: Path) -> None:
        if self.keeps:
            return
        for place in (directory, scratch_path(directory)):
            remove(place)
        for beside in (log_path(directory), archive_path(directory)):
            _unlink(beside)

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


def scratch_path(directory: Path) -> Path:
    """Where a job's temporary files lie if an executor shows it a /tmp of its own."""
    return directory.with_name(f"{directory.name}.scratch")


def make(directory: Path) -> None:
    """A new directory that only we can enter."""
    try:
        directory.mkdir(mode=0o700)
    except OSError as error:
        raise PilotageError("MKDIR_FAILED", f"{directory}: {error.strerror}") from None


def remove(directory: Path) -> None:
    """All of it, whatever rights a payload left on it, and never through a link."""
    try:
        top = _opened(str(directory))
        try:
            _empty(top)
        finally:
            os.close(top)
        os.rmdir(directory)
    except FileNotFoundError:
        pass
    except OSError as error:
        extra = {"directory": str(directory), "reason": str(error)}
        logger.warning("a directory could not be removed", extra=extra)


def _unlink(path: Path) -> None:
    """A disk that has become read-only keeps it, and ends no pilot."""
    with contextlib.suppress(OSError):
        path.unlink()


def _empty(top: int) -> None:
    """Remove what is in the directory, as far as that can be done.

    However deep it is, without recursion and long paths: what lies in its directories is moved up into it, and removed from there.
    """
    waiting = _unlink_files(top)
    prefix, n_moved = f".removed-{os.urandom(8).hex()}-", 0
    while waiting:
        name = waiting.pop()
        with contextlib.suppress(OSError):  # the removal of what it lies in will fail, and be told
            folder = _opened(name, top)
            try:
                for inner in _unlink_files(folder):
                    n_moved += 1
                    _open_up(inner, folder)  # what we may not write to may not be moved
                    os.rename(inner, f"{prefix}{n_moved}", src_dir_fd=folder, dst_dir_fd=top)
                    waiting.append(f"{prefix}{n_moved}")
            finally:
                os.close(folder)
            os.rmdir(name, dir_fd=top)


def _unlink_files(folder: int) -> list[str]:
    """All but the directories in it, which are returned."""
    folders = []
    for name in os.listdir(folder):
        try:
            os.unlink(name, dir_fd=folder)
        except IsADirectoryError:
            folders.append(name)
        except OSError:
            continue  # the removal of the directory will fail, and be told
    return folders


def _opened(path: str, parent: Optional[int] = None) -> int:
    """A directory, opened up to us where it was closed."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.suppress(PermissionError):
        folder = os.open(path, flags, dir_fd=parent)
        if os.fstat(folder).st_mode & stat.S_IRWXU == stat.S_IRWXU:
            return folder
        os.close(folder)
    _open_up(path, parent)
    return os.open(path, flags, dir_fd=parent)


def _open_up(path: str, parent: Optional[int] = None) -> None:
    """By a descriptor: a payload of another account that still lives could change a directory into a link."""
    try:
        folder = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except OSError:
        return  # gone, or a link
    try:
        os.chmod(f"/proc/self/fd/{folder}", 0o700)
    except OSError:
        pass  # not ours: removing it will show
    finally:
        os.close(folder)


def _remove_leftover(path: Path) -> None:
    lock = _lock_of(path)
    try:
        lock.acquire(timeout=0)
    except (OSError, Timeout):
        return  # its pilot lives
    logger.info("removing what a dead pilot left", extra={"directory": str(path)})
    process.end_leftovers(path)
    remove(path)
    if not path.exists():  # else the next pilot tries again
        _unlink(Path(lock.lock_file))
    lock.release()


def _lock_of(path: Path) -> FileLock:
    return FileLock(f"{path}.lock", mode=0o600, thread_local=False)


OURS = tuple(f"{dot}{memory_report.FILE}" for dot in ("", "."))
"""How the names begin under which a monitor writes into the job's directory: that is no work of the payload."""
MOST_OF_OURS = 1024 * 1024


class Measure(NamedTuple):
    """What lies in a directory: bytes on the disk, and when anything in it was last written (seconds since 1970)."""

    size: int
    changed: float
    is_whole: bool = True
    """Not if it has paths in it that are longer than what can be opened."""


def measure(*directories: Path) -> Measure:
    size, changed, is_whole = 0, 0.0, True
    todo = [str(directory) for directory in directories]
    while todo:
        try:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    if entry.name.startswith(OURS) and status.st_size <= MOST_OF_OURS:
                        continue
                    size += status.st_blocks * 512
                    changed = max(changed, status.st_mtime)
                    if stat.S_ISDIR(status.st_mode):
                        todo.append(entry.path)
        except OSError as error:  # mostly gone while we looked, or closed to us: the payload works in there
            is_whole = is_whole and error.errno != errno.ENAMETOOLONG
    return Measure(size, changed, is_whole)


# -- the log of a job -----------------------------------------------------------------------------------------------------------


MOST_UNWRITTEN = 16 * 1024
"""Characters of one job's records that are kept in memory: most jobs end before they have as many."""


class JobLogs(logging.Handler):
    """Keeps the records of each job for its log archive, told apart by the fields that their thread has bound."""

    def __init__(self, secrets: Secrets) -> None:
        super().__init__()
        self._open: dict[object, _JobLog] = {}
        self.setFormatter(TextFormatter(secrets))

    def open(self, attempt_id: int, path: Path) -> None:
        """From now on."""
        self._open[attempt_id] = _JobLog(path)

    def close_log(self, attempt_id: int) -> None:
        """No further; what is not written yet is not wanted."""
        self._open.pop(attempt_id, None)

    def write(self, attempt_id: int) -> None:
        """See that the file has all that was said until now."""
        with self.lock or contextlib.nullcontext():
            log = self._open.get(attempt_id)
            if log is not None:
                log.write()

    def emit(self, record: logging.LogRecord) -> None:
        log = self._open.get(bound_field("attempt_id"))
        if log is not None:
            log.add(self.format(record))


class _JobLog:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[str] = []
        self._characters = 0

    def add(self, line: str) -> None:
        self._lines.append(f"{line}\n")
        self._characters += len(line)
        if self._characters > MOST_UNWRITTEN:
            self.write()

    def write(self) -> None:
        text, self._lines, self._characters = "".join(self._lines), [], 0
        try:
            with open(_for_us(self._path), "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        except OSError:
            pass  # a full disk: the pilot's log says so already


def pack(archive: Path, files: Sequence[Path], root: Path, limit_bytes: int) -> None:
    """Write a .tar.gz with these files; of one that is larger than its share of the limit, head and tail are kept.

    Links, also hard ones, and special files are left out: the archive is read by the user, and must hold nothing that the pilot alone
    may read.
    """
    with (
        open(_new(archive), "wb") as file,
        tarfile.open(fileobj=file, mode="w:gz", compresslevel=4) as packed,
    ):
        for path in dict.fromkeys(files):
            try:
                number = checksum.open_plain(path)
            except OSError:
                continue
            with open(number, "rb") as text:
                status = os.fstat(number)
                if status.st_nlink > 1:
                    continue
                name = path.relative_to(root) if root in path.parents else Path(path.name)
                info = tarfile.TarInfo(str(name))
                info.mtime, info.mode = int(status.st_mtime), 0o644
                shortened = _Shortened(text, status.st_size, limit_bytes // len(files))
                info.size = shortened.size
                packed.addfile(info, shortened)  # type: ignore[arg-type]


def _for_us(path: Path) -> int:
    """Payloads of another account could guess its name."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _new(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


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
