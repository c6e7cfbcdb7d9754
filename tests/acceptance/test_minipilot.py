"""The pilot in one file, as a node fetches it from the server: real jobs on a bare Python, with the contract of the pilot."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilot import workdir
from protocol.messages.pilots import Step, StepKind
from protocol.messages.requests import TokenSpec
from protocol.states import SUCCESS, JobState
from tests.acceptance.proxy import Proxy, between
from tests.acceptance.world import LEASE, Running, World, errors, words
from tests.components import old_python
from tests.running_server import RunningServer
from tests.waiting import wait_until

FILE = Path(__file__).parent.parent.parent / "wrappers" / "minipilot.py"
GET, UPDATE, BEAT, REGISTER = "/v1/getJob", "/v1/updateJob", "/v1/heartbeat", "/v1/registerPilot"


def minipilot(
    world: World,
    queue: str,
    *options: str,
    url: str = "",
    token: Path | None = None,
    python: str = sys.executable,
) -> Running:
    """From the server, without site-packages; it ends when there is no job unless the options say otherwise."""
    script = world.directory / "minipilot.py"
    with urllib.request.urlopen(f"{world.server.url}/v1/minipilot.py", timeout=30) as answer:
        script.write_bytes(answer.read())
    work = world.directory / "work"
    work.mkdir(exist_ok=True)
    return world.start(
        *("-c", "import os, sys; os.execv(sys.argv[1], sys.argv[1:])", python, "-I", "-S", str(script)),
        *("--url", url or world.server.url, "-q", queue, "-a", "work"),
        *("--token-file", str(token or world.server.pilot_token), *(options or ("--idle", "0"))),
        log=world.unique("minipilot"),
    )


def await_ready(world: World, task_id: int, n_jobs: int = 1) -> None:
    world.until(lambda: world.session.task(task_id).counts.get("READY") == n_jobs, f"{n_jobs} jobs that wait")


def is_clean(world: World) -> bool:
    return not list((world.directory / "work").iterdir())


def test_173_the_file_is_short_and_needs_only_a_python_from_3_6_on() -> None:
    text = FILE.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 300
    tree = ast.walk(ast.parse(text))
    named = [node for node in tree if isinstance(node, (ast.Import, ast.ImportFrom))]
    modules = {
        alias.name if isinstance(node, ast.Import) else str(node.module)
        for node in named
        for alias in node.names
    }
    assert {module.partition(".")[0] for module in modules} <= sys.stdlib_module_names
    vermin = [str(Path(sys.executable).parent / "vermin"), "-t=3.6-", "--violations", "--no-tips", str(FILE)]
    found = subprocess.run(vermin, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("which", ["this Python", "Python 3.9"])
def test_173_a_task_is_done_with_its_files_and_its_placeholders(world: World, which: str) -> None:
    python = sys.executable if which == "this Python" else old_python()
    if python is None:
        pytest.skip("no Python 3.9 on PATH or in ~/.pyenv; pyenv install 3.9 enables this test")
    paths = [world.directory / name for name in ("one.txt", "two.txt")]
    for path in paths:
        path.write_text(f"this is {path.stem}\n")
    queue = world.queue()
    script = (
        'cat {input} > {output}; echo {{}} {lfn} {stem} {attempt_nr} "$WORD" $PILOTAGE_JOB_ID >> {output}'
    )
    task = world.submit_shell(
        queue,
        script,
        input_dataset=world.dataset(*paths),
        outputs=["{stem}.out"],
        environment={"WORD": "a b"},
    )
    await_ready(world, task.task_id, 2)
    assert minipilot(world, queue, python=python).wait(20) == 0
    assert world.ended(task).state == "COMPLETED"
    jobs = world.jobs(task)
    assert [words(job) for job in jobs] == [[state.value for state in SUCCESS]] * 2
    files = world.session.dataset_files(str(world.session.task(task.task_id).output_dataset))
    texts = sorted(Path(file.url.replace("file://", "", 1)).read_text() for file in files)
    ids = {file.lfn: job.job_id for job in jobs for file in job.inputs or ()}
    assert texts == [
        f"this is {name}\n{{}} {name}.txt {name} 1 a b {ids[f'{name}.txt']}\n" for name in ("one", "two")
    ]
    assert is_clean(world)


def test_173_a_payload_that_fails_is_reported_with_the_end_of_what_it_printed(world: World) -> None:
    queue = world.queue()
    task = world.submit_shell(queue, "yes | head -c 3000000; echo the end >&2; exit 3", max_attempts=1)
    await_ready(world, task.task_id)
    assert minipilot(world, queue).wait(20) == 0
    job = world.job(task)
    assert (job.state, errors(job)) == (JobState.FAILED.value, ["PAYLOAD_FAILED"])
    (attempt,) = job.attempts or ()
    assert attempt.exit_code == 3
    assert str(attempt.error_detail).startswith("exit code 3") and str(attempt.error_detail).endswith(
        "y\nthe end"
    )


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("tampered", "STAGE_IN_MD5_MISMATCH"),
        ("shorter", "INPUT_SIZE_MISMATCH"),
        ("gone", "STAGE_IN_FAILED"),
        ("no output", "MISSING_OUTPUT"),
        ("a link", "OUTPUT_NOT_A_FILE"),
    ],
)
def test_173_files_that_are_not_as_they_should_be_are_found(world: World, change: str, error: str) -> None:
    path = world.directory / "in.txt"
    path.write_text("as registered")
    queue = world.queue()
    command = {"no output": "true", "a link": "ln -s /etc/passwd {output}"}.get(change, "cp {input} {output}")
    task = world.submit_shell(
        queue,
        command,
        input_dataset=world.dataset(path, algorithms=("md5",)),
        outputs=["{stem}.out"],
        max_attempts=1,
    )
    await_ready(world, task.task_id)
    if change == "gone":
        path.unlink()
    elif change in ("tampered", "shorter"):
        path.write_text("as tampered__" if change == "tampered" else "short")
    assert minipilot(world, queue, "--max-jobs", "1").wait(20) == 0
    assert errors(world.attempt_ended(task))[0] == error
    world.session.cancel_task(task.task_id)


def test_173_what_it_cannot_do_goes_back_and_is_not_the_payloads_fault(world: World) -> None:
    queue = world.queue()
    task = world.submit(queue, ["true"], n_jobs=2, steps=[Step(StepKind.PRE, ["true"])])
    await_ready(world, task.task_id, 2)
    pilot = minipilot(world, queue)
    pilot.says("NOT_SUPPORTED: .*steps")
    pilot.says("FAILED")
    pilot.signal(signal.SIGTERM)
    assert pilot.wait(8) == 143
    assert [errors(job) for job in world.jobs(task)] == [["NOT_SUPPORTED"], []], "it takes no other at once"
    assert world.pilot(queue, "--max-jobs", "2").wait(40) == 0, "another pilot on this node may do both soon"
    assert world.ended(task).state == "COMPLETED"
    assert [errors(job) for job in world.jobs(task)] == [["NOT_SUPPORTED", None], [None]]
    shown = world.pilotage("job", "log", str(world.jobs(task)[0].job_id), "--attempt", "1")
    assert "its pilot stored none" in shown


def test_173_a_queue_that_is_not_there_ends_it_as_any_pilot(world: World) -> None:
    pilot = minipilot(world, "NOPE")
    assert pilot.wait(20) == 2
    assert "NOPE" in pilot.text


def test_173_it_asks_for_no_job_with_a_container(world: World) -> None:
    queue = world.queue(pilot_settings={"payload.task_images": "yes"})
    task = world.submit(queue, ["true"], image="/cvmfs/x.sif")
    await_ready(world, task.task_id)
    assert minipilot(world, queue).wait(20) == 82
    assert world.session.task(task.task_id).n_attempts == 0
    world.session.cancel_task(task.task_id)


def test_173_f21_a_cancelled_job_is_stopped_within_a_heartbeat(world: World) -> None:
    queue = world.queue()
    task = world.submit_shell(queue, "trap '' TERM; while true; do sleep 0.1; done")
    await_ready(world, task.task_id)
    pilot = minipilot(world, queue)
    world.reached(task, JobState.RUNNING)
    world.session.cancel_task(task.task_id)
    assert pilot.wait(20) == 0
    world.no_payload_is_left()
    assert world.job(task).state == JobState.CANCELLED.value
    assert is_clean(world)


def test_173_f20_sigterm_ends_the_payload_and_gives_the_job_back(world: World) -> None:
    queue = world.queue()
    task = world.submit_shell(queue, "if [ {attempt_nr} = 1 ]; then sleep 1000; fi", max_attempts=1)
    await_ready(world, task.task_id)
    pilot = minipilot(world, queue)
    world.reached(task, JobState.RUNNING)
    pilot.signal(signal.SIGTERM)
    assert pilot.wait(8) == 143
    world.no_payload_is_left()
    await_ready(world, task.task_id)
    assert minipilot(world, queue).wait(20) == 0
    assert errors(world.job(task)) == ["PILOT_SIGTERM", None]
    ends = sorted(str(pilot.exit_code) for pilot in world.session.pilots(queue=queue))
    assert ends == ["0", "143"]


@pytest.fixture
def proxy(shared_server: RunningServer) -> Iterator[Proxy]:
    with between(shared_server.url) as proxy:
        yield proxy


def test_173_told_to_end_while_nobody_answers_it_does_not_storm_the_server(
    world: World, proxy: Proxy
) -> None:
    queue = world.queue()
    task = world.submit_shell(queue, "exec sleep 1000")
    await_ready(world, task.task_id)
    pilot = minipilot(world, queue, url=proxy.url)
    world.reached(task, JobState.RUNNING)
    proxy.lose.update({UPDATE: 1000})
    pilot.signal(signal.SIGTERM)
    assert pilot.wait(15) == 143
    assert 2 <= proxy.lost[UPDATE] <= 8
    assert errors(world.attempt_ended(task)) == ["PILOT_SIGTERM"], "the first word came through"
    world.session.cancel_task(task.task_id)


def test_173_f07_f08_lost_answers_are_asked_for_again_and_count_once(world: World, proxy: Proxy) -> None:
    queue = world.queue()
    task = world.submit_shell(queue, "echo {job_nr} > {output}", n_jobs=2, outputs=["out-{job_nr}"])
    await_ready(world, task.task_id, 2)
    proxy.lose.update({REGISTER: 1, GET: 1, UPDATE: 2})
    proxy.times = dict.fromkeys((UPDATE, BEAT), 3)
    assert minipilot(world, queue, url=proxy.url).wait(40) == 0
    assert (proxy.lost[GET], proxy.lost[UPDATE]) == (1, 2)
    assert world.ended(task).state == "COMPLETED"
    assert [errors(job) for job in world.jobs(task)] == [[None]] * 2


def test_173_f04_the_job_of_one_that_was_killed_goes_to_another_by_its_lease(world: World) -> None:
    """The first one's heartbeats keep the lease for longer than it lasts."""
    queue = world.queue(**LEASE)
    go = world.directory / "held"
    script = f"if [ {{attempt_nr}} = 1 ]; then sleep 6; touch {go}; sleep 1000; fi; echo {{attempt_nr}} > {{output}}"
    task = world.submit_shell(queue, script, outputs=["out"])
    await_ready(world, task.task_id)
    first = minipilot(world, queue)
    wait_until(go.exists, 20, "a payload that outlives a lease")
    assert errors(world.job(task)) == [None]
    first.kill()
    world.kill_payloads()
    await_ready(world, task.task_id)
    assert minipilot(world, queue).wait(20) == 0
    assert world.ended(task).state == "COMPLETED"
    assert errors(world.job(task)) == ["LOST_HEARTBEAT", None]
    assert world.output(task) == "2\n"


