"""The user's code: fetched from the server by its digest, verified, kept on the node, unpacked anew for each job.

The cache holds the archives as they came. A payload runs under the pilot's account and could change what lies there, so an
archive is verified each time before it is unpacked into the job's own directory.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import stat
import tarfile
import zlib
from pathlib import Path
from typing import BinaryIO, Callable, Optional

from filelock import FileLock

from protocol.errors import PilotageError
from protocol.messages import BundleRef

logger = logging.getLogger(__name__)

LARGEST_ARCHIVE = 64 * 1024 * 1024
LARGEST_UNPACKED = 1024 * 1024 * 1024
MOST_MEMBERS = 50_000
FETCH_SECONDS = 600
"""How long a pilot waits for another one on this node that is fetching the same bundle."""

Fetch = Callable[[str, Path, int], str]
"""`fetch(digest, to, largest)` writes the archive into a new file and gives its SHA-256: the server client's `fetch_bundle`."""


class Cache:
    """The bundles on this node, shared by all pilots with the same work directory."""

    def __init__(self, directory: Path, fetch: Fetch, keep_mb: int) -> None:
        self._directory = directory
        self._fetch = fetch
        self._keep_bytes = keep_mb * 1024 * 1024

    def unpack(self, bundle: BundleRef, to: Path) -> None:
        """The bundle's content in a new directory; BUNDLE_FAILED if it cannot be had or is not what it should be."""
        if not re.fullmatch("[0-9a-f]{64}", bundle.digest):
            raise PilotageError("BUNDLE_FAILED", f"{bundle.digest[:80]!a} is no digest")
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            # One lock for all bundles: what one pilot unpacks must not be what another one tidies away.
            with FileLock(self._directory / "cache.lock", timeout=FETCH_SECONDS, mode=0o600):
                archive = self._archive(bundle)
                with open(archive, "rb") as file:
                    extract(file, to)
                os.utime(archive)
                self._tidy(archive)
        except PilotageError:
            raise
        except Exception as error:  # noqa: BLE001 - over a hostile archive tarfile raises KeyError and many others
            raise PilotageError("BUNDLE_FAILED", f"bundle {bundle.digest}: {error}") from None

    def _archive(self, bundle: BundleRef) -> Path:
        archive = self._directory / f"{bundle.digest}.tar.gz"
        if _digest(archive) == bundle.digest:
            return archive
        part = archive.with_suffix(".part")
        part.unlink(missing_ok=True)
        try:
            found = self._fetch(bundle.digest, part, min(LARGEST_ARCHIVE, bundle.size))
            if found != bundle.digest:
                raise PilotageError(
                    "BUNDLE_FAILED", f"bundle {bundle.digest} arrived with the SHA-256 {found}"
                )
            part.replace(archive)
        finally:
            part.unlink(missing_ok=True)
        logger.info("bundle is fetched", extra={"digest": bundle.digest, "bytes": archive.stat().st_size})
        return archive

    def _tidy(self, used: Path) -> None:
        """Forget the bundles that were not used for longest, until the rest fits."""
        archives = sorted(self._directory.glob("*.tar.gz"), key=lambda path: -path.stat().st_mtime)
        total = 0
        for archive in archives:
            total += archive.stat().st_size
            if total > self._keep_bytes and archive != used:
                archive.unlink(missing_ok=True)


def _digest(path: Path) -> Optional[str]:
    """The SHA-256 of a plain file, or None."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    sha256 = hashlib.sha256()
    with open(number, "rb") as file:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            return None
        for piece in iter(lambda: file.read(1 << 20), b""):
            sha256.update(piece)
    return sha256.hexdigest()


def extract(archive: BinaryIO, to: Path) -> None:
    """Unpack a .tar.gz that somebody else made: plain files, directories and links that stay inside, within limits."""
    to.mkdir(mode=0o700)
    root = os.path.realpath(to)
    count, total = 0, 0
    with tarfile.open(fileobj=_Bounded(archive), mode="r|") as packed:
        for member in packed:
            count, total = count + 1, total + member.size
            if count > MOST_MEMBERS:
                raise _bad(f"has more than {MOST_MEMBERS} members")
            if total > LARGEST_UNPACKED:
                raise _bad(f"has more than {LARGEST_UNPACKED} bytes unpacked")
            _check(member, root)
            _extract(packed, member, root)


def _check(member: tarfile.TarInfo, root: str) -> None:
    """Judged against the links that are unpacked already: a path may not leave through one of them."""
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        raise _bad(f"holds {member.name[:200]!a}, which is no file, directory or link")
    if (
        member.name.startswith("/")
        or "\0" in member.name
        or not _inside(os.path.join(root, member.name), root)
    ):
        raise _bad(f"holds {member.name[:200]!a}, which leads out of it")
    if member.issym():
        target = os.path.join(root, os.path.dirname(member.name), member.linkname)
    elif member.islnk():
        target = os.path.join(root, member.linkname)
    else:
        return
    if member.linkname.startswith("/") or not _inside(target, root):
        raise _bad(
            f"holds the link {member.name[:200]!a} to {member.linkname[:200]!a}, which leads out of it"
        )


def _inside(path: str, root: str) -> bool:
    return os.path.commonpath((os.path.realpath(path), root)) == root


def _extract(packed: tarfile.TarFile, member: tarfile.TarInfo, root: str) -> None:
    # What the data filter would do; Python 3.9 before 3.9.17 has none.
    member.mode = 0o700 if member.isdir() or member.mode & 0o100 else 0o600
    member.uid, member.gid, member.uname, member.gname = os.geteuid(), os.getegid(), "", ""
    if hasattr(tarfile, "data_filter"):
        packed.extract(member, root, filter="data")
    else:
        packed.extract(member, root)


def _bad(what: str) -> PilotageError:
    return PilotageError("BUNDLE_FAILED", f"the bundle {what}")


class _Bounded(io.RawIOBase):
    """Unzips a stream and refuses to give more than an honest bundle holds, headers of any kind included."""

    LARGEST = LARGEST_UNPACKED + MOST_MEMBERS * 1024

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
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
        if self._given > self.LARGEST:
            raise _bad(f"has more than {self.LARGEST} bytes unpacked")
        return data
