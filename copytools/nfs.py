"""Files on NFS: patient with stale handles and late news, and a stored file is read again from the server.

What NFS asks of a writer, step by step: a hidden name beside the target; fsync, which makes the server tell what it could
not keep; a link to the final name, which replaces nothing; fsync of the directory; then the file is opened anew, past this
node's page cache, and its checksum compared with that of the bytes that were read here.
"""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Callable, Iterator, TypeVar

from copytools.base import Checksums, Deadline, FileTool, Option
from copytools.copying import Plan, copy, refuse_other_bytes, reread, withdraw
from copytools.failures import End, Stage, meaning, translated
from protocol.errors import PilotageError
from protocol.values import Bounds, Type

logger = logging.getLogger(__name__)

T = TypeVar("T")

STALE_PAUSES = (0.1, 0.3, 1.0, 3.0)
"""Seconds before a file is opened again whose handle was stale; then STORAGE_STALE."""

LONGEST_PAUSE = 5.0
"""Seconds between two looks for a file that is not visible yet; the first is after 0.1, each further one after twice as long."""


class Tool(FileTool):
    """For the same URLs as cp, where they lie on NFS."""

    OPTIONS = {
        "visible_seconds": Option(
            Type.NUMBER,
            "30",
            "how long a file may stay unseen that another node has written",
            Bounds(0, 3600),
        ),
    }

    def copy_in(self, source: str, to: Path, timeout: float) -> Checksums:
        path, deadline = self.path_of(source), self.deadline(timeout)
        plan = Plan(Stage.IN, self.algorithms)
        return self._patiently(Stage.IN, path, deadline, lambda: copy(path, to, plan, deadline)).checksums

    def copy_out(self, path: Path, target: str, timeout: float) -> Checksums:
        place, deadline = self.path_of(target), self.deadline(timeout)
        plan = Plan(Stage.OUT, self.algorithms, durable=True, named=True, hash_source=True)
        copied = self._patiently(Stage.OUT, place, deadline, lambda: copy(path, place, plan, deadline))

        def look() -> Checksums:
            with translated(Stage.OUT, End.TARGET, place):
                return reread(place, tuple(copied.checksums), deadline)

        try:
            stored = self._patiently(Stage.OUT, place, deadline, look)
        except PilotageError:
            withdraw(place, copied.made)
            raise
        refuse_other_bytes(place, copied, stored)
        return copied.checksums

    def _patiently(self, stage: Stage, path: Path, deadline: Deadline, action: Callable[[], T]) -> T:
        """Do it again, each time from opening the files, while NFS may still come to its senses; `path` is the one on NFS."""
        seconds = self.options["visible_seconds"]
        assert isinstance(seconds, (int, float))
        pauses = {errno.ESTALE: iter(STALE_PAUSES), errno.ENOENT: _doubling(seconds)}
        while True:
            try:
                return action()
            except PilotageError as error:
                pause = next(pauses.get(_passing(error), iter(())), None)
                if pause is None:
                    raise
                logger.warning("NFS: trying again", extra={"reason": str(error), "pause_seconds": pause})
            with translated(stage, End.SOURCE if stage is Stage.IN else End.TARGET, path):
                deadline.pause(pause)
            _ask_server(path.parent)


def _passing(error: PilotageError) -> int:
    """The errno of a state that may pass: a stale handle, or a file on the storage that is not visible yet; else 0."""
    number = error.__cause__.errno if isinstance(error.__cause__, OSError) else None
    if number == errno.ESTALE:
        return errno.ESTALE
    on_storage = error.name in (
        meaning(Stage.IN, End.SOURCE, errno.ENOENT),
        meaning(Stage.OUT, End.TARGET, errno.ENOENT),
    )
    return errno.ENOENT if number == errno.ENOENT and on_storage else 0


def _doubling(limit: float) -> Iterator[float]:
    """Pauses that together last `limit` seconds."""
    pause, left = 0.1, limit
    while left > 0:
        yield min(pause, left)
        left -= pause
        pause = min(2 * pause, LONGEST_PAUSE)


def _ask_server(directory: Path) -> None:
    """Reading a directory makes an NFS client ask whether what it remembers of it still holds."""
    try:
        with os.scandir(directory) as entries:
            next(entries, None)
    except OSError:
        pass  # the next try tells more