def test_173_f05_one_that_was_paused_beyond_its_lease_hears_that_the_job_is_another_ones(
    world: World,
) -> None:
    queue = world.queue(lease_seconds=2, heartbeat_seconds=1)
    script = "if [ {attempt_nr} = 1 ]; then sleep 3; fi; echo {attempt_nr} > {output}"
    task = world.submit_shell(queue, script, outputs=["out"])
    await_ready(world, task.task_id)
    first = minipilot(world, queue, "--max-jobs", "1")
    world.reached(task, JobState.RUNNING)
    first.signal(signal.SIGSTOP)
    await_ready(world, task.task_id)
    assert minipilot(world, queue).wait(20) == 0
    first.signal(signal.SIGCONT)
    assert first.wait(20) == 0
    assert "STALE_ATTEMPT" in first.text
    assert errors(world.job(task)) == ["LOST_HEARTBEAT", None]
    assert world.output(task) == "2\n"


def test_173_without_a_job_or_a_token_it_says_so(world: World, tmp_path: Path) -> None:
    assert minipilot(world, world.queue()).wait(20) == 82
    wrong = tmp_path / "token"
    wrong.write_text("wrong")
    wrong.chmod(0o600)
    assert minipilot(world, "CPU", token=wrong).wait(20) == 68
    wrong.chmod(0o644)
    open_to_all = minipilot(world, "CPU", token=wrong)
    assert open_to_all.wait(20) == 2
    assert "chmod 600" in open_to_all.text


