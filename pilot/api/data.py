"""The Data API: stage-in and stage-out of many files at once, each tried again, verified and reported by itself.

    from pilot.api.data import Data, File
    with Data(parallel=8).stage_in([File("file:///data/run-1.spd", Path("run-1.spd"), checksums={"adler32": "0a1b2c3d"})]) as transfers:
        for result in transfers.wait():
            print(result.file.url, result.error or result.copied)

It copies with the copytools of this installation, as a pilot does: that stages the files of its jobs by `bring` and `take_away`.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Callable, NamedTuple, Optional

import copytools
from copytools import checksum
from copytools.base import Checksums, CopyTool, Learned, Moved
from pilot.patience import Patience, Stopped, patiently
from protocol.errors import PilotageError
from protocol.redaction import one_line, redact

if TYPE_CHECKING:
    from pilot.cache import InputCache

__all__ = ["Copied", "Data", "File", "Progress", "Result", "Stopped", "Tools", "Transfers", "find_tools"]

ALWAYS = "adler32"
"""Every output gets this checksum, whoever reads it later; and blake3 where the node has it."""

MISMATCH = {
    "adler32": "STAGE_IN_ADLER32_MISMATCH",
    "md5": "STAGE_IN_MD5_MISMATCH",
    "blake3": "STAGE_IN_BLAKE3_MISMATCH",
}


class Tools(NamedTuple):
    """The copytools that may be used, in the order of preference."""

    usable: tuple[CopyTool, ...]
    unusable: dict[str, str]
    """Name → why it does not work on this node."""


def find_tools(
    names: Sequence[str] = (), options: Optional[Mapping[str, Mapping[str, object]]] = None
) -> Tools:
    """Those of these names, else the usual ones of this installation; `options`: name → what the section [copytool:NAME] would hold."""
    usable: list[CopyTool] = []
    unusable: dict[str, str] = {}
    for name in names or copytools.usual():
        tool = copytools.load(name, (options or {}).get(name, {}))
        reason = tool.unusable()
        if reason is None:
            usable.append(tool)
        else:
            unusable[name] = reason
    return Tools(tuple(usable), unusable)


@dataclass(frozen=True)
class File:
    """One file: its URL on a storage, and its path here. What comes in is held against what is known of it."""

    url: str
    path: Path
    size: Optional[int] = None
    """Bytes; None: not known."""
    checksums: Mapping[str, str] = field(default_factory=dict)
    """Algorithm → hexadecimal digits; the best that this node can calculate is verified."""
    name: str = ""
    """What messages call it; "": the name in `path`."""

    @property
    def shown(self) -> str:
        return self.name or self.path.name


class Copied(NamedTuple):
    """What was copied: bytes, and checksums, of a stage-out always adler32 and one more."""

    size: int
    checksums: Checksums
    from_cache: bool = False
    """It was on the node already."""


class Result(NamedTuple):
    """What became of one file. Neither copied nor an error: it was cancelled."""

    file: File
    copied: Optional[Copied]
    error: Optional[PilotageError]
    seconds: float


class Progress(NamedTuple):
    """A file is done with: `done` of `total` are."""

    result: Result
    done: int
    total: int


class Data:
    """Copies files with these tools, by these rules."""

    def __init__(
        self,
        tools: Optional[Sequence[CopyTool]] = None,
        *,
        parallel: int = 4,
        retries: int = 3,
        timeout_seconds: float = 3600,
        backoff_seconds: float = 2,
        backoff_max_seconds: float = 60,
        cache: Optional[InputCache] = None,
    ) -> None:
        """`tools`: the first that knows a URL takes it; None: all that work here. `timeout_seconds` is for one try of one file.

        What comes in with a checksum is kept in the `cache`.
        """
        self.tools = find_tools().usable if tools is None else tuple(tools)
        self.parallel = parallel
        self.patience = Patience(retries, backoff_seconds, backoff_max_seconds)
        self.timeout_seconds = timeout_seconds
        self.cache = cache

    # -- many files ---------------------------------------------------------------------------------------------------------

    def stage_in(
        self,
        files: Iterable[File],
        progress: Optional[Callable[[Progress], None]] = None,
        moved: Optional[Moved] = None,
    ) -> Transfers:
        """Begin to copy files to this node; answers at once. `progress` is called after each file, `moved` with bytes on the way.

        Both are called by one thread at a time. Bytes of a try that failed are taken back: `moved` then gets a number below zero.
        """
        # What lies in the cache is found there one by one.
        small = self._bring_small if self.cache is None else None
        return Transfers(self.bring, files, self.parallel, progress, moved, small)

    def stage_out(
        self,
        files: Iterable[File],
        progress: Optional[Callable[[Progress], None]] = None,
        moved: Optional[Moved] = None,
    ) -> Transfers:
        """Begin to copy files to storages, to URLs that nobody else writes."""
        return Transfers(self.take_away, files, self.parallel, progress, moved)

    # -- one file -----------------------------------------------------------------------------------------------------------

    def bring(
        self, file: File, stop: Optional[threading.Event] = None, moved: Optional[Moved] = None
    ) -> Copied:
        """Copy one file to its path, which must not exist, and verify it; Stopped soon after `stop` is set."""
        wanted = best(file.checksums)
        stop = stop or threading.Event()

        def fetch() -> Copied:
            return self._patiently("STAGE_IN_FAILED", lambda tool: _bring(tool, file, self.timeout_seconds, wanted), file, wanted, stop, moved)  # fmt: skip

        if self.cache is None or not wanted:
            return fetch()
        from pilot.cache import entry_of  # late: most pilots have none

        entry = entry_of(file.checksums, wanted[0], file.size, file.shown)
        if entry is None:
            return fetch()
        copied = self.cache.provide(entry, file.path, fetch, stop)
        if copied is None:
            copied = Copied(entry.size, {entry.algorithm: entry.digest}, from_cache=True)
            if moved is not None:
                moved(entry.size)
        return copied

    def _bring_small(self, files: Sequence[File], stop: threading.Event) -> list[Optional[Copied]]:
        """Copy some small files in one go, as far as they are alike; what is None was not, and `bring` tells why."""
        wanted = best(files[0].checksums)
        scheme = _scheme(files[0].url)
        alike = [file for file in files if best(file.checksums) == wanted and _scheme(file.url) == scheme]
        try:
            tool = self._tool_for(files[0].url, wanted, stop, lambda n_bytes: None)
        except PilotageError:
            return [None] * len(files)
        learned = tool.copy_in_small([(file.url, file.path) for file in alike])
        found = {id(file): _kept(file, wanted, each) for file, each in zip(alike, learned)}
        return [found.get(id(file)) for file in files]

    def look(self, file: File, stop: Optional[threading.Event] = None) -> Copied:
        """See that a file can be read where it is, and hold what its storage tells of it against what is known."""
        return self._patiently("STAGE_IN_FAILED", lambda tool: _looked_at(tool, file, self.timeout_seconds), file, (), stop, None)  # fmt: skip

    def take_away(
        self, file: File, stop: Optional[threading.Event] = None, moved: Optional[Moved] = None
    ) -> Copied:
        """Copy one file to its URL."""
        wanted = tuple(dict.fromkeys((checksum.preferred(), ALWAYS)))
        return self._patiently("STAGE_OUT_FAILED", lambda tool: _take_away(tool, file, self.timeout_seconds, wanted), file, wanted, stop, moved)  # fmt: skip

    def _patiently(
        self,
        otherwise: str,
        work: Callable[[CopyTool], Copied],
        file: File,
        algorithms: tuple[str, ...],
        stop: Optional[threading.Event],
        moved: Optional[Moved],
    ) -> Copied:
        """Again after a failure that may pass; `otherwise` names the error for one of the node's own disk that has no name yet."""
        stop = stop or threading.Event()
        meter = _Meter(moved or (lambda n_bytes: None))

        def copied() -> Copied:
            result: Optional[Copied] = None
            try:
                result = work(self._tool_for(file.url, algorithms, stop, meter.moved))
                return result
            except OSError as error:
                name = _NAMES.get(error.errno or 0, otherwise).format(stage=otherwise.partition("_FAILED")[0])
                raise PilotageError(name, one_line(str(error))) from None
            finally:
                meter.reaches(result.size if result else 0)

        return patiently(self.patience, copied, stop, "a copy failed")

    def _tool_for(
        self, url: str, algorithms: tuple[str, ...], stop: threading.Event, moved: Moved
    ) -> CopyTool:
        """The first tool that understands the URL, made for this file: it ends soon after the word to stop."""
        scheme = _scheme(url)
        for tool in self.tools:
            if scheme in tool.schemes:
                mine = tool.until(stop.is_set, moved)
                if algorithms:
                    mine.algorithms = algorithms
                return mine
        raise PilotageError("UNKNOWN_COPYTOOL", f"none of the usable copytools takes {one_line(redact(url))}")


