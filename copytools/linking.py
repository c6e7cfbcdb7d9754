"""Files that get a second name instead of a copy: whole at once, never over another file, hashed while they keep still."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Iterator, Optional, Tuple

from copytools.base import Checksums, Deadline
from copytools.checksum import NOT_PLAIN, open_plain
from copytools.copying import NO_LINKS, hashed, hidden_name, identity, make_directories, same_bytes
from copytools.failures import End, Stage, translated

CANNOT = NO_LINKS | {errno.EXDEV}
"""What a system says where a file can have no second name."""


def link_in(source: Path, to: Path, algorithms: Tuple[str, ...], hard: bool, deadline: Deadline) -> Checksums:
    """Make `to` a link to a plain file, which is read once for its checksums."""
    with _opened(Stage.IN, source) as reading:
        with translated(Stage.IN, End.TARGET, to):
            directory = os.open(to.parent, _DIRECTORY)
        try:
            with translated(Stage.IN, End.SOURCE, source):
                checksums = hashed(reading, algorithms, deadline)
            with translated(Stage.IN, End.TARGET, to):
                if hard:
                    _link(reading, to.name, directory)
                else:
                    os.symlink(os.path.realpath(source), to.name, dir_fd=directory)
        finally:
            os.close(directory)
    return checksums


def link_out(
    source: Path, target: Path, algorithms: Tuple[str, ...], deadline: Deadline
) -> Optional[Checksums]:
    """Give an output a second name on the storage, and let it belong to this account; None if it can have none there.

    A file of that name with the same bytes is an earlier try whose answer got lost.
    """
    with _opened(Stage.OUT, source) as reading:
        with translated(Stage.OUT, End.TARGET, target):
            make_directories(target.parent, durable=True)
            directory = os.open(target.parent, _DIRECTORY)
        try:
            with translated(Stage.OUT, End.SOURCE, source):
                _refuse_other_names(reading, target.name, directory)
                if os.fstat(reading).st_dev != os.fstat(directory).st_dev:
                    return None
                checksums = hashed(reading, algorithms, deadline)
            with translated(Stage.OUT, End.TARGET, target):
                return checksums if _publish(reading, target.name, directory, deadline) else None
        finally:
            os.close(directory)


@contextmanager
def second_name(descriptor: int, path: Path) -> Iterator[Path]:
    """A plain hidden name beside its own, for somebody who may take it away: the file keeps its own for the next try."""
    name, directory = hidden_name("output"), os.open(path.parent, _DIRECTORY)
    try:
        make_ours(descriptor)
        _link(descriptor, name, directory)
        try:
            yield path.with_name(name)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory)
    finally:
        os.close(directory)


_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@contextmanager
def _opened(stage: Stage, source: Path) -> Iterator[int]:
    with translated(stage, End.SOURCE, source):
        descriptor = open_plain(source)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _refuse_other_names(reading: int, name: str, directory: int) -> None:
    """But for the one that it is to have: another name could be anybody's."""
    n_names = os.fstat(reading).st_nlink
    if n_names != 1 + _is_there(reading, name, directory):
        raise OSError(NOT_PLAIN, f"has {n_names} names (hard links)")


def _is_there(reading: int, name: str, directory: int) -> bool:
    try:
        there = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return identity(there) == identity(os.fstat(reading))


def _publish(reading: int, name: str, directory: int, deadline: Deadline) -> bool:
    """Whether it has the name now, on the disk and not only in memory."""
    make_ours(reading)
    os.fsync(reading)
    is_new = True
    try:
        _link(reading, name, directory)
    except FileExistsError:
        is_new = False
        if not _is_there(reading, name, directory) and not same_bytes(reading, name, directory, deadline):
            raise
    except OSError as error:
        if error.errno not in CANNOT:
            raise
        return False
    try:
        os.fsync(directory)
    except OSError:
        if is_new:
            os.unlink(name, dir_fd=directory)
        raise
    return True


def _link(descriptor: int, name: str, directory: int) -> None:
    """By the descriptor: a path could be swapped for another file's."""
    os.link(f"/proc/self/fd/{descriptor}", name, dst_dir_fd=directory, follow_symlinks=True)


def make_ours(descriptor: int) -> None:
    """As if this process had written it: the payload may have run as another account, and have had its own mind about rights."""
    if os.fstat(descriptor).st_uid != os.geteuid():
        os.fchown(descriptor, os.geteuid(), os.getegid())
    os.fchmod(descriptor, 0o666 & ~_umask())


def _umask() -> int:
    """os.umask tells it only by changing it, for a moment and for all threads."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1], 8) for line in status if line.startswith("Umask:"))
