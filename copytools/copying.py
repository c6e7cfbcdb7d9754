"""The bytes of one plain file into a new one, with checksums learned on the way: the one place that chooses how.

A file gets its name when it is whole, by a link: nothing is ever replaced, and a copy that was killed leaves no file of
that name. Files go through one buffer that is hashed and written. For large ones, where there is a second core, the kernel
copies a stride while a thread hashes the stride before: measured on two quiet cores, 256 MiB in cache with BLAKE3, 2.7 GB/s
against 1.8; at 64 MiB or on busy cores no faster, and a fifth more work. Both read a file only once, so that one that does
not fit into memory, or comes over a network, is no special case.
"""

from __future__ import annotations

import errno
import logging
import os
import uuid
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Callable, Deque, Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple, Type

from copytools.base import Checksums, Deadline, Learned, shown
from copytools.checksum import BLOCK, NOT_PLAIN, Hasher, blocks, of_bytes, open_plain
from copytools.failures import End, Stage, translated
from protocol.errors import PilotageError

logger = logging.getLogger(__name__)

MIB = 1024 * 1024

TINY = 64 * 1024
"""Bytes that one read and one write are enough for."""

SMALL = 64 * MIB
"""Bytes up to which one pass is as fast as two threads."""

SMALL_FOR_MD5 = 2 * MIB
"""The same where MD5 is asked for, which takes several times as long as the copy beside it."""

STRIDE = 8 * MIB
"""Bytes that the kernel copies between two looks at the clock."""

STRIDES_AHEAD = 8
"""How far the copy may run ahead of the checksum: what is hashed is still in the page cache."""

DEEPEST = 3
"""Directories that are made for an output: the storage's own, scope and dataset. More are missing where it is not mounted."""

LONGEST_NAME = 255
"""Bytes of a file name on Linux file systems."""

NO_LINKS = frozenset((errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK))
"""What a file system says that knows no hard links."""

Identity = Tuple[int, int]
"""Device and inode."""


class Plan(NamedTuple):
    """How a tool wants its files copied."""

    stage: Stage
    algorithms: Tuple[str, ...]
    durable: bool = False
    """Return only when the file and its directory entry would survive a loss of power."""
    named: bool = False
    """Write under a name of its own beside the target, for file systems that cannot hold a file without a name (NFS)."""
    hash_source: bool = False
    """Hash what was read, for a tool that reads the target again and compares; else what was written is hashed."""


class Copied(NamedTuple):
    checksums: Checksums
    made: Optional[Identity]
    """The file that now has the target's name; None if it was there before with the same bytes."""


def copy(source: Path, target: Path, plan: Plan, deadline: Deadline) -> Copied:
    """Copy a plain file to a name that does not exist, or going out, that has the same bytes already."""
    with translated(plan.stage, End.SOURCE, source):
        reading = open_output(source) if plan.stage is Stage.OUT else open_plain(source)
    try:
        with translated(plan.stage, End.SOURCE, source):
            before = os.fstat(reading)
        with translated(plan.stage, End.TARGET, target):
            if plan.stage is Stage.OUT:
                make_directories(target.parent, plan.durable)
            with _NewFile(target, plan.named) as new:
                checksums = _move(reading, new.descriptor, before.st_size, plan, deadline)
                _refuse_changed(before, os.fstat(reading))
                return Copied(checksums, _publish(reading, new, plan, deadline))
    finally:
        os.close(reading)


def hashed(descriptor: int, algorithms: Tuple[str, ...], deadline: Deadline) -> Checksums:
    """Of an open file, from its beginning; raises OSError, also if the file changes meanwhile."""
    before = os.fstat(descriptor)
    n_bytes = 0
    with Hasher(algorithms) as hasher:
        for block in blocks(descriptor, 0, None, bytearray(BLOCK)):
            deadline.check()
            hasher.update(block)
            n_bytes += len(block)
            if n_bytes > before.st_size:  # it grows, or is one of /proc that says it is empty
                break
        _refuse_changed(before, os.fstat(descriptor))
        if n_bytes != before.st_size:
            raise OSError(errno.EBUSY, f"{before.st_size} bytes became {n_bytes} while it was read")
        return hasher.digests()


