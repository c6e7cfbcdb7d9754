"""The registrator: makes a dataset of files, directories, globs and lists; each file is read once for all of its checksums.

Whatever is wrong with a file is found before anything is registered, and told for every file. A dataset of up to `BATCH`
files comes into being with all of them or not at all; a larger one is open until its last file is in, and the files are sent
as a stream: what is known of them waits in files meanwhile, not in memory.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import re
import sqlite3
import stat
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import quote

from client import progress, tables, unfinished
from client.daqnames import Census
from client.journal import Journal
from client.session import Session
from copytools import checksum
from protocol.errors import PilotageError
from protocol.files import check_lfn, check_name
from protocol.messages import from_wire, to_wire
from protocol.messages.requests import DatasetSpec, FileSpec
from protocol.messages.views import DatasetView
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
LONGEST_PATH = 4096
"""Bytes of a path; Linux takes no longer one."""

UNFINISHED = "FILE_UNFINISHED"

Check = Callable[[], None]
Say = Callable[[str], None]
"""Gets remarks for people."""
Stamp = tuple[int, int, int]
"""Size, modification time and inode: what changes when somebody still writes to a file."""


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
    min_age: float = 0.0
    """A file that was changed less than so many seconds ago is unfinished."""
    skip_unfinished: bool = False
    """Leave unfinished files out, and the dataset open, instead of refusing all."""
    journal: Path | None = None
    """Where it is noted what was learned of files, for when this breaks off (`client/journal.py`)."""


class Found(NamedTuple):
    """A file to be registered."""

    lfn: str
    path: str
    url: str
    stamp: Stamp

    @property
    def size(self) -> int:
        return self.stamp[0]


class Inventory:
    """The files that were found, each name once, in the order of the numbers in their names.

    They lie in a database of SQLite in a temporary file, which goes with this object: of a million files little is in memory.
    """

    def __init__(self, url_prefix: str = "") -> None:
        """`url_prefix` stands for the common parent of what was found (`below`) in addresses that are "" when they are added."""
        self.left_out: list[str] = []
        """Unfinished files, each with the reason."""
        self._prefix = url_prefix
        self.root = self._last = ""
        # Wherever the garbage is collected, there it is closed.
        self._rows = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        with _on_disk():
            self._rows.execute(f"PRAGMA cache_size = -{SPOOL_BYTES // 1024}")
            # Paths are bytes, and a stamp is text: not every path is UTF-8, and some numbers of inodes are too large for SQLite.
            self._rows.execute(
                "CREATE TABLE found (lfn TEXT PRIMARY KEY, path BLOB, url BLOB, size INT, stamp TEXT, place TEXT)"
            )
            self._rows.execute("BEGIN")

    def __del__(self) -> None:
        self._rows.close()

    def below(self, path: str) -> None:
        """A path was given: a directory counts as its own parent."""
        parent = os.path.abspath(path if os.path.isdir(path) else os.path.dirname(path))
        if parent != self._last:
            self.root = os.path.commonpath([self.root, parent]) if self.root else parent
            self._last = parent

    def add(self, found: Found) -> str:
        """Take in a file; the path of that which has its name already, or its own."""
        row = (
            *(found.lfn, os.fsencode(found.path), os.fsencode(found.url)),
            *(found.size, json.dumps(found.stamp), natural(found.lfn)),
        )
        with _on_disk():
            added = self._rows.execute(
                "INSERT INTO found VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", row
            )
            if added.rowcount:
                return found.path
            first = self._rows.execute("SELECT path FROM found WHERE lfn = ?", (found.lfn,)).fetchone()
        return os.fsdecode(first[0])

    def __len__(self) -> int:
        return int(self._rows.execute("SELECT COUNT(*) FROM found").fetchone()[0])

    def __iter__(self) -> Iterator[Found]:
        with _on_disk():
            rows = self._rows.execute("SELECT lfn, path, url, stamp FROM found ORDER BY place, lfn")
            for lfn, path, url, stamp in rows:
                address = os.fsdecode(url) or _url(os.fsdecode(path), self.root, self._prefix)
                yield Found(lfn, os.fsdecode(path), address, tuple(json.loads(stamp)))

    @property
    def size(self) -> int:
        """Of all files together, in bytes."""
        return int(self._rows.execute("SELECT TOTAL(size) FROM found").fetchone()[0])


@contextlib.contextmanager
def _on_disk() -> Iterator[None]:
    """What the disk of temporary files refuses is no mistake of ours."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OSError(errno.ENOSPC, f"{error}: is the disk full?", tempfile.gettempdir()) from error


