"""Tasks: everything that can be wrong is said at once, and what is reported follows from the jobs."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from protocol.errors import PilotageError
from protocol.messages import from_wire, to_wire
from protocol.messages.pilots import JobSpec, Step, StepKind
from protocol.messages.requests import DatasetSpec, QueueSpec, TaskSpec
from protocol.resources import ResourceType
from protocol.states import JobState
from server import catalogue, computing, task_manager
from server.models import Task
from server.paging import Cursor
from tests.integration.server.world import World, at_once


def spec(**changes: Any) -> TaskSpec:
    return TaskSpec(**{"name": "t", "command": ["true"], "n_jobs": 1, **changes})


DIGEST = f"sha256:{'0' * 64}"


def software(url: str) -> dict[str, str]:
    return {"software": url, "software_checksum": DIGEST}


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "no work": ({"n_jobs": 0}, "BAD_REQUEST", "either an input dataset"),
    "two kinds of work": ({"input_dataset": "in"}, "BAD_REQUEST", "either an input dataset"),
    "groups of nothing": ({"files_per_job": 2}, "BAD_REQUEST", "filesPerJob"),
    "unknown dataset": ({"n_jobs": 0, "input_dataset": "nope"}, "NOT_FOUND", "no dataset nope"),
    "empty dataset": ({"n_jobs": 0, "input_dataset": "empty"}, "BAD_REQUEST", "has no files"),
    "unknown queue": ({"queue": "nope"}, "NOT_FOUND", "no queue nope"),
    "queue of another kind": ({"queue": "GPU"}, "BAD_REQUEST", "is a gpu queue"),
    "unknown bundle": ({"bundle": "0" * 64}, "NOT_FOUND", "no bundle"),
    "software without one": ({"command": ["{software}/x"]}, "BAD_REQUEST", "no software"),
    "software without a checksum": (
        {"software": "https://host/x.tar.gz"},
        "BAD_REQUEST",
        "software: a URL needs its checksum",
    ),
    "a checksum of nothing": (
        {"software_checksum": DIGEST},
        "BAD_REQUEST",
        "softwareChecksum: there is no software",
    ),
    "a path with a checksum": (
        {"software": "/cvmfs/r/s", "software_checksum": DIGEST},
        "BAD_REQUEST",
        "softwareChecksum: it is for a URL",
    ),
    "b1 software that climbs": (
        {"software": "/cvmfs/../etc"},
        "BAD_REQUEST",
        "software: .* is no plain path",
    ),
    "b22 software with an escape": ({"software": "/cvmfs/\x1b[2J"}, "BAD_REQUEST", "is no plain path"),
    "b25 software of the system": (
        software("file:///etc/shadow"),
        "BAD_REQUEST",
        "software: .*belongs to the system",
    ),
    "b25 software of the cloud": (software("http://169.254.169.254/x"), "BAD_REQUEST", "machines' own use"),
    "b25 software with a password": (
        software("https://me:secret@host/x"),
        "BAD_REQUEST",
        "user or a password",
    ),
    "b25 software by another scheme": (
        software("root://host/x"),
        "BAD_REQUEST",
        "there are file, http, https",
    ),
    "a relative path": ({"software": "reco/1.2"}, "BAD_REQUEST", "a URL needs its checksum"),
    "a pilot's setting": (
        {"pilot_settings": {"payload.executor": "plain"}},
        "BAD_REQUEST",
        "not for a task to set",
    ),
    "a pilot's setting's value": (
        {"pilot_settings": {"limits.cpu_seconds": "much"}},
        "BAD_REQUEST",
        "pilotSettings: limits.cpu_seconds must be a whole number",
    ),
    "a name of digits": ({"name": "17"}, "BAD_REQUEST", "only digits"),
    "command too long": ({"command": ["x" * 70_000]}, "BAD_REQUEST", "--ship"),
    "output without outputs": ({"command": ["true", "{output}"]}, "BAD_REQUEST", "no outputs"),
    "input without inputs": ({"command": ["true", "{inputs}"]}, "BAD_REQUEST", "no input dataset"),
    "bundle without one": ({"command": ["{bundle}/x"]}, "BAD_REQUEST", "no bundle"),
    "gpus of a cpu": ({"gpus": 2}, "BAD_REQUEST", "resourceType is cpu"),
    "placeholder in the command": ({"command": ["{nope}"]}, "BAD_REQUEST", r"command\[0\]"),
    "brace in the command": ({"command": ["true", "a}"]}, "BAD_REQUEST", r"command\[1\]"),
    "nul in the command": ({"command": ["a\0b"]}, "BAD_REQUEST", "NUL"),
    "placeholder in the environment": ({"environment": {"A": "{nope}"}}, "BAD_REQUEST", "environment A"),
    "environment without a name": ({"environment": {"": "x"}}, "BAD_REQUEST", "environment"),
    "environment with an equals sign": ({"environment": {"A=B": "x"}}, "BAD_REQUEST", "environment"),
    "environment with nul": ({"environment": {"A": "x\0"}}, "BAD_REQUEST", "environment"),
    "environment too long": ({"environment": {"A": "x" * 40_000}}, "BAD_REQUEST", "environment"),
    "placeholder in a step": (
        {"steps": [Step(StepKind.PRE, ["{nope}"])]},
        "BAD_REQUEST",
        r"steps\[0\].command\[0\]",
    ),
    "nul in a step": ({"steps": [Step(StepKind.CO, ["x\0"])]}, "BAD_REQUEST", "NUL"),
    "a step's environment": (
        {"steps": [Step(StepKind.CO, ["x"], environment={"": "x"})]},
        "BAD_REQUEST",
        r"steps\[0\].environment",
    ),
    "two steps of one name": (
        {"steps": [Step(StepKind.PRE, ["x"], "a"), Step(StepKind.POST, ["x"], "a")]},
        "BAD_REQUEST",
        "there twice",
    ),
    "placeholder in an output": ({"outputs": ["{input}"]}, "BAD_REQUEST", r"outputs\[0\]"),
    "an input's name without inputs": ({"outputs": ["{stem}.x"]}, "BAD_REQUEST", "names an input"),
    "one name for all jobs": ({"n_jobs": 2, "outputs": ["x"]}, "BAD_REQUEST", "same for every job"),
    "one name for all files": (
        {"n_jobs": 0, "input_dataset": "in", "outputs": ["{task_id}.x"]},
        "BAD_REQUEST",
        "same for every job",
    ),
    "an output twice": ({"outputs": ["a{job_nr}", "a{job_nr}"]}, "BAD_REQUEST", "twice"),
    "b1 output climbs out": ({"outputs": ["../{job_nr}"]}, "BAD_LFN", "slash"),
    "b2 output absolute": ({"outputs": ["/etc/{job_nr}"]}, "BAD_LFN", "slash"),
    "b4 output with a newline": ({"outputs": ["a\n{job_nr}"]}, "BAD_LFN", "U\\+000A"),
    "b4 output with nul": ({"outputs": ["a\0{job_nr}"]}, "BAD_LFN", "U\\+0000"),
    "b4 output too long": ({"outputs": ["a" * 300 + "{job_nr}"]}, "BAD_LFN", "bytes"),
    "b24 output like an option": ({"outputs": ["-{job_nr}"]}, "BAD_LFN", "dash"),
    "name of an output dataset taken": (
        {"outputs": ["{job_nr}"], "output_dataset": "in"},
        "ALREADY_EXISTS",
        "--output-dataset",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_task_is_said_when_it_is_registered(world: World, case: str) -> None:
    changes, error, detail = WRONG[case]
    world.dataset()
    world.dataset(0, "empty")
    with world.refused(error, detail):
        task_manager.register(world.core, spec(**changes), "ada")


def test_a_task_has_its_name_alone(world: World) -> None:
    world.task(n_jobs=1)
    with world.refused("ALREADY_EXISTS"):
        world.task(n_jobs=1)


def test_of_many_that_register_a_name_at_once_one_gets_it(world: World) -> None:
    futures = at_once([lambda: world.task(n_jobs=1, outputs=["{job_nr}"])] * 6)
    errors = [future.exception() for future in futures]
    assert errors.count(None) == 1
    refused = [error for error in errors if error is not None]
    assert {getattr(error, "name", repr(error)) for error in refused} == {"ALREADY_EXISTS"}
    assert Task.select().count() == 1


def test_a_task_makes_its_output_dataset(world: World) -> None:
    world.task(n_jobs=1, outputs=["{job_nr}"])
    seen = catalogue.view(catalogue.find("t.out"))
    assert (seen.state, seen.scope, seen.task_id, seen.n_files) == ("open", "t.out", 1, 0)
    world.task("u", n_jobs=1, outputs=["{job_nr}"], output_dataset="mine")
    assert catalogue.view(catalogue.find("mine")).task_id == 2


def test_a_task_is_seen_as_it_was_registered(world: World) -> None:
    computing.create_queue(world.core, QueueSpec("BIG", resource_type=ResourceType.GPU))
    view = task_manager.register(
        world.core,
        spec(
            command=["sh", "-c", "echo '$HOME' {{x}} ü"],
            queue="BIG",
            resource_type=ResourceType.GPU,
            priority=-7,
            environment={"A": "{job_nr}"},
            outputs=["o{job_nr}"],
        ),
        "ada",
    )
    assert (view.owner, view.state, view.n_jobs, view.counts) == ("ada", "REGISTERED", 1, {})
    assert view.spec is not None
    assert view.spec["command"] == ["sh", "-c", "echo '$HOME' {{x}} ü"]
    assert view.spec["resourceType"] == "gpu"
    assert task_manager.view(task_manager.find("t"), with_spec=True) == view


def test_software_and_settings_of_a_task_reach_each_of_its_jobs(world: World) -> None:
    wanted = {"limits.looping_seconds": "60"}
    world.ready(2, pilot_settings=wanted, **software("https://host/reco.tar.gz"))
    for job in world.claim(n_jobs=2):
        assert (job.software, job.software_checksum) == ("https://host/reco.tar.gz", DIGEST)
        assert job.pilot_settings == wanted
    assert task_manager.register(world.core, spec(name="u", software="/cvmfs/spd/reco/1.2"), "ada").spec


def test_an_operator_who_allows_no_web_addresses_allows_none_for_software(world: World) -> None:
    core = replace(world.core, limits=replace(world.core.limits, url_schemes=("file",)))
    with pytest.raises(PilotageError, match="there are file"):
        task_manager.register(core, spec(**software("https://host/x")), "ada")


def test_steps_and_image_of_a_task_reach_each_of_its_jobs(world: World) -> None:
    steps = [
        Step(StepKind.POST, ["gzip", "log"], "pack", {"A": "{job_nr}"}, 60, "/image"),
        Step(StepKind.CO, ["./service"]),
    ]
    images = {"payload.task_images": "yes"}
    computing.create_queue(world.core, QueueSpec("BOXES", pilot_settings=images))
    world.ready(2, steps=steps, image="docker://debian:12")
    world.pilot("p2", "BOXES")
    for _ in range(2):
        (job,) = world.claim("p2", queue="BOXES")
        assert (job.steps, job.image) == (steps, "docker://debian:12")
        assert from_wire(JobSpec, json.loads(json.dumps(to_wire(job)))) == job


def test_the_report_follows_the_jobs(world: World) -> None:
    world.dataset(4)
    world.task(outputs=["{stem}.o"], max_attempts=1)
    seen = []

    def look() -> None:
        view = task_manager.view(task_manager.find("t"))
        seen.append((view.state, view.n_jobs, view.counts, view.n_attempts, view.n_outputs))

    look()
    world.form()
    look()
    world.pilot()
    jobs = world.claim(n_jobs=4)
    world.say(jobs[0], JobState.RUNNING)
    world.complete(jobs[1])
    look()
    world.complete(jobs[0])
    world.complete(jobs[2])
    world.fail(jobs[3])
    look()
    assert seen == [
        ("REGISTERED", 4, {}, 0, 0),
        ("RUNNING", 4, {"READY": 4}, 0, 0),
        ("RUNNING", 4, {"EXTRACTED": 2, "RUNNING": 1, "COMPLETED": 1}, 4, 1),
        ("PARTIAL", 4, {"COMPLETED": 3, "FAILED": 1}, 4, 3),
    ]


def test_tasks_are_found_by_state_and_part_of_the_name(world: World) -> None:
    world.task("alpha", n_jobs=1)
    world.form()
    world.task("beta", n_jobs=1)
    assert [task.name for task in task_manager.tasks(Cursor()).items] == ["alpha", "beta"]
    assert [task.name for task in task_manager.tasks(Cursor(), state="RUNNING").items] == ["alpha"]
    assert [task.name for task in task_manager.tasks(Cursor(), state="FAILED").items] == []
    assert [task.name for task in task_manager.tasks(Cursor(), name="et").items] == ["beta"]
    assert [task.name for task in task_manager.tasks(Cursor(), name="%").items] == []


@pytest.mark.parametrize(
    "wanted",
    [
        "0",
        "-1",
        "99",
        str(2**63),
        "9" * 19,
        "9" * 5000,
        "0" * 19 + "1" + "9" * 30,
        "1 OR 1=1",
        "1.0",
        "",
        "١",
        "²",
        "nope",
    ],
)
def test_b14_what_is_no_task_is_not_found(world: World, wanted: str) -> None:
    world.task(n_jobs=1)
    with world.refused("NOT_FOUND"):
        task_manager.find(wanted)
    with world.refused("NOT_FOUND"):
        task_manager.cancel(world.core, wanted, "ada")


def test_a_task_is_found_by_number_and_by_name(world: World) -> None:
    world.task(n_jobs=1)
    world.task("1a", n_jobs=1)
    assert task_manager.find("1").name == task_manager.find("t").name == "t"
    assert task_manager.find("1a").id == 2


def test_a_deleted_dataset_is_no_input(world: World) -> None:
    catalogue.create(world.core, DatasetSpec("gone"))
    catalogue.Dataset.update(state="deleted").execute()
    with world.refused("WRONG_STATE", "was deleted"):
        world.task(input_dataset="gone")
