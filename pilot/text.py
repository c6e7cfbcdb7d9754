"""What a payload prints, taken through pipes into files: at the limit nobody reads on, and who prints more has to wait.

So no more than the limit is ever on the disk, however fast a payload prints, and the files keep its first words. The job monitor
then sees the text beyond its limit and ends the payload. What a step prints beyond its limit is read and thrown away instead.
"""

from __future__ import annotations

import os
import select
from pathlib import Path
from typing import Optional

from copytools import checksum
from protocol.errors import shorten
from protocol.redaction import one_line

PIECE = 1 << 16
"""As much as a pipe holds."""
LAST_PIECES = 16
"""A pipe can be made to hold 1 MiB; what is more at the end comes from somebody who still lives."""


TAIL_BYTES = 4096
TAIL_CHARACTERS = 700
"""How much of the last lines of a payload that failed goes into the error's detail."""


class Text:
    """Pipes that end in files. One thread at a time may use it."""

    def __init__(self, files: list[int], limit_bytes: int = 0, discards: bool = False) -> None:
        """`files` are open descriptors, closed by us in the end; `limit_bytes` counts for all together, 0: no limit."""
        self._discards = discards
        self._left = limit_bytes or None
        self._poll = select.poll()
        self._targets: dict[int, int] = {}
        """Read end of a pipe → its file."""
        self.ends: list[int] = []
        """What the payload writes to; closed by `started`."""
        self.error: Optional[OSError] = None
        """Why text was lost: the disk is full, mostly."""
        for file in files:
            reading, writing = os.pipe()
            os.set_blocking(reading, False)
            self._targets[reading] = file
            self.ends.append(writing)
            self._poll.register(reading, select.POLLIN)

    def started(self) -> None:
        """The payload has its ends now: without ours, theirs closing is the end of the text."""
        while self.ends:
            os.close(self.ends.pop())

    def copy(self, seconds: Optional[float], until: Optional[int] = None) -> bool:
        """Wait for text, at most so long, and copy what is there; True if the descriptor `until` is ready."""
        poll = self._poll  # another one once the limit is reached
        if until is not None:
            poll.register(until, select.POLLIN)
        events = poll.poll(None if seconds is None else max(0, int(seconds * 1000 + 0.999)))
        if until is not None:
            poll.unregister(until)
        for descriptor, _ in events:
            if descriptor != until:
                self._copy_piece(descriptor)
        return any(descriptor == until for descriptor, _ in events)

    def finish(self) -> None:
        """Copy what is still in the pipes, and close them and the files."""
        self.started()
        for reading in list(self._targets):
            for _ in range(LAST_PIECES):
                if self._is_full or reading not in self._targets or not self._copy_piece(reading):
                    break
        for reading in list(self._targets):
            self._close(reading)

    @property
    def _is_beyond(self) -> bool:
        return self._left is not None and self._left < 0

    @property
    def _is_full(self) -> bool:
        """Nobody reads any more."""
        return self._is_beyond and not self._discards

    def _copy_piece(self, reading: int) -> bool:
        """False if there is nothing now."""
        try:
            piece = os.read(reading, PIECE)
        except BlockingIOError:
            return False
        if not piece:
            self._close(reading)
            return False
        if self._is_beyond:
            return True  # thrown away
        try:
            _write(self._targets[reading], piece)
        except OSError as error:
            # Who prints on gets EPIPE, as it would get ENOSPC from a file.
            self.error = error
            self._close(reading)
            return False
        if self._left is not None:
            self._left -= len(piece)
            if self._is_full:
                self._poll = select.poll()
        return True

    def _close(self, reading: int) -> None:
        if not self._is_full:
            self._poll.unregister(reading)
        os.close(reading)
        os.close(self._targets.pop(reading))


def tail_of(path: Path) -> str:
    """The last lines of a text, without the blank ones at its end."""
    try:
        number = checksum.open_plain(path)
    except OSError:
        return ""
    with open(number, "rb") as file:
        size = os.fstat(number).st_size
        file.seek(max(0, size - TAIL_BYTES))
        return file.read(TAIL_BYTES).decode("utf-8", "backslashreplace").strip()[-TAIL_CHARACTERS:]


def _write(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def last_words(tail: str, most: int = TAIL_CHARACTERS) -> str:
    """For the detail of an error, after what happened; "" if nothing was printed."""
    return f"; its last words: {shorten(one_line(tail), most)}" if tail else ""
