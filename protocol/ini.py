"""Reading one ini file: configparser's dialect, each key with its line, and one clear sentence for each way to be wrong.

A value stands in one line and indentation means nothing: what configparser would silently take for the continuation of the
value above is read as the key that it was meant to be.
"""

from __future__ import annotations

import configparser
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from protocol.errors import PilotageError
from protocol.redaction import one_line
from protocol.values import quoted

LARGEST_FILE = 1 << 20
"""Bytes; a settings file above this is some other file."""

_HEADER = re.compile(r"\[([^\[\]]*[^\[\]\s][^\[\]]*)\]\s*(?:[#;].*)?")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


class IniEntry(NamedTuple):
    """One `key = value`; section and key in normal form."""

    section: str
    key: str
    text: str
    line: int


class IniFile(NamedTuple):
    path: Path
    sections: tuple[tuple[str, int], ...]
    """Every section with its line, the empty ones too."""
    entries: tuple[IniEntry, ...]
    mode: int
    """Permission bits, taken from the very file that was read."""

    @property
    def exposed(self) -> bool:
        """Whether anybody but the owner may read or change it."""
        return bool(self.mode & 0o077)


def normal(name: str) -> str:
    r"""A section or key in normal form: case does not matter, and a blank or `\_` stands for `_` as on the slides."""
    return re.sub(r"(?:\\_|[ \t])+", "_", name.strip().lower())


def read(path: Path) -> IniFile:
    try:
        data, mode = bytes_of(path, LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        raise _wrong(path, f"cannot be read: {reason_of(error)}") from None
    return parse(data, path, mode)


def parse(data: bytes, path: Path, mode: int = 0o600) -> IniFile:
    """What a file would hold that came some other way; `path` is what messages call it."""
    if len(data) > LARGEST_FILE:
        raise _wrong(path, "is larger than 1 MiB: that is no settings file")
    lines = _lines_of(data, path)
    parser = _Parser()
    try:
        parser.read_file(parser.numbered(lines), source=str(path))
    except configparser.DuplicateSectionError as error:
        raise _wrong(path, f"the section [{error.section}] occurs twice", error.lineno) from None
    except configparser.DuplicateOptionError as error:
        raise _wrong(
            path, f"the key {error.option.upper()} occurs twice in [{error.section}]", error.lineno
        ) from None
    except configparser.MissingSectionHeaderError as error:
        raise _wrong(
            path, "a key before the first section; begin with a line such as [node_settings]", error.lineno
        ) from None
    except configparser.ParsingError as error:
        number = error.errors[0][0]
        word = lines[number - 1].split()[0]  # the first word only: the rest may be a password
        raise _wrong(path, f"{quoted(word)} has no value; write KEY = VALUE, in one line", number) from None
    return IniFile(path, tuple(parser.headers), tuple(parser.entries()), mode)


class _Parser(configparser.RawConfigParser):
    """configparser does not tell where a key stood; it asks for each key's normal form while it reads that line."""

    def __init__(self) -> None:
        super().__init__(
            strict=True,
            interpolation=None,
            comment_prefixes=("#", ";"),
            inline_comment_prefixes=("#", ";"),
            empty_lines_in_values=False,
            default_section="\0",  # no file can name it: [DEFAULT] is an unknown section like any other
        )
        self.headers: list[tuple[str, int]] = []
        self._line = 0
        self._places: list[int] = []

    def numbered(self, lines: list[str]) -> Iterator[str]:
        for self._line, line in enumerate(lines, start=1):
            header = _HEADER.fullmatch(line.strip())
            if header:
                self.headers.append((normal(header.group(1)), self._line))
                yield f"[{normal(header.group(1))}]\n"
            else:
                yield line.strip() + "\n"

    def optionxform(self, optionstr: str) -> str:
        self._places.append(self._line)
        return normal(optionstr)

    def entries(self) -> Iterator[IniEntry]:
        # Sections and keys occur once each, so their order is the order of their lines.
        keys = [
            (section, key, text) for section in self.sections() for key, text in self.items(section, raw=True)
        ]
        for (section, key, text), line in zip(keys, self._places):
            yield IniEntry(section, key, text, line)


def bytes_of(path: Path, limit: int) -> tuple[bytes, int]:
    """Up to `limit` bytes of a plain file, and its permission bits; the ValueError of anything else says what it is."""
    # O_NONBLOCK: a pipe without a writer must not hold up the start.
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a plain file")
        with open(number, "rb", closefd=False) as file:
            return file.read(limit), stat.S_IMODE(status.st_mode)
    finally:
        os.close(number)


def reason_of(error: OSError | ValueError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def _lines_of(data: bytes, path: Path) -> list[str]:
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise _wrong(path, "begins with a byte order mark: save it as UTF-8 without BOM")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _wrong(path, "is not UTF-8", data.count(b"\n", 0, error.start) + 1) from None
    lines = [line[:-1] if line.endswith("\r") else line for line in text.split("\n")]
    for number, line in enumerate(lines, start=1):
        found = _CONTROL.search(line)
        if found:
            raise _wrong(path, f"holds the control character {one_line(found.group())}", number)
        if line.lstrip().startswith("[") and not _HEADER.fullmatch(line.strip()):
            raise _wrong(path, f"{quoted(line.strip())} is no section header; write [NAME]", number)
    return lines


def _wrong(path: Path, what: str, line: int | None = None) -> PilotageError:
    where = f"{one_line(str(path))} line {line}" if line else one_line(str(path))
    return PilotageError("BAD_SETTINGS", f"{where}: {what}")
