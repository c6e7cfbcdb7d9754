"""The life of a pilot: how it begins, how many jobs it runs, and every way to end: told, killed, paused, cancelled, cut off."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from pilot.control.job import Why
from protocol.errors import PilotExit
from protocol.messages.requests import GroupSpec
from protocol.messages.views import TaskView
from protocol.states import JobState, QueueState
from tests.acceptance.world import LEASE, QUICK, Running, World, errors, words

LONG = "exec sleep 1000"
ONLY_THE_FIRST_HANGS = (
    "if [ {attempt_nr} = 1 ]; then touch hangs; exec sleep 1000; fi; echo attempt {attempt_nr} > {output}"
)
END_SECONDS = 10.0
"""A batch system gives this much between SIGTERM and SIGKILL."""


def ends_within(pilot: Running, seconds: float) -> int:
    """The exit code; the time it took, and what was left of the time it had, are shown."""
    began = time.monotonic()
    code = pilot.wait(seconds)
    took = time.monotonic() - began
    print(f"the pilot ended after {took:.2f} s, {seconds - took:.2f} s before it had to")
    return code


# -- how many jobs ----------------------------------------------------------------------------------------------------------


def test_a_pilot_runs_one_job_after_the_other_until_it_has_run_as_many_as_it_was_told_to(
    world: World,
) -> None:
    queue = world.queue()
    task = world.submit(queue, ["true"], n_jobs=3)
    pilot = world.pilot(queue, "--max-jobs", "2")
    assert pilot.wait(15) == PilotExit.DONE
    assert world.session.task(task.task_id).counts == {"COMPLETED": 2, "READY": 1}


def test_a_pilot_ends_when_its_lifetime_is_over_and_gives_the_running_job_back(world: World) -> None:
    queue = world.queue()
    task = world.submit_shell(queue, ONLY_THE_FIRST_HANGS, outputs=["out"], max_attempts=1)
    began = time.monotonic()
    pilot = world.pilot(queue, "-l", "2")
    assert pilot.wait(15) == PilotExit.DONE
    assert 2 <= time.monotonic() - began < 2 + END_SECONDS
    assert errors(world.job(task)) == ["KILL_SIGNAL"]
    world.pilot(queue)
    assert world.ended(task).state == "COMPLETED"
    assert world.output(task) == "attempt 2\n"


def test_a_pilot_without_work_ends_with_exit_code_82(world: World) -> None:
    queue = world.queue()
    pilot = world.pilot(queue, "--idle", "1")
    assert pilot.wait(15) == PilotExit.NO_JOBS == 82
    (known,) = world.session.pilots(queue=queue)
    assert (known.state, known.exit_code, known.reason) == ("ended", 82, "there was no job for it")


def test_a_pilot_that_ran_a_job_and_then_has_no_work_ends_with_exit_code_0(world: World) -> None:
    queue = world.queue()
    world.submit(queue, ["true"])
    assert world.pilot(queue, "--idle", "0").wait(15) == PilotExit.DONE


def test_a_pilot_waits_for_work_that_comes_later(world: World) -> None:
    queue = world.queue()
    pilot = world.pilot(queue)
    world.until(lambda: list(world.session.pilots(queue=queue, state="alive")), "the pilot's first word")
    assert world.ended(world.submit(queue, ["true"])).state == "COMPLETED"
    assert pilot.is_running()


def test_a_pilot_with_two_slots_runs_two_jobs_at_the_same_time(world: World) -> None:
    """Each payload waits for the other one."""
    queue = world.queue()
    world.pilot(queue, "--slots", "2")
    script = f"touch {world.directory}/here-{{job_nr}}; until [ -e {world.directory}/here-1 -a -e {world.directory}/here-2 ]; do sleep 0.05; done"
    assert world.ended(world.submit_shell(queue, script, n_jobs=2)).state == "COMPLETED"


@pytest.mark.parametrize("state", [QueueState.DRAIN, QueueState.OFFLINE])
def test_a_closed_queue_hands_out_nothing_until_it_is_opened_again(world: World, state: QueueState) -> None:
    queue = world.queue()
    world.pilotage("queue", "set", queue, state.value)
    task = world.submit(queue, ["true"])
    assert world.pilot(queue, "--idle", "1").wait(15) == PilotExit.NO_JOBS
    assert world.job(task).state == "READY"
    world.pilotage("queue", "set", queue, "online")
    world.pilot(queue)
    assert world.ended(task).state == "COMPLETED"


def test_higher_priority_goes_first(world: World) -> None:
    queue = world.queue()
    low, high = (world.submit(queue, ["true"], priority=priority) for priority in (0, 5))
    world.until(lambda: world.session.task(high.task_id).counts.get("READY"), "the last job to be formed")
    assert world.pilot(queue, "--max-jobs", "1").wait(15) == PilotExit.DONE
    assert (world.job(low).state, world.job(high).state) == ("READY", "COMPLETED")


# -- how it begins ------------------------------------------------------------------------------------------------------------


def test_all_options_of_pilot_2_are_accepted(world: World) -> None:
    queue = world.queue(site="SITE-2")
    (world.directory / "pilot.ini").write_text("[limits]\nidle_seconds = 5\n")
    address, _, port = world.server.url.rpartition(":")
    world.session.create_group(GroupSpec("spd"))
    task = world.submit(queue, ["true"], working_group="spd", country_group="jinr")
    pilot = world.start(
        "-m", "pilot", "-a", str(world.directory / "w"), "-d", "-w", "generic", "-l", "60", "-q", queue, "-s", "SITE-2",
        "-j", "user", "--cacert", "/no/ca.pem", "--capath", "/no/certificates", "-p", port, "--config", "pilot.ini",
        "--countrygroup", "jinr", "--workinggroup", "spd", "--allowothercountry", "--allowsameuser", "--url", address,
        "--pilotuser", "generic", "--token-file", str(world.server.pilot_token), "--max-jobs", "1",
        extra=QUICK,
    )  # fmt: skip
    assert pilot.wait(15) == PilotExit.DONE
    assert world.ended(task).state == "COMPLETED"


def _wrong_token(world: World) -> Path:
    token = world.directory / "wrong.token"
    token.write_text("plt_" + "x" * 40 + "\n")
    token.chmod(0o600)
    return token


def test_a_wrong_token_ends_the_pilot_with_exit_code_68(world: World) -> None:
    pilot = world.pilot(world.queue(), token=_wrong_token(world))
    assert pilot.wait(15) == PilotExit.NO_CREDENTIALS == 68
    assert "error=UNAUTHENTICATED" in pilot.text


def test_a_token_file_that_others_may_read_is_refused_with_the_remedy(world: World) -> None:
    token = world.directory / "open.token"
    token.write_text(world.server.pilot_token.read_text())
    token.chmod(0o644)
    pilot = world.pilot(world.queue(), token=token)
    assert pilot.wait(15) == PilotExit.BAD_SETTINGS
    assert "chmod 600" in pilot.text


def test_an_unknown_queue_ends_the_pilot_with_a_message_that_names_the_known_ones(world: World) -> None:
    pilot = world.pilot("NO_SUCH_QUEUE")
    assert pilot.wait(15) == PilotExit.BAD_SETTINGS
    assert re.search("no queue NO_SUCH_QUEUE; there are .*CPU", pilot.text)


def test_a_pilot_of_the_wrong_kind_for_its_queue_is_refused(world: World) -> None:
    pilot = world.pilot(world.gpu_queue(), kind="cpu")
    assert pilot.wait(15) == PilotExit.BAD_SETTINGS
    assert "is a gpu queue and this pilot is of type cpu" in pilot.text


def test_a_server_that_cannot_be_reached_ends_the_pilot_with_exit_code_79(world: World) -> None:
    command = [
        "-m",
        "pilot",
        "-q",
        "CPU",
        "--url",
        "http://127.0.0.1:1",
        "--token-file",
        str(world.server.pilot_token),
    ]
    pilot = world.start(*command, extra={**QUICK, "PILOTAGE_CONNECTION__GIVE_UP_SECONDS": "1"})
    assert pilot.wait(15) == PilotExit.SERVER_UNREACHABLE == 79
    assert "Connection refused" in pilot.text


UNFIT = {
    "too little disk": ({"PILOTAGE_LIMITS__FREE_DISK_MB": "999999999"}, "MiB are free"),
    "no work directory": ({"PILOTAGE_NODE_SETTINGS__WORK_DIRECTORY": "/proc/nothing"}, "cannot be used"),
    "no copytool that works": ({"PILOTAGE_COPYTOOLS__NAMES": "no_such_tool"}, "no_such_tool"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_a_node_that_is_not_fit_takes_no_job(world: World, what: str) -> None:
    settings, message = UNFIT[what]
    queue = world.queue()
    task = world.submit(queue, ["true"])
    command = [
        "-m",
        "pilot",
        "-q",
        queue,
        "--url",
        world.server.url,
        "--token-file",
        str(world.server.pilot_token),
    ]
    pilot = world.start(*command, extra={**QUICK, **settings})
    assert pilot.wait(15) in (PilotExit.NODE_UNFIT, PilotExit.BAD_SETTINGS)
    assert message in pilot.text
    assert not world.job(task).attempts


# -- told to end --------------------------------------------------------------------------------------------------------------

SIGNALS = [
    pytest.param(signal.SIGTERM, PilotExit.TERMINATED, "PILOT_SIGTERM", id="SIGTERM"),
    pytest.param(signal.SIGINT, PilotExit.INTERRUPTED, "PILOT_SIGINT", id="SIGINT"),
]


@pytest.mark.parametrize(("number", "code", "error"), SIGNALS)
def test_a_pilot_that_is_told_to_end_gives_its_job_back_without_charging_the_payload(
    world: World, number: int, code: PilotExit, error: str
) -> None:
    """F20. One attempt is all that the payload has, and it still has it afterwards."""
    queue = world.queue()
    pilot = world.pilot(queue, settings={})
    task = world.submit_shell(queue, ONLY_THE_FIRST_HANGS, outputs=["out"], max_attempts=1)
    world.reached(task, JobState.RUNNING)
    pilot.signal(number)
    assert ends_within(pilot, END_SECONDS) == code
    world.no_payload_is_left(0.1)
    job = world.job(task)
    assert (job.state, errors(job)) == ("READY", [error])
    (known,) = world.session.pilots(queue=queue)
    assert (known.state, known.exit_code) == ("ended", code)
    world.pilot(queue)
    assert world.ended(task).state == "COMPLETED"
    assert words(world.job(task))[-1] == "COMPLETED"


def test_the_log_of_a_job_that_was_given_back_is_there(world: World) -> None:
    queue = world.queue()
    pilot = world.pilot(queue)
    task = world.submit_shell(queue, "echo so far so good; touch ready; exec sleep 1000")
    world.until(lambda: list(world.directory.glob("work/pilot-*/job-*/ready")), "the payload's own word")
    pilot.signal(signal.SIGTERM)
    assert pilot.wait(END_SECONDS) == PilotExit.TERMINATED
    assert "so far so good" in world.log(task)


def test_a_payload_that_ignores_sigterm_does_not_keep_a_pilot_that_is_told_to_end(world: World) -> None:
    queue = world.queue()
    pilot = world.pilot(queue, settings={})
    task = world.submit_shell(queue, "trap '' TERM; touch ready; while true; do sleep 1; done")
    world.until(lambda: list(world.directory.glob("work/pilot-*/job-*/ready")), "the payload's own word")
    pilot.signal(signal.SIGTERM)
    assert ends_within(pilot, END_SECONDS) == PilotExit.TERMINATED
    world.no_payload_is_left(0.1)
    assert errors(world.job(task)) == ["PILOT_SIGTERM"]


def test_a_pilot_that_is_told_to_end_does_not_wait_for_a_long_stage_in(world: World) -> None:
    """The copytool nfs waits 30 s for a file that may only not be visible yet."""
    source = world.directory / "late"
    source.write_text("x")
    queue = world.queue(copytools=["nfs"])
    dataset = world.dataset(source)
    source.unlink()
    task = world.submit(queue, ["true"], input_dataset=dataset, max_attempts=1)
    pilot = world.pilot(queue, settings={})
    world.reached(task, JobState.STAGE_IN)
    pilot.signal(signal.SIGTERM)
    assert ends_within(pilot, END_SECONDS) == PilotExit.TERMINATED
    job = world.job(task)
    assert (job.state, errors(job)) == ("READY", ["PILOT_SIGTERM"])


def test_an_idle_pilot_that_is_told_to_end_does_so_at_once(world: World) -> None:
    queue = world.queue()
    pilot = world.pilot(queue, settings={})
    world.until(lambda: list(world.session.pilots(queue=queue, state="alive")), "the pilot's first word")
    pilot.signal(signal.SIGTERM)
    assert ends_within(pilot, 5) == PilotExit.TERMINATED


def test_a_pilot_that_looks_for_its_server_can_be_told_to_end(world: World) -> None:
    command = [
        "-m",
        "pilot",
        "-q",
        "CPU",
        "--url",
        "http://127.0.0.1:1",
        "--token-file",
        str(world.server.pilot_token),
    ]
    pilot = world.start(*command)
    pilot.says("the server does not answer")
    pilot.signal(signal.SIGTERM)
    assert ends_within(pilot, 5) == PilotExit.TERMINATED


def test_a_pilot_that_is_told_to_end_twice_still_ends_in_order(world: World) -> None:
    queue = world.queue()
    pilot = world.pilot(queue, settings={})
    task = world.submit_shell(queue, "trap '' TERM; touch ready; while true; do sleep 1; done")
    world.until(lambda: list(world.directory.glob("work/pilot-*/job-*/ready")), "the payload's own word")
    pilot.signal(signal.SIGTERM)
    pilot.says("the pilot has to end")
    pilot.signal(signal.SIGTERM)
    pilot.signal(signal.SIGINT)
    assert pilot.wait(END_SECONDS) == PilotExit.TERMINATED
    assert errors(world.job(task)) == ["PILOT_SIGTERM"]
    world.no_payload_is_left(0.1)


# -- cancelled ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["job", "task"])
def test_cancelling_stops_the_payload_within_two_heartbeats(world: World, what: str) -> None:
    """F21. Heartbeats come each second; the payload has gone at the second one, and a moment is given for its end."""
    queue = world.queue()
    pilot = world.pilot(queue)
    task = world.submit_shell(queue, f"echo > {{output}}; {LONG}", outputs=["out"])
    job = world.reached(task, JobState.RUNNING)
    began = time.monotonic()
    world.pilotage(what, "cancel", str(job.job_id) if what == "job" else task.name)
    world.no_payload_is_left(2 * 1.1 + 2)
    print(f"the payload was gone after {time.monotonic() - began:.2f} s")
    task = world.ended(task)
    job = world.job(task)
    assert (job.state, errors(job), task.n_outputs) == ("CANCELLED", ["CANCELLED_BY_USER"], 0)
    assert task.state == ("CANCELLED" if what == "task" else "FAILED")
    assert world.ended(world.submit(queue, ["true"])).state == "COMPLETED"
    assert pilot.is_running()
    assert not pilot.troubles(), "it is nothing to look into"


def test_a_word_about_a_job_that_was_cancelled_is_refused_without_an_error_in_the_pilots_log(
    world: World,
) -> None:
    """Where no heartbeat comes in between, the answer to the pilot's own word is how it hears of it."""
    queue = world.queue(heartbeat_seconds=600, lease_seconds=1200)
    pilot = world.pilot(queue)
    task = world.submit_shell(queue, f"until [ -e {world.directory}/go ]; do sleep 0.05; done")
    world.reached(task, JobState.RUNNING)
    world.pilotage("task", "cancel", task.name)
    (world.directory / "go").touch()
    pilot.says("INFO.* job is given up.*CANCELLED_BY_USER")
    assert world.ended(world.submit(queue, ["true"])).state == "COMPLETED"
    assert not pilot.troubles()


