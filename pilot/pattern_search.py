"""Looks for known errors in the text of a payload: the process in which the regular expressions of sites and experiments run.

A regular expression may need years for the wrong text, so none is ever run, nor compiled, by the pilot itself. Here each has a
small box of processor time; what leaves its box is given up and named, and the search goes on with the next. pilot/patterns.py
starts this process, hands over the work as one JSON object, and kills it when it takes too long altogether. Each answer is one
line of JSON, written at once: what was found before the end counts.
"""

from __future__ import annotations

import itertools
import json
import os
import pkgutil
import re
import resource
import signal
import stat
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, NamedTuple, Optional, Union

from protocol import ini
from protocol.errors import BY_NAME, PilotageError, shorten
from protocol.redaction import one_line
from protocol.values import nearest, quoted

SHIPPED = "patterns.ini"
"""The file beside this module; what it holds comes after the patterns of sites and experiments."""
KEYS = ("regex", "error", "advice", "last_lines", "example")

PATTERN_SECONDS = 0.5
"""Processor time for one pattern in one text, and as much again for each mebibyte; an honest one needs a tenth of that."""
LONGEST_LINE = 4000
"""Characters; of a longer one head and tail are looked at, so that an honest pattern cannot become slow on it."""
LINE_CHARACTERS = 300
"""Of a matching line, in the answer."""
MOST_MEMORY = 1 << 30
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Pattern(NamedTuple):
    """One section of a file of patterns."""

    name: str
    regex: str
    error: str
    """A name of the catalogue."""
    advice: str = ""
    last_lines: int = 0
    """Looked for in so many last lines of a text only; 0: everywhere."""
    example: str = ""
    """A text that it matches."""
    place: str = ""
    """The file that it stands in."""


class Found(NamedTuple):
    """Where a pattern matched: the last place in that text."""

    pattern: str
    error: str
    line: str
    text: str
    """The path or name of the text that was looked at."""
    advice: str = ""


class Problem(NamedTuple):
    """Something about the patterns that their author should mend."""

    words: str


Answer = Union[Found, Problem]


class _Late(Exception):
    """A pattern has used up its box."""


# -- the patterns ---------------------------------------------------------------------------------------------------------------


def parse(data: bytes, place: str) -> list[Pattern]:
    """The patterns of one file, in its order; BAD_SETTINGS names file and line of the first thing that is wrong."""
    file = ini.parse(data, Path(place))
    keys: dict[str, dict[str, str]] = {section: {} for section, _ in file.sections}
    lines = dict(file.sections)
    for entry in file.entries:
        if entry.key not in KEYS:
            raise _wrong(place, entry.line, f"unknown key {quoted(entry.key)}{_meant(entry.key, KEYS)}")
        keys[entry.section][entry.key] = entry.text
    return [_pattern(name, given, place, lines[name]) for name, given in keys.items()]


def _pattern(name: str, given: dict[str, str], place: str, line: int) -> Pattern:
    if "regex" not in given:
        raise _wrong(place, line, f"[{name}] has no regex")
    error = given.get("error", "").upper()
    if given["regex"] and error not in BY_NAME:
        meant = _meant(error, tuple(BY_NAME))
        raise _wrong(place, line, f"[{name}] error {quoted(error)} is not in the catalogue{meant}")
    last_lines = given.get("last_lines", "0")
    if not re.fullmatch("[0-9]{1,6}", last_lines):
        raise _wrong(place, line, f"[{name}] last_lines must be a whole number, not {quoted(last_lines)}")
    example = given.get("example", "").replace(r"\n", "\n")
    return Pattern(name, given["regex"], error, given.get("advice", ""), int(last_lines), example, place)


def shipped() -> list[Pattern]:
    """Those that come with the pilot, also within its zip file."""
    return parse(pkgutil.get_data(__name__, SHIPPED) or b"", f"the pilot's {SHIPPED}")


def gathered(files: Iterable[str], own: Iterable[tuple[str, str]]) -> tuple[list[Pattern], list[Problem]]:
    """The patterns of `files`, of the texts in `own` (each with what it is called), and ours, in this order.

    The first of a name counts, so that one without a regex takes ours out. A file that is wrong is left out, and told.
    """
    patterns: list[Pattern] = []
    problems: list[Problem] = []
    for read in (*(_reader(path) for path in files), *(_parser(place, text) for place, text in own), shipped):
        try:
            patterns += read()
        except PilotageError as error:
            problems.append(Problem(error.detail))
    first: dict[str, Pattern] = {}
    for pattern in patterns:
        first.setdefault(pattern.name, pattern)
    return [pattern for pattern in first.values() if pattern.regex], problems


