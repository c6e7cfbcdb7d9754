"""What a node's cache calls an input, and a short word for what it holds, by which the server prefers jobs whose inputs are there."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping

from protocol.files import ALGORITHMS

MOST = 1000
"""Inputs that such a word tells of: those that were used last."""
_BYTES = 3
_LENGTH = 4
"""Characters that these are in base64. Of so few bytes one in 17,000 jobs is preferred by mistake, which does no harm."""
LONGEST = MOST * _LENGTH


def name_of(algorithm: str, digest: str, size: int, lfn: str) -> str:
    """By content: checksum and size. Many files of one size may have the same adler32, so there the logical name counts too."""
    name = f"{algorithm}-{digest.lower()}-{size}"
    if ALGORITHMS[algorithm] > ALGORITHMS["adler32"]:
        return name
    return f"{name}-{hashlib.sha256(lfn.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"


def summary(names: Iterable[str]) -> str:
    """At most MOST inputs by their names."""
    return "".join(_mark(name) for name, _ in zip(names, range(MOST)))


def marks_in(summary: str) -> frozenset[str]:
    return frozenset(summary[at : at + _LENGTH] for at in range(0, len(summary), _LENGTH))


def marks_of(checksums: Mapping[str, str], size: int, lfn: str) -> set[str]:
    """How a summary could tell of a file: by which of its checksums a node knows it depends on what that can calculate."""
    return {
        _mark(name_of(algorithm, digest, size, lfn))
        for algorithm, digest in checksums.items()
        if algorithm in ALGORITHMS
    }


def _mark(name: str) -> str:
    return base64.b64encode(hashlib.sha256(name.encode()).digest()[:_BYTES], altchars=b"._").decode()
