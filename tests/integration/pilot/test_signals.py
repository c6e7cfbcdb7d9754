"""A pilot that is told to end, at any moment: jobs are given back, nothing is left, and it takes at most ten seconds."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Callable

import pytest

from protocol.errors import PilotExit
from protocol.messages.pilots import InputFile
from tests.fakes.dispatcher import Dispatcher
from tests.pilots import PilotProcess, Site
from tests.waiting import wait_until

Reached = Callable[..., None]
SECONDS = 10
LIMIT = 3 * SECONDS  # on a machine that is busy with other things

SLOW_TOOL = """
import time
from copytools.base import CopyTool

class Tool(CopyTool):
    schemes = ("slow", "stuck")

    def copy_in(self, source, to, timeout):
        open(source.partition(":")[2], "w").close()
        if source.startswith("stuck:"):
            time.sleep(300)  # hears nothing
        self.deadline(timeout).pause(300)

    copy_out = None
"""


@pytest.fixture
def slow(site: Site) -> str:
    """A copytool from outside, found by its entry point; the PYTHONPATH that brings it."""
    place = site.place / "packages"
    (place / "slowtool-1.dist-info").mkdir(parents=True)
    (place / "slowtool.py").write_text(SLOW_TOOL)
    (place / "slowtool-1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: slowtool\nVersion: 1\n"
    )
    (place / "slowtool-1.dist-info" / "entry_points.txt").write_text(
        "[pilotage.copytools]\nslow = slowtool\n"
    )
    return str(place)


def end(pilot: PilotProcess, number: int) -> float:
    """Send a signal and wait; how long it took."""
    begin = time.monotonic()
    pilot.signal(number)
    pilot.wait(LIMIT)
    return time.monotonic() - begin


@pytest.mark.parametrize(
    ("number", "error", "code"),
    [
        (signal.SIGTERM, "PILOT_SIGTERM", PilotExit.TERMINATED),
        (signal.SIGINT, "PILOT_SIGINT", PilotExit.INTERRUPTED),
        (signal.SIGHUP, "KILL_SIGNAL", PilotExit.TERMINATED),
        (signal.SIGXCPU, "KILL_SIGNAL", PilotExit.TERMINATED),
    ],
)
def test_f20_a_running_job_is_given_back(
    number: int, error: str, code: PilotExit, site: Site, dispatcher: Dispatcher, reached: Reached
) -> None:
    job = dispatcher.add("sleep", "300")
    pilot = site.start()
    reached(job, "RUNNING")
    assert end(pilot, number) < 5
    assert pilot.wait() == code
    held = dispatcher.attempt(job)
    assert held.end.error == error
    assert held.log is not None, "there was time for the log too"
    last = dispatcher.bodies("endPilot")
    assert [body["exitCode"] for body in last] == [code]
    assert dispatcher.said[-1].verb == "endPilot", "it is the last word"
    assert [path.name for path in site.work.iterdir()] == ["outbox"]


def test_a_payload_that_ignores_sigterm_is_killed_after_three_seconds(
    site: Site, dispatcher: Dispatcher, reached: Reached
) -> None:
    ready = site.place / "trap-is-set"
    job = dispatcher.add("sh", "-c", f"trap '' TERM; touch {ready}; while :; do sleep 1; done")
    pilot = site.start(PILOTAGE_LIMITS__KILL_GRACE_SECONDS="300")
    reached(job, "RUNNING")
    wait_until(ready.exists, what="the payload's trap")
    assert 3 <= end(pilot, signal.SIGTERM) < LIMIT
    assert dispatcher.attempt(job).end.error == "PILOT_SIGTERM"
    assert not site.processes()


def test_a_payload_may_use_its_grace(site: Site, dispatcher: Dispatcher, reached: Reached) -> None:
    ready = site.place / "trap-is-set"
    script = f'trap "sleep 0.5; echo tidy; exit 0" TERM; touch {ready}; while :; do sleep 0.1; done'
    job = dispatcher.add("sh", "-c", script)
    pilot = site.start()
    reached(job, "RUNNING")
    wait_until(ready.exists, what="the payload's trap")
    end(pilot, signal.SIGTERM)
    assert site.archive(job)["payload.stdout"] == "tidy\n"


def test_more_signals_do_not_break_the_order(site: Site, dispatcher: Dispatcher, reached: Reached) -> None:
    job = dispatcher.add("sh", "-c", "trap '' TERM; while :; do sleep 1; done")
    pilot = site.start()
    reached(job, "RUNNING")
    pilot.signal(signal.SIGTERM)
    wait_until(lambda: "the pilot has to end" in pilot.log, what="the pilot to hear the first")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        pilot.signal(number)
    assert pilot.wait(LIMIT) == PilotExit.TERMINATED
    assert dispatcher.attempt(job).end.error == "PILOT_SIGTERM"
    assert dispatcher.said[-1].verb == "endPilot"


@pytest.mark.parametrize("scheme", ["slow", "stuck"])
def test_a_job_in_stage_in_is_given_back(scheme: str, slow: str, site: Site, dispatcher: Dispatcher) -> None:
    mark = site.place / "copying"
    file = InputFile("a", "s", "d", 1, {}, f"{scheme}:{mark}")
    job = dispatcher.add("true", inputs=[file])
    pilot = site.start(PYTHONPATH=slow)
    wait_until(mark.exists, what="the copy to begin")
    assert end(pilot, signal.SIGTERM) < LIMIT
    assert pilot.wait() == PilotExit.TERMINATED
    assert dispatcher.attempt(job).end.error == "PILOT_SIGTERM"
    assert "RUNNING" not in dispatcher.attempt(job).states


def test_a_job_that_the_server_cancels_in_stage_in_ends_soon(
    slow: str, site: Site, dispatcher: Dispatcher
) -> None:
    dispatcher.queue.heartbeat_seconds = 1
    mark = site.place / "copying"
    job = dispatcher.add("true", inputs=[InputFile("a", "s", "d", 1, {}, f"slow:{mark}")])
    pilot = site.start(PYTHONPATH=slow)
    wait_until(mark.exists, what="the copy to begin")
    dispatcher.held[job].stop = True
    assert pilot.wait(10) == PilotExit.DONE
    assert dispatcher.attempt(job).end is None


def test_an_idle_pilot_ends_at_once(site: Site, dispatcher: Dispatcher) -> None:
    dispatcher.wait_seconds = 300
    pilot = site.start("--wait")
    wait_until(lambda: dispatcher.bodies("getJob"), what="the first getJob")
    assert end(pilot, signal.SIGTERM) < 2
    assert pilot.wait() == PilotExit.TERMINATED
    assert dispatcher.bodies("endPilot")


def test_a_pilot_ends_while_it_waits_for_the_servers_first_answer(site: Site, dispatcher: Dispatcher) -> None:
    dispatcher.misbehave("registerPilot", times=1, seconds=30)
    pilot = site.start()
    wait_until(lambda: dispatcher.bodies("registerPilot"), what="the first word")
    assert end(pilot, signal.SIGTERM) < 2
    assert pilot.wait() == PilotExit.TERMINATED
    assert list(site.work.iterdir()) == []


def test_a_pilot_ends_while_it_waits_for_a_server_that_is_away(site: Site) -> None:
    pilot = site.start(url="http://127.0.0.1:9", PILOTAGE_CONNECTION__BACKOFF_SECONDS="60")
    wait_until(lambda: "the server does not answer" in pilot.log, what="the first failure")
    assert end(pilot, signal.SIGINT) < 2
    assert pilot.wait() == PilotExit.INTERRUPTED


@pytest.mark.parametrize("verb", ["getJob", "updateJob"])
def test_a_pilot_ends_while_the_server_hangs(
    verb: str, site: Site, dispatcher: Dispatcher, reached: Reached
) -> None:
    job = dispatcher.add("sleep", "300")
    if verb == "getJob":
        dispatcher.misbehave("getJob", times=1, seconds=60)
        pilot = site.start()
        wait_until(lambda: dispatcher.bodies("getJob"), what="the first getJob")
    else:
        pilot = site.start()
        reached(job, "RUNNING")
        dispatcher.misbehave("updateJob", times=1, seconds=60)
    assert end(pilot, signal.SIGTERM) < LIMIT
    assert pilot.wait() == PilotExit.TERMINATED
    if verb == "updateJob":
        assert dispatcher.attempt(job).end.error == "PILOT_SIGTERM", "told on another connection"


def test_a_job_whose_answer_came_with_the_signal_is_given_back(site: Site, dispatcher: Dispatcher) -> None:
    job = dispatcher.add("sleep", "300")
    dispatcher.misbehave("getJob", times=1, seconds=1)
    pilot = site.start()
    wait_until(lambda: dispatcher.bodies("getJob"), what="the first getJob")
    assert end(pilot, signal.SIGTERM) < LIMIT
    held = dispatcher.attempt(job)
    assert held.end is None or held.end.error == "PILOT_SIGTERM"
    assert "RUNNING" not in held.states


def test_results_are_kept_if_the_server_is_away_at_the_end(
    site: Site, dispatcher: Dispatcher, reached: Reached
) -> None:
    job = dispatcher.add("sleep", "300")
    pilot = site.start()
    reached(job, "RUNNING")
    for verb in ("updateJob", "heartbeat", "getJob", "endPilot"):
        dispatcher.misbehave(verb, times=1000, drop=True)
    assert end(pilot, signal.SIGTERM) < LIMIT
    assert pilot.wait() == PilotExit.TERMINATED
    dispatcher.behave()
    site.run("--idle", "1")
    assert dispatcher.attempt(job).end.error == "PILOT_SIGTERM"


def test_a_lifetime_that_is_over_gives_the_job_back(site: Site, dispatcher: Dispatcher) -> None:
    job = dispatcher.add("sleep", "300")
    pilot = site.start("-l", "2")
    assert pilot.wait(LIMIT) == PilotExit.DONE
    assert dispatcher.attempt(job).end.error == "KILL_SIGNAL"


def test_no_job_is_asked_for_after_the_queues_timefloor(site: Site, dispatcher: Dispatcher) -> None:
    dispatcher.queue.timefloor_seconds = 1
    first, second = dispatcher.add("sleep", "1.2"), dispatcher.add("true")
    assert site.run("--wait") == PilotExit.DONE
    assert dispatcher.attempt(first).state == "COMPLETED"
    assert [spec.attempt_id for spec in dispatcher.waiting] == [second]


BROKEN_PLUGIN = """
from pilot.plugins.base import ExperimentPlugin

