"""Archives that somebody else made: unpacked into a new directory, nothing leads out of it, and it stays within limits."""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Callable, NamedTuple

HEADER_BYTES = 1024
"""An honest tar has about so much for each member beside its content."""
LARGEST_DIRECTORY = 8 * 1024 * 1024
"""Bytes of the list of members at the end of a .zip, which is read as a whole: some 100,000 of them."""
MOST_DEEP = 64
"""Directories within each other, in a name."""
BLOCK = 1 << 18

_OF_NAMES = frozenset(
    (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.EINVAL, errno.ELOOP)
)
"""What the system answers to names that are too long, or exclude each other."""
_OF_DAMAGE = (
    *(
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        AssertionError,
        AttributeError,
    ),
    *(ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError),
)
"""What the standard library raises over hostile archives."""


class Bounds(NamedTuple):
    """What an archive may hold."""

    unpacked: int
    """Bytes, of all its files together."""
    members: int
    """Files and directories, also those that names only imply."""


class BadArchive(Exception):
    """What is wrong with it, in words that follow "it"; the same each time."""


def extract(archive: BinaryIO, to: Path, bounds: Bounds, check: Callable[[], None] = lambda: None) -> None:
    """Unpack a .tar.gz or a .zip. `check` is called now and then: what it raises ends the work.

    OSError if the node's disk does not take it.
    """
    to.mkdir(mode=0o700)
    with _as_bad_archive():
        begin = archive.read(4)
        archive.seek(0)
        if begin[:2] == b"\x1f\x8b":
            _extract_tar(archive, to, bounds, check)
        elif begin in (b"PK\x03\x04", b"PK\x05\x06"):
            _extract_zip(archive, to, bounds, check)
        else:
            raise BadArchive("is neither a .tar.gz nor a .zip")


@contextmanager
def _as_bad_archive() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _OF_NAMES:
            raise
        raise BadArchive(f"holds a name that no file can have here: {error.strerror}") from None
    except _OF_DAMAGE as error:
        raise BadArchive(f"is damaged: {error}") from None


# -- tar ----------------------------------------------------------------------------------------------------------------------


def _extract_tar(archive: BinaryIO, to: Path, bounds: Bounds, check: Callable[[], None]) -> None:
    root = os.path.realpath(to)
    count, total = 0, 0
    stream = _Bounded(archive, bounds.unpacked + bounds.members * HEADER_BYTES + tarfile.RECORDSIZE)
    with tarfile.open(fileobj=stream, mode="r|") as packed:
        for member in packed:
            check()
            _check(member, root)
            count, total = count + _made(member.name, root), total + member.size
            _within(bounds, count, total)
            if member.islnk():
                total += _copy(
                    os.path.join(root, member.linkname),
                    os.path.join(root, member.name),
                    bounds.unpacked - total,
                )
            else:
                _extract(packed, member, root)


def _within(bounds: Bounds, count: int, total: int) -> None:
    if count > bounds.members:
        raise BadArchive(f"has more than {bounds.members} members")
    if total > bounds.unpacked:
        raise BadArchive(f"has more than {bounds.unpacked} bytes unpacked")


def _check(member: tarfile.TarInfo, root: str) -> None:
    """Judged against the links that are unpacked already: a path may not leave through one of them."""
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        raise BadArchive(f"holds {member.name[:200]!a}, which is no file, directory or link")
    _check_name(member.name, root)
    if member.issym():
        target = os.path.join(root, os.path.dirname(member.name), member.linkname)
    elif member.islnk():
        target = os.path.join(root, member.linkname)
    else:
        return
    if member.linkname.startswith("/") or not _inside(target, root):
        raise BadArchive(
            f"holds the link {member.name[:200]!a} to {member.linkname[:200]!a}, which leads out of it"
        )


def _made(name: str, root: str) -> int:
    """How many files and directories a member makes: itself, and those on the way to it that are not there yet."""
    count, parent = 1, os.path.dirname(os.path.join(root, name.rstrip("/")))
    while not os.path.lexists(parent):
        count, parent = count + 1, os.path.dirname(parent)
    return count