def test_a_job_that_is_cancelled_during_stage_in_ends_cancelled_and_never_runs(world: World) -> None:
    source = world.directory / "late"
    source.write_text("x")
    queue = world.queue(copytools=["nfs"])
    task = world.submit_shell(queue, f"touch {world.directory}/ran", input_dataset=world.dataset(source))
    source.unlink()
    pilot = world.pilot(queue)
    job = world.reached(task, JobState.STAGE_IN)
    world.session.cancel_job(job.job_id)
    pilot.says("job is given up")
    source.write_text("x")
    assert world.ended(world.submit(queue, ["true"])).state == "COMPLETED"
    assert world.job(task).state == "CANCELLED"
    assert "RUNNING" not in words(world.job(task))
    assert not (world.directory / "ran").exists()


def test_cancelling_a_task_ends_the_jobs_that_wait_as_well(world: World) -> None:
    queue = world.queue()
    task = world.submit(queue, ["true"], n_jobs=3)
    world.until(lambda: world.session.task(task.task_id).counts == {"READY": 3}, "three jobs that wait")
    world.session.cancel_task(task.task_id)
    assert world.ended(task).counts == {"CANCELLED": 3}
    assert world.pilot(queue, "--idle", "0").wait(15) == PilotExit.NO_JOBS


