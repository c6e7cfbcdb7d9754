"""The checker of the fault tests finds each kind of damage that it is there for."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("peewee", reason="needs the server's libraries: make dev")

from tests.faults.history import OK, REFUSED, UNKNOWN, Verdict, Word, check


def job(state: str = "COMPLETED", number: int = 1) -> dict[str, Any]:
    return {"id": number, "state": state, "attempt_id": 1}


def attempt(number: int = 1, state: str = "COMPLETED", **more: Any) -> dict[str, Any]:
    return {"id": number, "job_id": 1, "pilot_id": "p", "state": state, "seq": 2, "error": None, **more}


def got(number: int = 1, pilot: str = "p", request: str = "r1") -> Word:
    return Word(pilot, request, [number], outcome=OK)


def said(state: str, seq: int, outcome: str = OK, number: int = 1) -> Word:
    return Word("p", attempt=number, seq=seq, state=state, outcome=outcome)


WHOLE = [got(), said("RUNNING", 1), said("COMPLETED", 2)]


def look(words: list[Word], jobs: list[Any], attempts: list[Any]) -> Verdict:
    return check(words, jobs, attempts)


def test_a_job_that_was_handed_out_and_done_once_is_clean() -> None:
    assert look(WHOLE, [job()], [attempt()]).is_clean


def test_a_word_whose_answer_is_unknown_may_have_come_to_be_or_not() -> None:
    words = [got(), said("RUNNING", 1), said("COMPLETED", 2, UNKNOWN)]
    assert look(words, [job()], [attempt()]).is_clean
    lost = attempt(state="FAILED", seq=1, error="LOST_HEARTBEAT")
    assert look(words, [job("FAILED")], [lost]).is_clean


def test_an_acknowledged_word_that_the_database_does_not_know_is_lost() -> None:
    assert look(WHOLE, [job()], [attempt(seq=1)]).lost
    assert look(WHOLE, [job("FAILED")], [attempt(state="FAILED", error="LOST_HEARTBEAT")]).lost


def test_an_attempt_that_was_handed_out_and_is_not_there_is_lost() -> None:
    assert look([*WHOLE, got(2, request="r2")], [job()], [attempt()]).lost


def test_a_job_that_has_not_ended_is_lost() -> None:
    assert look([], [job("READY")], []).lost


def test_an_attempt_that_two_pilots_or_two_requests_got_is_twice() -> None:
    assert look([*WHOLE, got(pilot="q")], [job()], [attempt()]).twice
    assert look([*WHOLE, got(request="r2")], [job()], [attempt()]).twice


def test_a_job_that_completed_in_two_attempts_is_twice() -> None:
    words = [*WHOLE, got(2, request="r2"), said("RUNNING", 1, number=2), said("COMPLETED", 2, number=2)]
    assert look(words, [job()], [attempt(), attempt(2)]).twice


def test_a_job_that_ran_again_without_a_loss_is_twice() -> None:
    words = [*WHOLE, got(2, request="r2"), said("RUNNING", 1, REFUSED, number=2)]
    unacknowledged = attempt(2, "FAILED", error="NOT_ACKNOWLEDGED")
    assert look(words, [job()], [attempt(), unacknowledged]).twice
    assert look(words, [job()], [attempt(), attempt(2, "FAILED", error="LOST_HEARTBEAT")]).is_clean


def test_a_completion_that_nobody_said_is_found() -> None:
    assert look([got(), said("RUNNING", 1)], [job()], [attempt()]).twice
