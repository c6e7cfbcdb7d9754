"""Register, cancel and report tasks. A task's state is computed from its jobs."""

from __future__ import annotations

import json
import os.path
from collections import Counter
from collections.abc import Mapping, Sequence

from peewee import fn

from protocol import pilot_settings, templates
from protocol.errors import PilotageError
from protocol.files import check_lfn
from protocol.messages.requests import TaskSpec
from protocol.messages.views import Page, TaskView
from protocol.redaction import one_line
from protocol.resources import ResourceType
from protocol.settings import TASK
from protocol.states import JobState, TaskState, task_state
from server import catalogue, containers, tallies
from server.brokerage import broker, dependencies
from server.core import Core
from server.jobs import cancelling
from server.models import Account, Bundle, Job, Queue, Site, Storage, Task, now
from server.paging import Cursor, iso, page_of_all
from server.specs import dump
from server.tallies import Tally, expected_jobs
from server.tallies import counts_of as counts_of
from server.tallies import state_of as state_of
from server.upkeep import archive
from server.urls import check_url

ANSWER_SECONDS = 1.0
"""How long the answer to a cancellation waits for the jobs to end."""
LONGEST_COMMAND = 65_536
"""Bytes of all words together; Linux takes 128 KiB in one word and more in all, but nobody should."""
LONGEST_ENVIRONMENT_VALUE = 32_000
SOFTWARE_SCHEMES = ("http", "https", "file")
"""From where pilots fetch software."""


def register(core: Core, spec: TaskSpec, owner: str) -> TaskView:
    """Accept a task: everything that can be wrong with it is said now, not by its jobs."""
    _check(spec)
    pilot_settings.check(TASK, spec.pilot_settings)
    _check_software(core, spec)

    def work() -> Task:
        if Task.get_or_none(Task.name == spec.name):
            raise PilotageError("ALREADY_EXISTS", f"there is a task {spec.name} already")
        inputs = containers.resolve(core, spec.input_dataset) if spec.input_dataset else []
        _check_against_database(spec)
        group = spec.working_group or _group_of(owner)
        after = dependencies.resolve(spec, owner, group)
        input_dataset = inputs[0] if inputs else None
        in_container = input_dataset is not None and input_dataset.name != spec.input_dataset
        task = Task.create(
            name=spec.name,
            owner=owner,
            spec=dump(spec),
            resource_type=spec.resource_type.value,
            priority=spec.priority,
            boost=dependencies.boost(core.limits, spec, input_dataset),
            job_class=broker.class_of(broker.needs_of(spec, group)),
            input_dataset=input_dataset,
            input_container=spec.input_dataset if in_container else None,
            working_group=group,
            country_group=spec.country_group,
            target_storage=spec.replicate_to or None,
        )
        dependencies.keep(task.id, after)
        if in_container:
            containers.keep(task.id, inputs)
        if spec.outputs:
            output = catalogue.create_output(spec.output_dataset or f"{spec.name}.out", task.id, owner)
            Task.update(output_dataset=output).where(Task.id == task.id).execute()
        return Task.get_by_id(task.id)

    task = core.database.write(work)
    core.to_form.set()
    return view(task, with_spec=True)


def _group_of(owner: str) -> str:
    account = Account.get_or_none(Account.name == owner)
    return str(account.working_group) if account else ""


def _check(spec: TaskSpec) -> None:
    """What can be said of a specification by itself."""
    if spec.name.isdigit():
        raise PilotageError(
            "BAD_REQUEST", f"name: {spec.name} has only digits and would be taken for a task's number"
        )
    _check_command(spec.command, spec, "command")
    _check_environment(spec.environment, spec, "environment")
    names = Counter(step.name for step in spec.steps if step.name)
    for index, step in enumerate(spec.steps):
        _check_command(step.command, spec, f"steps[{index}].command")
        _check_environment(step.environment, spec, f"steps[{index}].environment")
        if names[step.name] > 1:
            raise PilotageError("BAD_REQUEST", f"steps[{index}].name: {step.name} is there twice")
    if spec.gpus and spec.resource_type is not ResourceType.GPU:
        raise PilotageError(
            "BAD_REQUEST", f"gpus: {spec.gpus} are asked for, and resourceType is {spec.resource_type}"
        )
    if bool(spec.input_dataset) == bool(spec.n_jobs):
        raise PilotageError(
            "BAD_REQUEST",
            "a task has either an input dataset (--input, inputDataset: a job per file) "
            "or a number of jobs without input (--jobs, nJobs)",
        )
    if spec.replicate_to and (not spec.input_dataset or spec.outputs or spec.replicate > 1):
        raise PilotageError(
            "BAD_REQUEST",
            "replicateTo: such a task copies its input dataset; it has no outputs of its own, and no copies of its jobs",
        )
    if spec.n_jobs and spec.files_per_job != 1:
        raise PilotageError("BAD_REQUEST", "filesPerJob goes with an input dataset only")
    for index, output in enumerate(spec.outputs):
        used = templates.check(output, templates.OUTPUT_PLACEHOLDERS, f"outputs[{index}]")
        check_lfn(templates.fill(output, dict.fromkeys(templates.OUTPUT_PLACEHOLDERS, "1")))
        if not used & ({"lfn", "stem", "job_nr"} if spec.input_dataset else {"job_nr"}) and spec.n_jobs != 1:
            better = "{stem} or {job_nr}" if spec.input_dataset else "{job_nr}"
            raise PilotageError(
                "BAD_REQUEST",
                f"outputs[{index}] {output[:60]!a} is the same for every job; put {better} into it",
            )
        if spec.n_jobs and used & {"lfn", "stem"}:
            raise PilotageError(
                "BAD_REQUEST", f"outputs[{index}] {output[:60]!a} names an input, and the task has none"
            )
    if len(set(spec.outputs)) != len(spec.outputs):
        raise PilotageError("BAD_REQUEST", "outputs: a template is there twice")