def register(
    session: Session,
    name: str,
    paths: Sequence[str | Path],
    options: Options = Options(),
    check: Check = lambda: None,
    listed: Iterable[str] = (),
    say: Say = lambda line: None,
) -> DatasetView:
    """Register these files as dataset `name`. `check` is called now and then; what it raises ends the work.

    `listed` are paths that are taken as they are, without globs. Raises the error of the one file that is wrong, or one
    error whose field `problems` has a line for each.
    """
    _look_for(session, name, options)
    found = find(paths, options.url_prefix, listed, _sign(options), options.skip_unfinished)
    journal, census = Journal(options.journal), Census()
    with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as spool:
        n_files = 0
        for spec in specs(found, options, check, journal):
            n_files += 1
            census.add(spec.lfn)
            spool.write(json.dumps(to_wire(spec)).encode() + b"\n")
        spool.seek(0)
        rows = (from_wire(FileSpec, json.loads(line)) for line in spool)
        view = _send(session, name, rows, n_files, options, options.close and not found.left_out)
    journal.remove()
    if not options.add:
        for gap in census.gaps():
            say(f"warning: {gap}")
    _say_left_out(found.left_out, name, say)
    return view


def _sign(options: Options) -> unfinished.Sign:
    return unfinished.signs(options.min_age, NO_CHECKSUM not in options.algorithms)


def _say_left_out(left_out: Sequence[str], name: str, say: Say) -> None:
    for line in left_out[:TOLD]:
        say(f"left out, unfinished: {line}")
    if left_out:
        more = f", {len(left_out) - TOLD} of them not named here" if len(left_out) > TOLD else ""
        say(
            f"{tables.some(len(left_out), 'unfinished file')} left out{more}; dataset {name} stays open: add them later with --add"
        )


# -- what there is ------------------------------------------------------------------------------------------------


def find(
    paths: Sequence[str | Path],
    url_prefix: str = "",
    listed: Iterable[str] = (),
    sign: unfinished.Sign = unfinished.nothing,
    skip_unfinished: bool = False,
) -> Inventory:
    """The files that these paths mean, and those `listed` as they are; raises if one of them cannot be registered."""
    problems: list[PilotageError] = []
    given = [path for text in paths for path in _expand(str(text), problems)]
    inventory = Inventory(url_prefix)
    wrong: set[str] = set()
    for each in chain(given, map(os.path.normpath, listed)):
        inventory.below(each)
        for path in _listed(each, problems):
            try:
                _take(inventory, path, url_prefix, sign)
            except PilotageError as error:
                if error.name == UNFINISHED and skip_unfinished:
                    inventory.left_out.append(f"{one_line(path)}: {error.detail}")
                elif path not in wrong:
                    wrong.add(path)
                    problems.append(PilotageError(error.name, f"{one_line(path)}: {error.detail}"))
    _raise(problems, len(inventory) + len(wrong))
    return inventory


def _take(inventory: Inventory, path: str, url_prefix: str, sign: unfinished.Sign) -> None:
    found = examined(path, inventory.root, url_prefix)
    why = sign(path, found.stamp[1])
    if why:
        raise PilotageError(UNFINISHED, why)
    # What the prefix stands for is known when all paths are.
    there = inventory.add(found._replace(url="") if url_prefix else found)
    if there != path:
        raise PilotageError("ALREADY_EXISTS", f"has the same name as {one_line(there)}")


