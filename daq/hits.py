"""The blocks of some slices, made at once with numpy: each part of a block is some words long, so a batch is one array.

All of it is filled with the hits of detector modules first; the blocks' headers and trailers and the words of bunch
crossing modules, which are few, are written over them.
"""

from __future__ import annotations

from itertools import cycle

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from daq.layout import BUNCH_SPACING_TICKS, CHANNELS, MODULES, Layout
from protocol import spd

__all__ = ["Blocks", "Counts", "crc32"]

Counts = NDArray[np.int64]
"""Hits of each block: a row for each slice, a column for each module that sends blocks, bunch crossing modules first."""
Words = NDArray[np.uint64]

_WORD = np.dtype("<u8")
_HALF = np.dtype("<u4")
_BLOCK_WORDS = spd.BLOCK_BYTES // spd.WORD_BYTES
_UPPER = np.uint64(32)
_LOWER = np.uint64(0xFFFFFFFF)
_PLACES = 1 << 13
"""So many hits are more of them than a batch may need."""


class Blocks:
    """Draws how many hits the blocks of some slices have, and makes these blocks.

    What `make` gives is overwritten by the call after the next one.
    """

    def __init__(self, layout: Layout, kind: spd.Kind, seed: int, most_slices: int) -> None:
        # What its bit generators give for a seed, numpy keeps the same for ever, unlike what is made of them.
        self._random = np.random.SFC64(seed)
        self._keep_empty = layout.config.debug_mode
        self._crossing_modules = len(layout.config.bunch_crossing_id)
        self._counts = np.array(layout.counts, np.int64)
        most = most_slices * layout.slice_words_max
        # New memory for each batch would cost as much as all that is done to it.
        self._buffers = cycle([np.empty(most, _WORD) for _ in range(2)])
        self._crossings = Crossings(layout.slice_ticks)
        self._hits = Hits(layout.slice_ticks, kind, self._random, most)
        heads = b"".join(
            spd.BLOCK_HEAD.pack(spd.BLOCK_MAGIC, each.source_id, 0, 0) for each in layout.senders
        )
        self._first_words = np.frombuffer(heads, _WORD)[::2]
        self._end = np.frombuffer(spd.BLOCK_TAIL.pack(spd.BLOCK_END, 0), _WORD)[0]

    def draw(self, slice_of_run: int, slices: int) -> Counts:
        """Hits of each block; the detector modules take a random byte each."""
        crossings = self._crossings.numbers(slice_of_run, slices)
        drawn = self._random.random_raw(slices * MODULES // _WORD.itemsize).astype(_WORD).view(np.uint8)
        of_detector = self._counts[drawn].reshape(slices, MODULES)
        return np.hstack([crossings[:, np.newaxis]] * self._crossing_modules + [of_detector])

    def present(self, counts: Counts) -> int:
        """How many blocks are written: those without hits only where they are kept."""
        return counts.size if self._keep_empty else int(np.count_nonzero(counts))

    def make(self, counts: Counts, slice_of_run: int, first_slice: int) -> memoryview:
        """The bytes of all blocks, slice by slice; `first_slice` is counted within the frame."""
        slices, modules = counts.shape
        number = counts.ravel()
        is_there = np.full(number.shape, True) if self._keep_empty else number > 0
        ends = np.cumsum(np.where(is_there, number + _BLOCK_WORDS, 0))
        hits = ends - number - 1  # where they begin, in blocks that are there
        words = next(self._buffers)[: ends[-1]]
        self._hits.fill(words)
        slice_numbers = np.arange(first_slice, first_slice + slices, dtype=_WORD)
        at, in_upper_half = hits[is_there], number[is_there].astype(_WORD) << _UPPER
        words[at - 2] = np.tile(self._first_words, slices)[is_there]
        words[at - 1] = np.repeat(slice_numbers, modules)[is_there] | in_upper_half
        words[ends[is_there] - 1] = self._end | in_upper_half
        for module in range(self._crossing_modules):
            self._crossings.fill(words, hits[module::modules], number[module::modules], slice_of_run)
        return words.data.cast("B")


class Hits:
    """Makes the data words of detector modules.

    A random number r of 32 bits times the length of the slice in ticks has the time in its upper 32 bits, evenly spread
    over the slice; from the lower 32 bits, which are as good as random, come channel, pulse width and simulated particle.
    They are drawn once: each batch has them from another place on, with other channels and widths, in a fifth of the time.
    """

    def __init__(self, slice_ticks: int, kind: spd.Kind, random: np.random.SFC64, most: int) -> None:
        # One less and so odd: an even factor would leave zeros in the lowest bits.
        factor = np.uint64(slice_ticks - 1)
        truth = 0xFF if kind is spd.Kind.SIMULATED else 0
        keep = np.frombuffer(spd.HIT.pack(truth, 0xFF, CHANNELS - 1, 0xFFFFFFFF), _WORD)[0]
        self._change = keep & _LOWER
        self._random = random
        self._drawn = random.random_raw((most + _PLACES) // 2 + 1).astype(_WORD).view(_HALF) * factor & keep

    def fill(self, words: Words) -> None:
        number = np.uint64(self._random.random_raw())
        place = int(number >> _UPPER) % _PLACES
        np.bitwise_xor(self._drawn[place : place + len(words)], number & self._change, out=words)


class Crossings:
    """Makes the data words of a bunch crossing module: one hit every 76.3 ns, wherever the slices begin."""

    def __init__(self, slice_ticks: int) -> None:
        self._ticks = slice_ticks
        self._from_zero = np.arange(0, slice_ticks, BUNCH_SPACING_TICKS).astype(_WORD) << _UPPER

    def _firsts(self, slice_of_run: int, slices: int) -> NDArray[np.int64]:
        """When the first crossing is, in ticks from the start of each slice."""
        numbers = np.arange(slice_of_run, slice_of_run + slices, dtype=np.int64)
        return -numbers * self._ticks % BUNCH_SPACING_TICKS

    def numbers(self, slice_of_run: int, slices: int) -> NDArray[np.int64]:
        left = self._ticks - self._firsts(slice_of_run, slices)
        return np.maximum(0, (left + BUNCH_SPACING_TICKS - 1) // BUNCH_SPACING_TICKS)

    def fill(
        self, words: Words, places: NDArray[np.int64], counts: NDArray[np.int64], slice_of_run: int
    ) -> None:
        """Write the first `counts` crossings of each slice to its place."""
        first = self._firsts(slice_of_run, len(places)).astype(_WORD) << _UPPER
        in_all = int(counts.min())
        number = np.arange(in_all)
        words[places[:, np.newaxis] + number] = first[:, np.newaxis] + self._from_zero[:in_all]
        for further in range(in_all, int(counts.max())):  # one, or more where the file was full
            more = counts > further
            words[places[more] + further] = first[more] + self._from_zero[further]
