"""What is wrong is refused in one sentence, with the right exit code, and changes nothing; and files that changed meanwhile."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from copytools import checksum
from protocol.errors import PilotageError, PilotExit
from protocol.messages import wire_name
from protocol.messages.requests import DatasetSpec, FileSpec, TaskSpec
from protocol.states import JobState
from tests.acceptance.world import QUICK, WITHOUT_ROOT, World, errors, words
from tests.running_server import Refused

WRONG_USAGE, FAILED = 2, 1


@contextmanager
def unchanged(world: World) -> Iterator[None]:
    """Nothing that a user can list is another afterwards."""
    before = _everything(world)
    yield
    assert _everything(world) == before


def _everything(world: World) -> list[Any]:
    session = world.session
    lists = (
        session.tasks(),
        session.datasets(),
        session.files(),
        session.queues(),
        session.storages(),
        session.jobs(),
    )
    return [list(each) for each in lists]


def refused(world: World, *arguments: str, code: int = FAILED, message: str) -> None:
    """A command that ends with this exit code and message, without trace back, without a word on standard output."""
    with unchanged(world):
        done = world.cli(*arguments)
    assert done.returncode == code, f"{done.returncode}: {done.stdout}{done.stderr}"
    assert re.search(message, done.stderr), done.stderr
    assert not done.stdout
    if code == FAILED:
        error, following = done.stderr.splitlines()[0], done.stderr.splitlines()[1:]
        assert error.startswith("Error: "), done.stderr
        assert all(line.startswith(("next: ", "  ")) for line in following), done.stderr


@pytest.fixture
def file(world: World) -> Path:
    path = world.directory / "data.bin"
    path.write_bytes(os.urandom(4096))
    return path


# -- registering datasets -------------------------------------------------------------------------------------------------


def test_a_path_that_does_not_exist_is_refused(world: World) -> None:
    refused(world, "dataset", "register", "d", "no/such/path", message="no/such/path does not exist")


def test_a_glob_that_matches_nothing_is_refused(world: World) -> None:
    refused(world, "dataset", "register", "d", "*.spd", message=r"\*\.spd matches no file")


def test_an_empty_directory_is_refused(world: World) -> None:
    (world.directory / "empty").mkdir()
    refused(world, "dataset", "register", "d", "empty", message="empty holds no file")


def test_a_file_that_may_not_be_read_is_refused_and_so_are_the_good_ones_beside_it(
    world: World, file: Path
) -> None:
    (world.directory / "closed.bin").write_text("x")
    (world.directory / "closed.bin").chmod(0)
    with unchanged(world):
        command = ("-m", "client.cli", "dataset", "register", "d", str(file), "closed.bin")
        extra = {"PILOTAGE_CLIENT__STATE_DIRECTORY": str(world.server.directory)}
        registrator = world.start("-c", WITHOUT_ROOT, *command, extra=extra)
        assert registrator.wait(20) == FAILED
    assert re.search(r"closed\.bin: may not be read \(Permission denied\)", registrator.text)


def test_each_of_several_wrong_files_is_told(world: World, file: Path) -> None:
    (world.directory / "bad\nname").write_text("x")
    (world.directory / "dangling").symlink_to("nowhere")
    done = world.cli("dataset", "register", "d", ".", "missing")
    assert done.returncode == FAILED
    for words_of_it in (
        r"bad\\nname: .* U\+000A",
        "dangling: is a link that leads nowhere",
        "missing does not exist",
    ):
        assert re.search(words_of_it, done.stderr), done.stderr


def test_a_dataset_name_that_is_taken_is_refused(world: World, file: Path) -> None:
    name = world.dataset(file)
    refused(world, "dataset", "register", name, str(file), message=f"there is a dataset {name} already")


def test_two_files_of_the_same_name_in_one_dataset_are_refused(world: World, file: Path) -> None:
    (world.directory / "other").mkdir()
    (world.directory / "other" / file.name).write_text("x")
    refused(
        world, "dataset", "register", "d", str(file), "other", message=f"has the same name as .*{file.name}"
    )


def test_a_file_name_that_is_taken_in_its_scope_is_refused(world: World, file: Path) -> None:
    world.dataset(file, scope=world.unique("scope"))
    refused(
        world, "dataset", "register", "d", str(file), "--scope", f"{world.name}-scope-1",
        message=f"scope .* has a file '{file.name}' already",
    )  # fmt: skip


def test_a_closed_dataset_takes_no_more_files(world: World, file: Path) -> None:
    name = world.dataset(file)
    refused(world, "dataset", "register", name, str(file), "--add", message=f"dataset {name} is closed")


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b", "x" * 201, "-x", "ünïcode"])
def test_a_name_that_is_none_is_refused(world: World, file: Path, name: str) -> None:
    refused(world, "dataset", "register", "--", name, str(file), message="is no name for a dataset")


LFNS = {
    "two dots": "..",
    "a way up": "../../etc/cron.d/x",
    "an absolute path": "/etc/passwd",
    "a way up inside": "a/../../b",
    "a slash": "a/b",
    "a backslash": "..\\x",
    "a NUL": "a\0b",
    "a newline": "a\nb",
    "an escape": "a\x1b[2Jb",
    "a mark that turns the direction": "a\u202eb",
    "5,000 characters": "x" * 5000,
    "more bytes than a file system takes": "ä" * 120,
    "blanks only": "   ",
    "a dash in front": "-rf",
    "not the composed form": "a\u0308",
    "a lone surrogate": "a\ud800",
}


@pytest.mark.parametrize("what", LFNS)
def test_a_logical_file_name_that_could_do_harm_is_refused(world: World, what: str) -> None:
    spec = DatasetSpec(
        "bad-lfn", files=[FileSpec("good", 1, "file:///x/good"), FileSpec(LFNS[what], 1, "file:///x/y")]
    )
    with unchanged(world), pytest.raises(PilotageError) as refusal:
        world.session.create_dataset(spec)
    assert refusal.value.name in ("BAD_LFN", "BAD_REQUEST")
    assert not re.search(r"[\x00-\x1f\u202e\ud800]", refusal.value.detail)


def test_a_file_name_with_a_newline_is_refused_by_the_command_too(world: World) -> None:
    (world.directory / "a\nb").write_text("x")
    refused(world, "dataset", "register", "d", "a\nb", message=r"U\+000A")


# -- submitting tasks -------------------------------------------------------------------------------------------------------

SUBMISSIONS: dict[str, tuple[list[str], int, str]] = {
    "unknown queue": (["--queue", "NOWHERE", "--jobs", "1", "--", "true"], FAILED, "no queue NOWHERE"),
    "queue of the other kind": (
        ["--queue", "CPU", "--gpu", "--jobs", "1", "--", "true"],
        FAILED,
        "CPU is a cpu queue",
    ),
    "unknown dataset": (["--input", "no-such", "--", "true"], FAILED, "no dataset no-such"),
    "neither input nor number": (
        ["--", "true"],
        FAILED,
        r"either an input dataset .* or a number of jobs .*--jobs",
    ),
    "no command": (["--jobs", "1"], WRONG_USAGE, "no command"),
    "unknown placeholder": (
        ["--jobs", "1", "--", "echo", "{inptu}"],
        FAILED,
        r"'\{inptu\}' in the command is no placeholder",
    ),
    "output without a difference": (
        ["--jobs", "2", "--output", "x", "--", "true"],
        FAILED,
        "the same for every job",
    ),
    "output with a path": (["--jobs", "1", "--output", "../x", "--", "true"], FAILED, "contains a slash"),
    "no jobs": (["--jobs", "0", "--", "true"], FAILED, "either an input dataset"),
    "minus one job": (["--jobs", "-1", "--", "true"], FAILED, "--jobs: must be at least 0"),
    "a word for a number": (["--jobs", "many", "--", "true"], WRONG_USAGE, "'many' is not a valid integer"),
    "a number beyond all": (["--jobs", "1", "--priority", "9" * 400, "--", "true"], FAILED, "priority"),
    "no core": (["--jobs", "1", "--cores", "0", "--", "true"], FAILED, "cores"),
    "wall time in words": (
        ["--jobs", "1", "--walltime-seconds", "1y", "--", "true"],
        WRONG_USAGE,
        "'1y' is no time; write seconds, or 90s",
    ),
    "unknown option": (["--jbos", "1", "--", "true"], WRONG_USAGE, "No such option.*--jobs"),
    "environment without a value": (
        ["--jobs", "1", "--env", "X", "--", "true"],
        WRONG_USAGE,
        "write NAME=VALUE",
    ),
    "a file that is not there": (["--from", "nothing.json"], FAILED, "nothing.json cannot be read"),
}


@pytest.mark.parametrize("what", SUBMISSIONS)
def test_a_task_that_cannot_be_is_refused(world: World, what: str) -> None:
    arguments, code, message = SUBMISSIONS[what]
    refused(world, "task", "submit", *arguments, code=code, message=message)


def test_a_task_name_that_is_taken_is_refused(world: World) -> None:
    task = world.submit("CPU", ["true"])
    world.session.cancel_task(task.name)
    world.ended(task)
    refused(
        world,
        "task",
        "submit",
        "--name",
        task.name,
        "--jobs",
        "1",
        "--",
        "true",
        message="there is a task .* already",
    )


TASK_FILES = {
    "no JSON": ("{name: hello}", "is no JSON"),
    "a list": ("[]", "holds no JSON object"),
    "a misspelt field": ('{"command": ["true"], "njobs": 1}', "njobs"),
    "a wrong type": ('{"command": "true", "nJobs": 1}', "command"),
    "deep nesting": ('{"command": ' + "[" * 100_000 + "]" * 100_000 + "}", "no JSON|deep|nest"),
}


@pytest.mark.parametrize("what", TASK_FILES)
def test_a_task_file_that_is_none_is_refused(world: World, what: str) -> None:
    text, message = TASK_FILES[what]
    (world.directory / "task.json").write_text(text)
    refused(world, "task", "submit", "--from", "task.json", message=message)


GOOD = {"name": "good", "command": ["true"], "nJobs": 1}
WRONG: dict[type, list[Any]] = {
    str: [1, True, None, [], {}, "\0" * 40_000],
    int: ["1", 1.5, True, None, [], -(2**70), 2**70],
    list: ["x", 1, None, {"a": 1}, [1], [None], [["x"]]],
    dict: ["x", 1, None, [], {"a": 1}, {"a": None}],
}


def _wrong_values() -> Iterator[Any]:
    """For each field of a task values of every wrong type, and the numbers next to its bounds."""
    for field in dataclasses.fields(TaskSpec):
        kind = next((kind for kind in WRONG if str(field.type).lower().startswith(kind.__name__)), str)
        values = list(WRONG[kind])
        values += [
            field.metadata[bound] + step for bound, step in (("ge", -1), ("le", 1)) if bound in field.metadata
        ]
        for value in values:
            yield wire_name(field.name), value


def test_a_wrong_type_or_a_number_out_of_range_in_any_field_of_a_task_is_refused_and_named(
    world: World,
) -> None:
    pairs = list(_wrong_values())
    assert len(pairs) > 150
    accepted = []
    with unchanged(world):
        for name, value in pairs:
            try:
                world.server.request("POST", "/v1/tasks", {**GOOD, name: value})
                accepted.append((name, value))
            except Refused as refusal:
                body = json.loads(refusal.body)
                assert (refusal.status, set(body) >= {"error", "code", "text", "detail", "advice"}) == (
                    400,
                    True,
                ), body
                assert name in body["detail"], (name, value, body)
    assert not accepted


def test_what_is_no_task_at_all_is_refused(world: World) -> None:
    unknown = [{**GOOD, "state": "COMPLETED"}, {**GOOD, "owner": "root"}]
    bodies: list[Any] = [[], "x", 1, True, {}, {**GOOD, "name": "\ud800"}, *unknown]
    with unchanged(world):
        for body in bodies:
            with pytest.raises(Refused, match="HTTP status 400"):
                world.server.request("POST", "/v1/tasks", body)


# -- asking for what is not there -------------------------------------------------------------------------------------------

UNKNOWN = {
    "task show nothing": "no task nothing",
    "task cancel nothing": "no task nothing",
    "task watch nothing": "no task nothing",
    "job show 999999": "no job 999999",
    "job log 999999": "no job 999999",
    "job cancel 999999": "no job 999999",
    "dataset show nothing": "no dataset nothing",
    "dataset get nothing": "no dataset nothing",
    "dataset files nothing": "no dataset nothing",
    "dataset close nothing": "no dataset nothing",
    "queue show nothing": "no queue nothing",
    "queue set nothing offline": "no queue nothing",
    "pilot show nothing": "no pilot nothing",
    "queue create CPU": "there is a queue CPU already",
    "queue create NEW --storage nothing": "no storage nothing",
    "queue create NEW --lease-seconds 10 --heartbeat-seconds 20": "must be below leaseSeconds",
    "storage create LOCAL file:///x": "there is a storage LOCAL already",
    "storage create NEW not-a-url": "is no URL",
}


@pytest.mark.parametrize("command", UNKNOWN)
def test_what_does_not_exist_or_exists_already_is_told(world: World, command: str) -> None:
    refused(world, *command.split(), message=UNKNOWN[command])


@pytest.mark.parametrize(
    "command", ["job show x", "job show -1", "tsak list", "task list --state DONE", "queue set CPU on"]
)
def test_wrong_usage_ends_with_exit_code_2(world: World, command: str) -> None:
    with unchanged(world):
        done = world.cli(*command.split())
    assert done.returncode == WRONG_USAGE, done.stderr
    assert "Usage:" in done.stderr + done.stdout


def test_without_a_server_every_command_says_how_to_start_one(world: World) -> None:
    done = world.cli("task", "list", extra={"PILOTAGE_CLIENT__STATE_DIRECTORY": str(world.directory)})
    assert done.returncode == FAILED
    assert "no answer from the server" in done.stderr and "pilotage server start" in done.stderr


def test_a_token_that_is_none_is_refused(world: World) -> None:
    token = world.directory / "token"
    token.write_text("wrong\n")
    token.chmod(0o600)
    command = ("--server", world.server.url, "--token-file", str(token))
    refused(world, "task", "list", *command, message="no valid token")


def test_the_pilots_token_may_not_submit_tasks(world: World) -> None:
    command = ("--server", world.server.url, "--token-file", str(world.server.pilot_token))
    refused(
        world,
        "task",
        "submit",
        *command,
        "--jobs",
        "1",
        "--",
        "true",
        message="the token's role does not allow this",
    )


# -- settings -----------------------------------------------------------------------------------------------------------------

SETTINGS = {
    "an unknown key": (
        "[limits]\nlifetime_second = 5\n",
        r"line 2: unknown key LIFETIME_SECOND in \[limits\]; did you mean LIFETIME_SECONDS",
    ),
    "an unknown section": (
        "[limit]\nlifetime_seconds = 5\n",
        r"line 1: unknown section \[limit\]; did you mean limits",
    ),
    "a bad number": ("[limits]\nlifetime_seconds = soon\n", "line 2: LIFETIME_SECONDS .*whole number"),
    "a number out of range": ("[limits]\nlifetime_seconds = 0\n", "line 2: LIFETIME_SECONDS"),
    "a key twice": ("[limits]\nmax_jobs = 1\nmax_jobs = 2\n", "line 3: the key MAX_JOBS occurs twice"),
    "no section": ("max_jobs = 1\n", "line 1: a key before the first section"),
    "the seeds' sample address": (
        "[node_settings]\nSERVER_ADRESS = http://11.111.111.8080\n",
        "line 2: SERVER_ADRESS .*port",
    ),
    "a port beyond all": (
        "[node_settings]\nSERVER_ADDRESS = http://127.0.0.1:99999\n",
        "line 2: SERVER_ADDRESS",
    ),
}


@pytest.mark.parametrize("what", SETTINGS)
def test_settings_of_a_pilot_that_are_wrong_stop_the_start_with_file_and_line(
    world: World, what: str
) -> None:
    text, message = SETTINGS[what]
    (world.directory / "bad.ini").write_text(text)
    pilot = world.start("-m", "pilot", "--config", "bad.ini", "-q", "CPU")
    assert pilot.wait(15) == PilotExit.BAD_SETTINGS == 2
    assert re.search(f"bad.ini {message}", pilot.text), pilot.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[server]\nprot = 8080\n", "bad.ini line 2: unknown key PROT in .server.; did you mean PORT"),
        ("[server]\nport = 99999\n", "bad.ini line 2: PORT"),
        ("[queue]\nlease_seconds = 10\nheartbeat_seconds = 9\n", "must be at least twice heartbeat_seconds"),
        ("[database]\nurl = mysql://x/y\n", "bad.ini line 2: URL"),
    ],
)
def test_settings_of_a_server_that_are_wrong_stop_the_start_with_file_and_line(
    world: World, text: str, message: str
) -> None:
    (world.directory / "bad.ini").write_text(text)
    refused(world, "server", "start", "--state", "new-state", "--config", "bad.ini", message=message)
    assert not list(world.directory.glob("new-state/*.db"))


def test_an_unknown_setting_in_the_environment_is_refused(world: World) -> None:
    done = world.cli("task", "list", extra={"PILOTAGE_CLIENT__SERVR": "x"})
    assert done.returncode == FAILED
    assert "did you mean PILOTAGE_CLIENT__SERVER" in done.stderr


# -- inputs that are no longer what was registered ----------------------------------------------------------------------------


def _over(world: World, dataset: str, **fields: Any) -> Any:
    queue = world.queue()
    world.pilot(queue)
    return world.submit_shell(
        queue, "cat {input} > {output}", input_dataset=dataset, outputs=["{lfn}.copy"], **fields
    )


def test_an_input_whose_size_changed_fails_the_job_when_the_budget_for_losses_is_spent(
    world: World, file: Path
) -> None:
    dataset = world.dataset(file)
    file.write_bytes(b"shorter")
    task = world.ended(_over(world, dataset, max_losses=1, max_attempts=1))
    job = world.job(task)
    assert errors(job) == ["INPUT_SIZE_MISMATCH"] * 2
    assert re.search("4096 bytes are registered, 7 arrived", job.error_detail or "")
    assert "RUNNING" not in words(job)


@pytest.mark.parametrize("algorithm", checksum.available())
def test_an_input_of_the_same_size_with_another_content_fails_by_its_checksum(
    world: World, file: Path, algorithm: str
) -> None:
    dataset = world.dataset(file, algorithms=(algorithm,))
    changed = bytearray(file.read_bytes())
    changed[2000] ^= 1
    file.write_bytes(changed)
    task = world.ended(_over(world, dataset, max_losses=0))
    job = world.job(task)
    assert errors(job) == [f"STAGE_IN_{algorithm.upper()}_MISMATCH"]
    assert (task.state, task.n_outputs) == ("FAILED", 0)


def test_an_input_that_is_gone_fails_the_job_and_says_where_it_should_be(world: World, file: Path) -> None:
    dataset = world.dataset(file)
    file.unlink()
    job = world.job(world.ended(_over(world, dataset, max_losses=0)))
    assert errors(job) == ["INPUT_NOT_FOUND"]
    assert str(file) in (job.error_detail or "")


def test_an_input_that_became_a_directory_or_a_link_is_not_taken(world: World, file: Path) -> None:
    dataset = world.dataset(file)
    file.rename(file.with_name("moved"))
    file.symlink_to(file.with_name("moved"))
    job = world.job(world.ended(_over(world, dataset, max_losses=0)))
    assert job.state == "FAILED" and "link" in (job.error_detail or "")


def test_an_input_that_the_pilot_may_not_read_fails_the_job(world: World, file: Path) -> None:
    dataset = world.dataset(file)
    file.chmod(0)
    queue = world.queue()
    world.pilot(queue, without_root=True)
    task = world.ended(world.submit(queue, ["true"], input_dataset=dataset, max_losses=0))
    assert errors(world.job(task)) == ["INPUT_UNREADABLE"]


def test_an_input_that_comes_back_while_the_pilot_still_tries_costs_nothing(world: World, file: Path) -> None:
    dataset = world.dataset(file)
    content = file.read_bytes()
    file.unlink()
    queue = world.queue()
    world.pilot(queue, settings={**QUICK, "PILOTAGE_COPYTOOLS__RETRIES": "50"})
    task = world.submit(
        queue, ["cp", "{input}", "{output}"], input_dataset=dataset, outputs=["{lfn}.copy"], max_losses=0
    )
    world.reached(task, JobState.STAGE_IN)
    file.with_name("new").write_bytes(content)
    file.with_name("new").rename(file)
    assert world.ended(task).state == "COMPLETED"
    assert errors(world.job(task)) == [None]


def test_a_bad_file_does_not_keep_the_others_of_its_dataset_from_being_processed(world: World) -> None:
    folder = world.directory / "in"
    folder.mkdir()
    for number in range(3):
        (folder / f"file-{number}").write_text(f"content {number}")
    dataset = world.dataset(folder)
    (folder / "file-1").write_text("other")
    queue = world.queue()
    world.pilot(queue)
    task = world.submit(
        queue, ["cp", "{input}", "{output}"], input_dataset=dataset, outputs=["{lfn}"], max_losses=0
    )
    task = world.ended(task)
    assert (task.state, task.counts, task.errors) == (
        "PARTIAL",
        {"COMPLETED": 2, "FAILED": 1},
        {"INPUT_SIZE_MISMATCH": 1},
    )


def test_an_output_file_that_was_damaged_on_the_storage_is_not_fetched(world: World, file: Path) -> None:
    dataset = world.dataset(file)
    task = world.ended(_over(world, dataset))
    (output,) = world.session.dataset_files(str(task.output_dataset))
    stored = Path(output.url[len("file://") :])
    whole = stored.read_bytes()
    stored.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    done = world.cli("dataset", "get", str(task.output_dataset), "--to", "fetched")
    assert done.returncode == FAILED and output.lfn in done.stderr
    assert not (world.directory / "fetched" / output.lfn).exists()
    stored.write_bytes(whole)
    world.pilotage("dataset", "get", str(task.output_dataset), "--to", "fetched")
    assert (world.directory / "fetched" / output.lfn).read_bytes() == whole
