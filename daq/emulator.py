"""The DAQ emulator: plans .spd files from a configuration and writes them, several at a time, each from its own random stream.

Every file can be made alone: its bytes depend on configuration, kind of data, run, chunk and builder, and on nothing else,
so any number of processes gives the same files. That holds because each chunk of a builder covers the same number of
slices, as many as fit into DataFileSizeLimit nearly always; see docs/spd-format.md for the rules and for what is invented.
"""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, NamedTuple

from daq.config import DaqConfig, format_size
from daq.hits import Blocks, Counts, crc32
from daq.layout import MODULES, Layout, Part, frame_bytes
from protocol import spd
from protocol.errors import PilotageError

NUMBER_MAX = 99_999_999
"""Highest chunk; runs and builders stay below it too."""
BUILDER_MAX = 9_999

_BATCH_BYTES = 1 << 20
"""About what is made at once: little enough for the processor's cache. Files of one seed change with it."""
_BATCH_SLICES = 4096
_REPORT_SECONDS = 0.1

Progress = Callable[[int], None]


@dataclass(frozen=True)
class FilePlan:
    """One file to be written; `force`: over an existing one."""

    config: DaqConfig
    kind: spd.Kind
    run: int
    chunk: int
    builder: int
    path: Path
    force: bool = False

    def temporary(self, pid: int) -> Path:
        """Where the file grows in that process until it is complete; hidden, so that nobody takes it for data."""
        return self.path.with_name(f".{self.run}-{self.chunk}-{self.builder}.{pid}.part")


@dataclass(frozen=True)
class Written:
    """One complete file. `cut_hits`: hits left out because the file was full, as a full buffer drops them."""

    path: str
    size: int
    run: int
    chunk: int
    builder: int
    frames: int
    blocks: int
    words: int
    cut_hits: int
    seconds: float


