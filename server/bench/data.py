"""The rows of `pilotage bench data`: files copied, hashed, registered and made, beside what the machine can do at best."""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

from protocol.errors import PilotageError
from server.bench.report import Goal, Row
from server.bench.stage import Installation, Stage, environment

MIB, GB = 1 << 20, 1e9
MOVER = "server.bench.mover"
WAYS = ("one pass", "copy, then hash", "copy beside hash")
"""What the copytool is compared with."""
SMALL_BYTES = 4096
PATIENCE_SECONDS = 7200


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    runs: int = 5
    mib: int = 2048
    """Of each large file."""
    files: int = 50
    """Large files that are registered."""
    names: int = 200_000
    small: int = 10_000


FULL = Sizes()
QUICK = Sizes(runs=3, mib=256, files=4, names=5_000, small=2_000)
TINY = Sizes(runs=1, mib=2, files=2, names=20, small=20)

Rows = Iterator[Row]


class Spent(NamedTuple):
    seconds: float
    mb: float
    """The most memory of the process."""


class Bench:
    """A directory to work in, and a server for what is registered."""

    def __init__(self, stage: Stage, sizes: Sizes) -> None:
        self.sizes = sizes
        self.place = stage.directory / "data"
        self.place.mkdir()
        self._stage = stage
        self._numbers = iter(range(1, 1_000_000))

    @cached_property
    def installation(self) -> Installation:
        return self._stage.installation()

    @cached_property
    def large(self) -> Path:
        """A file in the page cache, with its checksums known."""
        path = self.place / "large"
        self.move("make-file", path, self.sizes.mib)
        return path

    @property
    def gigabytes(self) -> float:
        return self.sizes.mib * MIB / GB

    def new(self) -> Path:
        """A path that nothing has."""
        return self.place / f"{next(self._numbers)}"

    def move(self, *words: object) -> Spent:
        """A piece of work by a process of its own, which tells what it took."""
        said = self._run(sys.executable, "-m", MOVER, *words).split()
        return Spent(float(said[0]), float(said[1]))

    def seconds(self, *words: object) -> float:
        """A command, from its start to its end."""
        began = time.perf_counter()
        self._run(*words)
        return time.perf_counter() - began

    def pilotage(self, *words: object) -> str:
        return self._run(sys.executable, "-m", "client.cli", *words)

    def _run(self, *words: object) -> str:
        command = [str(word) for word in words]
        done = subprocess.run(
            command, cwd=self.place, env=environment(self.place), capture_output=True, text=True,
            timeout=PATIENCE_SECONDS, check=False,
        )  # fmt: skip
        if done.returncode:
            raise PilotageError("SERVER_ERROR", f"{command[:4]} failed: {done.stderr.strip()[-500:]}")
        return done.stdout

    def need(self, n_bytes: float) -> None:
        """Refuse at the start what would fill the disk."""
        free = shutil.disk_usage(self.place).free
        if n_bytes > 0.9 * free:
            raise PilotageError(
                "NO_LOCAL_SPACE",
                f"{n_bytes / GB:.1f} GB are needed in {self.place.parent}, {free / GB:.1f} GB are free; "
                "TMPDIR names another place, --files fewer files to register",
            )


@contextlib.contextmanager
def _removed(path: Path) -> Iterator[Path]:
    """What is written there is gone afterwards, before the disk is busy with it."""
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


# -- copies -----------------------------------------------------------------------------------------------------------


def copy(bench: Bench) -> Rows:
    """One large file in the page cache by the copytool cp, verified, beside other ways to do so."""
    bench.need(2 * bench.gigabytes * GB)
    source = bench.large
    ways: dict[str, Callable[[Path], float]] = {}
    for way in WAYS:
        ways[way] = partial(_by, bench, way, source)
    ways["blake3"] = partial(_by, bench, "copytool", "blake3", source)
    ways["cp, b3sum"] = lambda target: (
        bench.seconds("cp", source, target) + bench.move("b3sum", target).seconds
    )
    ways["md5"] = partial(_by, bench, "copytool", "md5", source)
    ways["cp, md5sum"] = lambda target: bench.seconds("cp", source, target) + bench.seconds("md5sum", target)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(bench.sizes.runs):
        for name, seconds in ways.items():
            with _removed(bench.new()) as target:
                rates[name].append(bench.gigabytes / seconds(target))
    best = max(WAYS, key=lambda way: statistics.median(rates[way]))
    note = "reference: " + ", ".join(f"{way} {statistics.median(rates[way]):.2f}" for way in WAYS)
    what = f"{bench.sizes.mib} MiB copied and verified"
    at_best, faster = Goal(0.8, of_reference=True), Goal(1.0, of_reference=True)
    yield Row(f"{what}, BLAKE3: to {best}", "none", "GB/s", rates["blake3"], rates[best], at_best, note=note)
    yield Row(
        f"{what}, BLAKE3: to cp, then b3sum", "none", "GB/s", rates["blake3"], rates["cp, b3sum"], faster
    )
    yield Row(f"{what}, MD5: to cp, then md5sum", "none", "GB/s", rates["md5"], rates["cp, md5sum"], faster)


def _by(bench: Bench, *words: object) -> float:
    return bench.move(*words).seconds