def copy_small(
    files: Iterable[Tuple[Optional[str], str]], algorithms: Tuple[str, ...], asked_to_stop: Callable[[], bool]
) -> Iterator[Optional[Learned]]:
    """As `copy`, many files of at most TINY bytes going in, at a third of the cost: (source, target) → what was learned.

    None where there is no source, or anything is not as usual: then there is no target, and `copy` tells why.
    """
    buffer = memoryview(bytearray(TINY + 1))
    directories: Dict[str, int] = {}
    try:
        for source, target in files:
            if source is None or asked_to_stop():
                yield None
                continue
            try:
                parent, slash, name = target.rpartition("/")
                if parent not in directories:
                    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
                    directories[parent] = os.open(parent + slash or ".", flags)
                yield _copy_small(source, name, directories[parent], algorithms, buffer)
            except OSError:
                yield None
    finally:
        for directory in directories.values():
            os.close(directory)


def _copy_small(
    source: str, name: str, directory: int, algorithms: Tuple[str, ...], buffer: memoryview
) -> Optional[Learned]:
    """One read, one write, a file without a name until it is whole."""
    reading = open_plain(source)
    try:
        before = os.fstat(reading)
        n_bytes = os.readv(reading, [buffer])
        if n_bytes != before.st_size or n_bytes == len(buffer):
            return None
        writing = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666, dir_fd=directory)
        try:
            data = buffer[:n_bytes]
            if os.write(writing, data) != n_bytes:
                return None
            checksums = of_bytes(data, algorithms)
            _refuse_changed(before, os.fstat(reading))
            os.close(os.dup(writing))  # as in _NewFile.publish
            _link_open(writing, name, directory)
        finally:
            os.close(writing)
    finally:
        os.close(reading)
    return Learned(n_bytes, checksums)


def reread(path: Path, algorithms: Tuple[str, ...], deadline: Deadline) -> Checksums:
    """Checksums of a file as the storage gives it, not as this node's page cache remembers it; raises OSError."""
    descriptor = open_plain(path)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return hashed(descriptor, algorithms, deadline)
    finally:
        os.close(descriptor)


def refuse_other_bytes(place: Path, copied: Copied, stored: Checksums) -> None:
    """STAGE_OUT_MISMATCH, and the file that was made is taken away again, unless the storage holds what was read here."""
    if stored == copied.checksums:
        return
    withdraw(place, copied.made)
    detail = f"{shown(place)}: {copied.checksums} was read here, {stored} is on the storage"
    raise PilotageError("STAGE_OUT_MISMATCH", detail)


def withdraw(target: Path, made: Optional[Identity]) -> None:
    """Take the name away from a file that turned out wrong, if it is still the one that was made; a failure is only told."""
    try:
        if made is not None and identity(os.stat(target, follow_symlinks=False)) == made:
            os.unlink(target)
    except OSError as error:
        logger.warning("could not remove a file", extra={"path": shown(target), "reason": str(error)})


def make_directories(directory: Path, durable: bool) -> None:
    """Make what is missing of a directory's path, at most DEEPEST of it; raises OSError."""
    missing: List[Path] = []
    while not directory.is_dir():
        missing.append(directory)
        directory = directory.parent
    if len(missing) > DEEPEST:
        raise OSError(errno.ENODEV, f"{missing[-1]} does not exist: is the storage mounted here?")
    for each in reversed(missing):
        try:
            os.mkdir(each)
        except FileExistsError:  # somebody else was faster
            if not each.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, f"{each} is no directory") from None
        if durable:
            _sync_directory(each.parent)


# -- the checks -----------------------------------------------------------------------------------------------------


def open_output(path: Path) -> int:
    """A descriptor of a plain file with one name; raises OSError.

    An output that has a second name could be anybody's file. An input may have one: the closer gives plain names.
    """
    descriptor = open_plain(path)
    n_names = os.fstat(descriptor).st_nlink
    if n_names != 1:
        os.close(descriptor)
        raise OSError(NOT_PLAIN, f"has {n_names} names (hard links)")
    return descriptor


def _refuse_changed(before: os.stat_result, after: os.stat_result) -> None:
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise OSError(errno.EBUSY, "the source changed while it was copied")


def identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


# -- moving the bytes -----------------------------------------------------------------------------------------------


