"""What a registration that broke off has learned: checksums of large files, by path, size, time and inode, so that none is read again.

A file in the user's cache directory, for each server and dataset; it goes when the dataset is registered, and after a week.
Where it cannot be kept, nothing is remembered and nothing is said: it saves time and is needed for nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from protocol.files import check_checksums

WORTH_BYTES = 2**20
"""A smaller file is read again as quickly as it is noted."""
KEPT_SECONDS = 7 * 86_400.0

Stamp = tuple[int, int, int]


def place(url: str, dataset: str) -> Path | None:
    """Where the registration of this dataset at this server is noted; None for a user without a home."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = hashlib.sha256(f"{url}\n{dataset}".encode()).hexdigest()[:32]
    return None if not os.path.isabs(base) else Path(base) / "pilotage" / "registering" / f"{name}.jsonl"


class Journal:
    """May be used by several threads."""

    def __init__(self, path: Path | None) -> None:
        """None: nothing is remembered."""
        self._path = path
        self._lock = threading.Lock()
        self._known: dict[str, tuple[list[int], dict[str, str]]] = {}
        if path is not None:
            with contextlib.suppress(OSError):
                _clear_away(path.parent)
                self._read(path)

    def _read(self, path: Path) -> None:
        with open(path, encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                # The last one may be torn.
                with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
                    name, stamp, checksums = json.loads(line)
                    self._known[str(name)] = list(stamp), check_checksums(checksums)

    def of(self, path: str, stamp: Stamp, algorithms: Sequence[str]) -> dict[str, str] | None:
        """The checksums asked for, if they were learned of just this file."""
        then, checksums = self._known.get(os.path.abspath(path), ([], {}))
        if then != list(stamp) or not set(algorithms) <= checksums.keys():
            return None
        return {algorithm: checksums[algorithm] for algorithm in algorithms}

    def note(self, path: str, stamp: Stamp, checksums: Mapping[str, str]) -> None:
        if self._path is None or stamp[0] < WORTH_BYTES:
            return
        line = json.dumps([os.path.abspath(path), stamp, dict(checksums)]) + "\n"
        with self._lock, contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self._path, flags, 0o600)
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)

    def remove(self) -> None:
        """All is registered."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()


def _clear_away(directory: Path) -> None:
    for old in directory.glob("*.jsonl"):
        with contextlib.suppress(OSError):
            if time.time() - old.lstat().st_mtime > KEPT_SECONDS:
                old.unlink()
