"""The commands against a real server: what they print, their exit codes, and what they say when something is wrong."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path
from typing import Any, List

import pytest

from client.session import Session
from pilot.server_client import ServerClient
from protocol.errors import BY_NAME, PilotageError
from protocol.messages import to_wire
from protocol.messages.pilots import CacheReport, GpuKind, Heartbeat, PilotRegistration
from protocol.messages.requests import TaskSpec
from protocol.messages.views import AttemptView, DebugView, FileView, JobView, ReplicaView
from protocol.resources import ResourceType
from protocol.share import shared_path
from protocol.states import JobState
from tests.integration.client.conftest import Pilotage, Server
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("server")


def files(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"run-000001-{number:05d}-00.spd").write_bytes(bytes([number]) * (number + 1))
    return folder


# -- tasks --------------------------------------------------------------------------------------------------------


def test_the_first_task_of_the_readme_is_submitted(pilotage: Pilotage) -> None:
    done = pilotage("task", "submit", "--from", shared_path("etc/examples/hello.json"))
    assert (done.code, done.err) == (0, "next: pilotage task watch hello\n")
    assert done.out.endswith("(hello): 2 jobs.\n")
    again = pilotage("task", "submit", "--from", shared_path("etc/examples/hello.json"))
    assert again.code == 1
    assert again.err.startswith("Error: the name is taken: ")


def test_every_option_of_submit_reaches_the_server(pilotage: Pilotage, session: Session) -> None:
    done = pilotage(
        "task", "submit", "--name", "all-options", "--jobs", 4, "--output", "a-{job_nr}", "--output", "b-{job_nr}",
        "--output-dataset", "all-options-results", "--env", "A=1", "--env", "B=x=y", "--gpu", "--gpus", 2, "--cores", 3,
        "--memory-mb", 100, "--disk-mb", 200, "--walltime-seconds", "5m", "--priority", 7, "--max-attempts", 5,
        "--max-losses", 6, "--replicate", 2, "--queue", "GPU", "--label", "ptest", "--data-type", "raw", "--json",
        "--pre", "tar xf 'a b.tar'", "--post", "gzip log", "--post", "ls", "--co", "./service", "--image", "docker://debian:12",
        "--software", "https://host/reco.tar.gz", "--software-checksum", f"sha256:{'0' * 64}",
        "--pilot-setting", "limits.looping_seconds=60", "--pilot-setting", "limits.cpu_seconds = 0",
        "--", "prog", "--flag", "{output}", "-x",
    )  # fmt: skip
    assert done.code == 0, done.err
    spec = session.task("all-options").spec
    assert spec == {
        "name": "all-options", "command": ["prog", "--flag", "{output}", "-x"], "inputDataset": "", "nJobs": 4,
        "filesPerJob": 1, "outputs": ["a-{job_nr}", "b-{job_nr}"], "outputDataset": "all-options-results",
        "environment": {"A": "1", "B": "x=y"}, "resourceType": "gpu", "cores": 3, "memoryMb": 100, "diskMb": 200,
        "walltimeSeconds": 300, "gpus": 2, "priority": 7, "maxAttempts": 5, "maxLosses": 6, "replicate": 2, "replicateTo": "", "queue": "GPU",
        "prodSourceLabel": "ptest", "dataType": "raw", "bundle": "", "site": "", "workingGroup": "", "countryGroup": "",
        "requires": [], "tags": [], "after": [], "image": "docker://debian:12",
        "software": "https://host/reco.tar.gz", "softwareChecksum": f"sha256:{'0' * 64}",
        "pilotSettings": {"limits.looping_seconds": "60", "limits.cpu_seconds": "0"},
        "steps": [
            {"kind": kind, "command": command, "name": "", "environment": {}, "timeoutSeconds": 0, "image": ""}
            for kind, command in [
                ("pre", ["tar", "xf", "a b.tar"]), ("co", ["./service"]), ("post", ["gzip", "log"]), ("post", ["ls"])
            ]
        ],
    }  # fmt: skip
    assert json.loads(done.out)["name"] == "all-options"


def test_an_option_is_stronger_than_the_file(pilotage: Pilotage, session: Session, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('{"name": "from-file", "command": ["true"], "nJobs": 2, "priority": 1}')
    assert (
        pilotage("task", "submit", "--from", tmp_path / "t.json", "--name", "from-option", "--jobs", 5).code
        == 0
    )
    view = session.task("from-option")
    assert (view.n_jobs, view.priority) == (5, 1)


def test_a_task_without_a_name_gets_one_of_its_program(pilotage: Pilotage) -> None:
    names = [json.loads(pilotage("task", "submit", "--jobs", 1, "--json", "--", word).out)["name"]
             for word in ("/opt/bin/reco.py", "{workdir}/go", "echo")]  # fmt: skip
    assert [name.partition("-")[0] for name in names] == ["reco", "go", "echo"]


def test_shipped_code_is_sent_once_and_named_in_the_task(
    pilotage: Pilotage, session: Session, tmp_path: Path
) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "run.sh").write_text("#!/bin/sh\n")
    for name in ("ship-1", "ship-2"):
        done = pilotage(
            "task",
            "submit",
            "--name",
            name,
            "--jobs",
            1,
            "--ship",
            tmp_path / "code",
            "--",
            "{bundle}/run.sh",
        )
        assert done.code == 0, done.err
    digests = {(session.task(name).spec or {})["bundle"] for name in ("ship-1", "ship-2")}
    assert len(digests) == 1 and len(digests.pop()) == 64


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--jobs", "1"], 2, "no command: it stands at the end, behind --"),
        (["--jobs", "0", "--", "true"], 1, "either an input dataset"),
        (["--jobs", "-3", "--", "true"], 1, ": --jobs: must be at least 0"),
        (["--jobs", "x", "--", "true"], 2, "'x' is not a valid integer"),
        (["--jobs", "1", "--walltime-seconds", "5x", "--", "true"], 2, "'5x' is no time"),
        (
            ["--jobs", "1", "--walltime-seconds", "99999w", "--", "true"],
            1,
            ": --walltime-seconds: must be at most",
        ),
        (["--jobs", "1", "--cores", "0", "--", "true"], 1, ": --cores: must be at least 1"),
        (["--jobs", "1", "--priority", "99999999", "--", "true"], 1, ": --priority: must be at most 1000000"),
        (["--jobs", "1", "--name", "a b", "--", "true"], 1, ": --name: it is made of letters, digits and"),
        (["--jobs", "1", "--", "sh", "-c", "echo ${HOME}"], 1, "write ${{HOME}} for a shell's variable"),
        (["--jobs", "1", "--", "true", "{nothing}"], 1, "'{nothing}' in the command is no placeholder"),
        (["--jobs", "2", "--", "echo", "{input}"], 1, "the command: {input} is used"),
        (["--jobs", "2", "--output", "a", "--", "true"], 1, "--output 'a' is the same for every job"),
        (["--jobs", "2", "--output", "{x}", "--", "true"], 1, "'{x}' in --output is no placeholder"),
        (["--jobs", "2", "--env", "A={x}", "--", "true"], 1, "'{x}' in --env A is no placeholder"),
        (["--jobs", "2", "--files-per-job", "3", "--", "true"], 1, "--files-per-job goes with an input"),
        (["--jobs", "2", "--pre", "a", "--post", "b {x}", "--", "true"], 1, "'{x}' in --post is no"),
        (["--", "true"], 1, "(--input, inputDataset: a job per file)"),
        (
            ["--jobs", "1", "--software", "https://h/a", "--software-checksum", "sha256:1", "--", "true"],
            1,
            "--software-checksum: it is sha256: or blake3: and 64 hexadecimal digits",
        ),
        (["--jobs", "1", "--env", "A", "--", "true"], 2, "write NAME=VALUE"),
        (["--jobs", "1", "--gpu", "--resource-type", "cpu", "--", "true"], 2, "exclude each other"),
        (["--jobs", "1", "--queue", "NOWHERE", "--", "true"], 1, "no queue NOWHERE"),
        (["--jobs", "1", "--output", "../x", "--", "true"], 1, "slash"),
        (["--input", "no-such-dataset", "--", "true"], 1, "no dataset no-such-dataset"),
        (["--jobs", "1", "--ship", "/no/such/code", "--", "true"], 1, "/no/such/code does not exist"),
        (["--from", "/no/such.json"], 1, "/no/such.json cannot be read: No such file"),
    ],
)
def test_a_task_that_cannot_be_is_refused_in_one_line(
    pilotage: Pilotage, arguments: List[str], code: int, words: str
) -> None:
    done = pilotage("task", "submit", *arguments)
    assert done.code == code, done
    assert words in done.err
    assert done.out == ""
    assert "Traceback" not in done.err
    if code == 1:
        error, *following = done.err.splitlines()
        assert error.startswith("Error: ")
        assert following in ([], [f"next: {BY_NAME['BAD_LFN'].advice}"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            '{"name": "x",\n nJobs: 1}',
            "is no JSON: see line 2, column 2; names and texts stand in double quotes",
        ),
        ('{"name": "x", "kommand": ["true"]}', "kommand: no such field; did you mean command?"),
        ("[1]", "holds no JSON object"),
        ('{"name": "x", "command": "true", "nJobs": 1}', "command: "),
        ('{"name": "x", "command": ["true"], "njobs": 1}', "did you mean nJobs?"),
        (b"\xff\xfe", "is no JSON"),
    ],
)
def test_a_file_that_is_no_task_is_refused(
    pilotage: Pilotage, tmp_path: Path, content: Any, words: str
) -> None:
    (tmp_path / "t.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    done = pilotage("task", "submit", "--from", tmp_path / "t.json")
    assert (done.code, words in done.err) == (1, True), done.err


def test_a_task_is_found_by_name_and_number_and_in_lists(pilotage: Pilotage, session: Session) -> None:
    view = session.submit_task(TaskSpec(name="findable", command=["true"], n_jobs=1))
    wait_until(lambda: session.task("findable").counts, what="jobs")
    by_name, by_number = pilotage("task", "show", "findable"), pilotage("task", "show", view.task_id)
    assert by_name.out == by_number.out
    assert "findable" in by_name.out and "command" in by_name.out
    table = pilotage("task", "list", "--name", "findab").out.splitlines()
    assert len(table) == 2 and table[1].split()[:2] == [str(view.task_id), "findable"]
    (listed,) = json.loads(pilotage("task", "list", "--name", "findab", "--json").out)
    assert listed["taskId"] == view.task_id


def test_a_long_list_says_that_there_is_more(pilotage: Pilotage, session: Session) -> None:
    for number in range(3):
        session.submit_task(TaskSpec(name=f"many-{number}", command=["true"], n_jobs=1))
    some = pilotage("task", "list", "--name", "many-", "--limit", 2)
    assert [line.split()[1] for line in some.out.splitlines()[1:]] == ["many-2", "many-1"]
    assert "more than these 2" in some.err
    all_of_them = pilotage("task", "list", "--name", "many-", "--limit", 0)
    assert len(all_of_them.out.splitlines()) == 4 and all_of_them.err == ""


def test_an_empty_list_says_so_and_is_an_empty_array_for_programs(pilotage: Pilotage) -> None:
    nothing = pilotage("task", "list", "--name", "nothing-like-this")
    assert (nothing.code, nothing.out, nothing.err) == (0, "", "No such task.\n")
    assert json.loads(pilotage("task", "list", "--name", "nothing-like-this", "--json").out) == []


def test_a_cancelled_task_ends_and_its_watcher_is_told_by_the_exit_code(
    pilotage: Pilotage, session: Session
) -> None:
    session.submit_task(TaskSpec(name="doomed", command=["true"], n_jobs=2))
    wait_until(lambda: session.task("doomed").counts, what="jobs")
    done = pilotage("task", "cancel", "doomed")
    assert (done.code, "CANCELLED" in done.out) == (0, True)
    wait_until(lambda: session.task("doomed").ended, what="the end")
    again = pilotage("task", "cancel", "doomed")
    assert again.code == 0 and again.out.startswith("Nothing to cancel: task ")
    assert again.out.endswith(" (doomed) is CANCELLED.\n")
    watched = pilotage("task", "watch", "doomed", "--interval", 0.1)
    assert watched.code == 1
    assert "doomed: CANCELLED, 2 of 2 jobs ended (CANCELLED 2)" in watched.err


def test_a_task_that_is_not_there_is_told(pilotage: Pilotage) -> None:
    done = pilotage("task", "show", "no-such-task")
    assert done.code == 1
    assert done.err.startswith("Error: there is no such thing: no task no-such-task")


# -- jobs ---------------------------------------------------------------------------------------------------------


def test_jobs_are_listed_shown_and_cancelled(pilotage: Pilotage, session: Session) -> None:
    session.submit_task(TaskSpec(name="jobs", command=["true"], n_jobs=2))
    wait_until(lambda: session.task("jobs").counts == {JobState.READY.value: 2}, what="jobs")
    first, second = json.loads(pilotage("job", "list", "--task", "jobs", "--json").out)
    assert [first["jobNr"], second["jobNr"]] == [1, 2]
    shown = pilotage("job", "show", first["jobId"]).out
    assert "number 1 of task" in shown and "history" in shown and "REGISTERED" in shown
    assert pilotage("job", "cancel", first["jobId"]).out.startswith("Job ")
    again = pilotage("job", "cancel", first["jobId"]).out
    assert again == f"Nothing to cancel: job {first['jobId']} of task jobs is CANCELLED.\n"
    (left,) = json.loads(pilotage("job", "list", "--task", "jobs", "--state", "ready", "--json").out)
    assert left["jobId"] == second["jobId"]
    log = pilotage("job", "log", second["jobId"])
    assert log.code == 1 and "has no attempt yet; it is READY" in log.err


@pytest.mark.parametrize(("job", "code"), [("999999999", 1), ("0", 1), ("x", 2)])
def test_a_job_that_cannot_be_is_told(pilotage: Pilotage, job: str, code: int) -> None:
    for verb in ("show", "log", "cancel"):
        assert pilotage("job", verb, job).code == code


@pytest.mark.parametrize("verb", ["debug", "tail"])
def test_123_a_file_outside_of_the_jobs_directory_is_refused_by_the_options_name(
    pilotage: Pilotage, server: Server, verb: str
) -> None:
    done = pilotage("job", verb, 999_999_999, "--file", "../secret")
    assert done.code == 1
    assert "--file: '../secret' leads out of the directory; name a file in it" in done.err


def test_123_debug_mode_that_is_turned_off_is_one_line(
    pilotage: Pilotage, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    view = DebugView(17, 4, 1, "RUNNING", "n1", "p1", True, 20, at="2026-11-22T00:00:00Z", stdout="much\n")
    monkeypatch.setattr(Session, "debug_job", lambda *_: view)
    assert "much" in pilotage("job", "debug", 17).out
    off = pilotage("job", "debug", 17, "--off")
    assert (off.out, off.err) == ("Debug mode of job 17, attempt 1 on node n1, is off.\n", "")


# -- datasets -----------------------------------------------------------------------------------------------------


def test_a_dataset_is_registered_shown_and_fetched(pilotage: Pilotage, tmp_path: Path) -> None:
    done = pilotage("dataset", "register", "ds-1", files(tmp_path / "data"))
    assert (done.code, done.out) == (0, "Dataset ds-1: 3 files, 6 B, closed.\n"), done.err
    listed = json.loads(pilotage("dataset", "files", "ds-1", "--json").out)
    assert [file["lfn"] for file in listed] == [f"run-000001-{number:05d}-00.spd" for number in range(3)]
    assert {"adler32", "md5"} <= listed[0]["checksums"].keys()
    assert "closed" in pilotage("dataset", "show", "ds-1").out
    assert "ds-1" in pilotage("dataset", "list", "--name", "ds-1").out
    found = pilotage("file", "list", "--dataset", "ds-1", "--lfn", listed[1]["lfn"]).out
    assert len(found.splitlines()) == 2 and f"file://{tmp_path}/data/run-000001-00001-00.spd" in found


def test_an_open_dataset_takes_more_files_and_is_closed(pilotage: Pilotage, tmp_path: Path) -> None:
    files(tmp_path / "data")
    done = pilotage(
        "dataset", "register", "ds-open", tmp_path / "data", "--no-close", "--scope", "other", "--json"
    )
    assert json.loads(done.out)["state"] == "open" and json.loads(done.out)["scope"] == "other"
    (tmp_path / "data" / "late.spd").write_text("late")
    more = pilotage("dataset", "register", "ds-open", tmp_path / "data", "--add", "--no-close")
    assert more.out == "Dataset ds-open: 4 files, 10 B, open. 3 of the files given were in it already.\n"
    assert "closed" in pilotage("dataset", "close", "ds-open").out
    refused = pilotage("dataset", "register", "ds-open", tmp_path / "data", "--add")
    assert refused.code == 1 and "files can be added to an open one only" in refused.err


def test_problems_are_told_line_by_line_and_nothing_is_registered(pilotage: Pilotage, tmp_path: Path) -> None:
    folder = files(tmp_path / "data")
    (folder / "evil\x1b[2Jname").write_text("x")
    done = pilotage("dataset", "register", "ds-bad", folder, tmp_path / "missing")
    assert done.code == 1
    lines = done.err.splitlines()
    assert lines[0].startswith(
        "Error: a path cannot be used: 2 problems with 4 files; nothing was registered"
    )
    assert len(lines) == 4 and lines[-1] == "next: mend them, or leave these files out"
    assert "\x1b" not in done.err
    assert pilotage("dataset", "show", "ds-bad").code == 1


def test_a_list_on_standard_input_is_registered_without_what_is_still_being_written(
    pilotage: Pilotage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = files(tmp_path / "data")
    (folder / "late.spd").write_bytes(b"")
    listed = "\0".join(str(path) for path in sorted(folder.iterdir()))
    for words in (["-"], ["--files-from", "-"]):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(listed.encode())))
        refused = pilotage("dataset", "register", "ds-listed", *words)
        assert refused.code == 1 and "late.spd: it has no header yet" in refused.err
        assert "--skip-unfinished" in refused.err.splitlines()[-1]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(listed.encode())))
    done = pilotage("dataset", "register", "ds-listed", "-", "--skip-unfinished")
    assert (done.code, done.out) == (0, "Dataset ds-listed: 3 files, 6 B, open.\n"), done.err
    assert "1 unfinished file left out; dataset ds-listed stays open" in done.err
    nothing = pilotage("dataset", "register", "ds-nothing")
    assert nothing.code == 2 and "no PATH, and no list of them" in nothing.err


def test_a_dataset_is_deleted_when_no_task_uses_it_and_is_not_fetched_any_more(
    pilotage: Pilotage, tmp_path: Path
) -> None:
    folder = files(tmp_path / "data")
    pilotage("dataset", "register", "ds-gone", folder)
    pilotage("task", "submit", "--name", "uses-gone", "--input", "ds-gone", "--", "true")
    refused = pilotage("dataset", "delete", "ds-gone")
    assert refused.code == 1 and "used by tasks that have not ended: uses-gone" in refused.err
    assert "pilotage task cancel" in refused.err.splitlines()[-1]
    pilotage("task", "cancel", "uses-gone")
    wait_until(lambda: pilotage("dataset", "delete", "ds-gone").code == 0, 20, "the end of the task")
    done = pilotage("dataset", "delete", "ds-gone")
    assert done.out == (
        "Dataset ds-gone is deleted. Its files (3 files, 6 B) lie where they are until the storages are cleaned.\n"
    )
    assert len(list(folder.iterdir())) == 3
    assert "ds-gone" not in pilotage("dataset", "list", "--name", "ds-gone").out
    assert "ds-gone" in pilotage("dataset", "list", "--name", "ds-gone", "--state", "deleted").out
    assert pilotage("file", "list", "--dataset", "ds-gone").out.count(" deleted ") == 3
    fetched = pilotage("dataset", "get", "ds-gone", "--to", tmp_path / "here")
    assert fetched.code == 1 and "dataset ds-gone was deleted" in fetched.err


def test_datasets_are_described_and_found_by_it(pilotage: Pilotage, tmp_path: Path) -> None:
    for name in ("meta-6", "meta-7"):
        pilotage("dataset", "register", name, files(tmp_path / name))
        assert pilotage("dataset", "set", name, f"number={name[-1]}", "beam=p p").code == 0
    shown = pilotage("dataset", "show", "meta-7").out
    assert "beam=p p, number=7" in shown
    found = json.loads(
        pilotage("dataset", "list", "--where", "number>=6.5", "--where", "beam=p p", "--json").out
    )
    assert [each["name"] for each in found] == ["meta-7"]
    pilotage("dataset", "set", "meta-7", "--unset", "beam")
    assert pilotage("dataset", "list", "--where", "beam=p p").out.count("meta-") == 1
    for words, told in (
        (["dataset", "list", "--where", "number>x"], "'x' is no number"),
        (["dataset", "set", "meta-7", "number"], "write KEY=VALUE"),
        (["dataset", "set", "meta-7"], "no KEY=VALUE, and no --unset"),
    ):
        refused = pilotage(*words)
        assert refused.code and told in refused.err


def test_a_container_of_datasets_is_made_changed_and_the_input_of_a_task(
    pilotage: Pilotage, tmp_path: Path
) -> None:
    for name in ("box-1", "box-2", "box-3"):
        pilotage("dataset", "register", name, files(tmp_path / name))
    made = pilotage("dataset", "container", "create", "box", "box-2", "box-1")
    assert made.code == 0 and "pilotage task submit --input box" in made.err
    assert pilotage("dataset", "container", "add", "box", "box-3").code == 0
    shown = json.loads(pilotage("dataset", "container", "remove", "box", "box-1", "--json").out)
    assert [each["name"] for each in shown["datasets"]] == ["box-2", "box-3"]
    assert "box-3" in pilotage("dataset", "container", "show", "box").out
    assert "box" in pilotage("dataset", "container", "list", "--name", "box").out
    done = pilotage("task", "submit", "--name", "over-box", "--input", "box", "--", "true", "{input}")
    assert done.code == 0 and "6 jobs over box" in done.out, done.err
    assert re.search("input +box\n", pilotage("task", "show", "over-box").out)
    pilotage("task", "cancel", "over-box")
    assert pilotage("dataset", "container", "delete", "box").out == (
        "The container box is deleted; its datasets stay.\n"
    )
    gone = pilotage("dataset", "container", "show", "box")
    assert gone.code == 1 and "no container box" in gone.err


def test_a_duplicate_dataset_is_refused(pilotage: Pilotage, tmp_path: Path) -> None:
    folder = files(tmp_path / "data")
    assert pilotage("dataset", "register", "ds-twice", folder).code == 0
    again = pilotage("dataset", "register", "ds-twice", folder)
    assert again.code == 1 and "there is a dataset ds-twice already (closed)" in again.err


def test_a_file_name_that_its_scope_has_already_is_refused_by_the_server(
    pilotage: Pilotage, tmp_path: Path
) -> None:
    folder = files(tmp_path / "data")
    assert pilotage("dataset", "register", "scope-a", folder, "--scope", "shared").code == 0
    again = pilotage("dataset", "register", "scope-b", folder, "--scope", "shared")
    assert again.code == 1 and "scope shared has a file" in again.err
    assert pilotage("dataset", "show", "scope-b").code == 1, "nothing of it was registered"


def test_a_dataset_is_fetched_verified_and_not_fetched_again(pilotage: Pilotage, tmp_path: Path) -> None:
    folder = files(tmp_path / "data")
    pilotage("dataset", "register", "ds-get", folder)
    done = pilotage("dataset", "get", "ds-get", "--to", tmp_path / "here")
    assert done.code == 0 and "3 files copied and verified" in done.out, done.err
    assert {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }
    (tmp_path / "here" / "run-000001-00001-00.spd").unlink()
    again = pilotage("dataset", "get", "ds-get", "--to", tmp_path / "here")
    assert "1 file copied and verified, 2 were there and right" in again.out


def test_a_file_of_another_content_is_never_written_over(pilotage: Pilotage, tmp_path: Path) -> None:
    pilotage("dataset", "register", "ds-mine", files(tmp_path / "data"))
    mine = tmp_path / "here" / "run-000001-00001-00.spd"
    mine.parent.mkdir()
    mine.write_bytes(b"XX")  # the right size
    done = pilotage("dataset", "get", "ds-mine", "--to", tmp_path / "here")
    assert done.code == 1 and "has another content" in done.err
    assert mine.read_bytes() == b"XX"
    assert os.listdir(mine.parent) == [mine.name]


@pytest.mark.parametrize("damage", ["content", "size", "gone"])
def test_a_stored_file_that_is_not_the_registered_one_is_not_left_here(
    pilotage: Pilotage, tmp_path: Path, damage: str
) -> None:
    folder = files(tmp_path / "data")
    name = f"ds-damaged-{damage}"
    pilotage("dataset", "register", name, folder)
    victim = folder / "run-000001-00002-00.spd"
    if damage == "gone":
        victim.unlink()
    else:
        victim.write_bytes(b"XXX" if damage == "content" else b"X")
    done = pilotage("dataset", "get", name, "--to", tmp_path / "here")
    assert done.code == 1 and "1 of 3 files could not be fetched" in done.err
    assert victim.name in done.err
    assert sorted(os.listdir(tmp_path / "here")) == ["run-000001-00000-00.spd", "run-000001-00001-00.spd"]


def test_an_address_below_the_data_root_is_found_on_this_machine(pilotage: Pilotage, tmp_path: Path) -> None:
    folder = files(tmp_path / "mount" / "data")
    pilotage("dataset", "register", "ds-relative", folder, "--url-prefix", "file:data")
    refused = pilotage("dataset", "get", "ds-relative", "--to", tmp_path / "here")
    assert refused.code == 1 and "is relative" in refused.err
    done = pilotage(
        "dataset", "get", "ds-relative", "--to", tmp_path / "here", "--data-root", tmp_path / "mount"
    )
    assert done.code == 0 and len(os.listdir(tmp_path / "here")) == 3, done.err


# -- queues, storages, pilots -------------------------------------------------------------------------------------


def test_queues_are_made_shown_and_set(pilotage: Pilotage) -> None:
    made = pilotage(
        "queue",
        "create",
        "SPD_GPU",
        "--gpu",
        "--site",
        "JINR",
        "--copytool",
        "nfs",
        "--copytool",
        "cp",
        "--json",
    )
    assert made.code == 0, made.err
    assert (json.loads(made.out)["resourceType"], json.loads(made.out)["copytools"]) == ("gpu", ["nfs", "cp"])
    assert pilotage("queue", "create", "SPD_GPU").code == 1
    assert "drain" in pilotage("queue", "set", "SPD_GPU", "drain").out
    assert "drain" in pilotage("queue", "show", "SPD_GPU").out
    assert "SPD_GPU" in pilotage("queue", "list").out
    assert pilotage("queue", "set", "SPD_GPU", "closed").code == 2
    assert pilotage("queue", "show", "NO_SUCH").code == 1


def test_storages_are_made_and_listed(pilotage: Pilotage, tmp_path: Path) -> None:
    assert pilotage("storage", "create", "NFS", f"file://{tmp_path}").code == 0
    assert f"file://{tmp_path}" in pilotage("storage", "list").out
    assert pilotage("storage", "create", "BAD", "no address").code == 1


def test_pilots_are_listed_and_a_missing_one_is_told(pilotage: Pilotage) -> None:
    assert pilotage("pilot", "list").code == 0
    assert pilotage("pilot", "show", "nobody").code == 1


def test_a_pilot_is_shown_with_its_batch_job(pilotage: Pilotage, server: Server) -> None:
    client = ServerClient(server.url, (server.state / "pilot.token").read_text().strip(), None, 5, 5)
    client.register(
        PilotRegistration("p-batch", "n1", "1", queue="CPU", batch_system="slurm", batch_id="4711_3")
    )
    client.close()
    assert "4711_3 of slurm" in pilotage("pilot", "show", "p-batch").out
    assert "4711_3" in pilotage("pilot", "list").out
    assert json.loads(pilotage("pilot", "show", "p-batch", "--json").out)["batchId"] == "4711_3"


def test_a_pilot_is_shown_with_how_many_inputs_it_found_on_its_node(
    pilotage: Pilotage, server: Server
) -> None:
    client = ServerClient(server.url, (server.state / "pilot.token").read_text().strip(), None, 5, 5)
    client.register(PilotRegistration("p-cache", "n1", "1", queue="CPU"))
    assert "the node's cache" not in pilotage("pilot", "show", "p-cache").out
    report = CacheReport(hits=3, misses=1, hit_bytes=3 * 2**30, miss_bytes=2**30, n_files=1, n_bytes=2**31)
    client.heartbeat(Heartbeat("p-cache", cache=report))
    client.close()
    told = "3 of 4 from the node's cache (75 %; 3.0 GiB of 4.0 GiB), which has 1 file, 2.0 GiB"
    assert told in pilotage("pilot", "show", "p-cache").out
    listed = pilotage("pilot", "list").out.splitlines()
    assert listed[0].endswith("from cache")
    assert next(line for line in listed if line.startswith("p-cache")).endswith("75 %")
    shown = json.loads(pilotage("pilot", "show", "p-cache", "--json").out)
    assert (shown["cache"]["hits"], shown["cache"]["misses"]) == (3, 1)


def test_a_pilot_is_shown_with_its_gpus_and_makes_way_for_the_servers_present_one(
    pilotage: Pilotage, server: Server
) -> None:
    client = ServerClient(server.url, (server.state / "pilot.token").read_text().strip(), None, 5, 5)
    kinds = [GpuKind("NVIDIA H200", 2, 143_771), GpuKind(count=1)]
    client.register(
        PilotRegistration("p-gpu", "n1", "1", ResourceType.GPU, "GPU", cores=8, gpus=3, gpu_kinds=kinds)
    )
    client.close()
    shown = pilotage("pilot", "show", "p-gpu").out
    assert "2 NVIDIA H200 with 143771 MiB, 1 of a model that is not known" in shown
    assert "2 NVIDIA H200; 1 of" in pilotage("pilot", "list").out
    assert json.loads(pilotage("pilot", "show", "p-gpu", "--json").out)["gpuKinds"][0]["memoryMb"] == 143_771
    assert pilotage("pilot", "update").code == 2
    updated = pilotage("pilot", "update", "p-gpu")
    assert "alive, updating" in updated.out
    assert updated.err == "next: pilotage pilot show p-gpu\n"
    assert "0 pilots of GPU" in pilotage("pilot", "update", "--queue", "GPU", "--outdated").out


# -- which server -------------------------------------------------------------------------------------------------


def test_options_name_another_server(pilotage: Pilotage, server: Server, tmp_path: Path) -> None:
    given = ("--server", server.url, "--token-file", server.state / "admin.token")
    assert pilotage("queue", "list", *given, "--state-directory", tmp_path).code == 0
    wrong = pilotage(
        "queue", "list", "--server", "http://127.0.0.1:1", "--token-file", server.state / "admin.token"
    )
    assert wrong.code == 1
    assert (
        wrong.err.splitlines()[0]
        == "Error: no answer from the server: http://127.0.0.1:1: Connection refused"
    )


def test_a_wrong_token_is_told(pilotage: Pilotage, server: Server, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("nonsense-token\n")
    (tmp_path / "token").chmod(0o600)
    done = pilotage("queue", "list", "--server", server.url, "--token-file", tmp_path / "token")
    assert done.code == 1 and done.err.startswith("Error: no valid token")
    told = done.err.splitlines()[-1]
    assert told.startswith(f"next: the token in {tmp_path}/token is not one of {server.url}")
    assert "pilotage token create" in told


def test_the_next_command_is_about_the_same_server(
    pilotage: Pilotage, server: Server, tmp_path: Path
) -> None:
    given = ("--server", server.url, "--token-file", f"{server.state}/admin.token")
    words = ("task", "submit", "--name", "same-server", "--jobs", "1", *given, "--", "true")
    assert pilotage(*words).err == f"next: pilotage task watch {' '.join(given)} same-server\n"
    pilotage("task", "cancel", "same-server")
    (tmp_path / "f").write_text("x")
    done = pilotage("dataset", "register", "same-server", tmp_path / "f", *given)
    last = done.err.splitlines()[-1]
    assert last == f"next: pilotage task submit {' '.join(given)} --input same-server -- COMMAND '{{input}}'"


def test_a_dataset_is_fetched_into_a_directory_of_its_name(
    pilotage: Pilotage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one.dat").write_text("1")
    assert pilotage("dataset", "register", "own-directory", tmp_path / "one.dat").code == 0
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert pilotage("dataset", "get", "own-directory").code == 0
    assert (tmp_path / "here" / "own-directory" / "one.dat").read_text() == "1"


def test_a_command_is_shown_as_a_shell_takes_it(pilotage: Pilotage) -> None:
    pilotage("task", "submit", "--name", "quoted", "--jobs", "1", "--", "sh", "-c", "echo 'a b'")
    assert """sh -c 'echo '"'"'a b'"'"''""" in pilotage("task", "show", "quoted").out
    pilotage("task", "cancel", "quoted")


def test_a_pilot_s_token_makes_no_queue(pilotage: Pilotage, server: Server) -> None:
    done = pilotage(
        "queue", "create", "X", "--server", server.url, "--token-file", server.state / "pilot.token"
    )
    assert done.code == 1 and done.err.startswith("Error: the token's role does not allow this")


def test_a_task_over_an_open_dataset_has_so_many_jobs_so_far(
    pilotage: Pilotage, session: Session, tmp_path: Path
) -> None:
    (tmp_path / "a.spd").write_bytes(b"a")
    assert pilotage("dataset", "register", "growing", tmp_path / "a.spd", "--no-close").code == 0
    pilotage("task", "submit", "--name", "step1", "--input", "growing", "--output", "{stem}.o", "--", "true")
    words = ("task", "submit", "--name")
    open_ = pilotage(*words, "growing-1", "--input", "growing", "--", "true")
    assert open_.out.endswith("(growing-1): 1 job so far over growing; more as files come.\n")
    none = pilotage(*words, "growing-2", "--input", "step1.out", "--", "true")
    assert none.out.endswith("(growing-2): no job so far over step1.out; more as files come.\n")
    assert pilotage("dataset", "close", "growing").code == 0
    closed = pilotage(*words, "growing-3", "--input", "growing", "--", "true")
    assert closed.out.endswith("(growing-3): 1 job over growing.\n")


def test_a_task_shows_where_and_how_often_its_jobs_are_to_run(pilotage: Pilotage) -> None:
    words = ("task", "submit", "--jobs", 1, "--name")
    pilotage(*words, "choosy", "--queue", "CPU", "--site", "LOCAL", "--replicate", 2, "--", "true")
    rows = {line.split()[0]: line.split()[1:] for line in pilotage("task", "show", "choosy").out.splitlines()}
    assert (rows["queue"], rows["site"]) == (["CPU"], ["LOCAL"])
    assert rows["copies"] == ["2", "of", "each", "job,", "on", "different", "nodes", "(--replicate)"]
    pilotage(*words, "easy", "--", "true")
    rows = {line.split()[0]: line.split()[1:] for line in pilotage("task", "show", "easy").out.splitlines()}
    assert not {"queue", "site", "copies"} & set(rows)


def test_the_job_that_made_a_file_is_listed_with_it(
    pilotage: Pilotage, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = FileView("a.o", "t.out", "t.out", 3, {"md5": "0" * 32}, "file:///s/t.out/a.o.9", "available", 4711)
    monkeypatch.setattr(Session, "files", lambda *_, **__: iter([made]))
    titles, row = pilotage("file", "list", "--lfn", "a.o").out.splitlines()
    assert "of job" in titles and row.split()[-3:-1] == ["4711", "file:///s/t.out/a.o.9"]


def test_what_is_known_against_a_replica_is_listed_with_the_file(
    pilotage: Pilotage, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [
        ReplicaView("NEW", "file:///n/a", "good"),
        ReplicaView("OLD", "file:///o/a", "bad", "it is lost"),
    ]
    file = FileView("a", "in", "in", 3, {}, "file:///n/a", "available", replicas=places)
    monkeypatch.setattr(Session, "dataset_files", lambda *_, **__: iter([file]))
    titles, row = pilotage("dataset", "files", "in").out.splitlines()
    assert titles.endswith("replicas") and row.endswith("2; bad on OLD: it is lost")


def test_a_file_is_shown_with_the_job_that_made_it_and_of_what(
    pilotage: Pilotage, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = FileView("a.o", "t.out", "t.out", 3, {"md5": "0" * 32}, "file:///s/t.out/a.o.9", "available", 4711)
    read = [FileView(f"{nr}.i", "in", "in", 3, {}, "file:///x", "available") for nr in range(22)]
    attempts = [
        AttemptView(8, 1, "FAILED", "p1", "bad-node", "CPU", error="PAYLOAD_FAILED"),
        AttemptView(9, 2, "COMPLETED", "p2", "good-node", "CPU"),
    ]
    job = JobView(
        4711,
        1,
        17,
        "t",
        "COMPLETED",
        "cpu",
        0,
        2,
        "now",
        "now",
        inputs=read,
        outputs=[made],
        attempts=attempts,
    )
    monkeypatch.setattr(Session, "files", lambda *_, **__: iter([made, made]))
    monkeypatch.setattr(Session, "job", lambda self, job_id: job)
    told = pilotage("file", "show", "a.o").out
    assert told.count("made by  job 4711 of task 17 (t)") == 2
    assert "good-node" in told and "0.i (in), 1.i (in)" in told and "19.i (in) and 2 more" in told

    def pruned(*_: Any) -> JobView:
        raise PilotageError("NOT_FOUND", "no job 4711")

    monkeypatch.setattr(Session, "job", pruned)
    assert (
        "job 4711, which was pruned; see pilotage dataset lineage t.out"
        in pilotage("file", "show", "a.o").out
    )
    [shown, _] = json.loads(pilotage("file", "show", "a.o", "--json").out)
    assert shown == {"file": to_wire(made), "madeBy": None}
    monkeypatch.setattr(Session, "files", lambda *_, **__: iter([]))
    gone = pilotage("file", "show", "a.o")
    assert gone.code == 1 and "no file 'a.o'" in gone.err


def test_of_what_a_dataset_was_made_is_told(pilotage: Pilotage, tmp_path: Path) -> None:
    pilotage("dataset", "register", "line-in", files(tmp_path / "data"))
    words = ("--name", "line", "--input", "line-in", "--output", "{stem}.o", "--", "cp", "{input}", "a b")
    assert pilotage("task", "submit", *words).code == 0
    told = [line.split() for line in pilotage("dataset", "lineage", "line.out").out.splitlines()]
    assert told[1][:4] == ["-1", "line-in", "closed", "registration"]
    assert told[2][:3] == ["0", "line.out", "open"] and told[2][5:8] == ["(line)", "line-in", "cp"]
    steps = json.loads(pilotage("dataset", "lineage", "line-in", "--json").out)["steps"]
    assert [(step["level"], step["dataset"]) for step in steps] == [(0, "line-in"), (1, "line.out")]
    pilotage("task", "cancel", "line")