def plan(
    config: DaqConfig,
    out: Path,
    files: int,
    run: int = 1,
    first_chunk: int = 0,
    builders: int = 1,
    builder_directories: bool = False,
    kind: spd.Kind = spd.Kind.RAW,
    force: bool = False,
) -> list[FilePlan]:
    """The files to write: chunk by chunk, one file per builder, `files` in all. Refuses what cannot be; touches nothing."""
    _check_numbers(files, run, first_chunk, builders)
    plans = []
    for number in range(files):
        chunk, builder = first_chunk + number // builders, number % builders
        directory = out / f"builder-{builder:02d}" if builder_directories else out
        path = directory / config.file_name(run, chunk, builder)
        plans.append(FilePlan(config, kind, run, chunk, builder, path, force))
    if len({each.path for each in plans}) != files:
        raise PilotageError(
            "BAD_SETTINGS",
            f"DataFileNameFormat {config.data_file_name_format!r} gives two files the same name; "
            "part its numbers with other characters",
        )
    layout = Layout.of(config, kind, builder=0)
    last_tick = (first_chunk + files // builders + 1) * layout.slices_per_file * layout.slice_ticks
    if last_tick >= 1 << 63:
        raise PilotageError(
            "BAD_SETTINGS", "these chunks lie too far into the run: times would not fit into 64 bits"
        )
    if not force:
        _refuse_existing([each.path for each in plans])
    return plans


def _check_numbers(files: int, run: int, first_chunk: int, builders: int) -> None:
    for what, value, low, high in (
        ("number of files", files, 1, 1_000_000),
        ("run", run, 0, NUMBER_MAX),
        ("first chunk", first_chunk, 0, NUMBER_MAX - 1_000_000),
        ("number of builders", builders, 1, BUILDER_MAX + 1),
    ):
        if not low <= value <= high:
            raise PilotageError("BAD_SETTINGS", f"the {what} must be {low} to {high}, not {value}")


def _refuse_existing(paths: Sequence[Path]) -> None:
    existing = [path for path in paths if os.path.lexists(path)]
    if existing:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise PilotageError("ALREADY_EXISTS", f"{existing[0]}{more}; --force writes over them")


# -- one file ---------------------------------------------------------------------------------------------------------------


def write_file(plan: FilePlan, progress: Progress | None = None) -> Written:
    """Write one file under a temporary name and give it its own when it is complete; `progress` is told bytes written.

    Not forced to the disk (fsync): after a power cut `pilotage daq verify` tells which files are whole.
    """
    started = time.monotonic()
    with _growing(plan) as stream:
        content = _Content(plan)
        header = content.write(stream, progress or (lambda _: None))
    return Written(
        str(plan.path), header.size, plan.run, plan.chunk, plan.builder, header.frames, header.blocks, header.words,
        content.cut_hits, time.monotonic() - started,
    )  # fmt: skip


@contextmanager
def _growing(plan: FilePlan) -> Iterator[BinaryIO]:
    """The temporary file, open; afterwards it has its true name, or is gone if anything went wrong."""
    temporary = plan.temporary(os.getpid())
    try:
        plan.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as stream:
                yield stream
            _publish(temporary, plan.path, plan.force)
        finally:
            with suppress(FileNotFoundError, NotADirectoryError):
                temporary.unlink()
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        name = "NO_LOCAL_SPACE" if full else "BAD_PATH"
        raise PilotageError(name, f"{plan.path} cannot be written: {error.strerror}") from error


def _publish(temporary: Path, target: Path, force: bool) -> None:
    """Rename; unless forced never over a file that appeared meanwhile."""
    if force:
        temporary.replace(target)
        return
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise PilotageError("ALREADY_EXISTS", f"{target} appeared while it was being written") from None
    except OSError:
        # A file system without hard links: look and rename, which leaves a gap.
        _refuse_existing([target])
        temporary.rename(target)


class _Batch(NamedTuple):
    """Some slices of a frame, as they lie in the file."""

    data: memoryview
    blocks: int
    words: int


class _Content:
    """The bytes of one file: draws the number of hits of each block, keeps to the size limit, makes the hits."""

    def __init__(self, plan: FilePlan) -> None:
        config = plan.config
        self._plan, self._config = plan, config
        self._layout = layout = Layout.of(config, plan.kind, plan.builder)
        self._header = spd.FileHeader(
            plan.kind, plan.run, plan.chunk, plan.builder, config.slice_length, config.frame_length,
            layout.sources, config.random_seed, config.debug_mode,
        )  # fmt: skip
        self._parts = list(layout.parts(plan.chunk))
        frames = frame_bytes(config) * len(self._parts)
        self._room = config.data_file_size_limit - self._header.length - spd.FILE_TRAILER_BYTES - frames
        self._slices_left = layout.slices_per_file
        mean = sum(layout.counts) * MODULES * spd.WORD_BYTES // 256 + spd.BLOCK_BYTES
        self._batch = max(1, min(_BATCH_SLICES, _BATCH_BYTES // mean, self._slices_left))
        seed = _seed(config.random_seed, plan.run, plan.chunk, plan.builder)
        self._blocks = Blocks(layout, plan.kind, seed, self._batch)
        self.cut_hits = 0

    def write(self, stream: BinaryIO, progress: Progress) -> spd.FileHeader:
        with _ahead(self._batches()) as batches:
            writer = spd.Writer(stream, self._header, crc32)
            for part in self._parts:
                clocks = tuple(self._clock(part.frame, each) for each in self._config.frame_clock_id)
                writer.begin_frame(spd.FrameHeader(part.frame, part.first_slice, part.slices, clocks))
                for _ in self._batches_of(part):
                    batch = next(batches)
                    writer.write_blocks(*batch)
                    progress(len(batch.data))
                writer.end_frame()
            header = writer.close()
        assert header.size <= self._config.data_file_size_limit, "the file is larger than its limit"
        return header

    def _batches_of(self, part: Part) -> range:
        """The first slice of each batch."""
        return range(part.first_slice, part.first_slice + part.slices, self._batch)

    def _batches(self) -> Iterator[_Batch]:
        for part in self._parts:
            end = part.first_slice + part.slices
            for first in self._batches_of(part):
                yield self._slices(part.frame, first, min(self._batch, end - first))

    def _clock(self, frame: int, source_id: int) -> spd.Clock:
        """The nominal start of the frame and up to 0.9 ns of jitter, the same in each file that holds a part of the frame."""
        nominal = frame * self._config.frame_length * self._layout.slice_ticks
        return spd.Clock(
            source_id, nominal + _seed(self._config.random_seed, self._plan.run, frame, source_id) % 10
        )

    def _slices(self, frame: int, first: int, number: int) -> _Batch:
        of_run = frame * self._config.frame_length + first
        counts = self._blocks.draw(of_run, number)
        self._slices_left -= number
        room = self._room - self._slices_left * self._layout.empty_slice_bytes
        if self._size_of(counts) > room:
            self._cut(counts, room)
        self._room -= self._size_of(counts)
        data = self._blocks.make(counts, of_run, first)
        return _Batch(data, self._blocks.present(counts), int(counts.sum()))

    def _size_of(self, counts: Counts) -> int:
        return spd.BLOCK_BYTES * self._blocks.present(counts) + spd.WORD_BYTES * int(counts.sum())

    def _cut(self, counts: Counts, room: int) -> None:
        """Leave out the hits for which the file has no room; in debug mode the empty blocks stay."""
        head = spd.BLOCK_BYTES
        if self._config.debug_mode:
            room -= head * counts.size
            head = 0
        flat = counts.reshape(-1)
        for index, wanted in enumerate(flat.tolist()):
            kept = max(0, min(wanted, (room - head) // spd.WORD_BYTES))
            if kept:
                room -= head + spd.WORD_BYTES * kept
            self.cut_hits += wanted - kept
            flat[index] = kept


@contextmanager
def _ahead(made: Iterator[_Batch]) -> Iterator[Iterator[_Batch]]:
    """The same batches; a thread makes the next one meanwhile. (numpy and system calls let other threads work.)"""
    with ThreadPoolExecutor(1, "hits") as pool:

        def batches() -> Iterator[_Batch]:
            coming = pool.submit(next, made, None)
            while (batch := coming.result()) is not None:
                coming = pool.submit(next, made, None)
                yield batch

        yield batches()


def _seed(*numbers: int) -> int:
    """A number that depends on all the others and looks like none of them."""
    digest = hashlib.blake2b(b"".join(number.to_bytes(8, "little") for number in numbers), digest_size=32)
    return int.from_bytes(digest.digest(), "little")


# -- several files ----------------------------------------------------------------------------------------------------------

Event = int | Written
"""Bytes that were written since the last word, or a file that is complete."""


def check_space(plans: Sequence[FilePlan]) -> None:
    """Refuse what will not fit on the disk; counts each file with its size limit."""
    for directory in {each.path.parent for each in plans}:
        place = directory
        while not place.exists() and place != place.parent:
            place = place.parent
        free = shutil.disk_usage(place).free
        needed = sum(each.config.data_file_size_limit for each in plans)
        if needed > free:
            sizes = (
                f"the files need up to {format_size(needed)}, {place.resolve()} has {format_size(free)} free"
            )
            raise PilotageError("NO_LOCAL_SPACE", sizes)


@contextmanager
def emulating(plans: Sequence[FilePlan], jobs: int) -> Iterator[Iterator[Event]]:
    """Start at most `jobs` processes that write the files; iterate over what they report. Leaving the block ends them.

    Enter it before starting threads: then the processes are forked, which costs milliseconds and not a new interpreter each.
    """
    shares = [plans[number::jobs] for number in range(min(jobs, len(plans)))]
    context: Any = multiprocessing.get_context("fork" if threading.active_count() == 1 else "spawn")
    workers: dict[Connection, Any] = {}
    try:
        for share in shares:
            receiver, sender = context.Pipe(duplex=False)
            worker = context.Process(target=_work, args=(share, sender, os.getpid()), daemon=True)
            worker.start()
            sender.close()
            workers[receiver] = worker
        yield _events(workers)
    finally:
        for worker in workers.values():
            worker.terminate()
        for worker, share in zip(workers.values(), shares, strict=False):
            _end(worker, share)


def _end(worker: Any, share: Sequence[FilePlan]) -> None:
    """Wait for a worker that was told to end; one that was killed outright left its last file behind."""
    worker.join(10)
    if worker.is_alive():
        worker.kill()
        worker.join()
    if worker.exitcode < 0:
        for each in share:
            each.temporary(worker.pid).unlink(missing_ok=True)


def _events(workers: dict[Connection, Any]) -> Iterator[Event]:
    """What the workers report until all are done; the first error ends it."""
    busy = dict(workers)
    while busy:
        for ready in wait(list(busy)):
            assert isinstance(ready, Connection)
            try:
                word = ready.recv()
            except EOFError:
                worker = busy.pop(ready)
                worker.join()
                raise ChildProcessError(f"a writing process died, exit code {worker.exitcode}") from None
            if word is None:
                busy.pop(ready)
            elif isinstance(word, tuple):
                raise PilotageError(*word)
            else:
                yield word


def _work(plans: Sequence[FilePlan], sender: Connection, parent: int) -> None:
    """A worker's life: write its files, report; end when told to (SIGTERM) or when its parent is gone."""
    # The terminal tells Ctrl-C to everybody; the parent ends its workers in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    unreported, last = 0, time.monotonic()

    def progress(size: int) -> None:
        nonlocal unreported, last
        if os.getppid() != parent:
            sys.exit(1)
        unreported += size
        if time.monotonic() - last >= _REPORT_SECONDS:
            sender.send(unreported)
            unreported, last = 0, time.monotonic()

    try:
        for plan in plans:
            written = write_file(plan, progress)
            sender.send(unreported)
            unreported = 0
            sender.send(written)
        sender.send(None)
    except PilotageError as error:
        # Not the exception itself: its pickled form would be read with the message for a name.
        sender.send((error.name, error.detail))


def _leave(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(143)
