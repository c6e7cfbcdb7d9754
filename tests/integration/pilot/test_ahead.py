"""The order in which a slot's jobs come: the next one with the end of the last, staged beside the one that runs, or claimed ahead."""

from __future__ import annotations

import hashlib
import os
import signal
from typing import Callable

from protocol.errors import PilotExit
from tests.fakes.dispatcher import Dispatcher
from tests.pilots import Site
from tests.waiting import wait_until


def overridden(dispatcher: Dispatcher, **settings: str) -> None:
    """What the queue wants of its pilots."""
    dispatcher.queue.pilot_settings.update({f"get_job.{name}": value for name, value in settings.items()})


def test_the_next_job_comes_with_the_answer_to_the_end_of_the_last(
    site: Site, dispatcher: Dispatcher
) -> None:
    numbers = [dispatcher.add("true") for _ in range(6)]
    assert site.run("--idle", "0") == PilotExit.DONE
    assert [dispatcher.attempt(number).state for number in numbers] == ["COMPLETED"] * 6
    assert len(dispatcher.bodies("getJob")) == 2, "for the first one, and when there was none"
    ends = [body for body in dispatcher.bodies("updateJob") if body.get("next")]
    assert [body["next"]["requestId"] for body in ends] == [
        f"{body['attemptId']}.{body['seq']}" for body in ends
    ]


def test_f07_an_answer_that_was_lost_brings_its_job_when_the_word_is_repeated(
    site: Site, dispatcher: Dispatcher
) -> None:
    numbers = [dispatcher.add("true") for _ in range(4)]
    lost = [dispatcher.misbehave("updateJob", 1, drop=True, after=True) for _ in range(3)]
    assert site.run("--idle", "0") == PilotExit.DONE
    assert not any(fault.times for fault in lost)
    held = [dispatcher.attempt(number) for number in numbers]
    assert [each.state for each in held] == ["COMPLETED"] * 4
    assert all(sum(word.outputs is not None for word in each.words) == 1 for each in held)


def test_f07_a_job_in_a_lost_answer_is_asked_for_again_by_the_same_request(
    site: Site, dispatcher: Dispatcher, reached: Callable[..., None]
) -> None:
    go = site.place / "go"
    first = dispatcher.add("sh", "-c", f"until [ -e {go} ]; do sleep 0.05; done")
    second = dispatcher.add("true")
    pilot = site.start("--idle", "0")
    reached(first, "RUNNING", 10)
    lost = dispatcher.misbehave("updateJob", 2, drop=True, after=True)  # a kept connection is tried once more
    go.touch()
    assert pilot.wait(20) == PilotExit.DONE
    assert not lost.times
    assert [dispatcher.attempt(number).state for number in (first, second)] == ["COMPLETED"] * 2
    ends = [
        body for body in dispatcher.bodies("updateJob") if body.get("next") and body["attemptId"] == first
    ]
    assert ends[0]["next"]["requestId"] in [body["requestId"] for body in dispatcher.bodies("getJob")]


def test_inputs_are_staged_while_the_last_payload_runs(site: Site, dispatcher: Dispatcher) -> None:
    overridden(dispatcher, stage_ahead="1")
    data = os.urandom(1000)
    file = site.input("a.dat", data, md5=hashlib.md5(data).hexdigest())
    first, second = (dispatcher.add("sleep", "1.5", inputs=[file]) for _ in range(2))
    assert site.run("--idle", "0") == PilotExit.DONE
    one, other = (dispatcher.attempt(number).times for number in (first, second))
    assert other["OBTAINED"] < one["FINISHED"] and other["STAGE-IN"] < one["FINISHED"] + 1.0
    assert other["RUNNING"] >= one["FINISHED"] - 1.0, "payloads of one slot run one after the other"
    log = site.pilots[-1].log
    staged = log.index(f"attempt_id={second}] job enters a state state=STAGE-IN")
    assert staged < log.index(f"attempt_id={first}] payload ended"), "meanwhile"
    assert log.index(f"attempt_id={second}] job enters a state state=RUNNING") > log.index(
        f"attempt_id={first}] payload ended"
    )


def test_f20_what_waits_behind_a_payload_is_offered_the_time_that_is_left_after_it(
    site: Site, dispatcher: Dispatcher
) -> None:
    overridden(dispatcher, stage_ahead="1")
    for _ in range(3):
        dispatcher.add("sleep", "1", walltime_seconds=1000)
    assert site.run("--idle", "0", "--lifetime", "3000") == PilotExit.DONE
    [first] = [body["walltimeSeconds"] for body in dispatcher.bodies("getJob")][:1]
    then = [body["next"]["walltimeSeconds"] for body in dispatcher.bodies("updateJob") if body.get("next")]
    assert 2900 < first <= 3000 and 1900 < then[0] <= 2000


def test_short_payloads_are_claimed_ahead_and_told_together(site: Site, dispatcher: Dispatcher) -> None:
    overridden(dispatcher, claim_ahead="10")
    numbers = [dispatcher.add("true") for _ in range(60)]
    dispatcher.misbehave("updateJob", 1000, seconds=0.1)  # so that more is to be said meanwhile
    assert site.run("--idle", "0") == PilotExit.DONE
    held = [dispatcher.attempt(number) for number in numbers]
    assert [each.state for each in held] == ["COMPLETED"] * 60
    assert {each.states[-1] for each in held} == {"COMPLETED"} and all(
        "RUNNING" in each.states for each in held
    )
    asked = [
        *dispatcher.bodies("getJob"),
        *[b["next"] for v in ("updateJob", "updateJobs") for b in dispatcher.bodies(v) if b.get("next")],
    ]
    assert max(body.get("nJobs", 1) for body in asked) in range(5, 12)
    assert len(asked) < 40
    assert any(len(body["updates"]) > 1 for body in dispatcher.bodies("updateJobs"))


