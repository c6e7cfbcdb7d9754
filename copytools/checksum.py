"""Checksums of files: adler32 and md5 everywhere, blake3 where it is installed; all that are asked for in one pass.

Files are read, never mapped: an I/O error, or somebody who cuts the file short, would end a process that maps it with
SIGBUS, and the pilot with all its jobs would be gone instead of one copy having failed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import zlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Callable, Deque, Dict, Iterable, Iterator, List, Optional, Tuple, Type, Union

from protocol.errors import PilotageError
from protocol.files import ALGORITHMS
from protocol.redaction import one_line

BLOCK = 512 * 1024
"""Bytes read at a time: small enough to stay in a core's cache from the read to the hash, which larger blocks do not."""

WORTH_A_THREAD = 64 * 1024
"""Bytes of a block from which on handing it to another thread costs less than it saves."""

BEHIND = 4
"""Blocks by which md5 may be behind the others: where cores are busy, a thread that waits for each block waits long."""

NOT_PLAIN = errno.EMEDIUMTYPE
"""The errno of our own for "no plain file": no file system answers an open with it."""

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


# -- which there are ------------------------------------------------------------------------------------------------


def available() -> Tuple[str, ...]:
    """The algorithms of this node, best first."""
    return ("blake3", "md5", "adler32") if _blake3() else ("md5", "adler32")


def preferred() -> str:
    """What our own files get: blake3, or md5 where a node lacks it."""
    return available()[0]


def supported(algorithms: Iterable[str]) -> Tuple[str, ...]:
    """The same names, each once; CHECKSUM_NOT_SUPPORTED if one cannot be calculated here."""
    wanted = tuple(dict.fromkeys(algorithms))
    for algorithm in wanted:
        if algorithm not in ALGORITHMS:
            raise PilotageError(
                "CHECKSUM_NOT_SUPPORTED", f"{algorithm[:40]!a}; known are {', '.join(ALGORITHMS)}"
            )
        if algorithm not in available():
            raise PilotageError(
                "CHECKSUM_NOT_SUPPORTED",
                f"{algorithm} needs the Python package of that name, which this node lacks: "
                f"pip install {algorithm}, or use {' or '.join(available())}",
            )
    return wanted


def _blake3() -> Any:
    """The package, or None; imported only now: most starts do not need it, and a node may lack it."""
    try:
        import blake3
    except ImportError:
        return None
    return blake3


# -- calculating ----------------------------------------------------------------------------------------------------


