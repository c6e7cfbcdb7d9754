"""The registrator: makes a dataset of files, directories and globs; each file is read once for all of its checksums.

Whatever is wrong with a file is found before anything is registered, and told for every file. A dataset of up to `BATCH`
files comes into being with all of them or not at all; a larger one is open until its last file is in, and the files are sent
as a stream: what is known of them waits in a file meanwhile, not in memory.
"""

from __future__ import annotations

import glob
import json
import os
import re
import stat
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from urllib.parse import quote

from client import progress, tables
from client.session import Session
from copytools import checksum
from protocol.errors import PilotageError
from protocol.files import check_lfn, check_name
from protocol.messages import DatasetSpec, DatasetView, FileSpec, from_wire, to_wire
from protocol.redaction import one_line
from protocol.states import DatasetState

BATCH = 1000
"""Most files that come with the dataset; the server takes them in one transaction."""
NO_CHECKSUM = "none"
"""In place of an algorithm: the files are not read."""
AHEAD = 4
"""Files waiting to be read, per thread."""
SPOOL_BYTES = 16 * 2**20
"""What is known of so many bytes' worth of files is kept in memory."""
THREADS = min(8, os.cpu_count() or 1)
TOLD = 20
"""Most problems that are told one by one."""

Check = Callable[[], None]


@dataclass(frozen=True)
class Options:
    """How a dataset is registered; the defaults are those of the command."""

    scope: str = ""
    algorithms: tuple[str, ...] = ()
    """Checksums to learn; none: all that this machine can."""
    url_prefix: str = ""
    """What stands for the common parent of the given paths in the addresses that nodes use; "": file:// and the path here."""
    close: bool = True
    add: bool = False
    """Add to a dataset that is there and open; files that are in it already, and the same, are passed over."""
    threads: int = THREADS
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """A file to be registered."""

    path: Path
    url: str
    stamp: tuple[int, int, int]
    """Size, modification time and inode: what changes when somebody still writes to it."""

    @property
    def lfn(self) -> str:
        return self.path.name

    @property
    def size(self) -> int:
        return self.stamp[0]


def register(
    session: Session,
    name: str,
    paths: Sequence[str | Path],
    options: Options = Options(),
    check: Check = lambda: None,
) -> DatasetView:
    """Register these files as dataset `name`. `check` is called now and then; what it raises ends the work.

    Raises the error of the one file that is wrong, or one error whose field `problems` has a line for each.
    """
    _look_for(session, name, options)
    found = find(paths, options.url_prefix)
    with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as spool:
        for spec in _specs(found, options, check):
            spool.write(json.dumps(to_wire(spec)).encode() + b"\n")
        spool.seek(0)
        specs = (from_wire(FileSpec, json.loads(line)) for line in spool)
        return _send(session, name, specs, len(found), options)


# -- what there is ------------------------------------------------------------------------------------------------


