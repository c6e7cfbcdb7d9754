"""What is said after Ctrl-C, and the exit code that says so to a shell."""

from __future__ import annotations

import sys

INTERRUPTED = 130


def interrupted(what: str = "") -> int:
    """Say the one line after Ctrl-C, on a terminal below the ^C that it shows; the exit code."""
    start = "\n" if sys.stderr.isatty() else ""
    sys.stderr.write(f"{start}Interrupted{': ' + what if what else ''}.\n")
    return INTERRUPTED
