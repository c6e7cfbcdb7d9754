"""How a builder's data are divided into files, frames, slices and modules: what follows from the configuration alone.

Each chunk of a builder covers the same number of slices, so that any file can be made without its predecessors. The number is
chosen so that DataFileSizeLimit nearly always holds all of them; where hits come thicker, the last are left out.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count as counting
from typing import NamedTuple

from daq.config import DaqConfig
from protocol import spd
from protocol.errors import PilotageError

MODULES = 8
"""Detector TDC modules read out by one builder."""
CHANNELS = 64
"""Channels of a detector module."""
FIRST_MODULE_ID = 2000
WORDS_MAX_PER_10_US = 256
"""Most hits of one detector module in 10 µs. With it a builder makes some 0.8 GB/s, and SPD's 20 GB/s are about 24 builders."""
EMPTY_OF_256 = 32
"""How many of 256 blocks of a detector module have no hit."""
BUNCH_SPACING_TICKS = 763
"""Time between two bunch crossings: 76.3 ns."""

_SIGMAS = 4
"""How many standard deviations of a file's size are kept free for chance."""


class Part(NamedTuple):
    """A frame, or what of it lies in one file."""

    frame: int
    first_slice: int
    slices: int


@dataclass(frozen=True)
class Layout:
    """What follows from the configuration alone, for one builder."""

    config: DaqConfig
    sources: tuple[spd.Source, ...]
    """Frame clocks, then those that send blocks: bunch crossing modules, detector modules."""
    counts: tuple[int, ...]
    """Hits of a detector module's block, by a random byte."""
    slices_per_file: int
    expected_bytes: int
    """About the size of a file."""

    @classmethod
    def of(cls, config: DaqConfig, kind: spd.Kind, builder: int) -> Layout:
        counts = _hit_counts(config.slice_length)
        sources = _sources(config, builder)
        header = spd.FileHeader(kind, 0, 0, builder, config.slice_length, config.frame_length, sources)
        fixed = header.length + spd.FILE_TRAILER_BYTES
        mean, deviation = _slice_statistics(config, counts)
        slices = _slices_per_file(config, fixed, mean, deviation)
        return cls(
            config, sources, counts, slices, min(config.data_file_size_limit, fixed + int(slices * mean))
        )

    @property
    def slice_ticks(self) -> int:
        return self.config.slice_length * 1000 // spd.TICK_PS

    @property
    def senders(self) -> tuple[spd.Source, ...]:
        """The modules that send blocks."""
        return self.sources[len(self.config.frame_clock_id) :]

    @property
    def empty_slice_bytes(self) -> int:
        return spd.BLOCK_BYTES * len(self.senders) if self.config.debug_mode else 0

    @property
    def slice_words_max(self) -> int:
        """Words of a slice in which every module has as many hits as it may."""
        crossings = len(self.config.bunch_crossing_id) * _crossings_max(self.config.slice_length)
        blocks = len(self.senders) * spd.BLOCK_BYTES // spd.WORD_BYTES
        return blocks + crossings + MODULES * max(self.counts)

    def parts(self, chunk: int) -> Iterator[Part]:
        """The frames of a chunk. A frame is cut where the chunk is full, and goes on with the builder's next chunk."""
        at, end = chunk * self.slices_per_file, (chunk + 1) * self.slices_per_file
        while at < end:
            frame, first = divmod(at, self.config.frame_length)
            slices = min(self.config.frame_length - first, end - at)
            yield Part(frame, first, slices)
            at += slices


def _sources(config: DaqConfig, builder: int) -> tuple[spd.Source, ...]:
    clocks = [spd.Source(each, spd.Role.FRAME_CLOCK, 1) for each in config.frame_clock_id]
    crossing = [spd.Source(each, spd.Role.BUNCH_CROSSING, 1) for each in config.bunch_crossing_id]
    taken = {*config.frame_clock_id, *config.bunch_crossing_id}
    free = (number for number in counting(FIRST_MODULE_ID) if number not in taken)
    ids = [next(free) for _ in range(MODULES * (builder + 1))][-MODULES:]
    return (*clocks, *crossing, *(spd.Source(each, spd.Role.DETECTOR, CHANNELS) for each in ids))


def _hit_counts(slice_ns: int) -> tuple[int, ...]:
    """Number of hits for each value of a random byte: none for the lowest, evenly spread up to the maximum for the others."""
    rising = 256 - EMPTY_OF_256
    most = min(spd.BLOCK_WORDS_MAX, WORDS_MAX_PER_10_US * slice_ns // 10_000)
    return (0,) * EMPTY_OF_256 + tuple(most * step // rising for step in range(1, rising + 1))


def _slice_statistics(config: DaqConfig, counts: Sequence[int]) -> tuple[float, float]:
    """Bytes of a slice's blocks: the mean and the standard deviation."""
    sizes = [block_bytes(config, hits) for hits in counts]
    mean = sum(sizes) / 256
    variance = sum(size * size for size in sizes) / 256 - mean * mean
    crossing_bytes = len(config.bunch_crossing_id) * block_bytes(config, _crossings_max(config.slice_length))
    return MODULES * mean + crossing_bytes, math.sqrt(MODULES * variance)


def _crossings_max(slice_ns: int) -> int:
    """Bunch crossings in a slice, at most."""
    return slice_ns * 1000 // spd.TICK_PS // BUNCH_SPACING_TICKS + 1


def _slices_per_file(config: DaqConfig, fixed: int, mean: float, deviation: float) -> int:
    """As many as fit with the mean number of hits and four standard deviations; at least one, or BAD_SETTINGS.

    `fixed`: bytes of a file without frames.
    """
    limit, frame = config.data_file_size_limit, frame_bytes(config)

    def needed(slices: int) -> int:
        parts = slices // config.frame_length + 2
        return fixed + parts * frame + math.ceil(slices * mean + _SIGMAS * deviation * math.sqrt(slices))

    # needed() grows with the number of slices, so the last one that fits can be searched for.
    fitting = bisect_right(range(1, int(limit / mean) + 2), limit, key=needed)
    empty_blocks = len(config.bunch_crossing_id) + MODULES if config.debug_mode else 1
    least = fixed + frame + empty_blocks * spd.BLOCK_BYTES + spd.WORD_BYTES
    if limit < least:
        raise PilotageError(
            "BAD_SETTINGS",
            f"DataFileSizeLimit = {limit} bytes is too small: headers, trailers and one hit need {least} bytes",
        )
    return max(1, fitting)


def frame_bytes(config: DaqConfig) -> int:
    """Header and trailer of a frame."""
    return spd.frame_header_bytes(len(config.frame_clock_id)) + spd.FRAME_TRAILER_BYTES


def block_bytes(config: DaqConfig, hits: int) -> int:
    """Bytes of a block with so many hits; none at all for an empty one that is dropped."""
    return spd.BLOCK_BYTES + spd.WORD_BYTES * hits if hits or config.debug_mode else 0