def _check_command(words: Sequence[str], spec: TaskSpec, where: str) -> None:
    if sum(len(word.encode()) for word in words) > LONGEST_COMMAND:
        raise PilotageError(
            "BAD_REQUEST", f"{where}: more than {LONGEST_COMMAND} bytes; ship a script instead (--ship)"
        )
    for index, word in enumerate(words):
        used = templates.check(word, templates.COMMAND_PLACEHOLDERS, f"{where}[{index}]")
        _check_use(used, spec, f"{where}[{index}]")
        if "\0" in word:
            raise PilotageError("BAD_REQUEST", f"{where}[{index}] contains a NUL character")


def _check_environment(environment: Mapping[str, str], spec: TaskSpec, where: str) -> None:
    for name, value in environment.items():
        if (
            not name
            or "=" in name
            or "\0" in name + value
            or len(name) > 200
            or len(value) > LONGEST_ENVIRONMENT_VALUE
        ):
            raise PilotageError(
                "BAD_REQUEST", f"{where}: {name[:60]!a} is no name and value that a process can have"
            )
        used = templates.check(value, templates.COMMAND_PLACEHOLDERS, f"{where} {name}")
        _check_use(used, spec, f"{where} {name}")


def _check_use(used: set[str], spec: TaskSpec, where: str) -> None:
    """A placeholder that stands for nothing in this task would silently become nothing."""
    for names, given, what in (
        ({"input", "inputs", "lfn", "stem"}, spec.input_dataset, "input dataset"),
        ({"output", "outputs"}, spec.outputs, "outputs"),
        ({"bundle"}, spec.bundle, "bundle (--ship)"),
        ({"software"}, spec.software, "software"),
    ):
        if used & names and not given:
            raise PilotageError(
                "BAD_REQUEST", f"{where}: {{{min(used & names)}}} is used, and the task has no {what}"
            )


def _check_software(core: Core, spec: TaskSpec) -> None:
    """A path on the nodes, or a URL from which an input could come too."""
    wrong = _wrong_software(spec.software, spec.software_checksum)
    if wrong:
        raise PilotageError("BAD_REQUEST", wrong)
    if spec.software and not spec.software.startswith("/"):
        schemes = [scheme for scheme in core.limits.url_schemes if scheme in SOFTWARE_SCHEMES]
        try:
            check_url(spec.software, schemes, core.limits.allowed_paths)
        except PilotageError as error:
            raise PilotageError("BAD_REQUEST", f"software: {error.detail}") from None


def _wrong_software(address: str, checksum: str) -> str:
    """What is wrong with the two together, or ""."""
    if not address:
        return "softwareChecksum: there is no software" if checksum else ""
    if not address.startswith("/"):
        needs = (
            "software: a URL needs its checksum (--software-checksum), sha256: and what sha256sum FILE says"
        )
        return "" if checksum else needs
    if checksum:
        return "softwareChecksum: it is for a URL; a path is taken as it is on the nodes"
    if address != os.path.normpath(address) or address != one_line(address) or address.startswith("//"):
        return f"software: {address[:80]!a} is no plain path, as /cvmfs/REPOSITORY/VERSION"
    return ""


