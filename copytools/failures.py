"""What an error of the operating system means for a transfer: one table from errno to the catalogue."""

from __future__ import annotations

import enum
import errno
from types import TracebackType
from typing import Dict, Optional, Tuple, Type

from copytools.base import shown
from copytools.checksum import NOT_PLAIN
from protocol.errors import PilotageError

UNREACHABLE = errno.EHOSTUNREACH
"""The errno by which tools say that a storage does not answer; there is none in the system for what follows."""
REFUSED = errno.EKEYREJECTED
"""It does not accept our credentials, or gives them no right to this."""
CORRUPTED = errno.EBADMSG
"""It has got other bytes than were sent."""
OVERLOADED = errno.EUSERS
"""It asks to come later."""
DIED = errno.ENOEXEC
"""The program of the tool could not be started, or was killed."""


BY_STATUS: Dict[int, int] = {
    401: REFUSED, 403: REFUSED, 404: errno.ENOENT, 410: errno.ENOENT, 412: errno.EEXIST, 414: errno.ENAMETOOLONG,
    423: errno.EBUSY, 429: OVERLOADED, 502: UNREACHABLE, 503: OVERLOADED, 504: UNREACHABLE, 507: errno.ENOSPC,
}  # fmt: skip
"""What the status of an HTTP answer means."""


class Stage(enum.Enum):
    """Which way a file goes; the value is what one reads in a message."""

    IN = "copying in"
    OUT = "copying out"


class End(enum.Enum):
    """At which end of the copy something failed. Coming in, the source lies on the storage; going out, on the node."""

    SOURCE = "source"
    TARGET = "target"


_IN, _OUT = "STAGE_IN_FAILED", "STAGE_OUT_FAILED"
_UNREACHABLE = "STORAGE_UNREACHABLE"

UNKNOWN = (_IN, _IN, _OUT, _OUT)
"""For every number that has no row below."""

# Where the kernel copies by itself nobody knows at which end it failed: such an error counts as one of the target. A storage across
# the network is read and the node's disk written in one step: no reader says that a disk is full, so it is the node's.
TABLE: Dict[int, Tuple[str, str, str, str]] = {
    #                    in: storage          in: node             out: node             out: storage
    errno.ENOENT:       ("INPUT_NOT_FOUND",   _IN,                 "MISSING_OUTPUT",     _OUT),
    errno.ENOTDIR:      ("INPUT_NOT_FOUND",   _IN,                 "MISSING_OUTPUT",     _OUT),
    errno.EACCES:       ("INPUT_UNREADABLE",  "NODE_UNFIT",        _OUT,                 _OUT),
    errno.EPERM:        ("INPUT_UNREADABLE",  "NODE_UNFIT",        _OUT,                 _OUT),
    NOT_PLAIN:          (_IN,                 _IN,                 "OUTPUT_NOT_A_FILE",  _OUT),
    errno.EEXIST:       (_IN,                 _IN,                 _OUT,                 "OUTPUT_EXISTS"),
    errno.ENOSPC:       ("NO_LOCAL_SPACE",    "NO_LOCAL_SPACE",    _OUT,                 _OUT),
    errno.EDQUOT:       ("NO_LOCAL_SPACE",    "NO_LOCAL_SPACE",    _OUT,                 _OUT),
    errno.EROFS:        ("NODE_UNFIT",        "NODE_UNFIT",        _OUT,                 _OUT),
    errno.EIO:          (_IN,                 _IN,                 _OUT,                 _OUT),
    errno.ESTALE:       ("STORAGE_STALE",     "STORAGE_STALE",     "STORAGE_STALE",      "STORAGE_STALE"),
    errno.ETIMEDOUT:    ("STAGE_IN_TIMEOUT",  "STAGE_IN_TIMEOUT",  "STAGE_OUT_TIMEOUT",  "STAGE_OUT_TIMEOUT"),
    UNREACHABLE:        (_UNREACHABLE,        _IN,                 _OUT,                 _UNREACHABLE),
    errno.ECONNREFUSED: (_UNREACHABLE,        _IN,                 _OUT,                 _UNREACHABLE),
    errno.ECONNRESET:   (_UNREACHABLE,        _IN,                 _OUT,                 _UNREACHABLE),
    REFUSED:            ("STAGE_IN_AUTHENTICATION", _IN,           _OUT,                 "STAGE_OUT_AUTHENTICATION"),
    CORRUPTED:          (_IN,                 _IN,                 _OUT,                 "STAGE_OUT_MISMATCH"),
    OVERLOADED:         ("STORAGE_OVERLOADED", _IN,                _OUT,                 "STORAGE_OVERLOADED"),
    DIED:               ("COPYTOOL_DIED",     "COPYTOOL_DIED",     "COPYTOOL_DIED",      "COPYTOOL_DIED"),
    errno.ENAMETOOLONG: ("LFN_TOO_LONG",      "LFN_TOO_LONG",      "LFN_TOO_LONG",       "LFN_TOO_LONG"),
}  # fmt: skip

_COLUMN = {
    (Stage.IN, End.SOURCE): 0,
    (Stage.IN, End.TARGET): 1,
    (Stage.OUT, End.SOURCE): 2,
    (Stage.OUT, End.TARGET): 3,
}


def meaning(stage: Stage, end: End, number: int) -> str:
    """The name of the catalogue's row for an errno."""
    return TABLE.get(number, UNKNOWN)[_COLUMN[stage, end]]


class translated:
    """What fails with an OSError in here fails with an error of the catalogue; `place` is the path that the detail names.

    A class, since a generator takes a few times as long, and three of these are around each small file.
    """

    __slots__ = ("_stage", "_end", "_place")

    def __init__(self, stage: Stage, end: End, place: object) -> None:
        self._stage, self._end, self._place = stage, end, place

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        if isinstance(error, OSError):
            name = meaning(self._stage, self._end, error.errno or 0)
            where = f"{self._stage.value}, {self._end.value} {shown(self._place)}"
            raise PilotageError(name, f"{where}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    word = errno.errorcode.get(error.errno or 0)
    return f"{error.strerror} ({word})" if word and error.errno != NOT_PLAIN else str(error.strerror or error)
