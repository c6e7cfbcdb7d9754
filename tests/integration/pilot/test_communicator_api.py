"""The Communicator API against a dispatcher that misbehaves: each word has its effect once, and nobody speaks for a lost job."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from pilot.api import communicator
from pilot.api.communicator import Communicator, JobOver, JobState, OutputReport, PilotRegistration
from protocol.errors import PilotageError, PilotExit
from protocol.messages.pilots import BundleRef, Step, StepKind
from tests.fakes.dispatcher import TOKEN, Dispatcher
from tests.waiting import wait_until

ME = PilotRegistration("agent-1", node="n1", version="1", queue="CPU", cores=3, memory_mb=2000)


def agent(dispatcher: Dispatcher, token: str = TOKEN, **rules: Any) -> Communicator:
    return Communicator(dispatcher.url, token, ME, **{"give_up_seconds": 20, **rules})


def test_157_a_program_takes_a_job_reports_it_and_says_goodbye(
    dispatcher: Dispatcher, tmp_path: Path
) -> None:
    number = dispatcher.add("work", "{output}", outputs=["out"])
    with agent(dispatcher) as server:
        assert server.queue.name == "CPU"
        [job] = server.get_jobs(directory=tmp_path, prod_source_label="user")
        assert dispatcher.attempt(number).states == ["OBTAINED"], "it is acknowledged at once"
        assert job.command() == ["work", str(tmp_path / f"job-{1000 + number}-1" / "out")]
        job.enter(JobState.RUNNING)
        assert server.tell(job)
        job.outputs = [OutputReport("out", 3, {"adler32": "00000001"})]
        job.complete()
        server.tell(job)
        assert server.jobs.all() == []
    held = dispatcher.attempt(number)
    assert held.states == ["OBTAINED", "RUNNING", "COMPLETED"]
    assert held.end is not None and held.end.outputs == [OutputReport("out", 3, {"adler32": "00000001"})]
    [asked] = dispatcher.bodies("getJob")
    assert (asked["cores"], asked["memoryMb"], asked["prodSourceLabel"]) == (3, 2000, "user")
    assert dispatcher.bodies("endPilot")[0]["exitCode"] == PilotExit.DONE


def test_f06_a_word_whose_answer_was_lost_is_repeated_unchanged_and_counts_once(
    dispatcher: Dispatcher,
) -> None:
    number = dispatcher.add("true")
    with agent(dispatcher) as server:
        dispatcher.misbehave("getJob", drop=True, after=True, times=2)
        [job] = server.get_jobs()
        job.fail(PilotageError("PAYLOAD_FAILED", "exit code 3"))
        dispatcher.misbehave("updateJob", drop=True, after=True, times=2)
        server.tell(job)
    asked = [body["requestId"] for body in dispatcher.bodies("getJob")]
    assert len(asked) == 3 and len(set(asked)) == 1, "one request, and so one job"
    said = [body for body in dispatcher.bodies("updateJob") if body["seq"] == 2]
    assert len(said) == 3 and said[0] == said[1] == said[2]
    assert [word.seq for word in dispatcher.attempt(number).words] == [1, 2]


def test_who_has_lost_a_job_hears_so_and_changes_nothing(dispatcher: Dispatcher) -> None:
    first, second = dispatcher.add("true"), dispatcher.add("true")
    with agent(dispatcher) as server:
        [by_word, by_heartbeat] = server.get_jobs(2)
        dispatcher.attempt(first).stop = dispatcher.attempt(second).stop = True
        by_word.enter(JobState.RUNNING)
        assert server.tell(by_word) is False
        server.heartbeat()
        assert by_heartbeat.over.is_set()
        with pytest.raises(JobOver):
            by_heartbeat.enter(JobState.RUNNING)
    assert dispatcher.attempt(first).states == dispatcher.attempt(second).states == ["OBTAINED"]


def test_heartbeats_name_what_is_held_as_often_as_the_queue_wants(dispatcher: Dispatcher) -> None:
    dispatcher.queue.heartbeat_seconds = 0.1  # type: ignore[assignment]
    number = dispatcher.add("true")
    with agent(dispatcher) as server:
        [job] = server.get_jobs()
        wait_until(lambda: len(dispatcher.bodies("heartbeat")) > 2, 10, "heartbeats")
        assert [each["attemptId"] for each in dispatcher.bodies("heartbeat")[-1]["attempts"]] == [number]
        dispatcher.drain = True
        wait_until(lambda: server.drained, 10, "the word to drain")
        dispatcher.add("true")
        assert server.get_jobs() == []
        job.complete()
        server.tell(job)


def test_a_job_that_a_failing_program_leaves_behind_is_given_back(dispatcher: Dispatcher) -> None:
    number = dispatcher.add("true")
    with pytest.raises(ZeroDivisionError), agent(dispatcher) as server:
        server.get_jobs()
        raise ZeroDivisionError
    end = dispatcher.attempt(number).end
    assert end is not None and (end.error, "ZeroDivisionError" in end.error_detail) == (
        "PILOT_EXCEPTION",
        True,
    )
    assert dispatcher.bodies("endPilot")[0]["exitCode"] == PilotExit.BROKEN


def test_a_server_that_stays_silent_is_given_up_and_what_was_to_be_said_is_kept(
    dispatcher: Dispatcher,
) -> None:
    number = dispatcher.add("true")
    with agent(dispatcher, give_up_seconds=0.5) as server:
        [job] = server.get_jobs()
        job.complete()
        dispatcher.misbehave("updateJob", times=100, status=503)
        with pytest.raises(PilotageError) as caught:
            server.tell(job)
        assert caught.value.name == "SERVER_UNAVAILABLE"
        dispatcher.behave()
        server.tell(job)
    assert dispatcher.attempt(number).state == "COMPLETED"


def test_a_refused_token_is_no_reason_to_wait(dispatcher: Dispatcher) -> None:
    with pytest.raises(PilotageError) as caught, agent(dispatcher, token="nobodys"):
        pass
    assert caught.value.name == "UNAUTHENTICATED" and len(dispatcher.said) == 1


WANTED: dict[str, Any] = {
    "bundle": BundleRef("a" * 64, 1),
    "image": "docker://debian:12",
    "pilot_settings": {"limits.looping_seconds": "60"},
    "software": "https://server/software.tar.gz",
    "steps": [Step(StepKind.PRE, ["true"])],
}


@pytest.mark.parametrize("name", WANTED)
def test_157_a_job_that_asks_for_what_the_program_cannot_do_is_given_back_and_the_others_are_taken(
    dispatcher: Dispatcher, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = dispatcher.add("true", **{name: WANTED[name]}), dispatcher.add("true")
    with agent(dispatcher) as server:
        [job] = server.get_jobs(2)
        assert job.spec.attempt_id == second
        end = dispatcher.attempt(first).end
        assert end is not None and (end.error, name in end.error_detail) == ("NOT_SUPPORTED", True)
        assert [held.spec.attempt_id for held in server.jobs.held()] == [second]
        job.complete()
        server.tell(job)
    assert any(f"job {1000 + first} is given back" in text and name in text for text in caplog.messages)
    assert [body["images"] for body in dispatcher.bodies("getJob")] == [False]


def test_157_a_program_that_says_what_it_can_do_gets_such_jobs(dispatcher: Dispatcher) -> None:
    dispatcher.add("true", **WANTED)
    with agent(dispatcher, can=WANTED) as server:
        [job] = server.get_jobs()
        assert job.spec.bundle == WANTED["bundle"]
        job.complete()
        server.tell(job)
    assert [body["images"] for body in dispatcher.bodies("getJob")] == [True]
    with pytest.raises(PilotageError, match="known are bundle, image"):
        agent(dispatcher, can=["bundles"])


def test_157_after_a_job_that_it_cannot_do_a_program_takes_no_other_at_once(
    dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(communicator, "REST_SECONDS", 0.1)
    for _ in range(3):
        dispatcher.add("true", software="/cvmfs/x")
    with agent(dispatcher) as server:
        assert server.get_jobs() == []
        assert len(dispatcher.bodies("getJob")) == 1, "who does not want to wait asks once"
        dispatcher.add("true")
        [job] = server.get_jobs(wait_seconds=20)
        job.complete()
        server.tell(job)
    assert len(dispatcher.bodies("getJob")) == 4


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "did you mean http://nonsense:8080 "),
        ("ftp://h:1", "must begin with http"),
        ("", "http://HOST"),
    ],
)
def test_157_what_is_no_address_is_refused_at_once(url: str, words: str) -> None:
    with pytest.raises(PilotageError, match=words) as caught:
        Communicator(url, TOKEN, ME)
    assert caught.value.name == "BAD_SETTINGS"


def test_157_a_server_that_does_not_answer_is_told_of_at_each_try_in_plain_text(
    dispatcher: Dispatcher, caplog: pytest.LogCaptureFixture
) -> None:
    dispatcher.misbehave("registerPilot", times=2, status=503)
    with caplog.at_level(logging.WARNING), agent(dispatcher):
        pass
    told = [text for text in caplog.messages if text.startswith("SERVER_UNAVAILABLE: ")]
    assert len(told) == 2 and all("it is asked again in" in text for text in told), caplog.messages


def test_a_program_may_wait_for_work(dispatcher: Dispatcher) -> None:
    with agent(dispatcher) as server:
        assert server.get_jobs() == []
        later = threading.Timer(0.3, dispatcher.add, ["true"])
        later.start()
        [job] = server.get_jobs(wait_seconds=20)
        later.join()
        job.complete()
        server.tell(job)


def test_a_job_that_cannot_be_told_of_at_the_end_leaves_the_others_told(dispatcher: Dispatcher) -> None:
    first, second = dispatcher.add("true"), dispatcher.add("true")
    with agent(dispatcher, give_up_seconds=0.0) as server:
        server.get_jobs(2)
        dispatcher.misbehave("updateJob", times=1, status=503)
    assert dispatcher.attempt(first).end is None
    end = dispatcher.attempt(second).end
    assert end is not None and end.error == "PILOT_EXCEPTION"
    assert dispatcher.bodies("endPilot")
