"""Results that the server has not accepted yet, as files: they outlive the pilot, and the next one delivers them.

    OUTBOX/PILOT/ATTEMPT-SEQ.json      one word each, mode 0600, written whole and fsynced before it is sent
    OUTBOX/PILOT.lock                  held while that pilot lives

A word goes away when the server has accepted or rejected it. It carries the server's address: a pilot of another server leaves
it alone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

from filelock import FileLock, Timeout

from protocol.errors import PilotageError
from protocol.messages import from_wire, to_wire
from protocol.messages.pilots import AttemptUpdate

logger = logging.getLogger(__name__)

FORMAT = 1
LARGEST = 64 * 1024 * 1024
"""Bytes of a file; a larger one is not ours."""

_NAME = re.compile(r"([0-9]{1,19})-([0-9]{1,19})\.json")


class Outbox:
    """The results of this pilot. What cannot be written is told once and then kept in memory only."""

    def __init__(self, directory: Path, pilot: str, server: str) -> None:
        self.directory = directory
        self._server = server
        self._own = directory / pilot
        self._lock = _lock_of(self._own)
        self._guard = threading.Lock()
        self._kept: set[str] = set()
        self._trouble = False

    def open(self) -> None:
        """Make the directory; BAD_SETTINGS if results could not be kept there."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            self._own.mkdir(mode=0o700)
        except OSError as error:
            raise PilotageError(
                "BAD_SETTINGS", f"OUTBOX_DIRECTORY {self.directory} cannot be used: {error.strerror or error}"
            ) from None

    def close(self) -> None:
        """At the pilot's end. What was not delivered stays, for the next pilot with this outbox."""
        left = len(self._kept)
        if left:
            logger.warning("results wait in the outbox", extra={"outbox": str(self._own), "results": left})
            self._lock.release()
        else:
            _remove_directory(self._own, self._lock)

    def keep(self, word: AttemptUpdate) -> None:
        """Write a result before it is sent; nothing happens if it is kept already."""
        name = _name(word)
        with self._guard:
            if name in self._kept:
                return
            self._kept.add(name)
        content = {"format": FORMAT, "server": self._server, "word": to_wire(word)}
        try:
            _write(self._own / name, json.dumps(content).encode())
        except OSError as error:
            with self._guard:
                self._kept.discard(name)
            if not self._trouble:
                self._trouble = True
                logger.error(
                    "the outbox cannot be written", extra={"outbox": str(self._own), "reason": str(error)}
                )

    def drop(self, word: AttemptUpdate) -> None:
        """The server has accepted or rejected it."""
        self._remove(_name(word))

    def forget(self, attempt_id: int) -> None:
        """The attempt is not ours any more: nobody wants its results."""
        self._remove(f"{attempt_id}-")

    def _remove(self, begin: str) -> None:
        """What is kept under names that begin so."""
        with self._guard:
            unwanted = [name for name in self._kept if name.startswith(begin)]
            self._kept.difference_update(unwanted)
        for name in unwanted:
            # A disk that went read-only must not end the reporter; what stays is said again, and that is a repeat.
            with contextlib.suppress(OSError):
                (self._own / name).unlink(missing_ok=True)

    def leftovers(self) -> list[Leftover]:
        """What dead pilots left here for our server; it stays theirs, on disk, until it is delivered."""
        found = []
        for directory in sorted(self.directory.iterdir()):
            if directory == self._own or not _is_own_directory(directory):
                continue
            lock = _lock_of(directory)
            try:
                lock.acquire(timeout=0)
            except (Timeout, OSError):
                continue  # its pilot lives, or another one is delivering
            words = dict(self._read(directory))
            if words:
                found.append(Leftover(directory, lock, words))
            else:
                _remove_directory(directory, lock)
        return found

    def _read(self, directory: Path) -> Iterator[tuple[Path, AttemptUpdate]]:
        try:
            names = list(filter(None, map(_NAME.fullmatch, os.listdir(directory))))
        except FileNotFoundError:
            return  # another pilot has just delivered it all
        for name in sorted(names, key=lambda match: (int(match.group(1)), int(match.group(2)))):
            path = directory / name.group()
            content = _load(path)
            if content is None:
                logger.warning("a file in the outbox is no result", extra={"file": str(path)})
            elif content[0] == self._server:
                yield path, content[1]


class Leftover:
    """The results of one dead pilot on their way; the reporter treats it like a job whose words are all said."""

    def __init__(self, directory: Path, lock: FileLock, words: dict[Path, AttemptUpdate]) -> None:
        self.directory = directory
        self._lock = lock
        self._words = words

    def words(self) -> list[AttemptUpdate]:
        return list(self._words.values())

    def seconds_until_due(self) -> float:
        return math.inf

    def is_empty(self) -> bool:
        return not self._words

    def answered(self, word: AttemptUpdate, state: str) -> None:
        logger.info(
            "a dead pilot's result is delivered", extra={"attempt_id": word.attempt_id, "state": state}
        )
        self._take_away(word)

    def refused(self, word: AttemptUpdate, error: PilotageError) -> None:
        logger.warning(
            "a dead pilot's result was refused", extra={"attempt_id": word.attempt_id, "detail": error.detail}
        )
        self._take_away(word)

    def close(self) -> None:
        """What is left can be delivered by somebody else."""
        _remove_directory(self.directory, self._lock)

    def _take_away(self, word: AttemptUpdate) -> None:
        for path, each in list(self._words.items()):
            if each is word:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
                del self._words[path]


def _name(word: AttemptUpdate) -> str:
    return f"{word.attempt_id}-{word.seq}.json"


def _write(path: Path, data: bytes) -> None:
    """All of it or nothing, and on the disk when this returns."""
    part = path.with_suffix(".part")
    number = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(number, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(number)
    os.replace(part, path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _load(path: Path) -> Optional[tuple[str, AttemptUpdate]]:
    """The server's address and the word of a result file of our own, or None for anything else."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(number, "rb") as file:
            status = os.fstat(number)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_size > LARGEST:
                return None
            content = json.loads(file.read(LARGEST))
        if content["format"] != FORMAT:
            return None
        return str(content["server"]), from_wire(AttemptUpdate, content["word"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _lock_of(directory: Path) -> FileLock:
    # Beside the directory, and taken before that is made: whoever finds the directory finds it locked.
    return FileLock(f"{directory}.lock", mode=0o600, thread_local=False)


def _is_own_directory(path: Path) -> bool:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    # Without a lock beside it, it is no pilot's.
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and os.path.exists(f"{path}.lock")


def _remove_directory(directory: Path, lock: FileLock) -> None:
    """Remove it, with the halves of results that were never finished, and let go of it. What else lies there keeps it."""
    try:
        for part in directory.glob("*.part"):
            part.unlink(missing_ok=True)
        directory.rmdir()
        Path(lock.lock_file).unlink(missing_ok=True)
    except OSError:
        pass
    lock.release()