class _Meter:
    """Bytes of one file that are on their way or there, as somebody was told."""

    def __init__(self, told: Moved) -> None:
        self._told = told
        self._bytes = 0

    def moved(self, n_bytes: int) -> None:
        self._bytes += n_bytes
        self._told(n_bytes)

    def reaches(self, n_bytes: int) -> None:
        """What a tool has told too little, or of a try that failed too much."""
        if n_bytes != self._bytes:
            self.moved(n_bytes - self._bytes)


def _scheme(url: str) -> str:
    return url.partition(":")[0].lower()  # not urlsplit: that raises for some URLs that users register


_NAMES = {errno.ENOSPC: "NO_LOCAL_SPACE", errno.EDQUOT: "NO_LOCAL_SPACE", errno.ETIMEDOUT: "{stage}_TIMEOUT"}
"""What a tool, or our own look at a file, may say in the system's words."""


SMALL_BYTES = 64 * 1024
"""Of these, threads of one process copy fewer than one thread alone does: all that costs time is done by one at a time."""
FEW = 64
"""Small files that a thread takes at once."""
QUICK_SECONDS = 0.002
"""If small files take longer each, it is something to wait for, and further threads help."""

CopyOne = Callable[[File, threading.Event, Moved], Copied]
CopySmall = Callable[[Sequence[File], threading.Event], "list[Optional[Copied]]"]


