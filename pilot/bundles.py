"""What jobs bring with them: archives, fetched by their checksums, verified, kept on the node, unpacked anew for each job.

The cache holds the archives as they came; all pilots of an account on a node may share it. A payload runs under the pilot's
account and could change what lies there, so an archive is verified each time before it is unpacked into the job's own directory.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import time
from pathlib import Path
from typing import Any, BinaryIO, Callable, Optional

from copytools import checksum
from pilot.locking import alone
from protocol.errors import PilotageError
from protocol.messages.pilots import BundleRef

logger = logging.getLogger(__name__)

LARGEST_ARCHIVE = 64 * 1024 * 1024
LARGEST_UNPACKED = 1024 * 1024 * 1024
MOST_MEMBERS = 50_000
FETCH_SECONDS = 600.0
"""How long a pilot waits for another one on this node that is fetching the same bundle."""
LEFT_SECONDS = 86_400
"""What is still being fetched after this was left by a pilot that was killed."""

Fetch = Callable[[str, Path, int], str]
"""`fetch(digest, to, largest)` writes the archive into a new file and gives its SHA-256: the server client's `fetch_bundle`."""


class Mismatch(Exception):
    """What was fetched is not what was wanted; in words."""


class Cache:
    """The archives on this node, shared by all pilots with the same directory for them."""

    def __init__(self, directory: Path, fetch: Fetch, keep_mb: int) -> None:
        self._directory = directory
        self._fetch_bundle = fetch
        self._keep_bytes = keep_mb * 1024 * 1024

    def unpack(self, bundle: BundleRef, to: Path, check: Callable[[], None] = lambda: None) -> None:
        """The bundle's content in a new directory; BUNDLE_FAILED if it cannot be had or is not what it should be.

        `check` is called now and then: what it raises ends the work.
        """
        from pilot import archives  # late: most jobs bring none

        digest = bundle.digest
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise PilotageError("BUNDLE_FAILED", f"{digest[:80]!a} is no digest")

        def fetch(path: Path) -> None:
            self._fetch_bundle(digest, path, min(LARGEST_ARCHIVE, bundle.size))

        try:
            with self.open(f"sha256:{digest}", fetch, check=check) as archive:
                archives.extract(archive, to, archives.Bounds(LARGEST_UNPACKED, MOST_MEMBERS), check)
        except archives.BadArchive as error:
            raise PilotageError("BUNDLE_FAILED", f"the bundle {error}") from None
        except (Mismatch, OSError) as error:
            raise PilotageError("BUNDLE_FAILED", f"bundle {digest}: {error}") from None

    def open(
        self,
        wanted: str,
        fetch: Callable[[Path], None],
        seconds: float = FETCH_SECONDS,
        check: Callable[[], None] = lambda: None,
        what: str = "bundle",
    ) -> BinaryIO:
        """The archive with this checksum, as sha256:…, open and verified; fetched if it is not here, by one pilot at a time.

        `fetch` writes it into a new file; `what` it is, for the log. Who waits for another pilot that fetches it calls `check`
        now and then, and raises Timeout after `seconds`. Mismatch if something else was fetched; OSError if the node's disk does
        not do it.
        """
        algorithm, _, digest = wanted.partition(":")
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._directory.stat().st_uid != os.geteuid():
            raise PermissionError(f"{self._directory} belongs to another account")
        path = self._directory / f"{algorithm}-{digest}"
        archive = self._verified(path, algorithm, digest)
        if archive is None:
            with alone(_lock_of(path), seconds, check):
                archive = self._verified(path, algorithm, digest)
                if archive is None:
                    archive = self._fetched(path, algorithm, digest, fetch)
                    size = os.fstat(archive.fileno()).st_size
                    logger.info(f"{what} is fetched", extra={"digest": digest, "bytes": size})
        self._tidy(path)
        return archive

    def _verified(self, path: Path, algorithm: str, digest: str) -> Optional[BinaryIO]:
        """What is here, if it is what it should be. It stays readable if it is tidied away meanwhile."""
        try:
            file = os.fdopen(checksum.open_plain(path), "rb")
        except OSError:
            return None
        if _digest(file, algorithm) != digest:
            file.close()
            return None
        os.utime(file.fileno())
        return file

    def _fetched(self, path: Path, algorithm: str, digest: str, fetch: Callable[[Path], None]) -> BinaryIO:
        part = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
        try:
            fetch(part)
            file = os.fdopen(checksum.open_plain(part), "rb")
            found = _digest(file, algorithm)
            if found != digest:
                file.close()
                shown = algorithm.upper().replace("SHA", "SHA-")
                raise Mismatch(f"it arrived with the {shown} {found}")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return file

    def _tidy(self, used: Path) -> None:
        """Forget what was not used for longest, until the rest fits. Who has it open can go on with it."""
        here, total = [], 0
        for path in self._directory.iterdir():
            try:
                status = path.stat()
            except OSError:
                continue  # another pilot has tidied
            if not path.name.startswith("."):
                here.append((status.st_mtime, status.st_size, path))
            elif path.suffix == ".part" and status.st_mtime < time.time() - LEFT_SECONDS:
                path.unlink(missing_ok=True)
        for _, size, path in sorted(here, reverse=True):
            total += size
            if total > self._keep_bytes and path != used:
                path.unlink(missing_ok=True)
                _lock_of(path).unlink(missing_ok=True)


def _lock_of(path: Path) -> Path:
    """Beside the archive. That it may be removed while somebody waits for it costs a second fetch, and no more."""
    return path.with_name(f".{path.name}.lock")


def _digest(file: BinaryIO, algorithm: str) -> str:
    """Of a whole file, which is then at its beginning again; CHECKSUM_NOT_SUPPORTED if this node cannot say."""
    learned: Any
    if algorithm == "sha256":
        learned = hashlib.sha256()
        for piece in iter(lambda: file.read(1 << 20), b""):
            learned.update(piece)
        found = str(learned.hexdigest())
    else:
        with checksum.Hasher((algorithm,)) as learned:
            for piece in iter(lambda: file.read(1 << 20), b""):
                learned.update(memoryview(piece))
            found = learned.digests()[algorithm]
    file.seek(0)
    return found
