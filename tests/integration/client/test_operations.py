"""The commands by which users and operators steer what goes on: why, retry, pause, priorities, queues, sites, nodes, pilots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from client.session import Session
from protocol.messages.requests import DatasetSpec, FileSpec, QueueSpec, TaskSpec
from protocol.states import JobState
from tests.integration.client.conftest import Pilotage
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("server")


def ready(session: Session, name: str, n_jobs: int = 2, **spec: Any) -> None:
    """A task whose jobs wait: no pilot is there in these tests."""
    session.submit_task(TaskSpec(name=name, command=["true"], n_jobs=n_jobs, **spec))
    wait_until(lambda: session.task(name).counts == {JobState.READY.value: n_jobs}, what="jobs")


def test_why_a_job_waits_is_said_in_words_and_to_programs(pilotage: Pilotage, session: Session) -> None:
    ready(session, "why", cores=64)
    job = next(session.jobs(task="why"))
    done = pilotage("job", "why", job.job_id)
    assert done.code == 0, done.err
    first, *rest = done.out.splitlines()
    assert first.startswith(f"Job {job.job_id}, number 1 of task why, is READY since ")
    assert any(line.startswith("- nobody can take it now: ") for line in rest)
    assert any(line.split()[:4] == ["CPU", "LOCAL", "online", "0"] for line in rest)
    told = json.loads(pilotage("job", "why", job.job_id, "--json").out)
    assert {queue["queue"] for queue in told["queues"]} >= {"CPU", "GPU"}
    of_task = pilotage("task", "why", "why")
    assert of_task.out.startswith("Task why is RUNNING since ")
    assert json.loads(pilotage("task", "why", "why", "--json").out)["task"] == "why"
    assert "nobody can take its jobs now" in pilotage("task", "show", "why").out
    assert pilotage("job", "why", 999999999).code == 1
    assert pilotage("task", "why", "no-such-task").code == 1


def test_a_task_is_paused_resumed_and_gets_another_priority(pilotage: Pilotage, session: Session) -> None:
    ready(session, "pausable")
    assert "is RUNNING, paused, priority 0: READY 2." in pilotage("task", "pause", "pausable").out
    assert "RUNNING, paused" in pilotage("task", "show", "pausable").out
    assert "it is paused" in pilotage("task", "why", "pausable").out
    assert "paused" not in pilotage("task", "resume", "pausable").out
    assert "priority 7" in pilotage("task", "set-priority", "pausable", 7).out
    assert "priority -5" in pilotage("task", "set-priority", "pausable", "--", -5).out
    assert {job.priority for job in session.jobs(task="pausable")} == {-5}
    assert pilotage("task", "set-priority", "pausable", 99_999_999).code == 1
    assert json.loads(pilotage("task", "pause", "pausable", "--json").out)["paused"] is True


def test_98_what_went_wrong_in_a_task_is_said_in_a_table_and_to_programs(
    pilotage: Pilotage, session: Session
) -> None:
    session.create_dataset(
        DatasetSpec(
            "bad-names",
            files=[FileSpec(f"{'f' * 50}{nr}", 1, "file:///data/f") for nr in range(2)],
            close=True,
        )
    )
    ready(session, "fine", 1)
    assert "Nothing has failed in task fine." in pilotage("task", "errors", "fine").err
    wrong = TaskSpec("wrong", ["true"], input_dataset="bad-names", outputs=["{stem}" + "x" * 215])
    session.submit_task(wrong)
    wait_until(lambda: session.task("wrong").counts == {JobState.FAILED.value: 2}, what="jobs")
    done = pilotage("task", "errors", "wrong")
    assert done.code == 0, done.err
    (line,) = [line for line in done.out.splitlines() if "BAD_LFN" in line]
    assert line.split()[:2] == ["2", "2"]
    assert "before any node" in line
    assert "next: pilotage job log" in done.err
    told = json.loads(pilotage("task", "errors", "wrong", "--json").out)
    assert told["failures"][0]["nJobs"] == 2
    assert pilotage("task", "errors", "no-such-task").code == 1


def test_cancelled_jobs_are_tried_again(pilotage: Pilotage, session: Session) -> None:
    ready(session, "again", 3)
    first, second, _ = session.jobs(task="again")
    for job in (first, second):
        session.cancel_job(job.job_id)
    refused = pilotage("task", "retry", "again", "--failed")
    assert refused.code == 1 and "no job of task again is FAILED" in refused.err
    assert pilotage("task", "retry", "again", "--job", first.job_nr).out == "Task again: 1 job tried again.\n"
    assert "is READY" in pilotage("job", "retry", second.job_id).out
    assert session.task("again").counts == {JobState.READY.value: 3}
    assert pilotage("job", "retry", second.job_id).code == 1
    pilotage("task", "cancel", "again")
    assert json.loads(pilotage("task", "retry", "again", "--cancelled", "--json").out)["nJobs"] == 3


def test_several_tasks_are_cancelled_and_those_after_one(pilotage: Pilotage, session: Session) -> None:
    for name in ("several-a", "several-b"):
        ready(session, name, 1)
    session.submit_task(TaskSpec(name="several-c", command=["true"], n_jobs=1, after=["several-b"]))
    assert "it waits for task several-b to complete" in pilotage("task", "show", "several-c").out
    done = pilotage("task", "cancel", "several-a", "several-b", "--cascade")
    assert done.code == 0 and len(done.out.splitlines()) == 2, done.err
    assert {session.task(name).state for name in ("several-a", "several-b", "several-c")} == {"CANCELLED"}


def test_tasks_are_listed_by_owner_and_group(pilotage: Pilotage, session: Session) -> None:
    mine = session.submit_task(TaskSpec(name="grouped", command=["true"], n_jobs=1))
    listed = json.loads(pilotage("task", "list", "--owner", mine.owner, "--name", "grouped", "--json").out)
    assert [task["name"] for task in listed] == ["grouped"]
    assert json.loads(pilotage("task", "list", "--owner", "nobody-else", "--json").out) == []
    assert json.loads(pilotage("task", "list", "--group", "no-such-group", "--json").out) == []


def test_an_empty_list_of_jobs_says_of_what_there_is_none(pilotage: Pilotage, session: Session) -> None:
    ready(session, "full")
    nothing = pilotage("job", "list", "--task", "full", "--state", "FAILED")
    assert (nothing.code, nothing.err) == (0, "No job of task full is FAILED.\n")
    session.submit_task(TaskSpec(name="not-yet", command=["true"], n_jobs=1, after=["full"]))
    unformed = pilotage("job", "list", "--task", "not-yet")
    assert unformed.err == "No job of task not-yet was formed yet; see: pilotage task why not-yet\n"
    other = pilotage("job", "list", "--error", "MISSING_OUTPUT")
    assert other.err == "No job has the error MISSING_OUTPUT.\n"


def test_every_new_option_of_submit_reaches_the_server(pilotage: Pilotage, session: Session) -> None:
    ready(session, "before")
    done = pilotage(
        "task", "submit", "--name", "wishes", "--jobs", 1, "--site", "LOCAL", "--requires", "cvmfs", "--requires", "avx2",
        "--tag", "smb", "--after", "before", "--country", "RU", "--", "true",
    )  # fmt: skip
    assert done.code == 0, done.err
    spec = session.task("wishes").spec or {}
    assert (spec["site"], spec["requires"], spec["tags"], spec["after"], spec["countryGroup"]) == (
        *("LOCAL", ["cvmfs", "avx2"], ["smb"], ["before"], "RU"),
    )
    assert pilotage("task", "submit", "--jobs", 1, "--after", "no-such-task", "--", "true").code == 1


def test_a_queue_has_tags_and_a_reason(pilotage: Pilotage) -> None:
    made = pilotage("queue", "create", "TAGGED", "--tags", "cvmfs,avx2", "--tag", "gcc", "--country", "RU",
                    "--requeue-delay", 90, "--json")  # fmt: skip
    assert made.code == 0, made.err
    view = json.loads(made.out)
    assert (view["tags"], view["countryGroup"], view["requeueDelaySeconds"]) == (
        ["avx2", "cvmfs", "gcc"],
        "RU",
        90,
    )
    shown = pilotage("queue", "set", "TAGGED", "drain", "--reason", "new disks").out
    assert "drain, by admin: new disks" in shown and "avx2, cvmfs, gcc" in shown
    assert "new disks" in pilotage("queue", "list").out


def test_a_queue_is_changed_in_what_is_given_and_deleted(pilotage: Pilotage, session: Session) -> None:
    pilotage("queue", "create", "CHANGING", "--copytools", "nfs,cp", "--tags", "a,b", "--country", "RU")
    done = pilotage(
        "queue", "set", "CHANGING", "drain", "--reason", "new disks", "--gpu", "--lease-seconds", 600, "--tags", "",
        "--pilot-setting", "payload.task_images=yes", "--pilot-setting", "payload.network=yes", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    view = json.loads(done.out)
    assert (view["state"], view["resourceType"], view["leaseSeconds"], view["tags"]) == (
        "drain",
        "gpu",
        600,
        [],
    )
    assert (view["copytools"], view["countryGroup"]) == (["nfs", "cp"], "RU")
    assert view["pilotSettings"] == {"payload.task_images": "yes", "payload.network": "yes"}
    again = pilotage(
        "queue", "set", "CHANGING", "--cpu", "--unset", "payload.network", "--copytool", "", "--json"
    )
    view = json.loads(again.out)
    assert (view["resourceType"], view["pilotSettings"]) == ("cpu", {"payload.task_images": "yes"})
    assert view["copytools"] == []
    for wrong in ([], ["--reason", "why"]):
        assert pilotage("queue", "set", "CHANGING", *wrong).code == 2
    session.submit_task(TaskSpec(name="holds", command=["true"], n_jobs=1, queue="CHANGING"))
    refused = pilotage("queue", "delete", "CHANGING")
    assert refused.code == 1 and "takes the jobs of tasks that have not ended: holds" in refused.err
    pilotage("task", "cancel", "holds")
    wait_until(lambda: session.task("holds").ended, what="the end")
    assert pilotage("queue", "delete", "CHANGING").out == "The queue CHANGING is deleted.\n"
    assert pilotage("queue", "show", "CHANGING").code == 1


@pytest.mark.parametrize("verb", [["create", "NEW"], ["set", "CPU"]])
def test_what_no_pilot_of_a_queue_could_use_is_refused_by_the_options_name(
    pilotage: Pilotage, verb: list[str]
) -> None:
    for option, value, said in (
        ("--copytool", "nosuch", "--copytool: 'nosuch' is not known; there are cp, gfal, gs"),
        (
            "--pilot-setting",
            "limits.loping_seconds=1",
            "--pilot-setting: 'limits.loping_seconds' is not for a queue",
        ),
        (
            "--pilot-setting",
            "limits.looping_seconds=-1",
            "looping_seconds must be from 0 to 31536000, not '-1'",
        ),
    ):
        done = pilotage("queue", *verb, option, value)
        assert done.code == 1 and said in done.err, done.err


def test_a_task_that_no_queue_takes_is_warned_about_when_it_is_submitted(pilotage: Pilotage) -> None:
    done = pilotage("task", "submit", "--name", "boxed", "--jobs", 1, "--image", "/cvmfs/x.sif", "--", "true")
    assert done.code == 0 and "warning: no queue takes its jobs: " in done.err
    assert "runs no containers for tasks (payload.task_images)" in done.err
    other = pilotage("task", "submit", "--name", "unboxed", "--jobs", 1, "--", "true")
    assert other.code == 0 and "warning" not in other.err


def test_a_queue_gives_settings_to_its_pilots(pilotage: Pilotage) -> None:
    made = pilotage("queue", "create", "PICKY", "--pilot-setting", "validation.tools=apptainer,git",
                    "--pilot-setting", "validation.clock_skew_seconds = 60")  # fmt: skip
    assert made.code == 0, made.err
    assert "validation.tools = apptainer,git, validation.clock_skew_seconds = 60" in " ".join(
        made.out.split()
    )
    wrong = pilotage("queue", "create", "WRONG", "--pilot-setting", "validation.tools")
    assert wrong.code == 2 and "write SECTION.KEY=VALUE" in " ".join(wrong.err.split())


def test_a_site_is_closed_and_opened(pilotage: Pilotage, session: Session) -> None:
    session.create_queue(QueueSpec("FARQ", site="FAR"))
    assert pilotage("site", "set", "FAR", "offline", "--reason", "no power").out == "Site FAR is offline.\n"
    (row,) = [line for line in pilotage("site", "list").out.splitlines() if line.startswith("FAR")]
    assert row.split(maxsplit=2)[1:] == ["offline", "no power"]
    assert pilotage("site", "set", "FAR", "online").code == 0
    assert pilotage("site", "set", "FAR", "drain").code == 2
    assert pilotage("site", "set", "NOWHERE", "online").code == 1


def test_a_node_is_put_aside_and_lifted(pilotage: Pilotage) -> None:
    done = pilotage("node", "set", "CPU", "wn17", "--offline", "--reason", "bad disk")
    assert (done.code, done.out) == (0, "Node wn17 of CPU is offline.\n"), done.err
    assert "have not been seen on wn17 of late" in done.err
    (row,) = [line for line in pilotage("node", "list", "--queue", "CPU").out.splitlines() if "wn17" in line]
    assert "offline" in row and "by admin: bad disk" in row
    assert pilotage("node", "set", "CPU", "wn17", "--online").out == "Node wn17 of CPU is online.\n"
    assert pilotage("node", "set", "CPU", "wn17").code == 2
    assert pilotage("node", "set", "CPU", "nobody", "--online").code == 1


def test_what_is_forbidden_or_too_late_is_told_with_whom_or_what_to_ask(
    pilotage: Pilotage, session: Session, tmp_path: Path
) -> None:
    ready(session, "not-hers", 1)
    pilotage("token", "create", "op-grace", "--role", "user", "--out", tmp_path / "grace.token")
    hers = ("--server", session.url, "--token-file", tmp_path / "grace.token")
    refused = pilotage("task", "cancel", "not-hers", *hers)
    assert refused.err.splitlines()[1:] == ["next: ask one of them"]
    job = next(session.jobs(task="not-hers"))
    assert pilotage("job", "log", job.job_id).err.splitlines()[1:] == [f"next: pilotage job why {job.job_id}"]
    pilotage("task", "cancel", "not-hers")
    wait_until(lambda: session.task("not-hers").ended, what="the end")
    late = pilotage("task", "pause", "not-hers")
    assert late.err.splitlines()[1].endswith(": pilotage task retry not-hers")
    told = pilotage("job", "why", job.job_id).out
    assert f"pilotage job retry {job.job_id}'" in told and " ID" not in told


def test_a_storage_has_a_site(pilotage: Pilotage) -> None:
    assert pilotage("storage", "create", "NEARBY", "file:///near", "--site", "LOCAL").code == 0
    (row,) = [line for line in pilotage("storage", "list").out.splitlines() if line.startswith("NEARBY")]
    assert row.split() == ["NEARBY", "file:///near", "LOCAL", "-", "-"], "no file on it is suspect or bad"


def test_pilots_are_drained_by_name_or_by_queue(pilotage: Pilotage) -> None:
    assert pilotage("pilot", "drain", "nobody").code == 1
    assert pilotage("pilot", "drain").code == 2
    assert pilotage("pilot", "drain", "p", "--queue", "CPU").code == 2
    done = pilotage("pilot", "drain", "--queue", "GPU")
    assert done.out == "0 pilots of GPU will take no further job.\n"
    assert "next: pilotage pilot list --queue GPU --state alive" in done.err
    assert "pilotage queue set GPU drain" in done.err