class Transfers:
    """Files on their way. Leaving its `with` waits for them, and cancels them first if that is by an exception."""

    def __init__(
        self,
        copy: CopyOne,
        files: Iterable[File],
        parallel: int,
        progress: Optional[Callable[[Progress], None]],
        moved: Optional[Moved],
        copy_small: Optional[CopySmall] = None,
    ) -> None:
        self._copy = copy
        self._copy_small = copy_small
        self._progress = progress
        self._told = moved
        self._stop = threading.Event()
        self._files = list(files)
        self._results: list[Optional[Result]] = [None] * len(self._files)
        self._small: deque[int] = deque()
        self._others: deque[int] = deque()
        for number, file in enumerate(self._files):
            is_small = copy_small is not None and file.size is not None and file.size <= SMALL_BYTES
            (self._small if is_small else self._others).append(number)
        self._done = 0
        self._mistake: Optional[BaseException] = None
        # What follows is changed under this lock, whose waiters are told of the end.
        self._lock = threading.Condition()
        self._parallel = max(1, parallel)
        self._threads = 0
        self._one_copies_small = False
        with self._lock:
            self._hire()

    def wait(self, seconds: Optional[float] = None) -> list[Result]:
        """Sleep until all are done with, or so long; what became of those that are, in the order in which they were given."""
        with self._lock:
            self._lock.wait_for(lambda: self._threads == 0, seconds)
        if self._mistake is not None:
            raise self._mistake
        return [result for result in self._results if result is not None]

    @property
    def is_done(self) -> bool:
        return self._threads == 0

    def cancel(self) -> None:
        """What is not copied yet will not be; what is being copied ends soon, and leaves nothing."""
        self._stop.set()

    def __enter__(self) -> Transfers:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        if error is not None:
            self.cancel()
        with self._lock:
            self._lock.wait_for(lambda: self._threads == 0)

    # -- its threads --------------------------------------------------------------------------------------------------------

    def _hire(self) -> None:
        """One more thread if there is work for it; under the lock."""
        if self._threads < self._parallel and (self._others or (self._small and not self._one_copies_small)):
            self._threads += 1
            threading.Thread(target=self._work, name="transfer").start()

    def _work(self) -> None:
        try:
            self._copy_all()
        except BaseException as error:  # noqa: BLE001, a mistake in a copytool, or in `progress`: it ends all, and reaches who waits
            self._stop.set()
            self._mistake = self._mistake or error
        finally:
            with self._lock:
                self._threads -= 1
                self._lock.notify_all()

    def _copy_all(self) -> None:
        """Small files as long as nobody else does; else the next of the others, for which there may be more threads."""
        while self._mistake is None:
            few: list[int] = []
            with self._lock:
                if self._small and not self._one_copies_small:
                    few = [self._small.popleft() for _ in range(min(FEW, len(self._small)))]
                    self._one_copies_small = True
                elif not self._others:
                    return
                number = -1 if few else self._others.popleft()
                self._hire()
            if few:
                self._some(few)
            else:
                self._finish(number, self._result(self._files[number]))

    def _some(self, numbers: list[int]) -> None:
        """What did not go at once is among the others now; all the rest is if this took its time."""
        assert self._copy_small is not None
        began = time.monotonic()
        files = [self._files[number] for number in numbers]
        copied = self._copy_small(files, self._stop)
        seconds = (time.monotonic() - began) / len(files)
        for number, file, each in zip(numbers, files, copied):
            if each is not None:
                self._moved(each.size)
                self._finish(number, Result(file, each, None, seconds))
        with self._lock:
            self._others.extend(number for number, each in zip(numbers, copied) if each is None)
            if seconds > QUICK_SECONDS or self._stop.is_set():
                self._others.extend(self._small)
                self._small.clear()
            self._one_copies_small = False

    def _finish(self, number: int, result: Result) -> None:
        self._results[number] = result
        if self._progress is not None:
            with self._lock:
                self._done += 1
                self._progress(Progress(result, self._done, len(self._files)))

    def _moved(self, n_bytes: int) -> None:
        if self._told is not None:
            with self._lock:
                self._told(n_bytes)

    def _result(self, file: File) -> Result:
        began = time.monotonic()
        copied: Optional[Copied] = None
        failed: Optional[PilotageError] = None
        try:
            copied = self._copy(file, self._stop, self._moved)
        except PilotageError as error:
            failed = error
        except Stopped:
            pass
        return Result(file, copied, failed, time.monotonic() - began)