def examined(path: str, root: str, url_prefix: str) -> Found:
    """What is known of a file without reading it; raises if it cannot be registered."""
    url, stamp = _url(path, root, url_prefix), _stamp(path)
    return Found(check_lfn(os.path.basename(path)), path, url, stamp)


def lines_of(stream: BinaryIO) -> Iterator[str]:
    """The paths of a list: one per line, or each with a NUL behind it, as `find -print0` writes them; empty ones are passed over."""
    rest, end = b"", b""
    while block := stream.read(65_536):
        rest += block
        end = end or (b"\0" if b"\0" in rest else b"\n" if b"\n" in rest else b"")
        if end:
            *whole, rest = rest.split(end)
            yield from (os.fsdecode(line) for line in whole if line)
        if len(rest) > LONGEST_PATH:
            raise PilotageError(
                "BAD_PATH", f"the list has a line of more than {LONGEST_PATH} bytes: is it a list of paths?"
            )
    if rest:
        yield os.fsdecode(rest)


def natural(name: str) -> str:
    """A key that sorts numbers in names as numbers (chunk 99999 of a run before chunk 100000), and before text."""

    def number(match: re.Match[str]) -> str:
        digits = match[0].lstrip("0")
        return f"\x01{len(digits):03}{digits}"

    return re.sub("[0-9]+", number, name)


def _expand(text: str, problems: list[PilotageError]) -> list[str]:
    """What a path stands for; a glob that the shell left alone (it was quoted) is expanded here."""
    if os.path.lexists(text):
        return [str(Path(text))]
    matches = sorted(glob.glob(text, recursive=True)) if glob.has_magic(text) else []
    if not matches:
        what = "matches no file" if glob.has_magic(text) else "does not exist"
        problems.append(PilotageError("BAD_PATH", f"{one_line(text) or 'an empty path'} {what}"))
    return [str(Path(match)) for match in matches]


def _listed(path: str, problems: list[PilotageError]) -> Iterator[str]:
    """A file itself; of a directory all files below it (builder directories, say) but hidden ones, which are unfinished."""
    if not os.path.isdir(path):
        yield path
        return

    def note(error: OSError) -> None:
        problems.append(
            PilotageError("BAD_PATH", f"{one_line(error.filename)} cannot be read: {error.strerror}")
        )

    empty, n_before = True, len(problems)
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
                yield str(Path(folder, name))
    if empty and len(problems) == n_before:
        problems.append(PilotageError("BAD_PATH", f"{one_line(path)} holds no file"))


def _url(path: str, root: str, prefix: str) -> str:
    """Below `root`, for which the prefix stands. Copytools open no link, for what it leads to may change; a link to a file is
    registered where it leads to."""
    absolute = os.path.abspath(path)
    try:
        if not prefix:
            return f"file://{quote(os.path.realpath(path) if os.path.islink(path) else absolute)}"
        if os.path.islink(path):
            raise PilotageError(
                "BAD_PATH", "is a link, which --url-prefix cannot follow; name the file itself"
            )
        return f"{prefix.rstrip('/')}/{quote(os.path.relpath(absolute, root))}"
    except UnicodeEncodeError:
        raise PilotageError("BAD_PATH", "the path is not UTF-8") from None


def _stamp(path: str) -> Stamp:
    try:
        status = os.stat(path)
    except OSError as error:
        broken = "is a link that leads nowhere" if os.path.islink(path) else error.strerror
        raise PilotageError("BAD_PATH", str(broken)) from None
    except ValueError:
        raise PilotageError("BAD_PATH", "a path has no NUL character") from None
    if not stat.S_ISREG(status.st_mode):
        raise PilotageError("BAD_PATH", "is not a regular file")
    if not os.access(path, os.R_OK):
        raise PilotageError("BAD_PATH", "may not be read (Permission denied)")
    return status.st_size, status.st_mtime_ns, status.st_ino


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