def test_long_payloads_are_never_claimed_ahead(site: Site, dispatcher: Dispatcher) -> None:
    overridden(dispatcher, claim_ahead="10")
    for _ in range(3):
        dispatcher.add("sleep", "1.2")
    assert site.run("--idle", "0") == PilotExit.DONE
    assert {body.get("nJobs", 1) for body in dispatcher.bodies("getJob")} == {1}


def test_what_waits_behind_a_payload_that_takes_longer_is_given_back(
    site: Site, dispatcher: Dispatcher, reached: Callable[..., None]
) -> None:
    overridden(dispatcher, claim_ahead="10")
    for _ in range(6):
        dispatcher.add("true")
    long, *behind = [dispatcher.add("sh", "-c", "exec sleep $0", seconds) for seconds in ("6", "0", "0", "0")]
    pilot = site.start("--idle", "0")
    for number in behind:
        reached(number, "FAILED")
    assert dispatcher.attempt(long).end is None, "they are told while it runs"
    assert pilot.wait(30) == PilotExit.DONE
    assert [dispatcher.attempt(number).end.error for number in behind] == ["GIVEN_BACK"] * 3  # type: ignore[union-attr]
    assert dispatcher.attempt(long).state == "COMPLETED"
    assert "ERROR" not in pilot.log


def test_f16_a_job_that_was_lost_before_tells_that_it_runs_before_it_does(
    site: Site, dispatcher: Dispatcher
) -> None:
    overridden(dispatcher, claim_ahead="10")
    for _ in range(5):
        dispatcher.add("true")
    again = [dispatcher.add("true", attempt_nr=2) for _ in range(10)]
    assert site.run("--idle", "0") == PilotExit.DONE
    for number in again:
        words = [[move.state for move in word.moves] for word in dispatcher.attempt(number).words]
        assert any(word[-1] == "RUNNING" for word in words), words


def test_f04_what_a_killed_pilot_had_claimed_ahead_is_all_that_is_lost(
    site: Site, dispatcher: Dispatcher, reached: Callable[..., None]
) -> None:
    overridden(dispatcher, claim_ahead="10")
    numbers = [dispatcher.add("sh", "-c", "sleep 0.05") for _ in range(200)]
    pilot = site.start("--idle", "0")
    reached(numbers[60], "COMPLETED", 30)
    os.kill(pilot.process.pid, signal.SIGKILL)
    wait_until(lambda: pilot.process.poll() is not None, 5, "the pilot's end")
    taken = [number for number in numbers if number in dispatcher.held]
    open_ones = [number for number in taken if dispatcher.attempt(number).state != "COMPLETED"]
    assert len(open_ones) <= 22, "a second of work, twice at most"
    assert all(dispatcher.attempt(number).seq >= 1 for number in taken if number not in open_ones)


def test_f13_a_result_that_took_long_is_kept_before_it_is_told_though_short_ones_were_expected(
    site: Site, dispatcher: Dispatcher, reached: Callable[..., None]
) -> None:
    overridden(dispatcher, claim_ahead="10")
    for _ in range(4):
        dispatcher.add("true")
    long = dispatcher.add("sh", "-c", "sleep 1.5; exec true")
    pilot = site.start("--idle", "60")
    wait_until(
        lambda: "RUNNING" in pilot.log and dispatcher.attempt(long).spec.attempt_id == long,
        20,
        "the long job",
    )
    dispatcher.misbehave("updateJob", 100, seconds=30)
    dispatcher.misbehave("updateJobs", 100, seconds=30)
    wait_until(lambda: list((site.work / "outbox").rglob("*.json")), 10, "the result in the outbox")
    pilot.signal(signal.SIGKILL)


def test_f20_short_payloads_that_declare_a_long_time_leave_time_to_offer(
    site: Site, dispatcher: Dispatcher
) -> None:
    overridden(dispatcher, claim_ahead="10")
    for _ in range(40):
        dispatcher.add("true", walltime_seconds=3000)
    assert site.run("--idle", "0", "--lifetime", "10000") == PilotExit.DONE
    wanted = [
        body["next"]
        for verb in ("updateJob", "updateJobs")
        for body in dispatcher.bodies(verb)
        if body.get("next")
    ]
    assert min(body["walltimeSeconds"] for body in wanted) > 3000


def test_a_look_at_one_job_that_takes_long_holds_up_no_word_about_another(
    site: Site, dispatcher: Dispatcher
) -> None:
    place = site.place / "packages"
    (place / "slow-1.dist-info").mkdir(parents=True)
    (place / "slowplugin.py").write_text(
        "import time\nfrom pilot.plugins.base import ExperimentPlugin\n"
        "class Plugin(ExperimentPlugin):\n    def check_job(self, job):\n"
        "        time.sleep(3 if 'slow' in job.spec.command else 0)\n"
    )
    (place / "slow-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: slow\nVersion: 1\n")
    (place / "slow-1.dist-info" / "entry_points.txt").write_text(
        "[pilotage.plugins]\nslow = slowplugin:Plugin\n"
    )
    dispatcher.add("true")
    other = dispatcher.add("sleep", "1")
    slow = dispatcher.add("echo", "slow")
    assert (
        site.run("--pilotuser", "slow", "--slots", "2", "--idle", "0", PYTHONPATH=str(place))
        == PilotExit.DONE
    )
    ended, began = dispatcher.attempt(other), dispatcher.attempt(slow)
    assert ended.states[-1] == began.states[-1] == "COMPLETED"
    assert ended.times["COMPLETED"] < began.times["PRE-PROCESSING"], "while the other one was looked at"
