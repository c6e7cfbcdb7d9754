"""One attempt: its course, and the words about it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, List

import pytest

from pilot import jobrun
from pilot.jobrun import JobOver, JobRun, Jobs, is_result
from protocol.errors import PilotageError
from protocol.messages.pilots import (
    AttemptUpdate,
    Command,
    InputFile,
    JobSpec,
    LogReport,
    OutputFile,
    OutputReport,
    UpdateReply,
)
from protocol.states import JobState

S = JobState
ERROR = PilotageError("PAYLOAD_FAILED", "exit code 3")


def job(**fields: Any) -> JobRun:
    spec = JobSpec(11, 1, 7, 42, 2, "attempt-token", ["true"], **fields)
    return JobRun(spec, Path("/scratch/job"), lambda: None)


def states(word: AttemptUpdate) -> List[str]:
    return [move.state for move in word.moves]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    class Clock:
        now = 1000.0

    monkeypatch.setattr(jobrun.time, "monotonic", lambda: Clock.now)
    return Clock


def deliver(run: JobRun) -> List[AttemptUpdate]:
    """Take all words that are due as if the server accepted each."""
    said = []
    while run.words():
        word = run.words()[0]
        said.append(word)
        run.answered(word, "")
    return said


def test_obtained_and_running_are_told_at_once_and_take_the_others_along() -> None:
    run = job()
    run.enter(S.OBTAINED)
    assert [states(word) for word in deliver(run)] == [["OBTAINED"]]
    run.enter(S.PRE_PROCESSING)
    run.enter(S.STAGE_IN)
    assert run.words() == []
    run.enter(S.RUNNING)
    assert [states(word) for word in deliver(run)] == [["PRE-PROCESSING", "STAGE-IN", "RUNNING"]]


def test_a_state_that_lasts_longer_than_a_second_is_told_by_itself(clock: Any) -> None:
    run = job()
    run.enter(S.STAGE_IN)
    assert run.seconds_until_due() == pytest.approx(1)
    clock.now += 1
    assert [states(word) for word in run.words()] == [["STAGE-IN"]]


def test_a_word_is_repeated_unchanged_until_it_is_answered_and_news_follow_it(clock: Any) -> None:
    run = job()
    run.enter(S.OBTAINED)
    (first,) = run.words()
    run.enter(S.PRE_PROCESSING)
    run.enter(S.RUNNING)
    clock.now += 60
    assert run.words() == [first]
    run.answered(first, "OBTAINED")
    (second,) = run.words()
    assert (first.seq, second.seq) == (1, 2)
    assert states(second) == ["PRE-PROCESSING", "RUNNING"]


def test_the_end_is_composed_behind_a_word_that_has_no_answer_yet() -> None:
    run = job()
    run.enter(S.RUNNING)
    (first,) = run.words()
    run.fail(ERROR)
    assert [word.seq for word in run.words()] == [1, 2]
    assert run.words()[0] == first


def test_a_complete_job_reports_outputs_log_and_exit_code_in_its_last_word() -> None:
    run = job()
    run.payload_started(lambda: None)
    run.payload_ended(0)
    run.enter(S.POST_PROCESSING)
    run.enter(S.STAGE_OUT)
    run.outputs.append(OutputReport("a", 1, {"md5": "0"}))
    run.log = LogReport(5, {"md5": "1"})
    run.complete()
    (word,) = deliver(run)
    assert states(word) == ["FINISHED", "POST-PROCESSING", "STAGE-OUT", "COMPLETED"]
    assert (word.exit_code, word.outputs, word.log, word.error) == (0, run.outputs, run.log, "")
    assert run.is_settled


def test_a_job_without_outputs_still_reports_that_it_has_none() -> None:
    run = job()
    run.complete()
    assert deliver(run)[0].outputs == []


def test_the_end_of_a_failed_job_waits_for_its_payload_and_not_for_its_log() -> None:
    run = job()
    woken: List[str] = []
    run.attention = lambda: woken.append("job monitor")
    run.payload_started(lambda: None)
    run.fail(PilotageError("WALLTIME_EXCEEDED"))
    assert run.words() == [] and run.over.is_set() and woken == ["job monitor"]
    assert run.seconds_until_due() == float("inf")
    run.payload_ended(-15)
    (word,) = deliver(run)
    assert (word.error, word.exit_code, states(word), word.log) == (
        "WALLTIME_EXCEEDED",
        -15,
        ["FAILED"],
        None,
    )
    assert not run.is_settled, "the log may follow"


def test_the_log_of_a_failed_job_follows_when_the_job_has_gone_through_all_controls() -> None:
    run = job()
    run.fail(ERROR)
    end = deliver(run)[0]
    run.log = LogReport(5, {"md5": "1"})
    assert run.words() == []
    run.leave()
    assert not run.is_settled, "who tidies before the reporter has looked would lose the log"
    (word,) = deliver(run)
    assert (word.seq, word.moves, word.log, word.error) == (end.seq + 1, [], run.log, "")
    assert run.is_settled


def test_the_first_error_counts() -> None:
    run = job()
    assert run.fail(ERROR)
    assert not run.fail(PilotageError("PILOT_SIGTERM"))
    assert run.error is ERROR


def test_a_complete_job_cannot_fail_any_more() -> None:
    run = job()
    run.complete()
    assert not run.fail(ERROR)
    assert states(deliver(run)[0]) == ["COMPLETED"]


def test_a_job_that_is_over_enters_no_state() -> None:
    run = job()
    run.fail(ERROR)
    for step in (lambda: run.enter(S.STAGE_OUT), run.check, run.complete):
        with pytest.raises(JobOver):
            step()


@pytest.mark.parametrize("name", ["STALE_ATTEMPT", "WRONG_STATE", "NOT_FOUND"])
def test_after_a_conflict_nothing_more_is_said(name: str) -> None:
    run = job()
    run.enter(S.RUNNING)
    run.refused(run.words()[0], PilotageError(name))
    assert run.abandoned and run.over.is_set() and run.told.is_set()
    run.fail(ERROR)
    run.leave()
    assert run.words() == [] and run.is_settled


def test_a_job_that_the_server_has_ended_itself_is_no_error_of_the_pilots(
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = job()
    run.enter(S.RUNNING)
    with caplog.at_level(logging.INFO, jobrun.__name__):
        run.refused(run.words()[0], PilotageError("STALE_ATTEMPT", "attempt 1: CANCELLED_BY_USER"))
    (record,) = caplog.records
    assert (record.levelname, record.why) == (  # type: ignore[attr-defined]
        "INFO",
        "the server has ended it (attempt 1: CANCELLED_BY_USER)",
    )


def test_outputs_that_are_refused_turn_the_end_into_a_failure() -> None:
    run = job()
    run.complete()
    run.refused(run.words()[0], PilotageError("BAD_REQUEST", "missing: a"))
    (word,) = deliver(run)
    assert (word.error, word.error_detail, word.seq) == ("OUTPUTS_REFUSED", "missing: a", 2)


def test_results_are_what_must_outlive_the_pilot() -> None:
    run = job()
    run.enter(S.RUNNING)
    assert not is_result(run.words()[0])
    run.fail(ERROR)
    assert is_result(run.words()[-1])
    assert is_result(AttemptUpdate(1, "t", 1, log=LogReport(1, {})))
    assert is_result(AttemptUpdate(1, "t", 1, outputs=[]))


def test_the_command_gets_the_paths_of_this_node() -> None:
    run = job(
        inputs=[
            InputFile("a.dat", "s", "d", 1, {}, "file:///a"),
            InputFile("b.dat", "s", "d", 1, {}, "file:///b"),
        ],
        outputs=[OutputFile("o", "s", "d", "file:///o")],
        environment={"WHERE": "{workdir}/x"},
    )
    run.spec.command = [
        "{bundle}/run",
        "{inputs}",
        "-o",
        "{output}",
        "{job_id}.{attempt_nr}",
        "{stem}",
        "{{}}",
    ]
    assert run.command() == [
        *("/scratch/job/bundle/run", "/scratch/job/inputs/a.dat", "/scratch/job/inputs/b.dat"),
        *("-o", "/scratch/job/o", "11.2", "a", "{}"),
    ]
    assert run.environment() == {"WHERE": "/scratch/job/x"}


@pytest.mark.parametrize("fields", [{"command": ["{unheard}"]}, {"environment": {"A": "{unheard}"}}])
def test_a_placeholder_of_a_newer_server_is_a_bad_command(fields: dict) -> None:  # type: ignore[type-arg]
    run = job()
    run.spec.command = fields.get("command", ["true"])
    run.spec.environment = fields.get("environment", {})
    with pytest.raises(PilotageError, match="unheard") as caught:
        run.command(), run.environment()
    assert caught.value.name == "BAD_COMMAND"


@pytest.mark.parametrize("lfn", ["../x", "a/b", "", "a\nb"])
def test_names_that_are_no_names_are_refused(lfn: str) -> None:
    with pytest.raises(PilotageError) as caught:
        job(outputs=[OutputFile(lfn, "s", "d", "file:///o")]).check_names()
    assert caught.value.name == "BAD_LFN"


def test_a_job_is_held_until_it_is_settled_and_in_work_until_it_is_gone() -> None:
    calls = []
    jobs, run = Jobs(lambda: calls.append(1)), job()
    jobs.add(run)
    run.fail(ERROR)
    jobs.tidy()
    assert (jobs.held(), jobs.in_work(), calls) == ([run], [run], [])
    run.leave()
    jobs.tidy()
    assert (jobs.held(), jobs.in_work()) == ([run], [])
    deliver(run)
    jobs.tidy()
    assert (jobs.all(), calls) == ([], [1])


def test_a_payload_is_killed_only_while_it_runs() -> None:
    killed: List[int] = []
    run = job()
    run.kill_payload()
    run.payload_started(lambda: killed.append(1))
    run.kill_payload()
    run.payload_ended(-9)
    run.kill_payload()
    assert killed == [1]


# -- what the server says ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "command", "stops"),
    [
        ("RUNNING", Command.CONTINUE, False),
        ("OBTAINED", Command.CONTINUE, False),
        ("READY", Command.STOP, True),
        ("", Command.STOP, True),
        ("CANCELLED", Command.CONTINUE, True),
        ("FAILED", Command.CONTINUE, True),
    ],
)
def test_an_attempt_that_is_not_ours_any_more_is_stopped(state: str, command: Command, stops: bool) -> None:
    run = job()
    run.obey(UpdateReply(1, state, command))
    assert run.abandoned is stops


@pytest.mark.parametrize(("state", "level"), [("CANCELLED", "INFO"), ("FAILED", "WARNING"), ("", "WARNING")])
def test_only_what_somebody_wanted_to_end_asks_for_nobodys_look(
    state: str, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        job().obey(UpdateReply(1, state, Command.STOP, detail="task 3 was cancelled" if state else None))
    (record,) = caplog.records
    assert record.levelname == level
    assert ("task 3 was cancelled" if state else "unknown") in record.why  # type: ignore[attr-defined]


def test_what_the_server_says_about_an_end_that_we_told_it_is_no_stop() -> None:
    for end in (JobRun.complete, lambda run: run.fail(PilotageError("PAYLOAD_FAILED"))):
        run = job()
        end(run)
        run.obey(UpdateReply(1, "FAILED", Command.STOP))
        assert not run.abandoned
