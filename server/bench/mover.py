"""One piece of the work that `bench data` measures, in a process of its own: prints the seconds that it took and the most memory in MB.

python -m server.bench.mover WORK ARGUMENT…

What is needed beforehand, imports too, a piece of work does when it is called; what is measured is the call of what it returns.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from blake3 import blake3

from copytools import checksum

MIB = 1 << 20
LIMIT_SECONDS = 3600.0
STEP = 256 * MIB
CORES = len(os.sched_getaffinity(0))

Measured = Callable[[], object]


# -- ways to copy a file and learn its BLAKE3 -------------------------------------------------------------------------


def one_pass(source: str, target: str) -> Measured:
    """Read, hash and write MiB by MiB."""

    def work() -> None:
        hasher, buffer = blake3(), memoryview(bytearray(MIB))
        with open(source, "rb", buffering=0) as reading, open(target, "xb", buffering=0) as writing:
            while n_bytes := reading.readinto(buffer):
                hasher.update(buffer[:n_bytes])
                writing.write(buffer[:n_bytes])

    return work


def copy_then_hash(source: str, target: str) -> Measured:
    """The kernel's copy, then all threads over the copy, mapped."""

    def work() -> None:
        _copy_file_range(source, target)
        blake3(max_threads=CORES).update_mmap(target)

    return work


def copy_beside_hash(source: str, target: str) -> Measured:
    """The kernel's copy, and beside it a thread over the source, mapped."""

    def work() -> None:
        hashing = threading.Thread(target=blake3().update_mmap, args=(source,))
        hashing.start()
        _copy_file_range(source, target)
        hashing.join()

    return work


def _copy_file_range(source: str, target: str) -> None:
    with open(source, "rb") as reading, open(target, "xb") as writing:
        while os.copy_file_range(reading.fileno(), writing.fileno(), STEP):
            pass


# -- ours -------------------------------------------------------------------------------------------------------------


def copytool(algorithm: str, source: str, target: str) -> Measured:
    """As a pilot brings an input: copied, and held against what is registered."""
    from pilot.api.data import Data, File

    known = {algorithm: Path(f"{source}.{algorithm}").read_text()}
    file = File(f"file://{source}", Path(target), os.path.getsize(source), known)
    data = Data(retries=0)
    return lambda: data.bring(file)


def checksums(source: str) -> Measured:
    """MD5 and BLAKE3 in one read."""
    return partial(checksum.of, source, ("blake3", "md5"))


def data_api(source: str, target: str) -> Measured:
    """All files of a directory, registered with size and BLAKE3."""
    from pilot.api.data import Data, File

    files = []
    for line in Path(f"{source}.blake3").read_text().splitlines():
        name, size, digits = line.split()
        files.append(File(f"file://{source}/{name}", Path(target, name), int(size), {"blake3": digits}))

    def work() -> None:
        os.mkdir(target)
        for result in Data(retries=0).stage_in(files).wait():
            if result.copied is None:
                raise SystemExit(f"{result.file.url}: {result.error}")

    return work


def register(url: str, token_file: str, name: str, source: str, algorithm: str) -> Measured:
    """A directory as a dataset."""
    from client import registrator
    from client.session import Session

    session = Session(url, Path(token_file).read_text().strip())
    options = registrator.Options(algorithms=(algorithm,), quiet=True)
    return partial(registrator.register, session, name, [source], options)


# -- what they are compared with --------------------------------------------------------------------------------------


def b3sum(path: str) -> Measured:
    """All threads over the file, mapped."""
    return partial(blake3(max_threads=CORES).update_mmap, path)


def read(directory: str) -> Measured:
    """All files of a directory, each core one at a time."""
    return partial(_beside, _read, sorted(Path(directory).iterdir()))


def _read(path: Path) -> None:
    buffer = bytearray(MIB)
    with open(path, "rb", buffering=0) as reading:
        while reading.readinto(buffer):
            pass


def hash_memory(n_mib: str) -> Measured:
    """BLAKE3 of so many MiB of memory, a share for each core."""
    block = os.urandom(MIB)

    def share(_: int) -> None:
        hasher = blake3()
        for _number in range(int(n_mib) // CORES):
            hasher.update(block)

    return partial(_beside, share, range(CORES))


def _beside(work: Callable[..., None], over: Iterable[object]) -> None:
    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(work, over))


# -- what they work on ------------------------------------------------------------------------------------------------


def make_file(path: str, n_mib: str) -> Measured:
    """A file of blocks that differ, on the disk and in the page cache, with its checksums beside it."""

    def work() -> None:
        block = bytearray(os.urandom(MIB))
        with open(path, "xb") as writing:
            for number in range(int(n_mib)):
                block[:8] = number.to_bytes(8, "little")
                writing.write(block)
            writing.flush()
            os.fsync(writing.fileno())
        for algorithm, digits in checksum.of(path, ("blake3", "md5")).items():
            Path(f"{path}.{algorithm}").write_text(digits)

    return work


def make_files(directory: str, n_files: str, n_bytes: str) -> Measured:
    """Many small files in a directory, and a list of them beside it."""

    def work() -> None:
        os.mkdir(directory)
        with open(f"{directory}.blake3", "x") as listed:
            for number in range(int(n_files)):
                name, content = f"run-{number:07}.dat", os.urandom(int(n_bytes))
                Path(directory, name).write_bytes(content)
                listed.write(f"{name} {n_bytes} {blake3(content).hexdigest()}\n")

    return work


def forget(directory: str) -> Measured:
    """Take the files of a directory out of the page cache."""

    def work() -> None:
        for path in Path(directory).iterdir():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    return work


WORK: dict[str, Callable[..., Measured]] = {
    "one pass": one_pass,
    "copy, then hash": copy_then_hash,
    "copy beside hash": copy_beside_hash,
    "copytool": copytool,
    "checksums": checksums,
    "data-api": data_api,
    "register": register,
    "b3sum": b3sum,
    "read": read,
    "hash": hash_memory,
    "make-file": make_file,
    "make-files": make_files,
    "forget": forget,
}


def main(name: str, *arguments: str) -> None:
    measured = WORK[name](*arguments)
    began = time.perf_counter()
    measured()
    seconds = time.perf_counter() - began
    sys.stdout.write(f"{seconds} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
