"""Progress bars on standard error; where that is no terminal, nothing is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from client import tables

Advance = Callable[[int], None]
"""So much more is done. May be called by any thread."""


@contextmanager
def in_bytes(title: str, total: int, hidden: bool = False) -> Iterator[Advance]:
    columns = (DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    with _progress(title, total, columns, hidden) as advance:
        yield advance


@contextmanager
def counted(title: str, total: int, hidden: bool = False) -> Iterator[Advance]:
    with _progress(title, total, (TextColumn("{task.completed:.0f}/{task.total:.0f}"),), hidden) as advance:
        yield advance


@contextmanager
def _progress(title: str, total: int, columns: tuple[ProgressColumn, ...], hidden: bool) -> Iterator[Advance]:
    console = tables.console(error=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        *columns,
        console=console,
        transient=True,
        disable=hidden or not console.is_terminal,
    )
    with bar:
        row = bar.add_task(title, total=total)
        yield lambda more: bar.update(row, advance=more)