@pytest.mark.parametrize(
    "url", ["http://[::1", "http://a b", "http://h:port", "http://h:99999", "ftp://h", "h:8080", "http://"]
)
def test_173_what_is_no_address_is_refused_at_once(world: World, url: str) -> None:
    pilot = minipilot(world, world.queue(), url=url)
    assert pilot.wait(20) == 2
    assert "error: --url is as http://SERVER:8080" in pilot.text


def test_173_a_token_that_is_renewed_in_its_file_is_taken_when_the_old_one_is_refused(
    world: World, tmp_path: Path
) -> None:
    queue = world.queue()
    first, second = (world.session.create_token(TokenSpec(world.unique("t"), "pilot")) for _ in range(2))
    token, go = tmp_path / "token", world.directory / "go"
    token.write_text(str(first.token))
    token.chmod(0o600)
    task = world.submit_shell(queue, f"until [ -e {go} ]; do sleep 0.1; done")
    await_ready(world, task.task_id)
    pilot = minipilot(world, queue, token=token)
    world.reached(task, JobState.RUNNING)
    world.session.revoke_token(first.token_id)
    go.touch()
    wait_until(lambda: "updateJob: UNAUTHENTICATED" in pilot.text, 20, "a result that is refused")
    token.write_text(str(second.token))
    assert pilot.wait(20) == 0
    assert errors(world.job(task)) == [None]


def test_173_directories_that_are_too_deep_to_be_removed_end_no_pilot(world: World) -> None:
    queue = world.queue()
    deep = "import os\nfor _ in range(1500): os.mkdir('d'); os.chdir('d')"
    task = world.submit(queue, ["{python}", "-c", deep], n_jobs=2)
    await_ready(world, task.task_id, 2)
    assert minipilot(world, queue).wait(40) == 0
    assert world.ended(task).state == "COMPLETED"
    assert [pilot.exit_code for pilot in world.session.pilots(queue=queue)] == [0]
    for left in (world.directory / "work").iterdir():
        workdir.remove(left)
