"""Files of the DAQ by their names: run, chunk and builder as numbers, and which chunks of which builder are not there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_NUMBERS = re.compile(r"[^0-9]*([0-9]{1,12})[^0-9]+([0-9]{1,12})[^0-9]+([0-9]{1,12})\.spd")


class DaqName(NamedTuple):
    """What a name says, in the order in which a run's files come."""

    run: int
    chunk: int
    builder: int


def parse(lfn: str) -> DaqName | None:
    """The three numbers of a name such as run-000001-00007-02.spd, whatever words are around them; None for another name."""
    found = _NUMBERS.fullmatch(lfn)
    return DaqName(*(int(digits) for digits in found.groups())) if found else None


class Census:
    """How many chunks there are of each builder of each run."""

    def __init__(self) -> None:
        self._builders: dict[tuple[int, int], int] = {}
        self._chunks: dict[int, tuple[int, int]] = {}
        """First and last chunk of each run."""

    def add(self, lfn: str) -> None:
        name = parse(lfn)
        if name is not None:
            place = name.run, name.builder
            self._builders[place] = self._builders.get(place, 0) + 1
            first, last = self._chunks.get(name.run, (name.chunk, name.chunk))
            self._chunks[name.run] = min(first, name.chunk), max(last, name.chunk)

    def gaps(self) -> Iterator[str]:
        """In words, each builder that lacks chunks which others of its run have, or which lie between its own."""
        for (run, builder), n_chunks in sorted(self._builders.items()):
            first, last = self._chunks[run]
            if n_chunks < last - first + 1:
                yield f"run {run}, builder {builder}: {n_chunks} of the {last - first + 1} chunks from {first} to {last}"
