"""Following tasks to their end: asks the server now and then, and shows progress as it comes.

On a terminal a bar per task moves; elsewhere a line is written when something changed. A server that does not answer is
asked again: the jobs go on without it, and so does who watches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from client import tables
from client.session import Session
from protocol.errors import PilotageError
from protocol.messages.views import TaskView
from protocol.redaction import one_line
from protocol.states import JobState

LINE_SECONDS = 1.0
"""Least time between two lines about a task where there is no terminal."""
AWAY = ("SERVER_UNREACHABLE", "SERVER_UNAVAILABLE", "TOO_MANY_REQUESTS")


def follow(
    session: Session,
    tasks: Sequence[str],
    *,
    interval: float = 0.5,
    quiet: bool = False,
    check: Callable[[Sequence[TaskView]], None] = lambda views: None,
) -> list[TaskView]:
    """Show the progress of tasks until each has ended and its output dataset is closed; their last views.

    `check` gets what was learned before each question; what it raises ends the watching.
    """
    views = [session.task(task) for task in tasks]
    with _display(quiet) as shown:
        shown.update(views)
        while not all(view.ended for view in views):
            check(views)
            time.sleep(interval)
            try:
                views = [view if view.ended else session.task(view.task_id) for view in views]
                shown.update(views)
            except PilotageError as error:
                if error.name not in AWAY:
                    raise
                shown.update(views, f"{error}; asking again")
    return views


def _display(quiet: bool) -> Display:
    console = tables.console(error=True)
    if quiet:
        return Display()
    return _Bars(console) if console.is_terminal else _Lines()


class Display:
    """Shows what was learned of the tasks; this one shows nothing."""

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *exc_info: object) -> None:
        return None

    def update(self, views: Sequence[TaskView], trouble: str = "") -> None:
        """`trouble`: why these views are old."""


class _Lines(Display):
    """A line about each task that changed, at most one a second but for its end."""

    def __init__(self) -> None:
        self._said: dict[int, str] = {}
        self._at: dict[int, float] = {}
        self._trouble = ""

    def update(self, views: Sequence[TaskView], trouble: str = "") -> None:
        if trouble and trouble != self._trouble:
            tables.say(trouble)
        self._trouble = trouble
        now = time.monotonic()
        for view in views:
            text = line(view)
            due = view.ended is not None or now - self._at.get(view.task_id, -LINE_SECONDS) >= LINE_SECONDS
            if due and text != self._said.get(view.task_id):
                tables.say(text)
                self._said[view.task_id], self._at[view.task_id] = text, now


def line(view: TaskView) -> str:
    """A task in one line."""
    counts = tables.counts(view.counts).plain or "no job was formed yet"
    return f"{view.name}: {view.state}, {tables.ended(view.counts)} of {view.n_jobs} jobs ended ({counts})"


class _Words(ProgressColumn):
    """Where the jobs are that have not completed, or what keeps us from knowing."""

    def __init__(self) -> None:
        super().__init__(Column(no_wrap=True, overflow="ellipsis"))

    def render(self, task: Task) -> Text:
        words: Text = task.fields["words"]
        return words


class _Bars(Display):
    """A bar per task that moves, and beside it the jobs per state."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            _Words(),
            console=console,
        )
        self._bars: dict[int, TaskID] = {}

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._progress.stop()

    def update(self, views: Sequence[TaskView], trouble: str = "") -> None:
        for view in views:
            if view.task_id not in self._bars:
                self._bars[view.task_id] = self._progress.add_task(view.name, words=Text())
            self._progress.update(
                self._bars[view.task_id],
                completed=tables.ended(view.counts),
                total=view.n_jobs,
                words=Text(one_line(trouble), style="yellow") if trouble else _words(view),
            )


def _words(view: TaskView) -> Text:
    rest = {state: count for state, count in view.counts.items() if state != JobState.COMPLETED.value}
    state = tables.cell(view.state) if view.ended else Text()
    return Text(": ").join(part for part in (state, tables.counts(rest)) if part)
