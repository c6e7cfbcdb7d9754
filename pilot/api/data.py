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
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Callable, NamedTuple, Optional

import copytools
from copytools import checksum
from copytools.base import Checksums, CopyTool, Moved
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
        return Transfers(self.bring, files, self.parallel, progress, moved)

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
        found = {entry.algorithm: entry.digest}
        return self.cache.provide(entry, file.path, fetch, stop) or Copied(entry.size, found, from_cache=True)

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
        scheme = url.partition(":")[0].lower()  # not urlsplit: that raises for some URLs that users register
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


_NAMES = {errno.ENOSPC: "NO_LOCAL_SPACE", errno.EDQUOT: "NO_LOCAL_SPACE", errno.ETIMEDOUT: "{stage}_TIMEOUT"}
"""What a tool, or our own look at a file, may say in the system's words."""


class Transfers:
    """Files on their way. Leaving its `with` waits for them, and cancels them first if that is by an exception."""

    def __init__(
        self,
        copy: Callable[[File, threading.Event, Moved], Copied],
        files: Iterable[File],
        parallel: int,
        progress: Optional[Callable[[Progress], None]],
        moved: Optional[Moved],
    ) -> None:
        self._copy = copy
        self._progress = progress
        self._told = moved
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._done = 0
        files = list(files)
        self._total = len(files)
        pool = ThreadPoolExecutor(max(1, min(parallel, self._total)), "transfer")
        self._futures = [pool.submit(self._one, file) for file in files]
        pool.shutdown(wait=False)

    def wait(self, seconds: Optional[float] = None) -> list[Result]:
        """Sleep until all are done with, or so long; what became of those that are, in the order in which they were given."""
        wait(self._futures, seconds)
        return [future.result() for future in self._futures if future.done()]

    @property
    def is_done(self) -> bool:
        return all(future.done() for future in self._futures)

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
        wait(self._futures)

    def _one(self, file: File) -> Result:
        try:
            result = self._result(file)
            with self._lock:
                self._done += 1
                if self._progress is not None:
                    self._progress(Progress(result, self._done, self._total))
        except BaseException:  # a mistake in a copytool, or in `progress`: it ends all, and reaches who waits
            self._stop.set()
            raise
        return result

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
        return _verified(file, wanted, learned or {})
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


def _take_away(tool: CopyTool, file: File, timeout_seconds: float, wanted: tuple[str, ...]) -> Copied:
    """Size, and checksums as they were learned while it was copied."""
    size = file.path.stat().st_size
    learned = tool.copy_out(file.path, file.url, timeout_seconds) or {}
    checksums = {**_missing(file.path, wanted, learned), **learned}
    # A tool that moves has taken it away, after it has looked itself.
    if file.path.exists() and file.path.stat().st_size != size:
        raise PilotageError("STAGE_OUT_MISMATCH", f"{file.shown} changed while it was copied")
    return Copied(size, checksums)


def _verified(file: File, wanted: tuple[str, ...], learned: Checksums) -> Copied:
    """Size, and the best registered checksum that this node can calculate; raise the mismatch that is found."""
    size = file.path.stat().st_size
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
