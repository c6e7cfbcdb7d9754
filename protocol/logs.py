"""One format of log records for all programs: UTC times, bound fields, no secrets, and no way to forge a line.

Modules write `logger = logging.getLogger(__name__)`, a short event in plain words, and the data as fields:

    with bound(job_id=job.job_id, attempt_nr=job.attempt_nr):
        logger.info("payload ended", extra={"exit_code": 3})

Only the cli.py or wsgi.py of a program calls `set_up`.
"""

from __future__ import annotations

import contextvars
import fcntl
import io
import json
import logging
import math
import os
import re
import stat
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Optional, TextIO

from protocol.errors import PilotageError, shorten
from protocol.ini import reason_of
from protocol.redaction import HIDDEN, Secrets, is_secret_name, one_line
from protocol.settings import Setting, Settings
from protocol.values import Type

LONGEST_MESSAGE = 16384
"""Characters kept of a message, a field or a trace back; the middle of a longer one is cut out."""

MAX_LOG_SIZE = 10 * 1024 * 1024
BACKUP_COUNT = 5

# fmt: off
LOGGING_ROWS = (
    Setting("logging", "LOG_LEVEL", Type.CHOICE, "INFO", "the least important records that are kept",
            choices=("DEBUG", "INFO", "WARNING", "ERROR"), options=("--log-level",)),
    Setting("logging", "MAX_LOG_SIZE", Type.INTEGER, MAX_LOG_SIZE, "bytes of LOG_FILE at which it is rotated",
            minimum=1024, maximum=2**40),
    Setting("logging", "BACKUP_COUNT", Type.INTEGER, BACKUP_COUNT, "rotated files that are kept beside LOG_FILE, as LOG_FILE.1",
            minimum=0, maximum=1000),
    Setting("logging", "LOG_FILE", Type.PATH, "", "where the log goes; empty: standard error", options=("--log-file",)),
    Setting("logging", "LOG_JSON", Type.FLAG, False, "a JSON object per record instead of text", options=("--log-json",)),
)
# fmt: on
"""The section [logging], the same in the table of each program."""

_EMPTY: Mapping[str, object] = MappingProxyType({})
_bound: contextvars.ContextVar[Mapping[str, object]] = contextvars.ContextVar("bound", default=_EMPTY)
_PLAIN = re.compile(r"[^ =\"'\[\]]+")
_RESERVED = frozenset(("time", "level", "logger", "message", "traceback"))
_LINE = "pilotage_line"
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "bound", _LINE}


@contextmanager
def bound(**fields: object) -> Iterator[None]:
    """Add these fields to every record of this thread while the block runs. A new thread begins without any."""
    token = _bound.set({**_bound.get(), **fields})
    try:
        yield
    finally:
        _bound.reset(token)


def bound_fields() -> Mapping[str, object]:
    """What is bound now; a thread that goes on with the same job enters `bound(**bound_fields())` of its starter."""
    return MappingProxyType(dict(_bound.get()))


def bound_field(name: str) -> object:
    """One of them, or None."""
    return _bound.get().get(name)


@dataclass(frozen=True)
class Logs:
    """What `set_up` put in place: register secrets here, and close it at the end of the program or test."""

    handler: logging.Handler
    secrets: Secrets

    def close(self) -> None:
        logging.getLogger().removeHandler(self.handler)
        self.handler.close()


def set_up(
    level: str = "INFO",
    file: Optional[Path] = None,
    max_bytes: int = MAX_LOG_SIZE,
    backups: int = BACKUP_COUNT,
    json_lines: bool = False,
    stream: Optional[TextIO] = None,
) -> Logs:
    """Send all records of the process to `file`, which is rotated, or to `stream` (standard error)."""
    secrets = Secrets()
    handler: logging.Handler = (
        _StreamHandler(stream or sys.stderr) if file is None else _open(file, max_bytes, backups)
    )
    handler.setFormatter(JsonFormatter(secrets) if json_lines else TextFormatter(secrets))
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old.formatter, _Formatter)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(level)
    return Logs(handler, secrets)


