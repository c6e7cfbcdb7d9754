"""What tools for storages across the network share: only the protocol is their own.

Coming in, the bytes go to a hidden name beside the target, are hashed there, and get their name when they are whole. Going out,
the file is opened and hashed first; the storage is asked what it has of that name, and afterwards what it has got.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import shutil
import tempfile
import threading
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional, Tuple, TypeVar, Union
from urllib.parse import unquote, urlsplit

from copytools.base import Checksums, CopyTool, Deadline, Stored, shown
from copytools.checksum import supported
from copytools.copying import give_name, hashed, hidden_name, open_output
from copytools.failures import CORRUPTED, End, Stage, translated
from protocol.errors import PilotageError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_BUCKET = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
LOOK_SECONDS = 0.2
"""How soon a call ends that nobody waits for any more."""
WITHDRAW_SECONDS = 20.0
"""To take back what was not stored well, though the time for the copy may be over."""


class Outgoing(NamedTuple):
    """A file on its way to a storage: open, so that it cannot be swapped for another one."""

    descriptor: int
    size: int
    checksums: Checksums
    place: Path
    """Where it lies."""

    @property
    def path(self) -> str:
        """For a program that takes paths; it has to inherit the descriptor."""
        return f"/proc/self/fd/{self.descriptor}"


class Unclear(OSError):
    """A put failed, and nobody knows whose file lies there now: it stays."""


class RemoteTool(CopyTool):
    """A subclass gives the four verbs below. Each raises OSError, whose errno says what it means (copytools/failures.py)."""

    told_checksum: str = ""
    """The algorithm that the storage calculates too; it is learned of each file that goes out."""

    def get(self, source: str, to: Path, deadline: Deadline) -> None:
        """Write the file at the URL into the new file `to`; ENOENT if there is none. What was begun may be left behind."""
        raise NotImplementedError

    def put(self, file: Outgoing, target: str, deadline: Deadline) -> Optional[Stored]:
        """Make the file at the URL, never over another one: EEXIST. The answer saves a further look, if the storage told it."""
        raise NotImplementedError

    def stored(self, url: str, deadline: Deadline) -> Optional[Stored]:
        """What the storage has at the URL; None: nothing."""
        raise NotImplementedError

    def remove(self, url: str, deadline: Deadline) -> None:
        """Take the file away; none is no error."""
        raise NotImplementedError

    # -- the two verbs of a copytool ----------------------------------------------------------------------------------------

    def copy_in(self, source: str, to: Path, timeout: float) -> Checksums:
        deadline = self.deadline(timeout)
        hidden = to.with_name(
            hidden_name("input")
        )  # a plain name: programs may have their own mind about a % or a blank
        try:
            with translated(Stage.IN, End.TARGET, to):
                if os.path.lexists(to):
                    raise FileExistsError(errno.EEXIST, "is there already")
            with translated(Stage.IN, End.SOURCE, source):
                self.get(source, hidden, deadline)
            with translated(Stage.IN, End.TARGET, to):
                return _adopted(hidden, to, self.algorithms, deadline)
        finally:
            _unlink(hidden)

    def copy_out(self, path: Path, target: str, timeout: float) -> Checksums:
        deadline = self.deadline(timeout)
        with translated(Stage.OUT, End.SOURCE, path):
            source = open_output(path)
        try:
            with translated(Stage.OUT, End.SOURCE, path):
                size, checksums = os.fstat(source).st_size, self._hashed(source, deadline)
            with translated(Stage.OUT, End.TARGET, target):
                self._store(Outgoing(source, size, checksums, path), target, deadline)
        finally:
            os.close(source)
        return {algorithm: checksums[algorithm] for algorithm in self.algorithms}

    def look(self, url: str, timeout: float) -> Stored:
        with translated(Stage.IN, End.SOURCE, url):
            found = self.stored(url, self.deadline(timeout))
            if found is None:
                raise FileNotFoundError(errno.ENOENT, "there is no such file")
            return found

    # -- going out ----------------------------------------------------------------------------------------------------------

    def _hashed(self, descriptor: int, deadline: Deadline) -> Checksums:
        algorithms = (*self.algorithms, self.told_checksum) if self.told_checksum else self.algorithms
        return hashed(descriptor, supported(algorithms), deadline)

    def _store(self, file: Outgoing, target: str, deadline: Deadline) -> None:
        there = self.stored(target, deadline)
        if there is None:
            try:
                got = self.put(file, target, deadline) or self.stored(target, deadline)
                _compare(file, got)
                return
            except FileExistsError:  # somebody was faster: it is not ours to take away
                there = self.stored(target, deadline)
            except Unclear:
                logger.warning("what was begun of a file may have stayed", extra={"url": shown(target)})
                raise
            except BaseException:
                self._withdraw(target)
                raise
        if there is None or not self._is_same(file, there, target, deadline):
            raise FileExistsError(errno.EEXIST, "another file is there already")

    def _withdraw(self, target: str) -> None:
        try:
            self.remove(target, Deadline(WITHDRAW_SECONDS))
        except OSError as error:
            logger.warning(
                "could not remove what was not stored well",
                extra={"url": shown(target), "reason": shown(error)},
            )

    def _is_same(self, file: Outgoing, there: Stored, target: str, deadline: Deadline) -> bool:
        """By a checksum of the storage; else it is read, which happens only after an answer got lost."""
        if there.size != file.size:
            return False
        common = [each for each in there.checksums if each in file.checksums]
        if common:
            return all(there.checksums[each].lower() == file.checksums[each] for each in common)
        algorithm, ours = next(iter(file.checksums.items()))
        with tempfile.TemporaryDirectory(prefix="pilotage-") as place:
            back = Path(place, "back")
            self.get(target, back, deadline)
            with open(back, "rb") as opened:
                return hashed(opened.fileno(), (algorithm,), deadline)[algorithm] == ours


def within(deadline: Deadline, work: Callable[[], T]) -> T:
    """Do it in another thread, and leave it alone there when its time is over: for libraries that know no such word.

    What is left alone has to end soon by itself: by `deadline.check()`, or the library's own time-outs.
    """
    deadline.check()
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  it is for who waits
            future.set_exception(error)

    threading.Thread(target=run, name="copytool", daemon=True).start()
    while not wait((future,), min(LOOK_SECONDS, deadline.left() + 0.01)).done:
        deadline.check()
    return future.result()


class Watched(io.FileIO):
    """A file that a library reads or writes by itself: it ends when its time is over."""

    def __init__(self, path: Union[str, Path], mode: str, deadline: Deadline) -> None:
        super().__init__(path, mode)
        self._deadline = deadline

    def read(self, size: Optional[int] = -1) -> bytes:
        self._deadline.check()
        return super().read(-1 if size is None else size) or b""

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        while rest:
            self._deadline.check()
            rest = rest[super().write(rest) :]
        return len(data)


def in_bucket(url: str) -> Tuple[str, str]:
    """Bucket and name of an object; BAD_PATH if the URL names none."""
    scheme = url.partition(":")[0]
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise PilotageError("BAD_PATH", f"{shown(url[:300])} is no URL: {error}") from None
    name = unquote(parts.path)[1:]
    if not _BUCKET.fullmatch(parts.netloc) or not name.strip("/"):
        raise PilotageError(
            "BAD_PATH", f"{shown(url[:300])} names no bucket or no object: {scheme}://BUCKET/NAME"
        )
    if ".." in name.split("/") or any(not character.isprintable() for character in name):
        raise PilotageError("BAD_PATH", f"{shown(url[:300])}: no .. or control characters in a name")
    return parts.netloc, name


def private(path: str) -> os.stat_result:
    """Of a file with a secret; BAD_SETTINGS if others can read it, OSError if it is not there."""
    status = os.stat(path)
    if status.st_mode & 0o077:
        raise PilotageError("BAD_SETTINGS", f"{shown(path)} holds a secret but is not private: chmod 600 it")
    return status


def path_in(url: str) -> str:
    """The path in an address of a server, absolute and with nothing quoted; BAD_PATH."""
    try:
        path = unquote(urlsplit(url).path)
    except ValueError as error:
        raise PilotageError("BAD_PATH", f"{shown(url[:300])} is no URL: {error}") from None
    if ".." in path.split("/") or not path.isprintable() or not path.strip("/"):
        raise PilotageError("BAD_PATH", f"{shown(url[:300])}: its path leads astray, or nowhere")
    return f"/{path.lstrip('/')}"


def refuse_part(to: Path, size: int) -> None:
    """OSError unless all of a file came. Some programs leave half of one on a full disk, and say that all went well."""
    arrived = to.stat().st_size
    if arrived != size:
        is_full = shutil.disk_usage(to.parent).free < size - arrived
        raise OSError(errno.ENOSPC if is_full else errno.EIO, f"{arrived} of {size} bytes arrived")


def _compare(file: Outgoing, got: Optional[Stored]) -> None:
    """OSError unless the storage has what was sent, as far as it tells."""
    if got is None:
        raise OSError(errno.EIO, "the storage said yes and has no such file")
    if got.size != file.size:
        raise OSError(CORRUPTED, f"{file.size} bytes were sent, {got.size} are stored")
    for algorithm, theirs in got.checksums.items():
        ours = file.checksums.get(algorithm)
        if ours is not None and theirs.lower() != ours:
            raise OSError(CORRUPTED, f"{algorithm} {ours} was sent, {theirs} is stored")


def _adopted(hidden: Path, to: Path, algorithms: Tuple[str, ...], deadline: Deadline) -> Checksums:
    """The file that was brought gets its name; its checksums."""
    descriptor = os.open(hidden, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        checksums = hashed(descriptor, algorithms, deadline)
        give_name(hidden, to)
        return checksums
    finally:
        os.close(descriptor)


def _unlink(path: Path) -> None:
    try:
        path.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        logger.warning("could not remove a file", extra={"file_name": shown(path), "reason": str(error)})
