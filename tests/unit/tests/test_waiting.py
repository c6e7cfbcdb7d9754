"""Waiting by asking."""

from __future__ import annotations

import pytest

from tests.waiting import wait_until


def test_the_first_true_answer_is_returned() -> None:
    answers = iter([0, "", None, "here"])
    assert wait_until(lambda: next(answers), 5, interval=0) == "here"


def test_an_error_of_the_system_counts_as_not_yet() -> None:
    answers = iter([ConnectionRefusedError("refused"), True])

    def ask() -> bool:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    assert wait_until(ask, 5, interval=0)


def test_the_deadline_tells_what_was_seen_last() -> None:
    with pytest.raises(AssertionError, match=r"waited .* for five files; last seen: \[\]"):
        wait_until(list, 0.05, "five files")


def test_a_mistake_in_the_test_passes_through() -> None:
    with pytest.raises(KeyError):
        wait_until(lambda: {}["nope"], 5)
