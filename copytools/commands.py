"""Programs that copy: started without a shell, with an end in time, and what they say in a bounded text."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Dict, Mapping, NamedTuple, Optional, Sequence

from copytools.base import Deadline
from copytools.failures import DIED
from protocol.redaction import one_line, redact

LOOK_SECONDS = 0.2
"""How soon a command ends that nobody waits for any more."""
GRACE_SECONDS = 2.0
"""Between SIGTERM and SIGKILL."""
LONGEST_TEXT = 4096
"""Bytes of the end of what a command printed."""


class Done(NamedTuple):
    code: int
    """Its exit code, or minus the signal it died of."""
    text: str
    """The end of what it printed, on both ways, in one line and without passwords."""


def run(
    command: Sequence[str],
    deadline: Deadline,
    environment: Mapping[str, str],
    keep_open: Sequence[int] = (),
    growing: Optional[Path] = None,
) -> Done:
    """Run a program to its end, with `environment` beside ours; OSError if it cannot be started (DIED), or has no time left.

    All that it has started goes with it. `keep_open`: descriptors that it may use. `growing`: the file that it writes, which tells
    how far it is.
    """
    deadline.check()
    with tempfile.TemporaryFile() as text:
        # Not a session of its own: a pilot takes children in other sessions for what its payloads have left.
        try:
            child = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=text,
                stderr=text,
                env={**os.environ, "LC_ALL": "C.UTF-8", **environment},
                pass_fds=tuple(keep_open),
                **_GROUP,
            )
        except OSError as error:  # not ENOENT, which would mean the file that is to be copied
            raise OSError(DIED, f"{command[0]} could not be started: {error.strerror}") from None
        try:
            code = _waited(child, deadline, growing)
        finally:
            _end(child)
        return Done(code, _tail(text))


def failed(number: int, done: Done) -> OSError:
    """The error of this errno, in the words of the command."""
    return OSError(number, f"{done.text or 'no word'} (exit code {done.code})")


def died(done: Done) -> bool:
    return done.code < 0


# Python 3.11 does it itself, which needs no copy of our memory.
_GROUP: Dict[str, Any] = {"process_group": 0} if sys.version_info >= (3, 11) else {"preexec_fn": os.setpgrp}


def _waited(child: subprocess.Popen[bytes], deadline: Deadline, growing: Optional[Path]) -> int:
    size = 0
    while True:
        try:
            return child.wait(min(LOOK_SECONDS, deadline.left() + 0.01))
        except subprocess.TimeoutExpired:
            deadline.check()
        if growing is not None:
            with suppress(OSError):  # not there yet, or not any more
                before, size = size, growing.stat().st_size
                deadline.moved(size - before)


def _end(child: subprocess.Popen[bytes]) -> None:
    """The group is ours as long as its leader was not waited for; afterwards its number may be another's."""
    if child.returncode is not None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        os.killpg(child.pid, number)
        try:
            child.wait(GRACE_SECONDS)
            return
        except subprocess.TimeoutExpired:  # in a call to a dead file system it cannot even die
            continue


def _tail(text: IO[bytes]) -> str:
    size = text.seek(0, os.SEEK_END)
    text.seek(max(0, size - LONGEST_TEXT))
    lines = text.read().decode(errors="replace").strip().splitlines()
    return one_line(redact(" ".join(line.strip() for line in lines if line.strip())))