def _move(reading: int, writing: int, size: int, plan: Plan, deadline: Deadline) -> Checksums:
    hashed = reading if plan.hash_source else writing
    with Hasher(plan.algorithms) as hasher:
        small = SMALL_FOR_MD5 if "md5" in plan.algorithms else SMALL
        if size <= small or len(os.sched_getaffinity(0)) == 1:
            copied = _one_pass(reading, writing, size, hasher, deadline)
        else:
            copied = _kernel_and_thread(reading, writing, hashed, size, hasher, deadline)
        if copied != size:
            raise OSError(
                errno.EBUSY, f"the source changed while it was copied: {size} bytes became {copied}"
            )
        return hasher.digests()


def _one_pass(reading: int, writing: int, size: int, hasher: Hasher, deadline: Deadline) -> int:
    copied = 0
    # One byte more than there should be, to see a file that has grown, or one of /proc that says it is empty.
    for block in blocks(reading, 0, size + 1, bytearray(min(BLOCK, size + 1))):
        deadline.check()
        hasher.update(block)
        _write_all(writing, block)
        copied += len(block)
        deadline.moved(len(block))
    return copied


def _kernel_and_thread(
    reading: int, writing: int, hashed: int, size: int, hasher: Hasher, deadline: Deadline
) -> int:
    buffer = bytearray(BLOCK)

    def hash_stride(begin: int, end: int) -> None:
        for block in blocks(hashed, begin, end, buffer):
            hasher.update(block)

    copied = 0
    behind: Deque[Future[None]] = deque()
    with ThreadPoolExecutor(1, "checksum") as pool:
        for end in _strides(reading, writing, size):
            behind.append(pool.submit(hash_stride, copied, end))
            deadline.moved(end - copied)
            copied = end
            if len(behind) > STRIDES_AHEAD:
                behind.popleft().result()
            deadline.check()
        for each in behind:
            each.result()
            deadline.check()
    return copied


def _write_all(writing: int, block: memoryview) -> None:
    while block:
        block = block[os.write(writing, block) :]


Way = Callable[[int, int, int, int], int]
"""(reading, writing, offset, count) → bytes appended to `writing`, 0 at the end of the file."""


def _copy_file_range(reading: int, writing: int, offset: int, count: int) -> int:
    """Within the file system: the server of a network file system does it, or blocks are shared."""
    return os.copy_file_range(reading, writing, count, offset)


def _sendfile(reading: int, writing: int, offset: int, count: int) -> int:
    return os.sendfile(writing, reading, offset, count)


def _read_and_write(reading: int, writing: int, offset: int, count: int) -> int:
    block = os.pread(reading, min(count, BLOCK), offset)
    _write_all(writing, memoryview(block))
    return len(block)


WAYS: Tuple[Way, ...] = (_copy_file_range, _sendfile, _read_and_write)
"""Best first; the last one works everywhere."""

_NOT_THIS_WAY = frozenset(
    (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)
)


def _strides(reading: int, writing: int, size: int) -> Iterator[int]:
    """Copy, and tell after each stride up to which offset."""
    ways = list(WAYS)
    copied = 0
    while copied < size and ways:
        try:
            n_bytes = ways[0](reading, writing, copied, min(STRIDE, size - copied))
        except OSError as error:
            if error.errno not in _NOT_THIS_WAY or len(ways) == 1:
                raise
            n_bytes = 0
        if n_bytes == 0:  # the end of the file, or a way that some file systems pretend to know
            del ways[0]
            continue
        copied += n_bytes
        yield copied


# -- giving it its name ---------------------------------------------------------------------------------------------


