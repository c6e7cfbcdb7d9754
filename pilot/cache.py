"""Inputs kept on the node for further jobs, by their checksums; all pilots of an account with the same directory share them.

DIRECTORY/blake3-DIGEST-SIZE         an entry: made from bytes that were verified, mode 0444, never written again
DIRECTORY/.blake3-DIGEST-SIZE.lock   held by the pilot that fetches it
DIRECTORY/.….part                    a copy that is not whole yet

A payload that cannot write to its inputs, since it is isolated, gets a hard link; any other one runs under the pilot's account and
could change what lies here, so it gets a copy, which is verified each time. The times of an entry tell when it was used last (access)
and when it was verified last (modification, in whole seconds: whatever else writes to a file leaves other times).

The directory must be ours, and nobody else's to write in. All is done through its descriptor and without following a link; what is
not an entry of ours in it is left alone. Whatever is wrong here costs a fetch, and never a job.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import re
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Callable, NamedTuple, Optional, TypeVar

from copytools import checksum
from copytools.base import Deadline
from copytools.checksum import NOT_PLAIN
from copytools.copying import Plan, copy, hidden_name, reread
from copytools.failures import Stage
from pilot.locking import alone
from pilot.patience import Stopped
from protocol import cached
from protocol.errors import PilotageError
from protocol.files import ALGORITHMS, UNFINISHED
from protocol.messages.pilots import CacheReport
from protocol.redaction import one_line

logger = logging.getLogger(__name__)

T = TypeVar("T")

MODE = 0o444
NANO = 1_000_000_000
FETCH_SECONDS = 600.0
"""How long a pilot waits for another one on this node that fetches the same input; then it fetches the input for itself."""
LEFT_SECONDS = 86_400
"""A lock or an unfinished copy that nobody has touched for so long was left by a pilot that was killed."""
FRESH_SECONDS = 10.0
"""How old what a pilot knows of the directory may become while it adds to it."""
LEAST_PAUSE, MOST_PAUSE = 0.1, 60.0
"""Seconds between two looks of who looks after the entries."""
REST = 9
"""After a verification it rests so many times as long: other work on this disk goes first."""
SLACK = 16
"""The bound is kept by looking at the directory when this part of it may have been added."""
MOST_ENTRIES = 100_000

_ENTRY = re.compile(r"(?P<algorithm>[a-z0-9]+)-(?P<digest>[0-9a-f]+)-(?P<size>[0-9]{1,19})(-[0-9a-f]{32})?")
_LOCK = re.compile(rf"\.{_ENTRY.pattern}\.lock")
_UNREADABLE = frozenset((errno.EIO, errno.ENODATA, errno.EBADMSG, NOT_PLAIN))
"""What a disk says of bytes that it cannot give back, and what lies there instead of a file."""
_NO_LINKS = frozenset((errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK))
"""Another file system, or one that knows no hard links, or no more of them for this file."""


class Bounds(NamedTuple):
    """What a cache may take, and how long an entry counts as verified."""

    most_bytes: int
    free_bytes: int = 0
    """What must stay free on its disk."""
    verify_seconds: float = math.inf


class Entry(NamedTuple):
    """One input as the cache knows it."""

    name: str
    algorithm: str
    digest: str
    size: int


class _Kept(NamedTuple):
    """An entry that is there."""

    entry: Entry
    used: float
    verified: float
    links: int


def entry_of(checksums: Mapping[str, str], algorithm: str, size: Optional[int], lfn: str) -> Optional[Entry]:
    """For an input that will be verified by this one of its checksums; None if such a one is not kept."""
    digest = checksums.get(algorithm, "").lower()
    if not size or len(digest) != ALGORITHMS.get(algorithm) or not re.fullmatch("[0-9a-f]+", digest):
        return None
    return Entry(cached.name_of(algorithm, digest, size, lfn), algorithm, digest, size)


class InputCache:
    """The inputs in one directory."""

    def __init__(self, directory: Path, bounds: Bounds, links: bool) -> None:
        """`links`: payloads cannot write to their inputs."""
        self.directory = directory.absolute()
        self._bounds = bounds
        self._links = links
        self._lock = threading.Lock()
        self._report = CacheReport()
        self._told: set[str] = set()
        self._summary = ""
        self._looked = -math.inf
        self._added = 0

    # -- for jobs -----------------------------------------------------------------------------------------------------------

    def provide(self, entry: Entry, to: Path, fetch: Callable[[], T], stop: threading.Event) -> Optional[T]:
        """Have an input at `to`: None if it came from here; else what `fetch` has returned, which brings and verifies it there.

        One pilot at a time fetches an input, and the others wait. What `fetch` raises passes through; Stopped once `stop` is set.
        """
        if self._take(entry, to, stop):
            return None
        with ExitStack() as held:
            self._wait_for_turn(entry, held, stop)
            if self._take(entry, to, stop):
                return None
            self._make_room(entry.size)
            try:
                brought = fetch()
            except PilotageError as error:
                if error.name != "NO_LOCAL_SPACE" or not self._give_way(entry.size, to):
                    raise
                brought = fetch()
            self._keep(entry, to)
            self._make_room(0)  # others may have added something meanwhile
        self._count(entry, hit=False)
        return brought

    def why_not(self) -> Optional[str]:
        """None, or in words why nothing can be kept in this directory."""
        try:
            with self._opened():
                return None
        except OSError as error:
            return _reason(error)

    # -- what is told of it -------------------------------------------------------------------------------------------------

    def summary(self) -> str:
        """For the server, of what was used last; as of some seconds ago."""
        if time.monotonic() - self._looked > FRESH_SECONDS:
            with self._or_told(), self._opened() as folder:
                self._look(folder)
        return self._summary

    def report(self) -> CacheReport:
        """What jobs of this pilot found, and what is there."""
        with self._lock:
            return self._report

    # -- looking after it ---------------------------------------------------------------------------------------------------

    def look_after(self, stop: threading.Event) -> None:
        """Until `stop` is set: keep it within its bounds, and verify what is due."""
        pause = min(MOST_PAUSE, max(LEAST_PAUSE, self._bounds.verify_seconds / 10))
        while not stop.wait(pause):
            self._make_room(0)
            self.verify(stop)

    def verify(self, stop: threading.Event) -> None:
        """What is due, one pilot of the node at a time, the next time the rest; what is damaged is dropped."""
        with self._or_told(), self._opened() as folder, contextlib.suppress(TimeoutError):
            due = [kept for kept in self._look(folder) if self._is_due(kept.verified)]
            if not due:
                return
            with _locked(folder, ".verify.lock", 0):
                until = time.monotonic() + MOST_PAUSE
                for kept in sorted(due, key=lambda kept: kept.verified):
                    began = time.monotonic()
                    if kept.entry.algorithm in checksum.available():
                        self._verified(folder, kept.entry, stop)
                    if began > until or stop.wait(REST * (time.monotonic() - began)):
                        return

    # -- taking out ---------------------------------------------------------------------------------------------------------

    def _take(self, entry: Entry, to: Path, stop: threading.Event) -> bool:
        """Whether the input lies at `to` now."""
        if stop.is_set():
            raise Stopped
        # Another pilot may drop it at any time.
        with self._or_told(), contextlib.suppress(FileNotFoundError), self._opened() as folder:
            file = checksum.open_plain(entry.name, folder)
            try:
                if self._is_good(folder, entry, file, stop) and self._hand_out(folder, entry, file, to, stop):
                    self._count(entry, hit=True)
                    return True
            finally:
                os.close(file)
        return False

    def _is_good(self, folder: int, entry: Entry, file: int, stop: threading.Event) -> bool:
        """By what costs nothing; and by its bytes, where they will not be looked at anyway and it is time."""
        status = os.fstat(file)
        if status.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, f"{entry.name} belongs to another account")
        if not _is_intact(entry, status):
            self._drop(folder, entry, "somebody has written to it")
            return False
        return not self._links or not self._is_due(status.st_mtime) or self._verified(folder, entry, stop)

    def _hand_out(self, folder: int, entry: Entry, file: int, to: Path, stop: threading.Event) -> bool:
        is_linked = self._links and _link(file, to.parent, to.name)
        if not is_linked and not self._copied_out(folder, entry, to, stop):
            return False
        with contextlib.suppress(OSError):  # a disk that became read-only: the input is there all the same
            os.utime(file, ns=(time.time_ns(), os.fstat(file).st_mtime_ns))
        return True

    def _copied_out(self, folder: int, entry: Entry, to: Path, stop: threading.Event) -> bool:
        """Whether a copy lies there, verified; what turns out damaged is dropped."""
        plan = Plan(Stage.IN, (entry.algorithm,))
        try:
            found = copy(_inside(folder, entry.name), to, plan, Deadline(math.inf, stop.is_set)).checksums
        except PilotageError as error:
            logger.info("an input could not be copied from the cache", extra=error.facts())
            if error.name == "STAGE_IN_FAILED" and not stop.is_set():
                self._verified(folder, entry, stop)  # drops what cannot be read
            return False
        if found[entry.algorithm] == entry.digest:
            return True
        to.unlink()
        self._drop(folder, entry, f"its {entry.algorithm} is {found[entry.algorithm]}")
        return False

    def _verified(self, folder: int, entry: Entry, stop: threading.Event) -> bool:
        """Whether the disk still has these bytes; if not, the entry is dropped. Not known when `stop` is set meanwhile: then no."""
        path = _inside(folder, entry.name)
        try:
            found = reread(path, (entry.algorithm,), Deadline(math.inf, stop.is_set))[entry.algorithm]
        except FileNotFoundError:
            return False
        except OSError as error:
            # Another pilot may have noted meanwhile that it is good; and what this process lacks is no fault of the entry.
            if error.errno in _UNREADABLE and not stop.is_set():
                self._drop(folder, entry, _reason(error))
            return False
        if found != entry.digest:
            self._drop(folder, entry, f"its {entry.algorithm} is {found}")
            return False
        with contextlib.suppress(FileNotFoundError):
            used = os.stat(entry.name, dir_fd=folder, follow_symlinks=False).st_atime_ns
            os.utime(entry.name, ns=(used, _whole_seconds()), dir_fd=folder, follow_symlinks=False)
        return True

    def _is_due(self, verified: float) -> bool:
        """Also after the node has started anew, which may have lost what was not on the disk yet; and where a clock was wrong."""
        now = time.time()
        return verified < max(now - self._bounds.verify_seconds, _boot_time(now)) or verified > now + 1

    # -- putting in ---------------------------------------------------------------------------------------------------------

    def _wait_for_turn(self, entry: Entry, held: ExitStack, stop: threading.Event) -> None:
        """Where nobody can be kept waiting, several pilots fetch the same."""

        def check() -> None:
            if stop.is_set():
                raise Stopped

        with self._or_told():
            folder = held.enter_context(self._opened())
            held.enter_context(_locked(folder, f".{entry.name}.lock", FETCH_SECONDS, check))

    def _keep(self, entry: Entry, path: Path) -> None:
        """Make an entry of a file that was verified."""
        if entry.size > self._bounds.most_bytes or path.is_symlink():
            return
        with self._or_told(), self._opened() as folder:
            file = checksum.open_plain(path)
            try:
                status = os.fstat(file)
                is_own = status.st_uid == os.geteuid() and status.st_nlink == 1
                if not is_own or status.st_size != entry.size:
                    return  # a link to a file of the storage, say
                with contextlib.suppress(FileExistsError):  # somebody else was faster, or put something there
                    if not (self._links and _linked_in(file, folder, entry.name)):
                        self._copied_in(path, folder, entry)
                    self._added += entry.size
            finally:
                os.close(file)

    def _copied_in(self, path: Path, folder: int, entry: Entry) -> None:
        if not self._has_free(folder, entry.size):
            return
        part = hidden_name(entry.name)
        try:
            # Who runs under our account may have changed it since it was verified.
            plan = Plan(Stage.IN, (entry.algorithm,))
            found = copy(path, _inside(folder, part), plan, Deadline(math.inf)).checksums
            if found[entry.algorithm] == entry.digest:
                file = checksum.open_plain(part, folder)
                try:
                    _linked_in(file, folder, entry.name)
                finally:
                    os.close(file)
        except PilotageError as error:
            logger.warning("an input could not be kept", extra=error.facts())
        finally:
            _unlink(folder, part)

    # -- its bounds ---------------------------------------------------------------------------------------------------------

    def _make_room(self, size: int) -> None:
        """Drop what was not used for longest until there is room for one more of this size."""
        with self._or_told(), self._opened() as folder:
            # What is added is there twice where it is copied.
            needed = size if self._links else 2 * size
            is_known = (
                time.monotonic() - self._looked < FRESH_SECONDS
                and self._added + size < self._bounds.most_bytes / SLACK
            )
            if is_known and self._has_free(folder, needed):
                return
            kept = self._look(folder)
            total = sum(each.entry.size for each in kept)
            most = self._bounds.most_bytes
            excess = total + max(size if size <= most else 0, most / SLACK) - most
            self._drop_oldest(folder, kept, excess, needed)

    def _give_way(self, size: int, to: Path) -> bool:
        """The disk is full, or a quota is spent: whether anything was dropped that may have taken the place."""
        with self._or_told(), self._opened() as folder:
            if os.stat(to.parent).st_dev == os.fstat(folder).st_dev:
                return self._drop_oldest(folder, self._look(folder), 2 * size, 0)
        return False

    def _drop_oldest(self, folder: int, kept: list[_Kept], excess: float, needed: float) -> bool:
        """Until there are `excess` bytes less, and `needed` ones free; what a job has a link to would free nothing."""
        n_dropped, n_over = 0, len(kept) - MOST_ENTRIES
        for each in sorted(kept, key=lambda each: each.used):
            is_too_much = excess > 0 or n_dropped < n_over
            if not is_too_much and self._has_free(folder, needed):
                break
            if is_too_much or each.links == 1:
                _unlink(folder, each.entry.name)
                n_dropped += 1
                excess -= each.entry.size
        if n_dropped:
            logger.info("inputs that were not used for long are dropped", extra={"inputs": n_dropped})
        return n_dropped > 0

    def _has_free(self, folder: int, size: float) -> bool:
        disk = os.fstatvfs(folder)
        return disk.f_bavail * disk.f_frsize >= size + self._bounds.free_bytes

    def _look(self, folder: int) -> list[_Kept]:
        """All entries; what killed pilots left is removed on the way."""
        kept = []
        with os.scandir(folder) as found:
            for each in found:
                try:
                    status = each.stat(follow_symlinks=False)
                except OSError:
                    continue  # dropped by another pilot
                if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                    continue
                entry = _entry_called(each.name)
                if entry is not None:
                    kept.append(_Kept(entry, status.st_atime, status.st_mtime, status.st_nlink))
                elif _is_leftover(each.name) and status.st_mtime < time.time() - LEFT_SECONDS:
                    _unlink(folder, each.name)
        names = [each.entry.name for each in sorted(kept, key=lambda each: -each.used)]
        with self._lock:
            self._looked, self._added = time.monotonic(), 0
            self._summary = cached.summary(names)
            n_bytes = sum(each.entry.size for each in kept)
            self._report = replace(self._report, n_files=len(kept), n_bytes=n_bytes)
        return kept

    # -- its directory ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """A descriptor of the directory, which is made if it is not there; OSError if it is not ours alone."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            folder = os.open(self.directory, flags)
        except FileNotFoundError:
            os.makedirs(self.directory, 0o700, exist_ok=True)
            folder = os.open(self.directory, flags)
        try:
            status = os.fstat(folder)
            if status.st_uid != os.geteuid():
                raise PermissionError(errno.EPERM, "it belongs to another account")
            if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise PermissionError(errno.EPERM, "others may write in it (chmod 700)")
            yield folder
        finally:
            os.close(folder)

    @contextmanager
    def _or_told(self) -> Iterator[None]:
        """What is wrong with the cache is told once, and nobody fails for it."""
        try:
            yield
        except (OSError, NotImplementedError) as error:
            reason = _reason(error)
            level = logging.DEBUG if reason in self._told else logging.WARNING
            self._told.add(reason)
            logger.log(
                level,
                "the cache of inputs cannot be used",
                extra={"directory": str(self.directory), "reason": reason},
            )

    def _drop(self, folder: int, entry: Entry, why: str) -> None:
        logger.warning("a damaged input in the cache is dropped", extra={"entry": entry.name, "reason": why})
        _unlink(folder, entry.name)

    def _count(self, entry: Entry, hit: bool) -> None:
        with self._lock:
            told = self._report
            self._report = (
                replace(told, hits=told.hits + 1, hit_bytes=told.hit_bytes + entry.size)
                if hit
                else replace(told, misses=told.misses + 1, miss_bytes=told.miss_bytes + entry.size)
            )