def find(paths: Sequence[str | Path], url_prefix: str = "") -> list[Found]:
    """The files that these paths mean, in the order of the numbers in their names; raises if one of them cannot be registered."""
    problems: list[PilotageError] = []
    given = [path for text in paths for path in _expand(str(text), problems)]
    listed = [path for path in given for path in _listed(path, problems)]
    root = _root(given)
    found = []
    for path in dict.fromkeys(listed):
        try:
            found.append(Found(path, _url(path, root, url_prefix), _stamp(path)))
            check_lfn(path.name)
        except PilotageError as error:
            problems.append(PilotageError(error.name, f"{one_line(str(path))}: {error.detail}"))
    problems += _duplicates(found)
    _raise(problems, len(set(listed)))
    return sorted(found, key=lambda each: natural(each.lfn))


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts numbers in names as numbers: chunk 99999 of a run before chunk 100000."""
    parts = re.split(r"([0-9]+)", name)
    return tuple(
        (0, int(part), part) if part[:1].isdigit() and part.isascii() else (1, 0, part)
        for part in parts
        if part
    )


def _expand(text: str, problems: list[PilotageError]) -> list[Path]:
    """What a path stands for; a glob that the shell left alone (it was quoted) is expanded here."""
    if os.path.lexists(text):
        return [Path(text)]
    matches = sorted(glob.glob(text, recursive=True)) if glob.has_magic(text) else []
    if not matches:
        what = "matches no file" if glob.has_magic(text) else "does not exist"
        problems.append(PilotageError("BAD_PATH", f"{one_line(text) or 'an empty path'} {what}"))
    return [Path(match) for match in matches]


def _listed(path: Path, problems: list[PilotageError]) -> Iterator[Path]:
    """A file itself; of a directory all files below it (builder directories, say) but hidden ones, which are unfinished."""
    if not path.is_dir():
        yield path
        return

    def note(error: OSError) -> None:
        problems.append(
            PilotageError("BAD_PATH", f"{one_line(str(error.filename))} cannot be read: {error.strerror}")
        )

    empty = True
    for folder, folders, names in os.walk(path, onerror=note):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if os.path.islink(os.path.join(folder, name)):
                where = one_line(os.path.join(folder, name))
                problems.append(
                    PilotageError("BAD_PATH", f"{where} is a link to a directory; name that directory itself")
                )
        for name in sorted(names):
            if not name.startswith("."):
                empty = False
                yield Path(folder, name)
    if empty and not problems:
        problems.append(PilotageError("BAD_PATH", f"{one_line(str(path))} holds no file"))


def _root(given: Sequence[Path]) -> str:
    """The common parent of the given paths, a directory counting as its own."""
    parents = [os.path.abspath(path if path.is_dir() else path.parent) for path in given]
    return os.path.commonpath(parents) if parents else "/"


def _url(path: Path, root: str, prefix: str) -> str:
    """Copytools open no link, for what it leads to may change; a link to a file is registered where it leads to."""
    absolute = os.path.abspath(path)
    try:
        if not prefix:
            return f"file://{quote(os.path.realpath(path) if path.is_symlink() else absolute)}"
        if path.is_symlink():
            raise PilotageError(
                "BAD_PATH", "is a link, which --url-prefix cannot follow; name the file itself"
            )
        return f"{prefix.rstrip('/')}/{quote(os.path.relpath(absolute, root))}"
    except UnicodeEncodeError:
        raise PilotageError("BAD_PATH", "the path is not UTF-8") from None


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        broken = "is a link that leads nowhere" if path.is_symlink() else error.strerror
        raise PilotageError("BAD_PATH", str(broken)) from None
    if not stat.S_ISREG(status.st_mode):
        raise PilotageError("BAD_PATH", "is not a regular file")
    if not os.access(path, os.R_OK):
        raise PilotageError("BAD_PATH", "may not be read (Permission denied)")
    return status.st_size, status.st_mtime_ns, status.st_ino


def _duplicates(found: Sequence[Found]) -> list[PilotageError]:
    first: dict[str, Path] = {}
    problems = []
    for each in found:
        other = first.setdefault(each.lfn, each.path)
        if other != each.path:
            text = f"{one_line(str(each.path))} has the same name as {one_line(str(other))}"
            problems.append(PilotageError("ALREADY_EXISTS", text))
    return problems


def _raise(problems: Sequence[PilotageError], of: int) -> None:
    if len(problems) == 1:
        raise problems[0]
    if problems:
        told = [str(problem) for problem in problems[:TOLD]]
        if len(problems) > TOLD:
            told.append(f"… and {len(problems) - TOLD} more")
        raise PilotageError(
            problems[0].name,
            f"{tables.some(len(problems), 'problem')} with {tables.some(of, 'file')}; nothing was registered",
            problems=told,
            advice="mend them, or leave these files out",
        )


# -- checksums ----------------------------------------------------------------------------------------------------


def _specs(found: Sequence[Found], options: Options, check: Check) -> Iterator[FileSpec]:
    """What is known of each file, in their order; raises at the end if one of them cannot be registered."""
    if NO_CHECKSUM in options.algorithms:
        yield from (FileSpec(each.lfn, each.size, each.url) for each in found)
        return
    yield from _hashed(found, options, check)


def _hashed(found: Sequence[Found], options: Options, check: Check) -> Iterator[FileSpec]:
    """Every file with its checksums; several files are read at the same time, and few are waiting for it."""
    algorithms = options.algorithms or checksum.available()
    stop = threading.Event()
    pool = ThreadPoolExecutor(options.threads, thread_name_prefix="checksum")
    title = f"Reading {tables.some(len(found), 'file')}"
    problems: list[PilotageError] = []
    rest = iter(found)
    reading: deque[tuple[Found, Future[FileSpec]]] = deque()
    try:
        with progress.in_bytes(title, sum(each.size for each in found), options.quiet) as advance:
            while True:
                for each in islice(rest, AHEAD * options.threads - len(reading)):
                    reading.append((each, pool.submit(_hash, each, algorithms, advance, stop)))
                if not reading:
                    break
                each, future = reading.popleft()
                try:
                    yield _patiently(future, check)
                except PilotageError as error:
                    problems.append(PilotageError(error.name, f"{one_line(str(each.path))}: {error.detail}"))
    finally:
        # On Ctrl-C too: the readers stop at their next block.
        stop.set()
        pool.shutdown(cancel_futures=True)
    problems += [_changed(each.path) for each in found if not problems and _is_changed(each)]
    _raise(problems, len(found))


def _patiently(future: Future[FileSpec], check: Check) -> FileSpec:
    while True:
        try:
            return future.result(timeout=0.2)
        except NotYet:
            check()


def _hash(
    each: Found, algorithms: Sequence[str], advance: progress.Advance, stop: threading.Event
) -> FileSpec:
    """Read one file once. The other threads go on meanwhile: reading and hashing let them."""
    size = 0

    def on_block(n_bytes: int) -> None:
        nonlocal size
        if stop.is_set():
            raise _Stopped
        size += n_bytes
        advance(n_bytes)

    try:
        checksums = checksum.of(os.path.realpath(each.path), algorithms, on_block)
    except PilotageError as error:
        if isinstance(error.__cause__, OSError):
            raise PilotageError("BAD_PATH", f"cannot be read: {error.__cause__.strerror}") from error
        raise
    if size != each.size or _is_changed(each):
        raise PilotageError("BAD_PATH", "changed while it was read: is it still being written?")
    return FileSpec(each.lfn, size, each.url, checksums)


class _Stopped(Exception):
    """Nobody waits for this file any more."""


def _is_changed(each: Found) -> bool:
    try:
        return _stamp(each.path) != each.stamp
    except PilotageError:
        return True


def _changed(path: Path) -> PilotageError:
    return PilotageError(
        "BAD_PATH", f"{one_line(str(path))} changed while it was read: is it still being written?"
    )


# -- telling the server -------------------------------------------------------------------------------------------


def _look_for(session: Session, name: str, options: Options) -> None:
    """Whether the dataset is as it has to be; asked before hours are spent on reading files for a name that is taken."""
    check_name(name, "dataset")
    try:
        view = session.dataset(name)
    except PilotageError as error:
        if error.name != "NOT_FOUND" or options.add:
            raise
        return
    if not options.add:
        advice = "choose another name" + (", or --add to it" if view.state == DatasetState.OPEN.value else "")
        raise PilotageError(
            "ALREADY_EXISTS", f"there is a dataset {name} already ({view.state})", advice=advice
        )
    if view.state != DatasetState.OPEN.value:
        raise PilotageError(
            "WRONG_STATE", f"dataset {name} is {view.state}; files can be added to an open one only"
        )


def _send(
    session: Session, name: str, specs: Iterator[FileSpec], n_files: int, options: Options
) -> DatasetView:
    if not options.add and n_files <= BATCH:
        return session.create_dataset(DatasetSpec(name, options.scope, list(specs), options.close))
    if not options.add:
        session.create_dataset(DatasetSpec(name, options.scope))
    n_sent = 0

    def sent(n: int) -> None:
        nonlocal n_sent
        n_sent += n
        advance(n)

    with progress.counted(f"Sending {tables.some(n_files, 'file')}", n_files, options.quiet) as advance:
        try:
            return session.send_files(name, specs, close=options.close, sent=sent)
        except PilotageError as error:
            if options.add and not n_sent:
                raise
            raise PilotageError(
                error.name,
                f"{error.detail}; dataset {name} is open with at least {n_sent} of {n_files} files",
                advice="run the same command again with --add: it sends what is missing",
            ) from error
