"""Tries patterns of known errors for their authors: on texts, as a pilot would, or each on its own example."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pilot import pattern_search, patterns, plugins
from pilot.pattern_search import Found, Pattern, Problem
from protocol.errors import BY_NAME
from protocol.redaction import one_line
from protocol.settings import Settings

SECONDS = 60.0
"""Somebody waits for it at a terminal; a pilot waits less."""


class Row(NamedTuple):
    """A pattern that was found, or a pattern and how it does on its example."""

    pattern: str
    error: str
    place: str
    """The text in which it was found; the file that the pattern stands in."""
    words: str


@dataclass
class Report:
    heads: tuple[str, str, str, str]
    rows: list[Row]
    problems: list[str]
    nothing: str

    def lines(self) -> Iterator[str]:
        """A table for a person; each line is one, whatever the texts hold."""
        if not self.rows:
            yield self.nothing
            return
        rows = [self.heads, *([one_line(cell) for cell in row] for row in self.rows)]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        for row in rows:
            yield "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[3]]).rstrip()

    def as_json(self) -> dict[str, object]:
        keys = [head.replace(" ", "_") for head in self.heads]
        rows = [{**dict(zip(keys, row)), "code": BY_NAME[row.error].code} for row in self.rows]
        return {"rows": rows, "problems": self.problems}


def on_texts(settings: Settings, texts: Sequence[Path], further: Iterable[str]) -> Report:
    """All that is found, in the order in which it counts; "-" is what comes on standard input."""
    with tempfile.TemporaryDirectory(prefix="patterns-") as place:
        names = {os.path.abspath(path): str(path) for path in texts if str(path) != "-"}
        if Path("-") in texts:
            copy = Path(place, "stdin")
            with copy.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
            names[str(copy)] = "-"
        return _on_texts(settings, names, further)


def _on_texts(settings: Settings, names: Mapping[str, str], further: Iterable[str]) -> Report:
    """`names`: what a person calls each file."""
    answer = patterns.look(
        [*map(Path, names)], _sources(settings, further), seconds=SECONDS, every=True,
        limit_bytes=settings.integer("patterns", "text_kib") * 1024,
    )  # fmt: skip
    late = [] if answer.complete else [f"the search did not end within {SECONDS:g} s"]
    rows = [
        Row(each.pattern, each.error, names.get(each.text, each.text), each.line) for each in answer.found
    ]
    heads = ("pattern", "error", "file", "line")
    return Report(
        heads,
        rows,
        [*answer.problems, *late],
        "No pattern matches; the job's error would name its exit code.",
    )


def on_examples(settings: Settings, further: Iterable[str]) -> Report:
    """Every pattern, and whether its example would be taken for it."""
    where = _sources(settings, further)
    known, problems = pattern_search.gathered(where.files, where.own)
    found = [(pattern, *_tried(pattern, known)) for pattern in known]
    rows = [Row(pattern.name, pattern.error, pattern.place, verdict) for pattern, verdict, _ in found]
    wrong = [
        f"{pattern.place}: [{pattern.name}] {verdict}" for pattern, verdict, is_wrong in found if is_wrong
    ]
    heads = ("pattern", "error", "file", "example")
    return Report(heads, rows, [*(each.words for each in problems), *wrong], "There are no patterns.")


def _tried(pattern: Pattern, known: Sequence[Pattern]) -> tuple[str, bool]:
    """What is to be said about a pattern and its example, and whether that is wrong."""
    if not pattern.example:
        return "none", False
    text = [("example", pattern_search.tidy(pattern.example))]
    first = next(iter(pattern_search.search([pattern], text)), None)
    if isinstance(first, Problem):
        return first.words, True
    if first is None:
        return "does not match its example", True
    winner = next(each for each in pattern_search.search(known, text) if isinstance(each, Found))
    return (
        ("matches", False)
        if winner.pattern == pattern.name
        else (f"comes after [{winner.pattern}], which matches too", False)
    )


def _sources(settings: Settings, further: Iterable[str]) -> patterns.Sources:
    plugin = plugins.load(settings.text("experiment", "plugin"), settings)
    where = patterns.sources(settings, plugin.error_patterns())
    return patterns.Sources([*map(os.path.abspath, further), *where.files], where.own)