def _entry_called(name: str) -> Optional[Entry]:
    found = _ENTRY.fullmatch(name)
    if found is None or len(found["digest"]) != ALGORITHMS.get(found["algorithm"]):
        return None
    return Entry(name, found["algorithm"], found["digest"], int(found["size"]))


def _is_leftover(name: str) -> bool:
    unfinished = UNFINISHED.fullmatch(name)
    return bool(_LOCK.fullmatch(name)) or bool(unfinished and _entry_called(unfinished["name"]))


def _is_intact(entry: Entry, status: os.stat_result) -> bool:
    """As it was made: whoever wrote to it since, by accident, has changed one of these."""
    return (
        status.st_size == entry.size
        and stat.S_IMODE(status.st_mode) == MODE
        and status.st_mtime_ns % NANO == 0
    )


def _linked_in(file: int, folder: int, name: str) -> bool:
    """Whether an open file is the entry of this name now; not where it cannot be linked. FileExistsError if there is one."""
    os.fchmod(file, MODE)
    os.utime(file, ns=(time.time_ns(), _whole_seconds()))
    return _link_open(file, folder, name)


def _link(file: int, directory: Path, name: str) -> bool:
    parent = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _link_open(file, parent, name)
    finally:
        os.close(parent)


def _link_open(file: int, parent: int, name: str) -> bool:
    """By its descriptor: it is the file that was looked at. OSError if it was dropped meanwhile."""
    try:
        os.link(f"/proc/self/fd/{file}", name, dst_dir_fd=parent, follow_symlinks=True)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return False
    return True


def _inside(folder: int, name: str) -> Path:
    """For what takes a path: it leads into the directory that was looked at, whatever lies at its own path now."""
    return Path(f"/proc/self/fd/{folder}", name)


@contextmanager
def _locked(
    folder: int, name: str, seconds: float, check: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Hold a lock, as `alone` does, and remove it: that somebody may wait for it costs a second fetch, and no more."""
    with contextlib.suppress(FileNotFoundError):
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, f"{name} is no lock of ours")  # it would follow a link
    with alone(_inside(folder, name), seconds, check):
        try:
            yield
        finally:
            _unlink(folder, name)


def _unlink(folder: int, name: str) -> None:
    with contextlib.suppress(OSError):  # gone already, or the disk is read-only now
        os.unlink(name, dir_fd=folder)


def _whole_seconds() -> int:
    return time.time_ns() // NANO * NANO


def _boot_time(now: float) -> float:
    """When the node was started; 0 where it does not say."""
    try:
        return now - float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0.0


def _reason(error: Exception) -> str:
    return one_line(str(getattr(error, "strerror", None) or error))
