"""A short benchmark of a node as a program of its own: processors and memory, used by many processes at once, and the disk.

It needs the standard library alone and imports nothing of ours, so that its text can also travel as the code of a task.
The scores compare nodes with one Python version; they are no measure of a payload. Run it with --help.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Callable, Optional

NAME, VERSION = "pilotage", "1"
MIB = 1024 * 1024
MEMORY_BLOCK, MOST_BLOCKS = 8 * MIB, 1024 * MIB
"""Each process copies one of this size, which is more than its share of a processor's caches; and all of them together."""
DISK_BLOCK = 4 * MIB
"""Written, and on the disk, before the next: so a slow disk is noticed in time."""
STEPS = 5
"""Three that all processes do at the same time, then writing and reading: each has the same part of the time."""
MOST_CORES = 1000
"""Each process costs a descriptor, and 1024 is what many accounts may have."""
RUN_HERE = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from pilot.benchmark import main; sys.exit(main())"
)
"""With the directory, or the zip file, in which the pilot lies as the first argument."""


def command(directory: str, cores: int, seconds: float, disk_mb: int) -> list[str]:
    """The benchmark as a process of its own, by the Python that runs us and without the user's modules."""
    place = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    options = {"--cores": cores, "--seconds": seconds, "--disk-mb": disk_mb, "--directory": directory}
    words = [str(word) for option in options.items() for word in option]
    return [sys.executable, "-I", "-c", RUN_HERE, place, *words]


