"""`pilotage job`: list, show, explain, cancel and retry jobs, and read the logs of their attempts."""

from __future__ import annotations

from pathlib import Path

import click
from rich.text import Text

from client import joblog, tables
from client.commands import Group, looking
from client.commands.common import (
    examples,
    json_option,
    limit_option,
    print_explanation,
    print_list,
    say_next,
    with_session,
)
from client.metrics import benchmark_line, lines_of, sparkline
from client.session import Session
from client.tables import Column
from protocol.errors import BY_NAME
from protocol.messages.views import AttemptView, FileView, JobLog, JobMetrics, JobView
from protocol.states import FINAL, JobState

_COLUMNS = (
    Column("job", lambda job: job.job_id, right=True),
    Column("task", lambda job: job.task),
    Column("nr", lambda job: job.job_nr, right=True),
    Column("state", lambda job: job.state),
    Column("type", lambda job: job.resource_type),
    Column("attempt", lambda job: job.attempt_nr, right=True),
    Column("node", lambda job: job.node),
    Column("changed (UTC)", lambda job: tables.when(job.changed)),
    Column("error", lambda job: job.error or ""),
)
_ATTEMPTS = (
    Column("attempt", lambda attempt: attempt.attempt_nr, right=True),
    Column("id", lambda attempt: attempt.attempt_id, right=True),
    Column("state", lambda attempt: attempt.state),
    Column("pilot", lambda attempt: attempt.pilot_id),
    Column("node", lambda attempt: attempt.node),
    Column("queue", lambda attempt: attempt.queue),
    Column("exit", lambda attempt: attempt.exit_code, right=True),
    Column("started (UTC)", lambda attempt: tables.when(attempt.started)),
    Column("took", lambda attempt: tables.duration(attempt.started, attempt.ended)),
    Column("error", lambda attempt: _error(attempt)),
)
_HISTORY = (
    Column("attempt", lambda line: line.attempt_nr or None, right=True),
    Column("state", lambda line: line.state),
    Column("at (UTC)", lambda line: line.at[:23].replace("T", " ")),
    Column("by", lambda line: line.by),
    Column("", lambda line: line.detail),
)
_FILES = (
    Column("", lambda pair: pair[0]),
    Column("lfn", lambda pair: pair[1].lfn),
    Column("dataset", lambda pair: pair[1].dataset),
    Column("size", lambda pair: tables.size(pair[1].size), right=True),
    Column("state", lambda pair: pair[1].state),
)


def _error(view: AttemptView | JobView) -> str:
    return ": ".join(part for part in (view.error, view.error_detail) if part)


@click.group(cls=Group)
def job() -> None:
    """Jobs: what became of each part of a task, and why."""


@job.command(
    "list", epilog=examples("pilotage job list --task md5", "pilotage job list --state FAILED --limit 0")
)
@click.option("--task", metavar="TASK", help="Number or name of the task.")
@click.option("--state", type=click.Choice([each.value for each in JobState], case_sensitive=False))
@click.option("--error", metavar="NAME", help="Name of an error of the catalogue, as MISSING_OUTPUT.")
@limit_option
@json_option
@with_session
def list_jobs(
    session: Session, *, task: str | None, state: str | None, error: str | None, limit: int, as_json: bool
) -> None:
    """List jobs."""
    nothing = _nothing(task, state, error)
    print_list(session.jobs(task=task, state=state, error=error), _COLUMNS, limit, as_json, nothing)


def _nothing(task: str | None, state: str | None, error: str | None) -> str:
    """What an empty list says: of what there is none, and what to do."""
    if not (task or state or error):
        return "No job yet; a task makes them: pilotage task submit --help"
    of_task = f" of task {task}" if task else ""
    if not (state or error):
        return f"No job{of_task} was formed yet; see: pilotage task why {task}"
    which = (
        f"is {state}" + (f" with the error {error}" if error else "") if state else f"has the error {error}"
    )
    return f"No job{of_task} {which}."


@job.command(
    epilog=examples("pilotage job show 17", "pilotage job show 17 --metrics", "pilotage job show 17 --json")
)
@click.argument("job_id", type=int, metavar="ID")
@click.option("--metrics", is_flag=True, help="What was measured while it ran, over time, instead.")
@json_option
@with_session
def show(session: Session, *, job_id: int, metrics: bool, as_json: bool) -> None:
    """Show one job: its files, each attempt, and every state with its time."""
    if metrics:
        found = session.job_metrics(job_id)
        return tables.show(found) if as_json else _print_metrics(found)
    view = session.job(job_id)
    if as_json:
        return tables.show(view)
    tables.print_facts(
        {
            "job": f"{view.job_id}, number {view.job_nr} of task {view.task_id} ({view.task})",
            "state": view.state,
            "type": f"{view.resource_type}, priority {view.priority}",
            "attempts": view.attempt_nr,
            "copies": _copies(view),
            "benchmark": benchmark_line(view.attempts[-1].benchmark) if view.attempts else None,
            "error": Text(f"{view.error} ({view.error_code})", style="red") if view.error else None,
            "reason": _reason(view),
            "advice": BY_NAME[view.error].advice_for(view.job_id) if view.error in BY_NAME else None,
        }
    )
    _print_more(view)
    return None