def specs(found: Inventory, options: Options, check: Check, journal: Journal) -> Iterator[FileSpec]:
    """What is known of each file, in their order; raises at the end if one of them cannot be registered."""
    if NO_CHECKSUM in options.algorithms:
        yield from (FileSpec(each.lfn, each.size, each.url) for each in found)
        return
    yield from _hashed(found, options, check, journal)


def _hashed(found: Inventory, options: Options, check: Check, journal: Journal) -> Iterator[FileSpec]:
    """Every file with its checksums; several files are read at the same time, and few are waiting for it."""
    algorithms = options.algorithms or checksum.available()
    stop = threading.Event()
    pool = ThreadPoolExecutor(options.threads, thread_name_prefix="checksum")
    title = f"Reading {tables.some(len(found), 'file')}"
    problems: list[PilotageError] = []
    left_out: set[str] = set()
    rest = iter(found)
    reading: deque[tuple[Found, Future[FileSpec]]] = deque()
    try:
        with progress.in_bytes(title, found.size, options.quiet) as advance:
            while True:
                for each in islice(rest, AHEAD * options.threads - len(reading)):
                    reading.append((each, pool.submit(_learn, each, algorithms, advance, stop, journal)))
                if not reading:
                    break
                each, future = reading.popleft()
                try:
                    yield _patiently(future, check)
                except PilotageError as error:
                    if error.name == UNFINISHED and options.skip_unfinished:
                        left_out.add(each.path)
                        found.left_out.append(f"{one_line(each.path)}: {error.detail}")
                    else:
                        problems.append(PilotageError(error.name, f"{one_line(each.path)}: {error.detail}"))
    finally:
        # On Ctrl-C too: the readers stop at their next block.
        stop.set()
        pool.shutdown(cancel_futures=True)
    again = (each for each in found if not problems and each.path not in left_out)
    problems += [_changed(each.path) for each in again if is_changed(each)]
    _raise(problems, len(found))


def _patiently(future: Future[FileSpec], check: Check) -> FileSpec:
    while True:
        try:
            return future.result(timeout=0.2)
        except NotYet:
            check()


def _learn(
    each: Found, algorithms: Sequence[str], advance: progress.Advance, stop: threading.Event, journal: Journal
) -> FileSpec:
    """What `_hash` finds, or found before this registration broke off."""
    known = journal.of(each.path, each.stamp, algorithms)
    if known is not None:
        advance(each.size)
        return FileSpec(each.lfn, each.size, each.url, known)
    spec = _hash(each, algorithms, advance, stop)
    journal.note(each.path, each.stamp, spec.checksums)
    return spec


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
    if size != each.size or is_changed(each):
        raise PilotageError(UNFINISHED, "changed while it was read: is it still being written?")
    return FileSpec(each.lfn, size, each.url, checksums)


class _Stopped(Exception):
    """Nobody waits for this file any more."""


def is_changed(each: Found) -> bool:
    try:
        return _stamp(each.path) != each.stamp
    except PilotageError:
        return True


def _changed(path: str) -> PilotageError:
    return PilotageError(
        UNFINISHED, f"{one_line(path)} changed while it was read: is it still being written?"
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
    session: Session, name: str, specs: Iterator[FileSpec], n_files: int, options: Options, close: bool
) -> DatasetView:
    if not options.add and n_files <= BATCH:
        return session.create_dataset(DatasetSpec(name, options.scope, list(specs), close))
    if not options.add:
        session.create_dataset(DatasetSpec(name, options.scope))
    n_sent = 0

    def sent(n: int) -> None:
        nonlocal n_sent
        n_sent += n
        advance(n)

    with progress.counted(f"Sending {tables.some(n_files, 'file')}", n_files, options.quiet) as advance:
        try:
            return session.send_files(name, specs, close=close, sent=sent)
        except PilotageError as error:
            if options.add and not n_sent:
                raise
            raise PilotageError(
                error.name,
                f"{error.detail}; dataset {name} is open with at least {n_sent} of {n_files} files",
                advice="run the same command again with --add: it sends what is missing",
            ) from error
