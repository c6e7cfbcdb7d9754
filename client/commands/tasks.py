"""`pilotage task`: submit, list, show, watch, explain, pause, retry and cancel tasks; and what went wrong in them."""

from __future__ import annotations

import dataclasses
import datetime
import json
import pkgutil
import re
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from client import bundle, tables, watch
from client.commands import Group
from client.commands.common import (
    Seconds,
    examples,
    json_option,
    limit_option,
    pilot_settings,
    print_explanation,
    print_list,
    say_next,
    with_session,
)
from client.interruption import interrupted
from client.session import Session
from client.tables import Column
from protocol.errors import PilotageError
from protocol.files import NAME
from protocol.messages import wire_name
from protocol.messages.pilots import StepKind
from protocol.messages.requests import RetrySpec, TaskSpec
from protocol.messages.views import FailureView, TaskView
from protocol.redaction import one_line
from protocol.resources import ResourceType
from protocol.states import DatasetState, TaskState
from protocol.values import nearest

LARGEST_FILE = 1 << 20
"""Bytes; a task that is described in more is some other file."""
SHOWN_NODES = 3
"""Of more of them the number is shown."""

_COLUMNS = (
    Column("task", lambda task: task.task_id, right=True),
    Column("name", lambda task: task.name),
    Column("state", lambda task: task.state),
    Column("type", lambda task: task.resource_type),
    Column("jobs", lambda task: task.n_jobs, right=True),
    Column("ended", lambda task: tables.ended(task.counts), right=True),
    Column("attempts", lambda task: task.n_attempts, right=True),
    Column("input", lambda task: task.input_dataset),
    Column("output", lambda task: task.output_dataset),
    Column("created (UTC)", lambda task: tables.when(task.created)),
)


@click.group(cls=Group)
def task() -> None:
    """Tasks: a command for each file of a dataset, or for N jobs."""


@task.command(
    epilog=examples(
        "pilotage task submit --jobs 3 -- echo 'job {job_nr}'",
        "pilotage task submit --name md5 --input run-1 --ship md5.py --output '{stem}.md5' \\",
        "    -- '{python}' '{bundle}/md5.py' '{input}' '{output}'",
        "pilotage task submit --jobs 3 --pre 'tar xf {bundle}/in.tar' --post 'gzip -k log.txt' -- ./run.sh '{job_nr}'",
        "pilotage task submit --name urgent --jobs 1 --replicate 2 -- ./calibrate.sh",
        "pilotage task submit --jobs 3 --software https://HOST/reco-1.2.tar.gz --software-checksum sha256:DIGEST -- reco '{job_nr}'",
        "pilotage task submit --jobs 3 --requires cvmfs --software /cvmfs/REPOSITORY/reco/1.2 -- reco '{job_nr}'",
        "pilotage task submit --from etc/examples/hello.json --wait",
        "pilotage task submit --benchmark --cores 8 --queue CPU",
    ),
    context_settings={"allow_interspersed_args": True},
)
@click.option("--name", help="Unique name.  [default: made from the command and the time]")
@click.option("--from", "file", type=click.Path(path_type=Path), metavar="FILE.json",
              help="Read the task from a file; other options are stronger.")  # fmt: skip
@click.option("--input", "input_dataset", metavar="DATASET", help="A job for each of its files.")
@click.option("--files-per-job", type=int, metavar="N", help="A job for every N files.")
@click.option("--jobs", "n_jobs", type=int, metavar="N", help="N jobs without input.")
@click.option("--output", "outputs", multiple=True, metavar="TEMPLATE",
              help="Name of a file that each job writes, as '{stem}.md5' or 'out-{job_nr}'; may be repeated.")  # fmt: skip
@click.option("--output-dataset", metavar="DATASET", help="Takes the outputs.  [default: NAME.out]")
@click.option("--ship", type=click.Path(path_type=Path), metavar="DIR|FILE",
              help="Your code; it lies in {bundle} when the command runs. __pycache__ and .git stay here.")  # fmt: skip
@click.option("--software", metavar="URL|/cvmfs/PATH",
              help="What the payload runs with: an archive, or a directory or set-up script on the nodes. It lies in {software}.")  # fmt: skip