class Plugin(ExperimentPlugin):
    def {hook}(self, job, *rest):
        raise RuntimeError("a mistake in the plugin")
"""


@pytest.mark.parametrize("hook", ["payload_command", "job_metrics", "check_job"])
def test_a_control_that_dies_ends_the_pilot_in_order_and_its_job_is_told(
    hook: str, site: Site, dispatcher: Dispatcher
) -> None:
    place = site.place / "packages"
    (place / "broken-1.dist-info").mkdir(parents=True)
    (place / "brokenplugin.py").write_text(BROKEN_PLUGIN.format(hook=hook))
    (place / "broken-1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: broken\nVersion: 1\n"
    )
    (place / "broken-1.dist-info" / "entry_points.txt").write_text(
        "[pilotage.plugins]\nbroken = brokenplugin:Plugin\n"
    )
    job = dispatcher.add("sleep", "300")
    pilot = site.start("--pilotuser", "broken", PYTHONPATH=str(place))
    assert pilot.wait(LIMIT) == PilotExit.BROKEN
    assert dispatcher.attempt(job).end.error == "PILOT_EXCEPTION"
    assert "a mistake in the plugin" in dispatcher.attempt(job).end.error_detail
    assert "Traceback" in pilot.log
    assert dispatcher.bodies("endPilot")[0]["exitCode"] == PilotExit.BROKEN
    assert not site.processes()


def test_what_a_killed_pilot_left_is_removed_by_the_next_one_and_nothing_else(
    site: Site, dispatcher: Dispatcher, reached: Reached
) -> None:
    job = dispatcher.add("sh", "-c", "ln -s / root; sleep 300")
    killed, lives = site.start(), None
    reached(job, "RUNNING")
    killed.signal(signal.SIGKILL)
    killed.wait()
    left = list(site.work.glob("pilot-*"))
    assert left
    mine = site.work / "pilot-notes"
    mine.write_text("a file of the user")
    (site.work / "pilot-link").symlink_to(site.place)
    other = dispatcher.add("sleep", "300")
    lives = site.start()
    reached(other, "RUNNING")
    third = dispatcher.add("true")
    site.run()
    assert dispatcher.attempt(third).state == "COMPLETED"
    remaining = {path.name for path in site.work.glob("pilot-*")} - {"pilot-notes", "pilot-link"}
    assert len(remaining) == 2, f"the living pilot's directory and its lock: {remaining}"
    assert mine.exists() and (site.work / "pilot-link").is_symlink() and Path("/etc").exists()
    assert lives.process.poll() is None
