"""The data words of hits, made in bulk: a word is a lane of 64 bits in one large integer, so a few operations serve thousands."""

from __future__ import annotations

import random

from daq.layout import BUNCH_SPACING_TICKS, CHANNELS
from protocol import spd


class Hits:
    """Makes the data words of detector modules.

    A random number r of 32 bits times the length of the slice in ticks has the time in its upper 32 bits, evenly spread
    over the slice; from the lower 32 bits, which are as good as random, come channel, pulse width and simulated particle.
    """

    def __init__(self, slice_ticks: int, kind: spd.Kind) -> None:
        # One less and so odd: an even factor would leave zeros in the lowest bits.
        self._factor = slice_ticks - 1
        truth = 0xFF if kind is spd.Kind.SIMULATED else 0
        self._keep_lane = spd.HIT.pack(truth, 0xFF, CHANNELS - 1, 0xFFFFFFFF)
        self._lanes = self._low = self._keep = 0

    def make(self, stream: random.Random, number: int) -> bytes:
        """So many data words (one more if that is odd)."""
        lanes = (number + 1) // 2
        if not lanes:
            return b""
        if lanes > self._lanes:
            # Masks may be longer than what they are used on.
            self._lanes = lanes + lanes // 2
            self._low = int.from_bytes(b"\xff\xff\xff\xff\0\0\0\0" * self._lanes, "little")
            self._keep = int.from_bytes(self._keep_lane * self._lanes, "little")
        bits = stream.getrandbits(64 * lanes)
        one = (bits & self._low) * self._factor & self._keep
        two = (bits >> 32 & self._low) * self._factor & self._keep
        size = spd.WORD_BYTES * lanes
        return one.to_bytes(size, "little") + two.to_bytes(size, "little")


class Crossings:
    """Makes the data words of a bunch crossing module: one hit every 76.3 ns, wherever the slices begin."""

    def __init__(self, slice_ticks: int) -> None:
        self._ticks = slice_ticks
        self._most = slice_ticks // BUNCH_SPACING_TICKS + 1
        self._size = spd.WORD_BYTES * self._most
        words = (spd.HIT.pack(0, 0, 0, BUNCH_SPACING_TICKS * number) for number in range(self._most))
        self._from_zero = int.from_bytes(b"".join(words), "little")
        self._one_tick = int.from_bytes(spd.HIT.pack(0, 0, 0, 1) * self._most, "little")

    def number(self, slice_of_run: int) -> int:
        first = -slice_of_run * self._ticks % BUNCH_SPACING_TICKS
        return max(0, (self._ticks - first + BUNCH_SPACING_TICKS - 1) // BUNCH_SPACING_TICKS)

    def make(self, slice_of_run: int) -> bytes:
        """The data words, and perhaps one behind them that lies outside the slice."""
        first = -slice_of_run * self._ticks % BUNCH_SPACING_TICKS
        return (self._from_zero + first * self._one_tick).to_bytes(self._size, "little")
