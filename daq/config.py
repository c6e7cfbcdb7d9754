"""The DAQ's configuration file: eight `Key = value` lines without a section header, with the keys of the SPD DAQ.

What can be read but is unusual is warned about (`warnings`); what cannot be is refused with BAD_SETTINGS, naming file and line.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from protocol.errors import PilotageError
from protocol.files import check_lfn
from protocol.redaction import one_line
from protocol.values import nearest, quoted

LARGEST_FILE = 1 << 20
"""Bytes; a configuration file above this is some other file."""
SHORTEST_SLICE_NS = 100
"""A shorter slice would often hold no bunch crossing at all (they come every 76 ns)."""
ROLL_OVER_NS = 4_500_000
"""After 4.5 ms the smallest TDC counter, that of the RS, starts again from zero."""
USUAL_SLICE_NS = (10_000, 100_000)
LARGEST_FILE_LIMIT = 1 << 40
IDS_MAX = 16

_U32, _U64 = (1 << 32) - 1, (1 << 64) - 1
_NUMBER = re.compile(r"[0-9]{1,20}")
_SIZE = re.compile(r"([0-9]{1,20})\s*(B|[kK]B|MB|GB|TB|KiB|MiB|GiB|TiB)?")
_UNITS = {
    None: 1, "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
}  # fmt: skip
_CONVERSION = re.compile(r"%(?:%|(0?[1-9]?[0-9]?)([a-zA-Z])?)")


@dataclass(frozen=True)
class DaqConfig:
    """One field per key; the defaults are the values of the SPD DAQ."""

    data_file_name_format: str = "run-%06u-%05u-%02u.spd"
    """C's printf format of a file's name; takes run, chunk and builder id in this order."""
    random_seed: int = 12345
    data_file_size_limit: int = 2147483648
    """Bytes that no file exceeds."""
    debug_mode: bool = False
    """Write headers and trailers of blocks without hits too."""
    frame_clock_id: tuple[int, ...] = (1000, 1001)
    bunch_crossing_id: tuple[int, ...] = (1004,)
    slice_length: int = 10_000
    """Nanoseconds."""
    frame_length: int = 100_000
    """Slices."""

    def file_name(self, run: int, chunk: int, builder: int) -> str:
        return self.data_file_name_format % (run, chunk, builder)


class Key(NamedTuple):
    name: str
    """As it stands in the file."""
    field: str
    read: Callable[[str], Any]
    """The value of a text; a ValueError says, to follow the key's name, what would be right."""


def parse_size(text: str) -> int:
    """Bytes: a plain number, or one with a unit such as 64MiB."""
    found = _SIZE.fullmatch(text)
    if not found:
        raise ValueError(f"must be bytes, as 1048576, 1MiB or 2GiB, not {quoted(text)}")
    size = int(found.group(1)) * _UNITS[found.group(2)]
    if not 1 <= size <= LARGEST_FILE_LIMIT:
        raise ValueError(f"must be 1 byte to 1 TiB, not {quoted(text)}")
    return size


def format_size(size: int) -> str:
    """A size for people: three digits and a unit."""
    value, unit = float(size), "bytes"
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if value < 1000 or unit == "TiB":
            break
        value /= 1024
    return f"{size} bytes" if unit == "bytes" else f"{value:.3g} {unit}"


def _number(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not _NUMBER.fullmatch(text) or not low <= int(text) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}, not {quoted(text)}")
        return int(text)

    return read


def _name_format(text: str) -> str:
    """printf's %u and %d with a width, three times, and a harmless name as the result."""
    numbers = 0
    for found in _CONVERSION.finditer(text):
        if found.group() == "%%":
            continue
        if found.group(2) not in ("u", "d"):
            raise ValueError(f"takes numbers like %06u only, not {quoted(text[found.start() :][:8])}")
        numbers += 1
    if numbers != 3:
        raise ValueError(
            f"must take three numbers (run, chunk, builder id), as run-%06u-%05u-%02u.spd; "
            f"{quoted(text)} takes {numbers}"
        )
    try:
        check_lfn(text % (_U32, _U32, _U32))
    except PilotageError as error:
        raise ValueError(f"makes no usable file name: {error.detail}") from None
    return text