@click.option("--software-checksum", metavar="sha256:HEX|blake3:HEX", help="Of the archive behind the URL.")
@click.option("--pilot-setting", "pilot_settings", multiple=True, metavar="SECTION.KEY=VALUE",
              help="A setting of the pilots for these jobs, where tasks may set it and the queue does not; may be repeated.")  # fmt: skip
@click.option(
    "--env", "environment", multiple=True, metavar="NAME=VALUE", help="Environment; may be repeated."
)
@click.option("--pre", multiple=True, metavar="COMMAND", help="Run before the payload; may be repeated.")
@click.option(
    "--co", multiple=True, metavar="COMMAND", help="Run beside the payload, ended with it; may be repeated."
)
@click.option("--post", multiple=True, metavar="COMMAND",
              help="Run when the payload has succeeded; may be repeated. These three are split into words as a shell does.")  # fmt: skip
@click.option(
    "--image", metavar="IMAGE", help="Container image of the payload, where the queue lets you choose."
)
@click.option(
    "--resource-type", type=click.Choice([each.value for each in ResourceType]), help="[default: cpu]"
)
@click.option("--gpu", is_flag=True, help="The same as --resource-type gpu.")
@click.option("--gpus", type=int, metavar="N", help="GPUs of one job.")
@click.option("--cores", type=int, metavar="N", help="Cores of one job.  [default: 1]")
@click.option("--memory-mb", type=int, metavar="MB", help="Memory of one job.")
@click.option("--disk-mb", type=int, metavar="MB", help="Disk of one job.")
@click.option("--walltime-seconds", type=Seconds(), metavar="S|2h", help="Longest run of one payload.")
@click.option("--priority", type=int, metavar="N", help="Higher goes first.  [default: 0]")
@click.option("--max-attempts", type=int, metavar="N", help="Tries that the payload may fail.  [default: 3]")
@click.option("--max-losses", type=int, metavar="N", help="Tries that nodes may lose.  [default: 10]")
@click.option("--replicate", type=int, metavar="K",
              help="Run K copies of each job on different nodes; the first that completes counts.  [default: 1]")  # fmt: skip
@click.option("--replicate-to", metavar="STORAGE",
              help="Copy the input dataset to this storage; 'pilotage dataset replicate' says the rest too.")  # fmt: skip
@click.option("--queue", metavar="QUEUE", help="Only pilots of this queue.")
@click.option("--site", metavar="SITE", help="Only pilots of this site.")
@click.option(
    "--requires", multiple=True, metavar="TAG", help="What queue or node must have; may be repeated."
)
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="A word about the task; may be repeated.")
@click.option(
    "--after", multiple=True, metavar="TASK", help="Begin when this task has completed; may be repeated."
)
@click.option("--group", "working_group", metavar="GROUP", help="Whose share pays.  [default: yours]")
@click.option("--country", "country_group", metavar="GROUP", help="For pilots of this country group.")
@click.option(
    "--label", "prod_source_label", metavar="LABEL", help="Only pilots of this label (-j).  [default: user]"
)
@click.option("--data-type", metavar="TYPE", help="Kind of data, checked by the experiment plugin.")
@click.option("--benchmark", is_flag=True,
              help="Instead of a command: each job measures its node, with the cores of the job, and leaves benchmark.json.")  # fmt: skip