def measure(directory: str, cores: int = 0, seconds: float = 3.0, disk_mb: int = 64) -> dict[str, Any]:
    """The benchmark's dictionary; OSError where the processes cannot be started.

    0 cores: as many as this process may use. It takes about so many seconds; it forks, so a program that has threads uses
    `command`. What goes wrong with the disk stands in the dictionary as `problem`.
    """
    began = time.monotonic()
    cores = min(cores or len(os.sched_getaffinity(0)), MOST_CORES)
    found = _of_processes(cores, seconds / STEPS)
    scores: dict[str, float] = {}
    for name in found[0]:
        scores[name] = _rounded(sum(each[name] for each in found))
        scores[f"{name}_slowest"] = _rounded(min(each[name] for each in found))
    problem = _disk(directory, disk_mb, seconds / STEPS, scores) if disk_mb else ""
    report = {
        "name": NAME,
        "version": VERSION,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cores": cores,
        "seconds": _rounded(time.monotonic() - began),
        "scores": scores,
        "node": platform.node(),
        "cpu_model": _cpu_model(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }
    return {**report, "problem": problem} if problem else report


# -- processors and memory --------------------------------------------------------------------------------------------------


def _integers() -> float:
    value = 1
    for _ in range(10_000):
        value = (value * 1_103_515_245 + 12_345) & 0x7FFFFFFF
    return 0.01


def _floats() -> float:
    value = 1.0
    for _ in range(10_000):
        value = value * 0.999 + 1.1 / (value + 0.5)
    return 0.01


class _Copy:
    """Copies a block of memory."""

    def __init__(self, size: int) -> None:
        self._source, self._target = bytearray(b"\1" * size), bytearray(size)

    def __call__(self) -> float:
        self._target[:] = self._source
        return len(self._source) / MIB


def _rate(work: Callable[[], float], seconds: float) -> float:
    """How much of the work is done in a second; once at least."""
    done, began = 0.0, time.perf_counter()
    while True:
        done += work()
        took = time.perf_counter() - began
        if took >= seconds:
            return done / took


def _of_processes(n: int, seconds: float) -> list[dict[str, float]]:
    """What each of n processes reaches while all of them do the same; OSError if one cannot."""
    begin = time.monotonic() + 0.02
    ends: list[tuple[int, int]] = []
    failed: Optional[OSError] = None
    try:
        for _ in range(n):
            ends.append(_forked(begin, seconds, min(MEMORY_BLOCK, MOST_BLOCKS // n)))
    except OSError as error:
        failed = error
    texts = []
    for pid, end in ends:
        with open(end, "rb") as file:
            texts.append(file.read())
        os.waitpid(pid, 0)
    if failed is not None:
        raise failed
    if not all(texts):
        raise OSError(f"{sum(not text for text in texts)} of {n} processes ended before their time")
    return [json.loads(text) for text in texts]


def _forked(begin: float, seconds: float, block: int) -> tuple[int, int]:
    """A process that works when the others do, and where its result can be read."""
    reading, writing = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(reading)
        os.close(writing)
        raise
    if pid:
        os.close(writing)
        return pid, reading
    try:
        os.close(reading)
        copy = _Copy(block)
        time.sleep(max(0.0, begin - time.monotonic()))
        found = {
            "integer": _rate(_integers, seconds),
            "float": _rate(_floats, seconds),
            "memory_mb_per_second": _rate(copy, seconds),
        }
        os.write(writing, json.dumps(found).encode())
    finally:
        os._exit(0)


# -- the disk ---------------------------------------------------------------------------------------------------------------


def _disk(directory: str, size_mb: int, seconds: float, scores: dict[str, float]) -> str:
    """Write a file, all of it to the disk, and read it; what went wrong, in words. No more than a quarter of the free space."""
    try:
        with _unnamed(directory) as file:
            status = os.statvfs(directory)
            blocks = min(size_mb * MIB, status.f_bavail * status.f_frsize // 4) // DISK_BLOCK
            if blocks == 0:
                return "there is not enough space for the benchmark of the disk"
            block = os.urandom(DISK_BLOCK)
            scores["disk_write_mb_per_second"] = _rounded(
                _blocks(blocks, seconds, lambda: _write(file, block))
            )
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)  # it is to come from the disk
            os.lseek(file, 0, os.SEEK_SET)
            scores["disk_read_mb_per_second"] = _rounded(
                _blocks(blocks, seconds, lambda: len(os.read(file, DISK_BLOCK)))
            )
    except OSError as error:
        return f"disk: {error.strerror or error}"
    return ""


@contextlib.contextmanager
def _unnamed(directory: str) -> Iterator[int]:
    """A file that is gone when it is closed, however that comes."""
    path = os.path.join(directory, f".benchmark-{os.getpid()}-{os.urandom(4).hex()}")
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.unlink(path)
        yield file
    finally:
        os.close(file)


def _write(file: int, block: bytes) -> int:
    written = os.write(file, block)
    os.fsync(file)
    return written


def _blocks(most: int, seconds: float, work: Callable[[], int]) -> float:
    """MB per second over at most so many blocks, or until the time is over or the file is."""
    done, began, took = 0, time.perf_counter(), 0.0
    for _ in range(most):
        n = work()
        done += n
        took = time.perf_counter() - began
        if took >= seconds or not n:
            break
    return done / MIB / max(took, 1e-6)


# -- the rest ---------------------------------------------------------------------------------------------------------------


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", errors="replace") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name.strip() in ("model name", "cpu model", "Model"):
                    return value.strip()[:200]
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """The program: the dictionary goes to a file, or to standard output; the exit code."""
    parser = argparse.ArgumentParser(description="A short benchmark of this node.")
    parser.add_argument(
        "--cores", type=int, default=0, help="processes at once (0: as many as there are cores)"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="about how long it takes")
    parser.add_argument("--disk-mb", type=int, default=64, help="size of the file for the disk (0: none)")
    parser.add_argument("--directory", default=".", help="where that file is written")
    parser.add_argument("--output", help="the file that takes the result")
    given = parser.parse_args(arguments)
    try:
        text = json.dumps(measure(given.directory, given.cores, given.seconds, given.disk_mb), indent=1)
        if given.output:
            with open(given.output, "w", encoding="ascii") as file:
                file.write(text + "\n")
        else:
            sys.stdout.write(text + "\n")
    except OSError as error:
        sys.stderr.write(f"benchmark: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
