"""The user's code as a bundle: one .tar.gz, named by its SHA-256, the same bytes for the same content.

Owner, times and the order of the directory do not enter it; of the rights only "executable" does. So the server keeps one
copy however often a task is submitted, and a pilot fetches it once.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import tarfile
from pathlib import Path
from typing import NamedTuple

from protocol.errors import PilotageError
from protocol.redaction import one_line

LIMIT_BYTES = 64 * 1024 * 1024
"""Largest bundle, packed; the server refuses a larger one. Data belongs into a dataset."""
UNPACKED_BYTES = 1024 * 1024 * 1024
MEMBERS = 50_000
"""A pilot unpacks no more than this."""
LEFT_OUT = ("__pycache__", ".git")
"""Never packed: they change without the code changing."""
TIME = 315_532_800
"""1980-01-01: the date of every file in a bundle; some tools refuse earlier ones."""


class Bundle(NamedTuple):
    digest: str
    data: bytes


def make(path: Path, limit: int = LIMIT_BYTES) -> Bundle:
    """Pack a file, or what a directory holds. BAD_PATH for links and special files, TOO_LARGE above `limit` bytes."""
    members = _members(path)
    _check_unpacked(path, members)
    packed = _Limited(path, limit)
    # No file name and no time in gzip's header either.
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, compresslevel=6, mtime=0) as squeezed:
        with tarfile.open(mode="w", fileobj=squeezed, format=tarfile.PAX_FORMAT) as archive:
            count = sum(_add(archive, name, source) for name, source in members)
    if count == 0:
        raise _bad(path, "holds no file to ship")
    data = packed.getvalue()
    return Bundle(hashlib.sha256(data).hexdigest(), data)


class _Limited(io.BytesIO):
    """A buffer that refuses to grow beyond the limit: a wrong directory is noticed before it fills the memory."""

    def __init__(self, path: Path, limit: int) -> None:
        super().__init__()
        self._path, self._limit = path, limit

    def write(self, data: bytes) -> int:  # type: ignore[override]
        if self.tell() + len(data) > self._limit:
            raise PilotageError(
                "TOO_LARGE",
                f"{one_line(str(self._path))} is larger than {self._limit / 1048576:g} MiB when packed; "
                "ship code only, and register data as a dataset",
            )
        return super().write(data)


def _members(path: Path) -> list[tuple[str, Path]]:
    """Name in the bundle and path of everything to pack, in the order of the names."""
    if not os.path.lexists(path):
        raise _bad(path, "does not exist")
    if path.is_symlink() or not path.is_dir():
        return [(path.name, path)]

    def refuse(error: OSError) -> None:
        raise _bad(Path(error.filename), f"cannot be read: {error.strerror}")

    found = []
    for folder, folders, files in os.walk(path, onerror=refuse):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        for name in (*folders, *files):
            source = Path(folder, name)
            if name not in LEFT_OUT:
                found.append((source.relative_to(path).as_posix(), source))
    return sorted(found)


def _check_unpacked(path: Path, members: list[tuple[str, Path]]) -> None:
    size = sum(source.lstat().st_size for _, source in members if not source.is_dir())
    if len(members) > MEMBERS or size > UNPACKED_BYTES:
        raise PilotageError(
            "TOO_LARGE",
            f"{one_line(str(path))} has {len(members)} files of {size / 1048576:.0f} MiB; at most {MEMBERS} of "
            f"{UNPACKED_BYTES / 1048576:g} MiB can be shipped",
        )


def _add(archive: tarfile.TarFile, name: str, source: Path) -> int:
    """Pack one file or directory; the number of files that this added."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise _bad(source, "has a name that is not UTF-8") from None
    info = tarfile.TarInfo(name)
    info.mtime = TIME
    descriptor = _open(source)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(info)
            return 0
        if not stat.S_ISREG(status.st_mode):
            raise _bad(source, "is no regular file (a pipe, socket or device)")
        info.size = status.st_size
        info.mode = 0o755 if status.st_mode & 0o111 else 0o644
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            archive.addfile(info, file)
    except OSError as error:
        raise _bad(source, f"changed or failed while it was read: {error}") from None
    finally:
        os.close(descriptor)
    return 1


def _open(source: Path) -> int:
    try:
        # O_NOFOLLOW: a link that is put there meanwhile is refused too; O_NONBLOCK: a pipe does not hold us up.
        return os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if source.is_symlink():
            raise _bad(source, "is a link; ship what it leads to") from None
        # What opens but cannot be read as a file: a socket.
        special = stat.S_ISSOCK(os.lstat(source).st_mode) if os.path.lexists(source) else False
        reason = "it is a socket" if special else error.strerror
        raise _bad(source, f"cannot be read: {reason}") from None


def _bad(path: Path, what: str) -> PilotageError:
    return PilotageError("BAD_PATH", f"{one_line(str(path))} {what}")