@click.option("--wait", is_flag=True, help="Wait for the end; exit code 1 unless every job completed.")
@json_option
@click.argument("command", nargs=-1, metavar="-- COMMAND...")
@with_session
def submit(
    session: Session,
    *,
    file: Path | None,
    ship: Path | None,
    benchmark: bool,
    wait: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Submit a task; its command stands at the end, behind --.

    The command is started without a shell, in the job's own directory. It may contain {input} {inputs} {output}
    {outputs} {lfn} {stem} {task_id} {job_id} {job_nr} {attempt_nr} {bundle} {software} {workdir} {python}; '{{' is a brace.
    """
    given = _given(options)
    body = {**(_read(file) if file else {}), **given}
    packed = bundle.make(ship) if ship is not None else None
    if benchmark:
        packed = _benchmark(body, packed)
    if not body.get("command"):
        if wrong := _no_such_field(body):
            raise PilotageError("BAD_REQUEST", f"{one_line(str(file))}: {wrong}")
        raise click.UsageError("no command: it stands at the end, behind --, or in the file of --from")
    body.setdefault("name", _name(body["command"]))
    if packed is not None:
        session.send_bundle(packed.digest, packed.data)
        body[wire_name("bundle")] = packed.digest
    try:
        view = session.submit_task(body)
    except PilotageError as error:
        raise _by_step(error, given) from None
    if view.waiting:
        tables.say(f"warning: {view.waiting}")
    if wait:
        return _wait(session, view, as_json)
    if as_json:
        tables.show(view)
    else:
        tables.write(f"Task {view.task_id} ({view.name}): {_size_of(session, view)}.")
        say_next(f"pilotage task watch {view.name}")
    return 0


def _benchmark(body: dict[str, Any], shipped: bundle.Bundle | None) -> bundle.Bundle:
    """Make a task of benchmarks of this; its code is our own. The variable tells pilots what the file is."""
    taken = [name for name in ("command", "inputDataset", "outputs", "steps") if body.get(name)]
    if taken or shipped is not None:
        raise click.UsageError(
            "--benchmark is a task of its own: without command, inputs, outputs, steps and --ship"
        )
    body.setdefault("nJobs", 1)
    output = "benchmark.json" if body["nJobs"] == 1 else "benchmark-{job_nr}.json"
    body["command"] = [
        "{python}",
        "{bundle}/benchmark.py",
        "--cores",
        str(body.get("cores", 1)),
        "--output",
        "{output}",
    ]
    body["outputs"] = [output]
    body["environment"] = {**body.get("environment", {}), "PILOTAGE_BENCHMARK": output}
    body.setdefault("name", _name(["benchmark"]))
    source = pkgutil.get_data("pilot", "benchmark.py")
    if source is None:
        raise PilotageError("BAD_PATH", "the benchmark of the pilot is not installed here")
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "benchmark.py")
        path.write_bytes(source)
        return bundle.make(path)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, by their names on the wire."""
    if options.pop("gpu"):
        if options["resource_type"] not in (None, ResourceType.GPU.value):
            raise click.UsageError("--gpu and --resource-type cpu exclude each other")
        options["resource_type"] = ResourceType.GPU.value
    for name in ("command", "outputs", "requires", "tags", "after"):
        options[name] = list(options[name])
    options["environment"] = dict(_pair(text) for text in options["environment"])
    options["pilot_settings"] = pilot_settings(options["pilot_settings"])
    steps = [(kind, text) for kind in StepKind for text in options.pop(kind.value)]
    options["steps"] = [{"kind": kind.value, "command": _words(kind, text)} for kind, text in steps]
    return {wire_name(name): value for name, value in options.items() if value not in (None, [], {})}


def _by_step(error: PilotageError, given: dict[str, Any]) -> PilotageError:
    """The server's refusal of a step, naming the option that it was given with."""
    steps = given.get("steps", [])
    detail = re.sub(
        r"(?:the )?steps\[([0-9]+)\](?:\.command)?(?:\[[0-9]+\])?",
        lambda found: f"--{steps[int(found[1])]['kind']}" if int(found[1]) < len(steps) else found[0],
        error.detail,
    )
    return PilotageError(error.name, detail, **error.fields)


def _words(kind: StepKind, text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise click.UsageError(f"--{kind} {one_line(text)}: {error}") from None
    if not words:
        raise click.UsageError(f"--{kind}: an empty command")
    return words


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"--env {one_line(text)}: write NAME=VALUE")
    return name, value


def _read(path: Path) -> dict[str, Any]:
    """The task that a JSON file describes; what its fields may be is judged by the server."""
    shown = one_line(str(path))
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise PilotageError("BAD_PATH", f"{shown} cannot be read: {error.strerror}") from None
    if len(data) > LARGEST_FILE:
        raise PilotageError("BAD_PATH", f"{shown} is larger than 1 MiB: that is no task")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:  # the latter: nested too deeply
        raise PilotageError("BAD_REQUEST", f"{shown} is no JSON{_place(error)}") from None
    if not isinstance(body, dict):
        raise PilotageError("BAD_REQUEST", f'{shown} holds no JSON object, as {{"name": …, "command": […]}}')
    return body


def _place(error: Exception) -> str:
    """Where a text stops to be JSON, and what is wrong most often."""
    if not isinstance(error, json.JSONDecodeError):
        return ""
    return (
        f": see line {error.lineno}, column {error.colno}; names and texts stand in double quotes, "
        "and no comma comes after the last one"
    )


def _no_such_field(body: dict[str, Any]) -> str | None:
    """A field of a task's file that no task has, with the one that may be meant."""
    known = [wire_name(field.name) for field in dataclasses.fields(TaskSpec)]
    for name in body:
        if name not in known:
            near = nearest(name, known)
            return f"{one_line(name[:60])}: no such field" + (f"; did you mean {near}?" if near else "")
    return None


def _name(command: Any) -> str:
    """A name for a task that was given none: its program and the time."""
    word = command[0] if isinstance(command, list) and isinstance(command[0], str) else "task"
    program = word.rpartition("/")[2].rpartition(".")[0] or word.rpartition("/")[2]
    if not NAME.fullmatch(program):
        program = "task"
    now = datetime.datetime.now(datetime.timezone.utc)
    return f"{program[:100]}-{now:%Y%m%d-%H%M%S}-{now.microsecond // 1000:03d}"


def _size_of(session: Session, view: TaskView) -> str:
    jobs = tables.some(view.n_jobs, "job")
    if not view.input_dataset:
        return jobs
    try:
        given = session.dataset(view.input_dataset)
    except PilotageError:  # the task is there all the same
        return f"{jobs} over {view.input_dataset}"
    if given.state != DatasetState.OPEN.value:
        return f"{jobs} over {view.input_dataset}"
    return f"{jobs if given.n_files else 'no job'} so far over {view.input_dataset}; more as files come"


def _wait(session: Session, view: TaskView, as_json: bool) -> int:
    try:
        (view,) = watch.follow(session, [str(view.task_id)], quiet=as_json)
    except KeyboardInterrupt:
        return _go_on([view.name])
    if as_json:
        tables.show(view)
    return 0 if view.state == TaskState.COMPLETED.value else 1


def _go_on(tasks: Sequence[str]) -> int:
    """After Ctrl-C: only the watching has ended."""
    code = interrupted(
        one_line(f"task {tasks[0]} goes on" if len(tasks) == 1 else "only the watching; the tasks go on")
    )
    say_next(f"pilotage task watch {' '.join(tasks)}")
    return code


@task.command("list", epilog=examples("pilotage task list", "pilotage task list --state RUNNING --json"))
@click.option("--state", type=click.Choice([each.value for each in TaskState], case_sensitive=False))
@click.option("--name", metavar="TEXT", help="A part of the name.")
@click.option("--owner", metavar="NAME", help="Of this user.")
@click.option("--group", metavar="GROUP", help="Of this working group.")
@limit_option
@json_option
@with_session
def list_tasks(session: Session, *, limit: int, as_json: bool, **filters: str | None) -> None:
    """List tasks, the newest first."""
    print_list(
        session.tasks(**filters), _COLUMNS, limit, as_json,
        "No such task." if any(filters.values()) else "No task yet; begin with: pilotage task submit --help",
    )  # fmt: skip


@task.command(epilog=examples("pilotage task show hello", "pilotage task show 3 --json"))
@click.argument("task", metavar="TASK")
@json_option
@with_session
def show(session: Session, *, task: str, as_json: bool) -> None:
    """Show one task, by its number or name."""
    view = session.task(task)
    if as_json:
        return tables.show(view)
    tables.print_facts(
        {
            "task": f"{view.task_id} ({view.name}), of {view.owner}",
            "state": f"{view.state}, paused" if view.paused else view.state,
            "waiting": view.waiting,
            "jobs": Text.assemble(f"{view.n_jobs}: ", tables.counts(view.counts))
            if view.counts
            else view.n_jobs,
            "attempts": view.n_attempts,
            "errors": ", ".join(f"{name} {count}" for name, count in view.errors.items()),
            "type": f"{view.resource_type}, priority {view.priority}"
            + (f" + {view.boost}" if view.boost else ""),
            "group": view.working_group,
            **_wishes(view.spec or {}),
            "after": ", ".join((view.spec or {}).get("after", [])),
            "command": shlex.join((view.spec or {}).get("command", [])),
            "input": view.input_dataset,
            "output": view.output_dataset
            and f"{view.output_dataset}: {tables.some(view.n_outputs, 'file')}, {view.output_state}",
            "bundle": (view.spec or {}).get("bundle"),
            "software": (view.spec or {}).get("software"),
            "pilots' settings": ", ".join(
                f"{name} = {value}" for name, value in (view.spec or {}).get("pilotSettings", {}).items()
            ),
            "created": tables.when(view.created),
            "started": tables.when(view.started),
            "ended": tables.when(view.ended),
            "took": tables.duration(view.started, view.ended),
        }
    )
    if view.errors:
        say_next(f"pilotage task errors {view.name}")
    return None


def _wishes(spec: dict[str, Any]) -> dict[str, Any]:
    """Where and how often its jobs run, if the user has said so."""
    copies = spec.get(wire_name("replicate"), 1)
    return {
        "queue": spec.get("queue"),
        "site": spec.get("site"),
        "copied to": f"storage {spec[wire_name('replicate_to')]}"
        if spec.get(wire_name("replicate_to"))
        else None,
        "copies": f"{copies} of each job, on different nodes (--replicate)" if copies > 1 else None,
    }


@task.command("watch", epilog=examples("pilotage task watch hello", "pilotage task watch md5 blake3"))
@click.argument("tasks", nargs=-1, required=True, metavar="TASK...")
@click.option(
    "--interval", type=click.FloatRange(min=0.05), default=0.5, show_default=True, metavar="SECONDS"
)
@json_option
@with_session
def watch_tasks(session: Session, *, tasks: tuple[str, ...], interval: float, as_json: bool) -> int:
    """Watch tasks until they end; exit code 1 unless every job of all completed.

    Ctrl-C ends the watching only: the tasks go on.
    """
    try:
        views = watch.follow(session, tasks, interval=interval, quiet=as_json)
    except KeyboardInterrupt:
        return _go_on(tasks)
    if as_json:
        tables.show(views)
    return 0 if all(view.state == TaskState.COMPLETED.value for view in views) else 1


@task.command(epilog=examples("pilotage task why hello", "pilotage task why hello --json"))
@click.argument("task", metavar="TASK")
@json_option
@with_session
def why(session: Session, *, task: str, as_json: bool) -> None:
    """Say why a task does not go on, and which queues could take its jobs."""
    print_explanation(session.explain_task(task), as_json)


_FAILURES = (
    Column("jobs", lambda each: each.n_jobs, right=True),
    Column("attempts", lambda each: each.n_attempts, right=True),
    Column("completed since", lambda each: each.n_recovered, right=True),
    Column("error", lambda each: each.error),
    Column("what they say", lambda each: each.signature),
    Column("where", lambda each: _where(each)),
    Column("probable cause", lambda each: _cause(each)),
    Column("for example", lambda each: _example(each)),
)


def _where(failures: FailureView) -> str:
    """The nodes if they are few, else how many; and the queues."""
    queues = ", ".join(failures.queues)
    if not failures.n_nodes:
        return queues or "before any node"
    if failures.n_nodes <= SHOWN_NODES:
        nodes = ", ".join(f"{name} ({n})" for name, n in failures.nodes.items())
    else:
        nodes = f"{failures.n_nodes} nodes"
    return f"{nodes} of {queues}"


def _cause(failures: FailureView) -> str:
    which = f" {', '.join(failures.where)}" if failures.where else ""
    return f"{failures.cause}{which}: {failures.why}"


def _example(failures: FailureView) -> str:
    reads = f" ({', '.join(failures.inputs[:2])})" if failures.inputs else ""
    return f"job {failures.job_ids[0]}{reads}" if failures.job_ids else ""


@task.command(epilog=examples("pilotage task errors hello", "pilotage task errors hello --json"))
@click.argument("task", metavar="TASK")
@json_option
@with_session
def errors(session: Session, *, task: str, as_json: bool) -> None:
    """Say what went wrong in a task, and what is probably at fault.

    Failures with the same error and text, but for numbers and names, are one line: how many jobs, where they ran. The cause
    is proposed from where failures lie and where other jobs of the task complete. Attempts that were tried again count too.
    """
    view = session.task_errors(task)
    if as_json:
        return tables.show(view)
    if not view.failures:
        tables.say(f"Nothing has failed in task {view.task}.")
        return None
    tables.print_table(view.failures, _FAILURES)
    rest = f" {view.n_other} of them have rarer texts." if view.n_other else ""
    tables.say(f"{tables.some(view.n_attempts, 'attempt')} failed and {view.n_completed} completed.{rest}")
    first = next((each.job_ids[0] for each in view.failures if each.job_ids), None)
    if first is not None:
        say_next(f"pilotage job log {first}")
    return None


@task.command(
    epilog=examples(
        "pilotage task retry hello",
        "pilotage task retry hello --failed",
        "pilotage task retry hello --job 17   # its number in the task",
    )
)
@click.argument("task", metavar="TASK")
@click.option("--failed", is_flag=True, help="Only jobs that failed.")
@click.option("--cancelled", is_flag=True, help="Only jobs that were cancelled.")
@click.option(
    "--job", "job_nr", type=click.IntRange(min=1), metavar="N", help="Only this job, by its number."
)
@json_option
@with_session
def retry(
    session: Session, *, task: str, failed: bool, cancelled: bool, job_nr: int | None, as_json: bool
) -> None:
    """Try jobs again that failed or were cancelled: new attempts, with both budgets whole.

    The task goes on if it had ended, and its output dataset is open again until then. Not where a later task has read that.
    """
    reply = session.retry_task(task, RetrySpec(failed, cancelled, job_nr))
    if as_json:
        return tables.show(reply)
    left = f"; {tables.some(reply.n_left, 'job')} not: {reply.reason}" if reply.n_left else ""
    tables.write(one_line(f"Task {task}: {tables.some(reply.n_jobs, 'job')} tried again{left}."))
    say_next(f"pilotage task watch {task}")
    return None


@task.command(epilog=examples("pilotage task pause hello"))
@click.argument("task", metavar="TASK")
@json_option
@with_session
def pause(session: Session, *, task: str, as_json: bool) -> None:
    """Form and hand out no further job of a task; those that run go on."""
    _print_short(session.pause_task(task), as_json)


@task.command(epilog=examples("pilotage task resume hello"))
@click.argument("task", metavar="TASK")
@json_option
@with_session
def resume(session: Session, *, task: str, as_json: bool) -> None:
    """Let a paused task go on."""
    _print_short(session.resume_task(task), as_json)


@task.command(
    "set-priority",
    epilog=examples("pilotage task set-priority hello 100", "pilotage task set-priority hello -- -5"),
)
@click.argument("task", metavar="TASK")
@click.argument("priority", type=int, metavar="N")
@json_option
@with_session
def set_priority(session: Session, *, task: str, priority: int, as_json: bool) -> None:
    """Give a task another priority, and its jobs that wait; higher goes first."""
    _print_short(session.set_task_priority(task, priority), as_json)


@task.command(epilog=examples("pilotage task cancel hello", "pilotage task cancel step-1 --cascade"))
@click.argument("tasks", nargs=-1, required=True, metavar="TASK...")
@click.option(
    "--cascade", is_flag=True, help="Also the tasks after it: those that wait for it or read its output."
)
@json_option
@with_session
def cancel(session: Session, *, tasks: tuple[str, ...], cascade: bool, as_json: bool) -> None:
    """Cancel tasks and all of their jobs that have not ended."""
    views = []
    for task in tasks:
        had_ended = session.task(task).ended is not None and not cascade
        views.append(session.cancel_task(task, cascade=cascade))
        if had_ended and not as_json:
            tables.write(
                f"Nothing to cancel: task {views[-1].task_id} ({views[-1].name}) is {views[-1].state}."
            )
        elif not as_json:
            _print_short(views[-1], as_json)
    if as_json:
        tables.show(views[0] if len(views) == 1 else views)


def _print_short(view: TaskView, as_json: bool) -> None:
    if as_json:
        return tables.show(view)
    jobs = tables.counts(view.counts).plain or "no job was formed"
    state = f"{view.state}, paused" if view.paused else view.state
    tables.write(f"Task {view.task_id} ({view.name}) is {state}, priority {view.priority}: {jobs}.")
    return None