class _Adler32:
    """zlib's adler32 in the shape of hashlib."""

    def __init__(self) -> None:
        self._value = 1

    def update(self, block: memoryview) -> None:
        self._value = zlib.adler32(block, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


def _new(algorithm: str) -> Any:
    if algorithm == "adler32":
        return _Adler32()
    if algorithm == "md5":
        # On nodes in FIPS mode md5 is refused unless one says that it guards nothing.
        return hashlib.md5(usedforsecurity=False)
    return _blake3().blake3()


class Hasher:
    """Several checksums of the same bytes; md5, the slowest, works in a thread beside the others.

    A block is done with when `update` returns: its buffer may be filled again.
    """

    def __init__(self, algorithms: Iterable[str]) -> None:
        self._hashes = {algorithm: _new(algorithm) for algorithm in supported(algorithms)}
        self._slow = self._hashes.get("md5") if len(self._hashes) > 1 else None
        self._quick = [each for each in self._hashes.values() if each is not self._slow]
        # It starts its thread with the first block that is worth one.
        self._pool = ThreadPoolExecutor(1, "md5") if self._slow else None
        self._behind: Deque[Tuple[Future[None], memoryview]] = deque()
        self._free: List[memoryview] = []

    def update(self, block: memoryview) -> None:
        if self._pool is not None and self._slow is not None:
            if self._behind or len(block) >= WORTH_A_THREAD:
                self._behind.append(self._later(self._pool, self._slow, block))
            else:
                self._slow.update(block)
        for each in self._quick:
            each.update(block)
        self._wait(BEHIND)

    def _later(
        self, pool: ThreadPoolExecutor, slow: Any, block: memoryview
    ) -> Tuple[Future[None], memoryview]:
        """From a copy, in memory that is used again: new memory would cost more than the copy."""
        n_bytes = len(block)
        fits = self._free and len(self._free[-1]) >= n_bytes
        copy = self._free.pop() if fits else memoryview(bytearray(n_bytes))
        copy[:n_bytes] = block
        return pool.submit(slow.update, copy[:n_bytes]), copy

    def _wait(self, most: int) -> None:
        """Until md5 is behind by no more than so many blocks."""
        while len(self._behind) > most:
            done, copy = self._behind.popleft()
            done.result()
            self._free.append(copy)

    def digests(self) -> Dict[str, str]:
        self._wait(0)
        return {algorithm: each.hexdigest() for algorithm, each in self._hashes.items()}

    def __enter__(self) -> Hasher:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown()


# -- reading --------------------------------------------------------------------------------------------------------


def open_plain(path: Union[str, Path], directory: Optional[int] = None) -> int:
    """A descriptor of the plain file at `path`, without following a link and without waiting for the writer of a FIFO.

    All that is done afterwards is done to this descriptor: what is swapped behind the name does not matter. OSError with
    NOT_PLAIN for anything else than a plain file.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, dir_fd=directory)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(NOT_PLAIN, "is a symbolic link, not a plain file") from None
        if error.errno == errno.ENXIO:
            raise OSError(NOT_PLAIN, "is a socket or a device, not a plain file") from None
        raise
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something unknown")
            raise OSError(NOT_PLAIN, f"is {kind}, not a plain file")
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def blocks(descriptor: int, begin: int, end: Optional[int], buffer: bytearray) -> Iterator[memoryview]:
    """The bytes from `begin` to `end`, or to the end of the file; each block is overwritten by the next one."""
    view = memoryview(buffer)
    while end is None or begin < end:
        room = len(view) if end is None else min(len(view), end - begin)
        n_bytes = os.preadv(descriptor, [view[:room]], begin)
        if n_bytes == 0:
            return
        yield view[:n_bytes]
        begin += n_bytes


def of(
    path: Union[str, Path], algorithms: Iterable[str], on_block: Callable[[int], None] = lambda n_bytes: None
) -> Dict[str, str]:
    """All these checksums of a plain file, which is read once; algorithm → hexadecimal digits.

    `on_block` is told the size of each block that was read, for a progress bar; what it raises ends the work. Raises
    CHECKSUM_FAILED where the file cannot be read or is none, CHECKSUM_NOT_SUPPORTED.
    """
    with Hasher(algorithms) as hasher:
        try:
            descriptor = open_plain(path)
        except OSError as error:
            raise _failed(path, error) from error
        try:
            _read_into(hasher, path, descriptor, on_block)
        finally:
            os.close(descriptor)
        return hasher.digests()


def of_bytes(data: memoryview, algorithms: Iterable[str]) -> Dict[str, str]:
    """Checksums of what is in memory; `algorithms` are supported ones."""
    found = {}
    for algorithm in algorithms:
        calculated = _new(algorithm)
        calculated.update(data)
        found[algorithm] = calculated.hexdigest()
    return found


def _read_into(
    hasher: Hasher, path: Union[str, Path], descriptor: int, on_block: Callable[[int], None]
) -> None:
    size = os.fstat(descriptor).st_size
    incoming = blocks(descriptor, 0, None, bytearray(min(BLOCK, size + 1)))
    while True:
        try:
            block = next(incoming, None)
        except OSError as error:
            raise _failed(path, error) from error
        if block is None:
            return
        hasher.update(block)
        on_block(len(block))


def _failed(path: Union[str, Path], error: OSError) -> PilotageError:
    return PilotageError("CHECKSUM_FAILED", f"{one_line(str(path))}: {error.strerror}")