class _NewFile:
    """A file in the target's directory that has not got the target's name yet; as a context, it leaves nothing else."""

    def __init__(self, target: Path, named: bool) -> None:
        self.name = target.name
        self.temporary = ""
        self.descriptor = -1
        # From here on all goes by this descriptor: the directory cannot be swapped for another one.
        self.directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if named or not self._open_without_name():
                self._open_with_name()
            self.identity = identity(os.fstat(self.descriptor))
        except OSError:
            self._clean_up()
            raise

    def _open_without_name(self) -> bool:
        """Such a file vanishes with its last descriptor, even if we are killed; some file systems do not know that."""
        if not _has_proc():  # by which it would get its name
            return False
        try:
            self.descriptor = os.open(
                ".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666, dir_fd=self.directory
            )
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
        return self.descriptor >= 0

    def _open_with_name(self) -> None:
        name = hidden_name(self.name)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self.descriptor = os.open(name, flags, 0o666, dir_fd=self.directory)
        self.temporary = name

    def publish(self, durable: bool) -> None:
        """Give the file its name; FileExistsError if another file has it."""
        if durable:
            os.fsync(self.descriptor)
        # Each close of a descriptor makes a network file system tell what it could not write: before there is a name.
        os.close(os.dup(self.descriptor))
        if self.temporary:
            self._link_hidden()
        else:
            _link_open(self.descriptor, self.name, self.directory)
        if durable:
            self._sync()

    def _sync(self) -> None:
        try:
            os.fsync(self.directory)
        except OSError:
            self._unlink(self.name)
            raise

    def _link_hidden(self) -> None:
        here = {"src_dir_fd": self.directory, "dst_dir_fd": self.directory}
        try:
            os.link(self.temporary, self.name, follow_symlinks=False, **here)
        except FileExistsError:
            # The first answer of an NFS server may have been lost, and the repeated request finds what the first one made.
            if identity(os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)) != self.identity:
                raise
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            rename_to_new(self.directory, self.temporary, self.name)
            self.temporary = ""

    def _unlink(self, name: str) -> None:
        """For cleaning up: a failure is told and hides no other."""
        try:
            os.unlink(name, dir_fd=self.directory)
        except OSError as error:
            logger.warning("could not remove a file", extra={"file_name": shown(name), "reason": str(error)})

    def _clean_up(self) -> None:
        # First closed, then removed: NFS keeps a file under yet another name if one is removed while it is open.
        try:
            if self.descriptor >= 0:
                os.close(self.descriptor)
        except OSError as error:  # all that counts was written and told before it got its name
            logger.warning(
                "closing a file failed", extra={"file_name": shown(self.name), "reason": str(error)}
            )
        if self.temporary:
            self._unlink(self.temporary)
        os.close(self.directory)

    def __enter__(self) -> _NewFile:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self._clean_up()


def give_name(hidden: Path, target: Path) -> None:
    """Give a file that came under a hidden name beside its target the target's name; FileExistsError if another file has it."""
    directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.link(
            hidden.name,
            target.name,
            src_dir_fd=directory,
            dst_dir_fd=directory,
            follow_symlinks=False,
        )
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        rename_to_new(directory, hidden.name, target.name)
    finally:
        os.close(directory)


def _link_open(descriptor: int, name: str, directory: int) -> None:
    """Give a file without a name one that nothing has."""
    os.link(f"/proc/self/fd/{descriptor}", name, dst_dir_fd=directory, follow_symlinks=True)


@lru_cache(None)
def _has_proc() -> bool:
    return os.path.isdir("/proc/self/fd")


def hidden_name(name: str) -> str:
    """A name beside `name` that nobody else uses, and that tells a sweeper which file it was to become."""
    ending = f".{uuid.uuid4().hex[:12]}.part"
    room = LONGEST_NAME - 1 - len(ending)
    return f".{os.fsencode(name)[:room].decode('utf-8', 'ignore')}{ending}"


def rename_to_new(directory: int, old: str, new: str) -> None:
    """renameat2 with RENAME_NOREPLACE, for file systems without hard links; raises OSError."""
    import ctypes  # late: hardly anybody needs it

    rename_noreplace = 1
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(directory, os.fsencode(old), directory, os.fsencode(new), rename_noreplace) != 0:
        number = ctypes.get_errno()
        raise OSError(
            number, f"neither a link nor a rename can give the file its name: {os.strerror(number)}"
        )


def _publish(reading: int, new: _NewFile, plan: Plan, deadline: Deadline) -> Optional[Identity]:
    try:
        new.publish(plan.durable)
        return new.identity
    except FileExistsError:
        if plan.stage is Stage.IN or not same_bytes(reading, new.name, new.directory, deadline):
            raise
    if plan.durable:  # who wrote it may have been killed before this
        os.fsync(new.directory)
    return None


def same_bytes(reading: int, name: str, directory: int, deadline: Deadline) -> bool:
    """Whether the file of that name is what was to be written; raises OSError if it cannot be read."""
    try:
        there = open_plain(Path(name), directory)
    except OSError:
        return False
    try:
        if os.fstat(there).st_size != os.fstat(reading).st_size:
            return False
        ours, theirs = blocks(reading, 0, None, bytearray(BLOCK)), blocks(there, 0, None, bytearray(BLOCK))
        for block in ours:
            deadline.check()
            if block != next(theirs, None):
                return False
        return True
    finally:
        os.close(there)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