def set_up_from(settings: Settings) -> Logs:
    """`set_up` as the section [logging] says; then the notices that came up while the settings were read."""
    logs = set_up(
        settings.text("logging", "log_level"),
        settings.optional_path("logging", "log_file"),
        settings.integer("logging", "max_log_size"),
        settings.integer("logging", "backup_count"),
        settings.flag("logging", "log_json"),
    )
    for notice in settings.notices:
        logging.getLogger(__name__).warning("%s", notice)
    return logs


def _open(file: Path, max_bytes: int, backups: int) -> logging.Handler:
    try:
        return RotatingFile(file, max_bytes, backups)
    except (OSError, ValueError) as error:
        raise PilotageError(
            "BAD_SETTINGS", f"the log file {one_line(str(file))} cannot be written: {reason_of(error)}"
        ) from None


# -- the form of a record -------------------------------------------------------------------------------------------------------


class _Formatter(logging.Formatter):
    """What both forms share: each text is cut, freed of secrets and, for people, spelt out on one line."""

    def __init__(self, secrets: Secrets) -> None:
        super().__init__()
        self._secrets = secrets

    def _clean(self, text: str) -> str:
        # Cut first, so that a huge text costs little; hide next; and cut again to what is kept.
        return shorten(self._secrets.hide(shorten(text, 4 * LONGEST_MESSAGE)), LONGEST_MESSAGE)

    def _message(self, record: logging.LogRecord) -> str:
        try:
            return self._clean(record.getMessage())
        except (TypeError, ValueError, KeyError):  # a wrong % in a log call must not cost the record
            return self._clean(f"{record.msg} {record.args!r} (the log call has wrong arguments)")

    def _value(self, name: str, value: object) -> object:
        if is_secret_name(name):
            return HIDDEN
        if value is None or isinstance(value, (bool, int)):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        return self._clean(str(value))

    def _bound(self, record: logging.LogRecord) -> dict[str, object]:
        return {name: self._value(name, value) for name, value in _bound.get().items()}

    def _extra(self, record: logging.LogRecord) -> dict[str, object]:
        return {
            name: self._value(name, value) for name, value in vars(record).items() if name not in _STANDARD
        }

    def _traceback(self, record: logging.LogRecord) -> str:
        if not record.exc_info or record.exc_info[1] is None:
            return ""
        return self._clean("".join(traceback.format_exception(*record.exc_info)))


class TextFormatter(_Formatter):
    """`TIME LEVEL LOGGER [bound=1] message field=2`, one line; a trace back follows on lines that begin with `  | `.

    Bound fields stand before the message, where no message can counterfeit them.
    """

    def format(self, record: logging.LogRecord) -> str:
        """A record that goes to several places, the pilot's log and that of its job, is put into words once."""
        known: Optional[tuple[Secrets, str]] = vars(record).get(_LINE)
        if known is None or known[0] is not self._secrets:
            known = (self._secrets, self._line(record))
            setattr(record, _LINE, known)
        return known[1]

    def _line(self, record: logging.LogRecord) -> str:
        parts = [_time(record), f"{record.levelname:7}", record.name]
        fields = _pairs(self._bound(record))
        if fields:
            parts.append(f"[{fields}]")
        parts.append(one_line(self._message(record)))
        parts.append(_pairs(self._extra(record)))
        lines = [" ".join(part for part in parts if part)]
        lines += [f"  | {one_line(line)}" for line in self._traceback(record).split("\n") if line]
        return "\n".join(lines)