def _reader(path: str) -> Callable[[], list[Pattern]]:
    def read() -> list[Pattern]:
        try:
            data, _ = ini.bytes_of(Path(path), ini.LARGEST_FILE + 1)
        except (OSError, ValueError) as error:
            raise PilotageError(
                "BAD_SETTINGS", f"{one_line(path)} cannot be read: {ini.reason_of(error)}"
            ) from None
        return parse(data, path)

    return read


def _parser(place: str, text: str) -> Callable[[], list[Pattern]]:
    return lambda: parse(text.encode("utf-8", "replace"), place)


def _wrong(place: str, line: int, what: str) -> PilotageError:
    return PilotageError("BAD_SETTINGS", f"{one_line(place)} line {line}: {what}")


def _meant(word: str, known: Sequence[str]) -> str:
    near = nearest(word, known)
    return f"; did you mean {near}?" if near else ""


# -- the texts ------------------------------------------------------------------------------------------------------------------


def text_of(path: str, limit: int) -> str:
    """Head and tail of a plain file, at most `limit` bytes together; "" of anything else: the payload may have put it there."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return ""
    status = os.fstat(number)
    if not stat.S_ISREG(status.st_mode):
        os.close(number)
        return ""
    with open(number, "rb") as file:
        head = file.read(min(limit // 4, status.st_size))
        file.seek(max(len(head), status.st_size - (limit - limit // 4)))
        gap = b"\n" if file.tell() > len(head) else b""
        return tidy((head + gap + file.read(limit)).decode("utf-8", "replace"))


def tidy(text: str) -> str:
    """Without colours and with lines of a bounded length; a line that a carriage return writes over counts as one of its own."""
    lines = _ESCAPES.sub("", text).replace("\r", "\n").split("\n")
    return "\n".join(shorten(line, LONGEST_LINE) for line in lines)


def _tail(text: str, lines: int) -> str:
    return "\n".join(text.rstrip().rsplit("\n", lines)[-lines:]) if lines else text


# -- the search -----------------------------------------------------------------------------------------------------------------


def search(
    patterns: Iterable[Pattern],
    texts: Sequence[tuple[str, str]],
    every: bool = False,
    seconds: float = PATTERN_SECONDS,
) -> Iterator[Answer]:
    """What is found, in the order of the patterns and then of the texts (name, text); only the first unless `every` is wanted."""
    for pattern in patterns:
        for answer in _tried(pattern, texts, seconds):
            yield answer
            if isinstance(answer, Found) and not every:
                return


def _tried(pattern: Pattern, texts: Sequence[tuple[str, str]], seconds: float) -> Iterator[Answer]:
    try:
        with _box(seconds):
            regex = re.compile(pattern.regex, re.MULTILINE)
            matches_nothing = regex.search("") is not None
        if matches_nothing:
            yield _about(pattern, "matches an empty text")
            return
        for name, text in texts:
            with _box(seconds):
                line = _last_line(regex, _tail(text, pattern.last_lines))
            if line is not None:
                yield Found(pattern.name, pattern.error, line, name, pattern.advice)
    except (_Late, MemoryError):
        yield _about(pattern, f"was given up: it needs more than {seconds:g} s, or too much memory")
    except (re.error, OverflowError, RecursionError) as error:
        yield _about(pattern, f"is no regular expression: {error}")


def _last_line(regex: re.Pattern[str], text: str) -> Optional[str]:
    """The whole line or lines of the last match, or of its group "line"."""
    last = deque(regex.finditer(text), maxlen=1)
    if not last:
        return None
    match = last.pop()
    begin, end = match.span("line" if "line" in regex.groupindex and match["line"] else 0)
    end = text.find("\n", end)
    lines = text[text.rfind("\n", 0, begin) + 1 : end if end >= 0 else len(text)]
    return shorten(lines.strip(), LINE_CHARACTERS)


def _about(pattern: Pattern, what: str) -> Problem:
    return Problem(one_line(f"{pattern.place}: the pattern [{pattern.name}] {what}"))


@contextmanager
def _box(seconds: float) -> Iterator[None]:
    """_Late once so much processor time is used up: the machine of `re` looks for signals now and then."""
    signal.signal(signal.SIGVTALRM, _ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _ring(*_: object) -> None:
    raise _Late


# -- the process ----------------------------------------------------------------------------------------------------------------


def main() -> None:
    """Reads {"files", "own", "texts", "bytes", "every", "seconds"}; writes {"problem"} and {"found"}, and {"done"} at the end."""
    work = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    signal.alarm(int(work["seconds"]) + 2)  # should the pilot be gone by then
    patterns, problems = gathered(work["files"], work["own"])
    texts = [(path, text_of(path, work["bytes"])) for path in work["texts"]]
    box = PATTERN_SECONDS * (1 + work["bytes"] / (1 << 20))
    for answer in itertools.chain(problems, search(patterns, texts, work["every"], box)):
        _say({"found": list(answer)} if isinstance(answer, Found) else {"problem": answer.words})
    _say({"done": True})


def _say(what: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()
