"""How commands show what the server says: tables for people, JSON for programs; the one place that prints either.

What comes from elsewhere (error details, node names) never drives the terminal: control characters are spelt out, and
rich's markup is not read. Into a pipe a row is one line, however long.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from protocol.messages import to_wire
from protocol.redaction import one_line
from protocol.states import FINAL, HELD, DatasetState, JobState, PilotState, QueueState, TaskState

PIPE_WIDTH = 2000
"""Columns where standard output is no terminal: nothing is folded, so that grep and awk see whole rows."""

_STYLES = {
    **{state.value: "cyan" for state in HELD},
    JobState.COMPLETED.value: "green",
    JobState.FAILED.value: "red",
    JobState.CANCELLED.value: "magenta",
    TaskState.PARTIAL.value: "yellow",
    DatasetState.CLOSED.value: "green",
    PilotState.ALIVE.value: "green",
    PilotState.SILENT.value: "yellow",
    QueueState.ONLINE.value: "green",
    QueueState.OFFLINE.value: "red",
}


class Column(NamedTuple):
    """A column of a table: its title, and what to show of a row."""

    title: str
    value: Callable[[Any], object]
    right: bool = False


def _print(content: Any) -> None:
    out = console()
    if out.is_terminal:
        out.print(content)
        return
    with out.capture() as text:
        out.print(content)
    # rich fills every line up to the width of the table.
    write("\n".join(line.rstrip() for line in text.get().splitlines()))


def console(error: bool = False) -> Console:
    """Standard output, or standard error for what a program that reads the output must not see."""
    stream = sys.stderr if error else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(stderr=error, width=width, highlight=False, markup=False, emoji=False, soft_wrap=False)


def show(view: Any) -> None:
    """Print a view as JSON: the server's words."""
    write(json.dumps(to_wire(view), indent=2))


def write(text: str) -> None:
    """Print text as it is: the caller has seen to its control characters."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """A remark to the person at the terminal, on standard error."""
    sys.stderr.write(one_line(text) + "\n")
    sys.stderr.flush()


def print_table(rows: Iterable[Any], columns: Sequence[Column], title: str | None = None) -> None:
    _print(table(rows, columns, title))


def table(rows: Iterable[Any], columns: Sequence[Column], title: str | None = None) -> Table:
    grid = Table(
        box=None, pad_edge=False, title=title, title_justify="left", title_style="bold", header_style="bold"
    )
    for column in columns:
        # A folded cell is longer to read than a cut one, but nothing of it is lost.
        grid.add_column(column.title, justify="right" if column.right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(cell(column.value(row)) for column in columns))
    return grid


def print_facts(facts: Mapping[str, object]) -> None:
    """One thing: a line per fact; facts that are None or empty are left out."""
    grid = Table(box=None, pad_edge=False, show_header=False)
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts.items():
        if value is not None and value != "":
            grid.add_row(cell(name), cell(value))
    _print(grid)


def cell(value: object) -> Text:
    if value is None:
        return Text("-", style="dim")
    if isinstance(value, Text):
        return value
    text = one_line(str(value))
    return Text(text, style=_STYLES.get(text, ""))


# -- values ---------------------------------------------------------------------------------------------------


def some(count: int, what: str) -> str:
    """A number of things: "1 file", "2 files"."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def size(count: int) -> str:
    """A number of bytes as people read it, in powers of 1024."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def when(moment: str | None) -> str | None:
    """A time of the server (ISO 8601, UTC) to the second."""
    return None if moment is None else moment[:19].replace("T", " ")


def seconds_between(start: str | None, end: str | None) -> float | None:
    """The time between two moments of the server, None while one of them is missing."""
    if start is None or end is None:
        return None
    return (moment(end) - moment(start)).total_seconds()


def moment(text: str) -> datetime.datetime:
    """A time of the server."""
    # Python 3.10 reads no Z.
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))


def duration(start: str | None, end: str | None) -> str | None:
    passed = seconds_between(start, end)
    return None if passed is None else f"{passed:.1f} s"


def counts(numbers: Mapping[str, int]) -> Text:
    """Jobs per state, in the order in which a job passes through them: "READY 3, RUNNING 2"."""
    known = [state.value for state in JobState]
    # A state that only a newer server knows comes last.
    order = [name for name in (*known, *sorted(set(numbers) - set(known))) if numbers.get(name)]
    return Text(", ").join(Text.assemble(cell(name), f" {numbers[name]}") for name in order)


def ended(numbers: Mapping[str, int]) -> int:
    """How many of these jobs have come to an end."""
    return sum(numbers.get(state.value, 0) for state in FINAL)