# -- drained ------------------------------------------------------------------------------------------------------------------


def _holding(world: World, queue: str, *options: str) -> tuple[Running, list[TaskView], Path]:
    """A pilot that runs the first of two jobs; that one ends when the file is there."""
    go = world.directory / "go"
    pilot = world.pilot(queue, *options)
    first = world.submit_shell(
        queue, f"until [ -e {go} ]; do sleep 0.05; done; echo > {{output}}", outputs=["o"]
    )
    world.reached(first, JobState.RUNNING)
    return pilot, [first, world.submit(queue, ["true"])], go


def _last_line(pilot: Running) -> str:
    return pilot.text.strip().splitlines()[-1]


@pytest.mark.parametrize("by", ["name", "queue"])
def test_a_pilot_that_is_drained_finishes_its_job_takes_no_other_and_says_why_it_ends(
    world: World, by: str
) -> None:
    queue = world.queue()
    pilot, (first, second), go = _holding(world, queue)
    (known,) = world.session.pilots(queue=queue)
    world.pilotage("pilot", "drain", *([known.pilot_id] if by == "name" else ["--queue", queue]))
    pilot.says("take no further job")
    assert world.job(first).state == "RUNNING"
    go.touch()
    assert pilot.wait(15) == PilotExit.DONE == 0
    assert "pilot ends" in _last_line(pilot)
    assert "an operator has drained it: it takes no further job" in _last_line(pilot)
    assert world.ended(first).state == "COMPLETED"
    assert (world.job(second).state, world.job(second).attempts) == ("READY", [])
    (known,) = world.session.pilots(queue=queue)
    assert (known.state, known.exit_code, known.reason) == ("ended", 0, Why.DRAINED.value)


