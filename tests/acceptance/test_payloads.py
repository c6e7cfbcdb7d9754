"""Payloads that fail, misbehave, look around or leave things behind: the right error, at once, and no process left."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from protocol.messages.views import AttemptView, JobView
from protocol.states import JobState
from tests.acceptance.world import QUICK, World, errors, words

LONG = "exec sleep 1000"
"""A payload that ends only if somebody ends it."""


def only_attempt(job: JobView) -> AttemptView:
    (attempt,) = job.attempts or []
    return attempt


# -- how a payload can fail ---------------------------------------------------------------------------------------------

FAILURES = {
    "exit code": (
        "echo the last words >&2; exit 3",
        "PAYLOAD_FAILED",
        3,
        r"exit code 3; its last words: the last words",
    ),
    "exit code after text on stdout only": (
        "echo said on stdout; exit 1",
        "PAYLOAD_FAILED",
        1,
        "said on stdout",
    ),
    "signal": ("echo before >&2; kill -USR1 $$", "PAYLOAD_KILLED", -10, r"signal 10 \(SIGUSR1\).*before"),
    "kill": ("kill -KILL $$", "PAYLOAD_KILLED", -9, r"signal 9 \(SIGKILL\)"),
    "segmentation fault": ("kill -SEGV $$", "PAYLOAD_SEGFAULT", -11, r"signal 11 \(SIGSEGV\)"),
    "no output": ("true", "MISSING_OUTPUT", 0, "out is not in the work directory"),
    "link as output": ("ln -s /etc/hostname {output}", "OUTPUT_NOT_A_FILE", 0, "out is a link"),
    "directory as output": ("mkdir {output}", "OUTPUT_NOT_A_FILE", 0, "out is a directory"),
    "pipe as output": ("mkfifo {output}", "OUTPUT_NOT_A_FILE", 0, "out is a pipe"),
}


@pytest.mark.parametrize("what", FAILURES)
def test_a_payload_that_fails_is_reported_with_the_right_error_and_its_last_words(
    world: World, what: str
) -> None:
    script, error, exit_code, detail = FAILURES[what]
    queue = world.queue()
    world.pilot(queue)
    task = world.ended(world.submit_shell(queue, script, outputs=["out"], max_attempts=1))
    (job,) = world.jobs(task)
    attempt = only_attempt(job)
    assert (task.state, job.state, job.error, attempt.error) == ("FAILED", "FAILED", error, error)
    assert attempt.exit_code == exit_code
    assert re.search(detail, attempt.error_detail or ""), attempt.error_detail
    assert task.errors == {error: 1}


def _not_executable(directory: Path) -> str:
    (directory / "program").write_text("#!/bin/sh\n")
    return str(directory / "program")


def _without_interpreter(directory: Path) -> str:
    path = Path(_not_executable(directory))
    path.write_text("#!/no/such/interpreter\n")
    path.chmod(0o755)
    return str(path)


PROGRAMS = {
    "does not exist": (
        lambda directory: "/no/such/program",
        "TRANSFORM_NOT_FOUND",
        "no such program on this node",
    ),
    "is not on the PATH": (
        lambda directory: "no-such-program",
        "TRANSFORM_NOT_FOUND",
        "no such program on this node",
    ),
    "is not executable": (_not_executable, "BAD_COMMAND", "is not executable"),
    "is a directory": (lambda directory: "/tmp", "BAD_COMMAND", "is a directory"),
    "has no interpreter": (_without_interpreter, "BAD_COMMAND", "the interpreter that its first line names"),
}


@pytest.mark.parametrize("what", PROGRAMS)
def test_a_payload_program_that_cannot_be_started_fails_the_job_without_a_second_try(
    world: World, what: str
) -> None:
    program, error, detail = PROGRAMS[what]
    queue = world.queue()
    world.pilot(queue)
    task = world.ended(world.submit(queue, [program(world.directory)]))
    attempt = only_attempt(world.job(task))
    assert attempt.error == error
    assert detail in (attempt.error_detail or "")


LIMITS = {
    "wall time": (LONG, {"walltime_seconds": 1}, {}, "WALLTIME_EXCEEDED"),
    "text": ("yes", {}, {"PILOTAGE_LIMITS__STDOUT_MB": "1"}, "STDOUT_TOO_LARGE"),
    "disk": (f"head -c 30000000 /dev/zero > big; {LONG}", {"disk_mb": 10}, {}, "WORK_DIRECTORY_TOO_LARGE"),
    "silence": (LONG, {}, {"PILOTAGE_LIMITS__LOOPING_SECONDS": "1"}, "LOOPING_JOB"),
}


@pytest.mark.parametrize("what", LIMITS)
def test_a_payload_that_passes_a_limit_is_ended_with_the_error_of_that_limit(world: World, what: str) -> None:
    script, fields, settings, error = LIMITS[what]
    queue = world.queue()
    world.pilot(queue, settings={**QUICK, **settings})
    task = world.ended(world.submit_shell(queue, script, **fields))
    assert errors(world.job(task)) == [error]
    world.no_payload_is_left()


def test_the_log_of_a_payload_that_printed_too_much_keeps_its_head_and_its_tail(world: World) -> None:
    queue = world.queue()
    world.pilot(queue, settings={**QUICK, "PILOTAGE_LIMITS__LOG_ARCHIVE_MB": "1"})
    task = world.submit_shell(queue, "echo the first line; yes | head -c 5000000; echo the last line")
    world.ended(task)
    world.log(task)
    world.pilotage("job", "log", str(world.job(task).job_id), "--save", "saved")
    (stdout,) = (world.directory / "saved").rglob("payload.stdout")
    text = stdout.read_text()
    assert text.startswith("the first line\n") and text.endswith("the last line\n")
    assert "bytes are left out here" in text and len(text) < 1_100_000


# -- attempts, times, logs --------------------------------------------------------------------------------------------------


def test_a_failed_payload_is_known_on_the_server_within_a_second(world: World) -> None:
    """The promise is 1 s, with the pilot's settings of life; the test allows five for a busy machine."""
    queue = world.queue(heartbeat_seconds=20)
    world.pilot(queue, settings={})
    ended = world.directory / "ended"
    task = world.submit_shell(queue, f"date +%s.%N > {ended}; exit 1", max_attempts=1)
    world.attempt_ended(task)
    seconds = time.time() - float(ended.read_text())
    print(f"the failed payload was known on the server after {seconds:.2f} s")
    assert seconds < 5