def _copies(view: JobView) -> str | None:
    n = sum(attempt.ended is None for attempt in view.attempts or ())
    if view.replicate == 1 or not view.attempts:
        return None
    if view.state == JobState.COMPLETED.value and len(view.attempts) < view.replicate:
        return f"{len(view.attempts)} of {view.replicate} copies were handed out: no pilot of another node asked before it ended"
    return f"{n} of {view.replicate} copies run" if n else None


def _reason(view: JobView) -> str | None:
    if view.error is None:
        return None
    text = BY_NAME[view.error].text if view.error in BY_NAME else ""
    return ": ".join(part for part in (text, view.error_detail) if part)


def _print_more(view: JobView) -> None:
    files: list[tuple[str, FileView]] = [("input", file) for file in view.inputs or ()]
    files += [("output", file) for file in view.outputs or ()]
    for title, rows, columns in (
        ("files", files, _FILES),
        ("attempts", view.attempts, _ATTEMPTS),
        ("history", view.history, _HISTORY),
    ):
        if rows:
            tables.write("")
            tables.print_table(rows, columns, title)


def _print_metrics(found: JobMetrics) -> None:
    shown = [attempt for attempt in found.attempts if attempt.metrics or attempt.points]
    if not shown:
        tables.write(f"Nothing was measured of job {found.job_id} yet; its pilot tells with each heartbeat.")
    for attempt in shown:
        columns = (
            Column("", lambda line: line.name),
            Column("over time", lambda line: sparkline(line.values)),
            Column("least", lambda line: f"{min(line.values):g}", right=True),
            Column("most", lambda line: f"{max(line.values):g}", right=True),
            Column("last", lambda line: f"{line.values[-1]:g}", right=True),
        )
        title = f"attempt {attempt.attempt_nr}, {attempt.state}: {len(attempt.points)} points"
        tables.print_table(lines_of(attempt), columns, title)


@job.command(epilog=examples("pilotage job log 17", "pilotage job log 17 --attempt 1 --save logs/"))
@click.argument("job_id", type=int, metavar="ID")
@click.option("--attempt", type=click.IntRange(min=1), metavar="N", help="Only this attempt.  [default: all]")
@click.option(
    "--save", type=click.Path(path_type=Path), metavar="DIR", help="Keep the files of the logs in here."
)
@click.option("--json", "as_json", is_flag=True, help="Print where the archives lie, as JSON.")
@with_session
def log(session: Session, *, job_id: int, attempt: int | None, save: Path | None, as_json: bool) -> None:
    """Show what each attempt of a job wrote, failed ones too.

    A log is there once its attempt has ended; of a long file the end is shown, --save keeps all of it.
    """
    view = session.job(job_id)
    if as_json:
        return tables.show(JobLog(view.job_id, joblog.chosen(view, attempt)))
    joblog.show(view, attempt, save, session.data_root)
    return None


@job.command(epilog=examples("pilotage job why 17", "pilotage job why 17 --json"))
@click.argument("job_id", type=int, metavar="ID")
@json_option
@with_session
def why(session: Session, *, job_id: int, as_json: bool) -> None:
    """Say why a job is where it is.

    Which queues could take it, what is missing in each, how many jobs are before it, when it is tried again, what ended it.
    """
    print_explanation(session.explain_job(job_id), as_json)


@job.command(epilog=examples("pilotage job retry 17"))
@click.argument("job_id", type=int, metavar="ID")
@json_option
@with_session
def retry(session: Session, *, job_id: int, as_json: bool) -> None:
    """Try a job again that failed or was cancelled: a new attempt, with both budgets whole."""
    view = session.retry_job(job_id)
    if as_json:
        return tables.show(view)
    tables.write(f"Job {view.job_id} of task {view.task} is {view.state}.")
    say_next(f"pilotage job why {view.job_id}")
    return None


@job.command(epilog=examples("pilotage job cancel 17"))
@click.argument("job_id", type=int, metavar="ID")
@json_option
@with_session
def cancel(session: Session, *, job_id: int, as_json: bool) -> None:
    """Cancel a job; one that has ended is left as it is."""
    had_ended = JobState(session.job(job_id).state) in FINAL
    view = session.cancel_job(job_id)
    if as_json:
        return tables.show(view)
    nothing = "Nothing to cancel: job" if had_ended else "Job"
    tables.write(f"{nothing} {view.job_id} of task {view.task} is {view.state}.")
    return None


for command in looking.ALL:
    job.add_command(command)