# -- one try of one file ------------------------------------------------------------------------------------------------------


def _bring(tool: CopyTool, file: File, timeout_seconds: float, wanted: tuple[str, ...]) -> Copied:
    """What is not as registered is removed again, and never what was there before."""
    if os.path.lexists(file.path):
        raise PilotageError("ALREADY_EXISTS", f"{file.path} is there already")
    try:
        learned = tool.copy_in(file.url, file.path, timeout_seconds)
        return _verified(file, wanted, file.path.stat().st_size, learned or {})
    except BaseException:
        file.path.unlink(missing_ok=True)
        raise


def _looked_at(tool: CopyTool, file: File, timeout_seconds: float) -> Copied:
    """A checksum is held against the registered one only where the storage tells it: nothing is read for that."""
    seen = tool.look(file.url, timeout_seconds)
    _check_size(file, seen.size)
    told = {name: value for name, value in seen.checksums.items() if name in file.checksums}
    for algorithm, value in told.items():
        _check_checksum(file, algorithm, value.lower())
    return Copied(seen.size, told)


def _kept(file: File, wanted: tuple[str, ...], learned: Optional[Learned]) -> Optional[Copied]:
    """What was copied, if that is as registered; else it is removed again."""
    if learned is None:
        return None
    try:
        return _verified(file, wanted, *learned)
    except PilotageError:
        file.path.unlink(missing_ok=True)
        return None


def _take_away(tool: CopyTool, file: File, timeout_seconds: float, wanted: tuple[str, ...]) -> Copied:
    """Size, and checksums as they were learned while it was copied."""
    size = file.path.stat().st_size
    learned = tool.copy_out(file.path, file.url, timeout_seconds) or {}
    checksums = {**_missing(file.path, wanted, learned), **learned}
    # A tool that moves has taken it away, after it has looked itself.
    if file.path.exists() and file.path.stat().st_size != size:
        raise PilotageError("STAGE_OUT_MISMATCH", f"{file.shown} changed while it was copied")
    return Copied(size, checksums)


def _verified(file: File, wanted: tuple[str, ...], size: int, learned: Checksums) -> Copied:
    """Size, and the best registered checksum that this node can calculate; raise the mismatch that is found."""
    _check_size(file, size)
    if file.checksums and not wanted:
        known = ", ".join(file.checksums)
        raise PilotageError(
            "CHECKSUM_NOT_SUPPORTED",
            f"{file.shown}: only {known} is registered, which this node cannot calculate",
        )
    found = {**_missing(file.path, wanted, learned), **learned}
    for algorithm in wanted:
        _check_checksum(file, algorithm, found[algorithm])
    return Copied(size, found)


def _check_size(file: File, size: int) -> None:
    if file.size is not None and size != file.size:
        raise PilotageError(
            "INPUT_SIZE_MISMATCH", f"{file.shown}: {file.size} bytes are registered, {size} arrived"
        )


def _check_checksum(file: File, algorithm: str, found: str) -> None:
    if found != file.checksums[algorithm].lower():
        raise PilotageError(
            MISMATCH[algorithm],
            f"{file.shown}: {algorithm} {file.checksums[algorithm]} is registered, {found} arrived",
        )


def _missing(path: Path, wanted: tuple[str, ...], learned: Checksums) -> Checksums:
    """What the copytool did not learn is calculated from the local file."""
    rest = tuple(algorithm for algorithm in wanted if algorithm not in learned)
    return checksum.of(path, rest) if rest else {}


def best(checksums: Mapping[str, str]) -> tuple[str, ...]:
    """One is enough, and each costs a pass over the bytes: the first of the node's, from the strongest down."""
    return tuple(algorithm for algorithm in checksum.available() if algorithm in checksums)[:1]