def test_a_payload_that_fails_is_tried_max_attempts_times_and_no_more(world: World) -> None:
    queue = world.queue()
    world.pilot(queue)
    task = world.ended(world.submit_shell(queue, "exit 1", max_attempts=3))
    job = world.job(task)
    assert errors(job) == ["PAYLOAD_FAILED"] * 3
    assert job.state == "FAILED" and task.n_attempts == 3


def test_a_payload_that_succeeds_at_its_second_attempt_completes(world: World) -> None:
    queue = world.queue()
    world.pilot(queue)
    task = world.submit_shell(queue, "echo {attempt_nr} > {output}; test {attempt_nr} = 2", outputs=["out"])
    assert world.ended(task).state == "COMPLETED"
    job = world.job(task)
    assert errors(job) == ["PAYLOAD_FAILED", None]
    assert (words(job, 1)[-1], words(job, 2)[-1], job.state, job.error) == (
        "FAILED",
        "COMPLETED",
        "COMPLETED",
        None,
    )
    assert world.output(task) == "2\n"


def test_an_error_that_no_second_try_can_mend_is_not_tried_again(world: World) -> None:
    queue = world.queue()
    world.pilot(queue)
    task = world.ended(world.submit(queue, ["true"], outputs=["out"], max_attempts=3))
    assert errors(world.job(task)) == ["MISSING_OUTPUT"]


def test_some_jobs_that_fail_make_a_task_partial_and_its_outputs_are_those_of_the_others(
    world: World,
) -> None:
    queue = world.queue()
    world.pilot(queue)
    script = "echo > {output}; test {job_nr} -ne 2"
    task = world.ended(world.submit_shell(queue, script, n_jobs=3, outputs=["out-{job_nr}"], max_attempts=1))
    assert (task.state, task.counts) == ("PARTIAL", {"COMPLETED": 2, "FAILED": 1})
    files = [file.lfn for file in world.session.dataset_files(str(task.output_dataset))]
    assert (sorted(files), task.output_state) == (["out-1", "out-3"], "closed")