def _check_name(name: str, root: str) -> None:
    if name.count("/") > MOST_DEEP:
        raise BadArchive(f"holds {name[:200]!a}, which is deeper than {MOST_DEEP} directories")
    if name.startswith("/") or "\0" in name or not _inside(os.path.join(root, name), root):
        raise BadArchive(f"holds {name[:200]!a}, which leads out of it")


def _inside(path: str, root: str) -> bool:
    return os.path.commonpath((os.path.realpath(path), root)) == root


def _extract(packed: tarfile.TarFile, member: tarfile.TarInfo, root: str) -> None:
    # What the data filter would do; Python 3.9 before 3.9.17 has none.
    member.mode = _mode(member.mode, member.isdir())
    member.uid, member.gid, member.uname, member.gname = os.geteuid(), os.getegid(), "", ""
    if hasattr(tarfile, "data_filter"):
        packed.extract(member, root, filter="data")
    else:
        packed.extract(member, root)


def _copy(source: str, to: str, room: int) -> int:
    """Instead of a hard link; its size. What has two names is handed over to no other account (pilot/accounts.py)."""
    status = os.stat(source)
    if status.st_size > room:
        raise BadArchive("has more bytes unpacked than are allowed")
    os.makedirs(os.path.dirname(to), mode=0o700, exist_ok=True)
    number = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _mode(status.st_mode, False))
    with open(source, "rb") as file, open(number, "wb") as copy:
        shutil.copyfileobj(file, copy)
    return status.st_size


def _mode(mode: int, is_directory: bool) -> int:
    """For the owner alone, whatever the archive says."""
    return 0o700 if is_directory or mode & 0o100 else 0o600


class _Bounded(io.RawIOBase):
    """Unzips a stream and refuses to give more than an honest archive holds, headers of any kind included."""

    def __init__(self, file: BinaryIO, largest: int) -> None:
        super().__init__()
        self._file = file
        self._largest = largest
        self._unzip = zlib.decompressobj(wbits=31)
        self._given = 0

    def read(self, wanted: int = -1) -> bytes:
        data = b""
        while not data and not self._unzip.eof:
            squeezed = self._unzip.unconsumed_tail or self._file.read(1 << 16)
            if not squeezed:
                raise EOFError("it ends too early")
            data = self._unzip.decompress(squeezed, wanted)
        self._given += len(data)
        if self._given > self._largest:
            raise BadArchive(f"has more than {self._largest} bytes unpacked")
        return data


# -- zip ----------------------------------------------------------------------------------------------------------------------


def _extract_zip(archive: BinaryIO, to: Path, bounds: Bounds, check: Callable[[], None]) -> None:
    root = os.path.realpath(to)
    count, total = 0, 0
    with zipfile.ZipFile(_Sips(archive)) as packed:
        members = packed.infolist()
        _within(bounds, len(members), 0)
        for member in members:
            check()
            _check_name(member.filename, root)
            count += _made(member.filename, root)
            _within(bounds, count, total)
            mode = member.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise BadArchive(
                    f"holds {member.filename[:200]!a}, which is no file or directory; links need a .tar.gz"
                )
            path = Path(root, member.filename)
            (path if member.is_dir() else path.parent).mkdir(mode=0o700, parents=True, exist_ok=True)
            if not member.is_dir():
                total += _write(packed, member, path, _mode(mode, False), bounds.unpacked - total)


def _write(packed: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, mode: int, room: int) -> int:
    """One file, as large as it turns out to be and not as its header says; its size."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadArchive(f"packs {member.filename[:200]!a} in another way than most (deflate)")
    size = 0
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(number, "wb") as file, packed.open(member) as content:
        while piece := content.read(BLOCK):
            size += len(piece)
            if size > room:
                raise BadArchive("has more bytes unpacked than are allowed")
            file.write(piece)
    return size


class _Sips:
    """A file from which nobody reads very much at once: the list of members is bounded."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, wanted: int = -1) -> bytes:
        data = self._file.read(LARGEST_DIRECTORY + 1 if wanted < 0 else min(wanted, LARGEST_DIRECTORY + 1))
        if len(data) > LARGEST_DIRECTORY:
            raise BadArchive("has too many members")
        return data