def hashes(bench: Bench) -> Rows:
    """MD5 and BLAKE3 of one file in one read."""
    bench.need(bench.gigabytes * GB)
    ours, one_by_one = [], []
    for _ in range(bench.sizes.runs):
        ours.append(bench.gigabytes / bench.move("checksums", bench.large).seconds)
        seconds = bench.seconds("md5sum", bench.large) + bench.move("b3sum", bench.large).seconds
        one_by_one.append(bench.gigabytes / seconds)
    name = f"MD5 and BLAKE3 of {bench.sizes.mib} MiB in one read: to md5sum, then b3sum"
    yield Row(name, "none", "GB/s", ours, one_by_one, Goal(1.0, of_reference=True))


# -- registration -----------------------------------------------------------------------------------------------------


def registration(bench: Bench) -> Rows:
    """Large files, not in the page cache, into a dataset with BLAKE3; the bound is reading or hashing, whatever takes longer."""
    n_files, mib = bench.sizes.files, bench.sizes.mib
    bench.need(n_files * bench.gigabytes * GB)
    directory = bench.new()
    directory.mkdir()
    for number in range(n_files):
        path = directory / f"run-{number}.dat"
        bench.move("make-file", path, mib)
        for algorithm in ("blake3", "md5"):
            Path(f"{path}.{algorithm}").unlink()
    ours, bounds, reads, hashing = [], [], [], []
    for _ in range(bench.sizes.runs):
        bench.move("forget", directory)
        reads.append(bench.move("read", directory).seconds)
        hashing.append(bench.move("hash", n_files * mib).seconds)
        bench.move("forget", directory)
        ours.append(n_files * bench.gigabytes / _register(bench, directory, "blake3").seconds)
        bounds.append(n_files * bench.gigabytes / max(reads[-1], hashing[-1]))
    rate = n_files * bench.gigabytes
    note = f"reading {rate / statistics.median(reads):.2f} GB/s, hashing {rate / statistics.median(hashing):.2f} GB/s"
    name = f"registration of {n_files} files of {mib} MiB with BLAKE3"
    yield Row(name, "sqlite", "GB/s", ours, bounds, Goal(0.8, of_reference=True), note=note)
    shutil.rmtree(directory)


def names(bench: Bench) -> Rows:
    """Empty files into a dataset without a look into them: rate, and memory of who finds and sends them."""
    n_files = bench.sizes.names
    directory = bench.new()
    bench.move("make-files", directory, n_files, 0)
    spent = [_register(bench, directory, "none") for _ in range(bench.sizes.runs)]
    name = f"registration of {n_files:,} names"
    yield Row(name, "sqlite", "files/s", [n_files / each.seconds for each in spent], goal=Goal(5000))
    yield Row(f"{name}: memory", "sqlite", "MB", [each.mb for each in spent], goal=Goal(200, at_least=False))
    shutil.rmtree(directory)


def _register(bench: Bench, directory: Path, algorithm: str) -> Spent:
    token = bench.installation.directory / "admin.token"
    name = f"files-{next(bench._numbers)}"
    return bench.move("register", bench.installation.url, token, name, directory, algorithm)


# -- many small files, and made ones ----------------------------------------------------------------------------------


def small(bench: Bench) -> Rows:
    """Many small files by the Data API, verified. What was copied stays until the end: freed inodes slow down who comes next."""
    n_files = bench.sizes.small
    source = bench.new()
    bench.move("make-files", source, n_files, SMALL_BYTES)
    ours, reference = [], []
    for _ in range(bench.sizes.runs):
        reference.append(n_files / bench.seconds("cp", "-r", source, bench.new()))
        ours.append(n_files / bench.move("data-api", source, bench.new()).seconds)
    name = f"{n_files:,} files of 4 KiB by the Data API: to cp -r"
    yield Row(name, "none", "files/s", ours, reference, Goal(0.5, of_reference=True))


def daq(bench: Bench) -> Rows:
    """One .spd file, as `daq emulate` times itself."""
    bench.need(bench.gigabytes * GB)
    mib = bench.sizes.mib
    ours, reference = [], []
    for _ in range(bench.sizes.runs):
        with _removed(bench.new()) as target:
            words = ("dd", "if=/dev/zero", f"of={target}", "bs=1M", f"count={mib}", "status=none")
            reference.append(bench.gigabytes / bench.seconds(*words))
        out = bench.new()
        said = json.loads(bench.pilotage("daq", "emulate", "--out", out, "--size", f"{mib}MiB", "--json"))
        ours.append(said["bytes"] / GB / said["seconds"])
        shutil.rmtree(out)
    name = f".spd file of {mib} MiB: to dd"
    yield Row(name, "none", "GB/s", ours, reference, Goal(0.5, of_reference=True))


ROWS: dict[str, Callable[[Bench], Rows]] = {
    "copy": copy,
    "hashes": hashes,
    "registration": registration,
    "names": names,
    "small": small,
    "daq": daq,
}
"""What `--only` takes, in the order in which it is measured."""


def measure(stage: Stage, sizes: Sizes, names: list[str], say: Callable[[str], None]) -> list[Row]:
    bench = Bench(stage, sizes)
    rows = []
    for name in names:
        began = time.monotonic()
        rows += list(ROWS[name](bench))
        say(f"{name}, {time.monotonic() - began:.1f} s")
    return rows