def test_job_log_shows_what_every_attempt_wrote_the_failed_ones_too(world: World) -> None:
    queue = world.queue()
    world.pilot(queue)
    task = world.submit_shell(
        queue, "echo out of try {attempt_nr}; echo err of try {attempt_nr} >&2; exit 1", max_attempts=2
    )
    world.ended(task)
    shown = world.log(task)
    lines = [line for line in shown.splitlines() if re.fullmatch(r"(out|err) of try \d", line)]
    assert lines == ["out of try 1", "err of try 1", "out of try 2", "err of try 2"]
    assert shown.count("PAYLOAD_FAILED (1305): exit code 1") == 2


def test_job_log_shows_the_pilots_own_records_of_that_job_and_of_no_other(world: World) -> None:
    queue = world.queue()
    world.pilot(queue)
    first = world.submit_shell(queue, "exit 1", max_attempts=1)
    second = world.submit_shell(queue, "exit 1", max_attempts=1)
    world.ended(first), world.ended(second)
    shown = world.log(second)
    assert f"job_id={world.job(second).job_id} " in shown
    assert f"job_id={world.job(first).job_id} " not in shown


def test_text_of_a_payload_cannot_drive_the_terminal_of_who_reads_it(world: World) -> None:
    queue = world.queue()
    world.pilot(queue)
    task = world.submit_shell(queue, r"printf '\033[2J\rINFO all is well\n\377' >&2; exit 1", max_attempts=1)
    world.ended(task)
    job_id = str(world.job(task).job_id)
    for shown in (
        world.log(task),
        world.pilotage("job", "show", job_id),
        world.pilotage("job", "show", job_id, "--json"),
    ):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", shown)
        assert "all is well" in shown


# -- what a payload gets to see -----------------------------------------------------------------------------------------------


def test_a_payload_sees_its_tasks_environment_and_its_own_numbers(world: World) -> None:
    queue = world.queue()
    world.pilot(queue)
    environment = {"GREETING": "hello {job_nr}", "EMPTY": ""}
    task = world.submit_shell(
        queue, "env > {output}; pwd >> {output}", outputs=["out"], environment=environment
    )
    job = world.job(world.ended(task))
    lines = world.output(task).splitlines()
    for line in ("GREETING=hello 1", "EMPTY=", f"PILOTAGE_JOB_ID={job.job_id}", "PILOTAGE_ATTEMPT_NR=1"):
        assert line in lines


def test_a_payload_sees_no_token_and_no_setting_of_the_pilot(world: World) -> None:
    """Neither in its environment, nor on the pilot's command line, nor in files that it inherits open."""
    queue = world.queue()
    secrets = {
        "X509_USER_PROXY": "/a/proxy",
        "BEARER_TOKEN": "abc",
        "SOME_PASSWORD": "def",
        "MY_API_TOKEN": "ghi",
    }
    settings = {**QUICK, "PILOTAGE_NODE_SETTINGS__SITE": "SITE-1", **secrets}
    world.pilot(queue, settings=settings)
    script = "(env; tr '\\0' '\\n' < /proc/$PPID/cmdline; ls -l /proc/self/fd) > {output}"
    task = world.submit_shell(queue, script, outputs=["out"])
    assert world.ended(task).state == "COMPLETED"
    seen = world.output(task)
    token = world.server.pilot_token.read_text().strip()
    assert token not in seen
    assert not [name for name in secrets if f"{name}=" in seen]
    ours = re.findall("^PILOTAGE_[A-Z_]+", seen, re.MULTILINE)
    assert sorted(ours) == ["PILOTAGE_ATTEMPT_NR", "PILOTAGE_JOB_ID", "PILOTAGE_PAYLOAD", "PILOTAGE_TASK_ID"]
    descriptors = re.findall(r"(\d+) -> (.*)", seen)
    assert {number for number, _ in descriptors} <= {"0", "1", "2", "3"}, (
        descriptors
    )  # 3: what ls itself opened


