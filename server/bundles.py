"""The user's code that travels with a task: kept once per content, under its SHA-256."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
from pathlib import Path
from typing import IO

from protocol.errors import PilotageError
from protocol.messages.pilots import BundleRef
from server.core import Core
from server.models import Bundle

BLOCK = 2**20


def path_of(core: Core, digest: str) -> Path:
    """Where the bytes of a bundle lie, or NOT_FOUND."""
    path = _path(core, digest)
    if not path.is_file():
        raise PilotageError("NOT_FOUND", f"no bundle {digest}")
    return path


def _path(core: Core, digest: str) -> Path:
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise PilotageError(
            "BAD_REQUEST", f"{digest[:80]!a} is no SHA-256: 64 hexadecimal digits in lower case"
        )
    return core.state_directory / "bundles" / digest


def store(core: Core, digest: str, stream: IO[bytes], owner: str) -> BundleRef:
    """Keep a bundle that comes in a stream; sent again it changes nothing. Whole, verified and on disk before the answer."""
    path = _path(core, digest)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".incoming-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            size = _receive(stream, file, digest, core.limits.bundle_bytes)
        os.rename(name, path)
        _sync(path.parent)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise PilotageError("SERVER_UNAVAILABLE", "no space is left for bundles") from error
    finally:
        Path(name).unlink(missing_ok=True)

    def work() -> None:
        Bundle.insert(digest=digest, size=size, owner=owner).on_conflict_ignore().execute()

    core.database.write(work)
    return BundleRef(digest, size)


def _sync(directory: Path) -> None:
    """Have the names in a directory on disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _receive(stream: IO[bytes], file: IO[bytes], digest: str, limit: int) -> int:
    """Write the stream to the file; its size. Refuses what is too large or is not what its name says."""
    learned, size = hashlib.sha256(), 0
    while block := stream.read(BLOCK):
        size += len(block)
        if size > limit:
            raise PilotageError(
                "TOO_LARGE", f"a bundle may have {limit} bytes; put large things into a dataset"
            )
        learned.update(block)
        file.write(block)
    if learned.hexdigest() != digest:
        raise PilotageError("BAD_REQUEST", f"the body's SHA-256 is {learned.hexdigest()}, not {digest}")
    file.flush()
    os.fsync(file.fileno())
    return size
