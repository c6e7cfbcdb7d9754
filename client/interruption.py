"""What is said after Ctrl-C, and the exit code that says so to a shell."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130


def interrupted(what: str = "") -> int:
    """Say the one line after Ctrl-C, on a terminal below the ^C that it shows; the exit code."""
    start = "\n" if sys.stderr.isatty() else ""
    sys.stderr.write(f"{start}Interrupted{': ' + what if what else ''}.\n")
    return INTERRUPTED


@contextmanager
def noted(stop: threading.Event) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP set `stop`, so that what goes on ends in order; a second one ends it at once."""

    def note(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {
        number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