def test_no_log_holds_a_token(world: World) -> None:
    queue = world.queue()
    pilot = world.pilot(queue, "-d")
    task = world.submit_shell(queue, "exit 1", max_attempts=1)
    world.ended(task)
    shown = world.log(task)
    for secret in (world.server.pilot_token, world.server.admin_token):
        for text in (pilot.text, shown, world.server.text_of_log()):
            assert secret.read_text().strip() not in text


# -- what a payload leaves behind ---------------------------------------------------------------------------------------------

LEAVES = {
    "a child in its process group": "sleep 1000 & true",
    "a child in a session of its own": "setsid sleep 1000 & true",
    "a grandchild whose parent has ended": "(setsid sh -c 'sleep 1000 & exec sleep 1000' &) ; true",
    "a child that ignores every signal it can": "(trap '' TERM HUP INT; sleep 1000) & true",
}


@pytest.mark.parametrize("what", LEAVES)
def test_a_payload_that_ends_and_leaves_processes_completes_and_none_of_them_is_left(
    world: World, what: str
) -> None:
    queue = world.queue()
    pilot = world.pilot(queue)
    task = world.submit_shell(queue, LEAVES[what])
    assert world.ended(task).state == "COMPLETED"
    world.no_payload_is_left()
    assert pilot.is_running()


STUBBORN = {
    "ignores SIGTERM": "trap '' TERM; touch ready; while true; do sleep 1; done",
    "left children in its group": "sleep 1000 & sleep 1000 & touch ready; wait",
    "left children in other sessions": "setsid sleep 1000 & setsid sleep 1000 & touch ready; wait",
    "is stopped": "touch ready; kill -STOP $$",
}


@pytest.mark.parametrize("what", STUBBORN)
def test_a_cancelled_payload_that_does_not_want_to_go_leaves_no_process(world: World, what: str) -> None:
    queue = world.queue()
    pilot = world.pilot(queue)
    task = world.submit_shell(queue, STUBBORN[what])
    job = world.reached(task, JobState.RUNNING)
    world.until(lambda: list(world.directory.glob("work/pilot-*/job-*/ready")), "the payload's own word")
    world.pilotage("job", "cancel", str(job.job_id))
    world.no_payload_is_left(10)
    assert world.job(task).state == "CANCELLED"
    assert pilot.is_running()


def test_a_job_leaves_no_file_in_the_pilots_directory_whatever_rights_it_gave_them(world: World) -> None:
    queue = world.queue()
    world.pilot(queue, without_root=True)
    task = world.submit_shell(
        queue, "mkdir -p a/b; touch a/b/c; chmod 000 a/b; chmod 000 a; mkfifo pipe; exit 1", max_attempts=1
    )
    world.ended(task)
    world.until(lambda: not list(world.directory.glob("work/pilot-*/job-*")), "the job's directory to go")


def test_an_output_may_have_the_name_of_its_input(world: World) -> None:
    source = world.directory / "same-name"
    source.write_text("in")
    queue = world.queue()
    world.pilot(queue)
    script = "sed s/in/out/ {input} > {output}"
    task = world.submit_shell(queue, script, input_dataset=world.dataset(source), outputs=["{lfn}"])
    assert world.ended(task).state == "COMPLETED"
    assert (world.output(task), source.read_text()) == ("out", "in")


def test_several_files_can_go_into_one_job_as_one_argument_each(world: World) -> None:
    folder = world.directory / "in"
    folder.mkdir()
    for number in range(5):
        (folder / f"part {number}").write_text(f"{number}\n")  # a blank in a name is no separator
    queue = world.queue()
    world.pilot(queue)
    command = ["sh", "-c", 'out=$1; shift; cat "$@" > "$out"', "join", "{output}", "{inputs}"]
    task = world.submit(
        queue, command, input_dataset=world.dataset(folder), files_per_job=2, outputs=["joined-{job_nr}"]
    )
    assert world.ended(task).state == "COMPLETED"
    texts = [
        Path(file.url[len("file://") :]).read_text() for job in world.jobs(task) for file in job.outputs or ()
    ]
    assert texts == ["0\n1\n", "2\n3\n", "4\n"]
