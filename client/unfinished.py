"""The signs by which a file is known that somebody still writes; cheap ones, so that a file need not be read for them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from protocol import spd
from protocol.errors import PilotageError

Sign = Callable[[str, int], str]
"""Given a path and the file's time of change (ns): why it is unfinished, in words; "" where nothing says so."""


def by_name(path: str) -> str:
    """A hidden file, and one that ends in .part, are not whole yet: so the DAQ, the copytools and many others name them."""
    name = os.path.basename(path)
    return f"its name says so: {name[:80]!a}" if name.startswith(".") or name.endswith(".part") else ""


def by_content(path: str) -> str:
    """An .spd file without its end mark. A file of another layout, and one that cannot be read, says nothing."""
    if not path.endswith(".spd"):
        return ""
    try:
        return spd.unfinished(path)
    except (OSError, PilotageError):
        return ""


def nothing(path: str, changed_ns: int) -> str:
    """Every file counts as whole."""
    return ""


def signs(min_age_seconds: float, content: bool) -> Sign:
    """All of them together; `content`: files may be opened. Times of change are held against this machine's clock."""

    def sign(path: str, changed_ns: int) -> str:
        age = time.time() - changed_ns / 1e9 if min_age_seconds else 0.0
        if age < min_age_seconds:
            return f"it changed {age:.0f} s ago" if age >= 0 else "its time of change is still to come"
        return by_name(path) or (by_content(path) if content else "")

    return sign