def _check_against_database(spec: TaskSpec) -> None:
    """What the specification names must exist."""
    if spec.queue:
        queue = Queue.get_or_none(Queue.name == spec.queue)
        if queue is None:
            raise PilotageError("NOT_FOUND", f"no queue {spec.queue}; see 'pilotage queue list'")
        if queue.resource_type != spec.resource_type.value:
            raise PilotageError(
                "BAD_REQUEST",
                f"queue {queue.name} is a {queue.resource_type} queue and the task asks for {spec.resource_type}",
            )
    if spec.replicate_to and not Storage.get_or_none(Storage.name == spec.replicate_to):
        raise PilotageError("NOT_FOUND", f"no storage {spec.replicate_to}; see 'pilotage storage list'")
    if spec.site and not Site.get_or_none(Site.name == spec.site):
        raise PilotageError("NOT_FOUND", f"no site {spec.site}; see 'pilotage site list'")
    if spec.bundle and not Bundle.get_or_none(Bundle.digest == spec.bundle):
        raise PilotageError(
            "NOT_FOUND", f"no bundle {spec.bundle}; send it first: PUT /v1/bundles/{spec.bundle}"
        )


def find(id_or_name: str) -> Task:
    task = Task.get_or_none(Task.id == int(id_or_name)) if _is_id(id_or_name) else None
    task = task or Task.get_or_none(Task.name == id_or_name)
    if task is None:
        raise PilotageError("NOT_FOUND", f"no task {id_or_name[:200]}; see 'pilotage task list'")
    return task


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20 and 0 < int(text) < 2**63


def cancel(core: Core, id_or_name: str, caller: str) -> TaskView:
    """End a task: no further job is formed, and those that have not ended are cancelled, a chunk at a time.

    What is not done when the answer is due, the closer goes on with.
    """
    with core.database.reading():
        task = find(id_or_name)
        cancelling.cancel_task(core, task.id, caller, ANSWER_SECONDS)
        return view(Task.get_by_id(task.id))


# -- reports ----------------------------------------------------------------------------------------------------------------


def view(task: Task, with_spec: bool = False) -> TaskView:
    shown = views([task])[0]
    shown.spec = json.loads(task.spec) if with_spec else None
    return shown


def views(shown: Sequence[Task]) -> list[TaskView]:
    """Of many tasks, in few questions for all of them together."""
    found = tallies.of([task.id for task in shown])
    outputs = catalogue.sizes([task.output_dataset for task in shown if task.output_dataset_id is not None])
    return [_view(task, found[task.id], outputs.get(task.output_dataset_id, (0, 0))[0]) for task in shown]


def _view(task: Task, tally: Tally, n_outputs: int) -> TaskView:
    expected = expected_jobs(task)
    output = task.output_dataset
    return TaskView(
        task_id=task.id,
        name=task.name,
        owner=task.owner,
        state=task_state(tally.counts, expected, task.cancelled).value,
        n_jobs=expected,
        counts={state.value: tally.counts[state] for state in JobState if state in tally.counts},
        n_attempts=tally.n_attempts,
        created=iso(task.created),
        resource_type=task.resource_type,
        priority=task.priority,
        input_dataset=task.input_container or (task.input_dataset.name if task.input_dataset else None),
        output_dataset=output.name if output else None,
        output_state=output.state if output else None,
        n_outputs=n_outputs,
        started=iso(task.started) if task.started else None,
        ended=iso(task.ended) if task.ended else None,
        errors=errors_of(task) if tally.counts.get(JobState.FAILED) else {},
        paused=task.paused,
        boost=task.boost,
        working_group=task.working_group,
    )


def errors_of(task: Task) -> dict[str, int]:
    """Failed jobs by error; those that wait for another try have one too, and those that were cancelled another."""
    failed = JobState.FAILED.value
    hot = Job.select(Job.error, fn.COUNT(Job.id)).where(
        Job.task == task.id, Job.error.is_null(False), Job.state == failed
    )
    return dict(Counter(archive.errors_of(task.id, failed)) + Counter(dict(hot.group_by(Job.error).tuples())))


def tasks(cursor: Cursor, state: str = "", name: str = "", owner: str = "", group: str = "") -> Page:
    query = Task.select()
    if owner:
        query = query.where(Task.owner == owner)
    if group:
        query = query.where(Task.working_group == group)
    if name:
        query = query.where(Task.name.contains(name))
    if state:
        query = query.where(tallies.is_in(TaskState(state)))
    return page_of_all(query, Task.id, cursor, views)


def end(core: Core, task_id: int) -> bool:
    """Close a task whose jobs have all ended, and its output dataset, once; whether it was that time."""

    def work() -> bool:
        task = core.database.locked(Task.select().where(Task.id == task_id)).get()
        if not Task.select().where(Task.id == task_id, tallies.may_end()).exists():
            return False
        if task.output_dataset_id is not None:
            catalogue.close_output(task.output_dataset_id)
        # Not all_formed too: of a task that was cancelled before, the jobs not formed count as not done.
        Task.update(ended=now()).where(Task.id == task.id).execute()
        return True

    return core.database.write(work)