def test_a_pilot_of_a_queue_that_is_drained_finishes_its_job_and_its_last_line_has_the_operators_reason(
    world: World,
) -> None:
    queue = world.queue()
    pilot, (first, second), go = _holding(world, queue, "--idle", "1")
    world.pilotage("queue", "set", queue, "drain", "--reason", "power cut at 18:00")
    go.touch()
    assert pilot.wait(15) == PilotExit.DONE
    assert "pilot ends" in _last_line(pilot)
    assert "there was no job for it: the queue is in drain: power cut at 18:00" in _last_line(pilot)
    assert world.ended(first).state == "COMPLETED"
    assert (world.job(second).state, world.job(second).attempts) == ("READY", [])


# -- paused for a moment, and among strangers --------------------------------------------------------------------------------


def test_a_pilot_that_was_paused_for_less_than_its_lease_keeps_its_job(world: World) -> None:
    queue = world.queue(**LEASE)
    pilot = world.pilot(queue)
    task = world.submit_shell(queue, "sleep 3; echo {attempt_nr} > {output}", outputs=["out"])
    world.reached(task, JobState.RUNNING)
    pilot.signal(signal.SIGSTOP)
    resumed_at = time.monotonic() + 2.5
    world.until(lambda: time.monotonic() > resumed_at, "half of a lease")
    pilot.signal(signal.SIGCONT)
    assert world.ended(task).state == "COMPLETED"
    assert errors(world.job(task)) == [None]


def test_a_pilot_touches_no_process_that_is_not_its_own(world: World) -> None:
    """Also one that looks like a payload's child: of the same user, and without a parent."""
    orphan_pid = world.directory / "pid"
    script = f"import os, time; pid = os.fork(); (os.setsid(), open({str(orphan_pid)!r}, 'w').write(str(os.getpid())), time.sleep(1000)) if not pid else None"
    world.start("-c", script).wait(10)
    pid = int(world.until(lambda: orphan_pid.exists() and orphan_pid.read_text(), "the stranger"))
    queue = world.queue()
    pilot = world.pilot(queue)
    assert world.ended(world.submit_shell(queue, "setsid sleep 1000 & true")).state == "COMPLETED"
    pilot.signal(signal.SIGTERM)
    assert pilot.wait(END_SECONDS) == PilotExit.TERMINATED
    assert list(world.payloads()) == [pid]
    os.kill(pid, signal.SIGKILL)