class JsonFormatter(_Formatter):
    """One JSON object per line, ASCII only: what is not is escaped by JSON's own rules."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": self._message(record),
        }
        for name, value in {**self._extra(record), **self._bound(record)}.items():
            line[f"{name}_" if name in _RESERVED else name] = value
        trace = self._traceback(record)
        if trace:
            line["traceback"] = trace
        return json.dumps(line)


def _time(record: logging.LogRecord) -> str:
    second, milliseconds = divmod(int(record.created * 1000), 1000)
    return f"{_second(second)}.{milliseconds:03}Z"


@lru_cache(maxsize=8)
def _second(since_epoch: int) -> str:
    return datetime.fromtimestamp(since_epoch, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")


def _pairs(fields: Mapping[str, object]) -> str:
    return " ".join(f"{name}={_quoted(value)}" for name, value in fields.items())


def _quoted(value: object) -> str:
    text = one_line(str(value))
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


# -- where records go -----------------------------------------------------------------------------------------------------------


class _OneLineTrouble(logging.Handler):
    """A log that cannot be written is told once on standard error, not with a trace back per record."""

    _told: Optional[str] = None

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        trouble = f"pilotage: the log cannot be written: {one_line(str(error))}\n"
        if trouble != self._told and sys.stderr is not None:
            self._told = trouble
            try:
                sys.stderr.write(trouble)
            except (OSError, ValueError):
                pass  # standard error is closed or full as well: nobody is left to tell


class _StreamHandler(_OneLineTrouble, logging.StreamHandler):  # type: ignore[type-arg]  # no subscript at run time on 3.9
    pass


class RotatingFile(_OneLineTrouble):
    """A log file that several threads and several processes may share.

    It never grows beyond `max_bytes` (but for one record that is larger), and `backups` old ones are kept. The one process
    that rotates holds a lock on the file; the others notice that their file was renamed, and open the new one. So
    gunicorn's workers, or the pilots of a node, may be given the same LOG_FILE. Not logging's own handler: that one assumes
    to be alone, keeps what a full disk refused in a buffer that grows, and with no backups never ends a file.
    """

    def __init__(self, file: Path, max_bytes: int, backups: int) -> None:
        super().__init__()
        self._path = os.path.abspath(file)
        self._max_bytes = max_bytes
        self._backups = backups
        self._file = self._opened()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = (self.format(record) + "\n").encode("utf-8", "backslashreplace")
            if not self._is_ours():
                self._reopen()
            while self._is_full(len(line)) and not self._rotate(len(line)):
                pass  # another process rotated first, and its new file may be full already
            while line:  # one write as a rule: whole lines, though others write too
                line = line[self._file.write(line) :]
        except Exception:  # noqa: BLE001  # whatever befalls the log, the work that is logged goes on
            self.handleError(record)

    def close(self) -> None:
        self._file.close()
        super().close()

    def _opened(self) -> io.FileIO:
        return open(self._path, "ab", buffering=0)

    def _reopen(self) -> None:
        old, self._file = self._file, self._opened()
        old.close()

    def _is_ours(self) -> bool:
        """Whether the path still leads to the file that is open here."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False

    def _is_full(self, added: int) -> bool:
        status = os.fstat(self._file.fileno())
        regular = stat.S_ISREG(status.st_mode)  # unlike /dev/stderr or a pipe
        return regular and 0 < self._max_bytes < status.st_size + added and status.st_size > 0

    def _rotate(self, added: int) -> bool:
        """Begin a new file; False if another process did meanwhile, whose file is now ours too."""
        # Opened for the lock alone: processes that were forked from one share its open file, and with that its lock.
        holder = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _lock(holder)
            # The lock counts only if it lies on the file that has the name now; the one of before is somebody's .1.
            if not self._is_ours() or not os.path.sameopenfile(holder, self._file.fileno()):
                self._reopen()
                return False
            if self._is_full(added):  # still: without backups another one may have emptied it while we waited
                self._begin_anew()
        except OSError:
            # No right to rename, say. A log that is too long is better than none.
            self.handleError(logging.makeLogRecord({}))
        finally:
            os.close(holder)
        return True

    def _begin_anew(self) -> None:
        if self._backups == 0:
            self._file.truncate(0)
            return
        names = [self._path, *(f"{self._path}.{number}" for number in range(1, self._backups + 1))]
        for older, newer in reversed(list(zip(names[1:], names))):
            if os.path.lexists(newer):
                os.replace(newer, older)
        self._reopen()


def _lock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        pass  # a file system without locks: rotation by two processes at once may then lose an old file, no more