def _debug_mode(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError(f"must be 0 or 1, not {quoted(text)}")
    return text == "1"


def _source_ids(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(_NUMBER.fullmatch(part) and int(part) <= _U32 for part in parts) or len(parts) > IDS_MAX:
        raise ValueError(f"must be 1 to {IDS_MAX} source ids with commas between them, not {quoted(text)}")
    ids = tuple(int(part) for part in parts)
    if len(set(ids)) != len(ids):
        raise ValueError(f"names a source id twice: {quoted(text)}")
    return ids


def _slice_length(text: str) -> int:
    length = _number(SHORTEST_SLICE_NS, _U64)(text)
    if length >= ROLL_OVER_NS:
        raise ValueError(
            f"must be less than {ROLL_OVER_NS} ns, not {length}: after 4.5 ms the smallest TDC counter (RS) rolls over, "
            "and the times within a slice would not be unique"
        )
    return length


KEYS: tuple[Key, ...] = (
    Key("DataFileNameFormat", "data_file_name_format", _name_format),
    Key("RandomSeed", "random_seed", _number(0, _U64)),
    Key("DataFileSizeLimit", "data_file_size_limit", parse_size),
    Key("DebugMode", "debug_mode", _debug_mode),
    Key("FrameClockID", "frame_clock_id", _source_ids),
    Key("BunchCrossingID", "bunch_crossing_id", _source_ids),
    Key("SliceLength", "slice_length", _slice_length),
    Key("FrameLength", "frame_length", _number(1, _U32)),
)
_BY_NAME = {key.name: key for key in KEYS}
assert [key.field for key in KEYS] == [each.name for each in fields(DaqConfig)], "one key per field"


def load(path: Path) -> DaqConfig:
    """The configuration in a file; keys that it does not set keep their default."""
    where = one_line(str(path))
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise _bad(f"{where} is not a plain file")
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise _bad(f"{where} cannot be read: {reason}") from None
    if len(data) > LARGEST_FILE:
        raise _bad(f"{where} is larger than 1 MiB: that is no configuration of the DAQ")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _bad(f"{where} line {line}: is not UTF-8") from None
    return parse(text, where)


def parse(text: str, where: str = "the configuration") -> DaqConfig:
    """The configuration in a text; `where` is what messages call it."""
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for number, name, value in _entries(text, where):
        if name not in _BY_NAME:
            near = nearest(name, [key.name for key in KEYS])
            hint = f"did you mean {near}?" if near else f"known keys: {', '.join(_BY_NAME)}"
            raise _bad(f"{where} line {number}: unknown key {quoted(name)}; {hint}")
        if name in lines:
            raise _bad(f"{where} line {number}: {name} was set in line {lines[name]} already")
        lines[name] = number
        values[_BY_NAME[name].field] = _read(name, value, f"{where} line {number}: {name}")
    return _consistent(DaqConfig(**values), where)


def override(config: DaqConfig, given: Iterable[tuple[str, str, str]]) -> DaqConfig:
    """The configuration with some keys set anew; each as (key, text as in the file, what messages call its origin)."""
    values = {_BY_NAME[name].field: _read(name, text, f"{where} ({name})") for name, text, where in given}
    return _consistent(replace(config, **values), "the configuration")


def warnings(config: DaqConfig) -> list[str]:
    """What is allowed but unlike SPD, a sentence each."""
    low, high = USUAL_SLICE_NS
    if low <= config.slice_length <= high:
        return []
    return [
        f"SliceLength = {config.slice_length} ns lies outside the 10 to 100 µs of SPD ({low} to {high} ns); "
        "the files are written all the same"
    ]


def _entries(text: str, where: str) -> Iterator[tuple[int, str, str]]:
    """Line number, key and value of each setting; a comment is # and what follows, at the start or behind a blank."""
    for number, raw in enumerate(text.split("\n"), start=1):
        line = re.sub(r"(?:^|\s)#.*", "", raw).strip()
        if not line:
            continue
        name, equals, value = (part.strip() for part in line.partition("="))
        if line.startswith("["):
            raise _bad(
                f"{where} line {number}: the DAQ's configuration has no sections, found {quoted(line)}"
            )
        if not name or not equals or not value:
            raise _bad(
                f"{where} line {number}: {quoted(name)} has no value; write {name or 'KEY'} = VALUE in one line"
            )
        yield number, name, value


def _read(name: str, text: str, where: str) -> Any:
    try:
        return _BY_NAME[name].read(text)
    except ValueError as error:
        raise _bad(f"{where} {error}") from None


def _consistent(config: DaqConfig, where: str) -> DaqConfig:
    both = set(config.frame_clock_id) & set(config.bunch_crossing_id)
    if both:
        raise _bad(f"{where}: source id {min(both)} is both a FrameClockID and a BunchCrossingID")
    return config


def _bad(detail: str) -> PilotageError:
    return PilotageError("BAD_SETTINGS", detail)
