"""The table of moves against its meaning, spelt out here a second time, pair by pair and actor by actor."""

from __future__ import annotations

from typing import Dict, List, Set, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.states import (
    FINAL,
    HELD,
    MEANING,
    MOVES,
    PILOT_OWNED,
    SUCCESS,
    TASK_FINAL,
    TASK_MEANING,
    Actor,
    JobState,
    TaskState,
    can_move,
    sources,
    task_state,
)

same_each_time = settings(derandomize=True, database=None)

WORDS = [
    "REGISTERED",
    "READY",
    "EXTRACTED",
    "OBTAINED",
    "PRE-PROCESSING",
    "STAGE-IN",
    "RUNNING",
    "FINISHED",
    "POST-PROCESSING",
    "STAGE-OUT",
    "COMPLETED",
]
OF_A_PILOT = ["OBTAINED", "PRE-PROCESSING", "STAGE-IN", "RUNNING", "FINISHED", "POST-PROCESSING", "STAGE-OUT"]

LEGAL: Dict[str, Dict[str, Set[str]]] = {
    "task-executor": {"REGISTERED": {"READY", "FAILED"}},
    "self-healing": {},
    "dispatcher": {"READY": {"EXTRACTED"}},
    # A later state of its own; READY when the catalogue gives the job another try; and from READY, when the lease had run
    # out and nobody claimed the job, the late word takes it back.
    "pilot": {
        "READY": {*OF_A_PILOT, "COMPLETED", "FAILED"},
        "EXTRACTED": {*OF_A_PILOT, "COMPLETED", "FAILED", "READY"},
        "OBTAINED": {
            *("PRE-PROCESSING", "STAGE-IN", "RUNNING", "FINISHED", "POST-PROCESSING", "STAGE-OUT"),
            *("COMPLETED", "FAILED", "READY"),
        },
        "PRE-PROCESSING": {
            *("STAGE-IN", "RUNNING", "FINISHED", "POST-PROCESSING", "STAGE-OUT"),
            *("COMPLETED", "FAILED", "READY"),
        },
        "STAGE-IN": {
            *("RUNNING", "FINISHED", "POST-PROCESSING", "STAGE-OUT"),
            *("COMPLETED", "FAILED", "READY"),
        },
        "RUNNING": {"FINISHED", "POST-PROCESSING", "STAGE-OUT", "COMPLETED", "FAILED", "READY"},
        "FINISHED": {"POST-PROCESSING", "STAGE-OUT", "COMPLETED", "FAILED", "READY"},
        "POST-PROCESSING": {"STAGE-OUT", "COMPLETED", "FAILED", "READY"},
        "STAGE-OUT": {"COMPLETED", "FAILED", "READY"},
    },
    "reaper": {state: {"READY", "FAILED"} for state in ("EXTRACTED", *OF_A_PILOT)},
    # What ended badly is READY again when a user says so: final is final for everybody else.
    "user": {
        **{state: {"CANCELLED"} for state in ("REGISTERED", "READY", "EXTRACTED", *OF_A_PILOT)},
        **{state: {"READY"} for state in ("FAILED", "CANCELLED")},
    },
}
"""actor → from → to. Everything that is not in here is illegal."""


@pytest.mark.parametrize("actor", list(Actor), ids=lambda actor: actor.value)
@pytest.mark.parametrize("source", list(JobState), ids=str)
def test_each_move_is_legal_exactly_where_the_meaning_of_the_states_says(
    source: JobState, actor: Actor
) -> None:
    allowed = {target.value for target in JobState if can_move(source, target, actor)}
    assert allowed == LEGAL[actor.value].get(source.value, set())


def test_the_eleven_words_of_success_are_in_order() -> None:
    assert [state.value for state in SUCCESS] == WORDS
    assert [str(state) for state in JobState] == [*WORDS, "FAILED", "CANCELLED"]


def test_each_word_of_success_follows_from_the_one_before_by_somebody() -> None:
    for before, after in zip(SUCCESS, SUCCESS[1:]):
        assert any(can_move(before, after, actor) for actor in Actor), (before, after)


@pytest.mark.parametrize("state", sorted(FINAL))
def test_final_is_final_but_for_a_user_who_has_what_ended_badly_tried_again(state: JobState) -> None:
    moves = {target: actors for (source, target), actors in MOVES.items() if source is state}
    assert moves == ({} if state is JobState.COMPLETED else {JobState.READY: {Actor.USER}})
    assert all(actors for (_, target), actors in MOVES.items() if target is state)


def test_final_are_the_three_ends() -> None:
    assert {JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED} == FINAL
    assert [state.value for state in PILOT_OWNED] == OF_A_PILOT
    assert [state.value for state in HELD] == ["EXTRACTED", *OF_A_PILOT]


def test_no_state_is_left_without_a_way_to_an_end() -> None:
    for start in JobState:
        reached, frontier = {start}, [start]
        while frontier:
            here = frontier.pop()
            new = {target for source, target in MOVES if source is here} - reached
            reached |= new
            frontier += new
        assert reached & FINAL


def test_nobody_but_a_pilot_completes_a_job() -> None:
    assert {actor for actor in Actor if sources(JobState.COMPLETED, actor)} == {Actor.PILOT}


def test_no_move_leads_back_to_where_it_began() -> None:
    assert not [move for move in MOVES if move[0] is move[1]]


@same_each_time
@given(st.sampled_from(list(JobState)), st.sampled_from(list(Actor)))
def test_sources_are_the_other_view_of_can_move(target: JobState, actor: Actor) -> None:
    found = sources(target, actor)
    assert set(found) == {source for source in JobState if can_move(source, target, actor)}
    assert list(found) == [state for state in JobState if state in found], "in the order of the states"


@same_each_time
@given(st.lists(st.tuples(st.sampled_from(list(JobState)), st.sampled_from(list(Actor))), max_size=30))
def test_no_sequence_of_legal_moves_leaves_an_end_or_passes_a_pilot_by(
    steps: List[Tuple[JobState, Actor]],
) -> None:
    """Wherever legal moves lead: after an end only a user moves, and nothing a pilot owns is entered but by it."""
    here, ended, claimed = JobState.REGISTERED, False, False
    for target, actor in steps:
        if not can_move(here, target, actor):
            continue
        assert not ended or (actor is Actor.USER and target is JobState.READY)
        claimed = claimed or target is JobState.EXTRACTED
        if target in PILOT_OWNED or target is JobState.COMPLETED:
            assert actor is Actor.PILOT
        here, ended = target, target in FINAL


@pytest.mark.parametrize("state", list(JobState), ids=str)
def test_every_state_has_a_sentence(state: JobState) -> None:
    assert len(MEANING[state]) > 10
    assert set(TASK_MEANING) == set(TaskState)


# -- tasks ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "expected", "cancelled", "state"),
    [
        ({}, 3, False, "REGISTERED"),
        ({}, 0, False, "COMPLETED"),
        ({"READY": 1}, 3, False, "RUNNING"),
        ({"READY": 3}, 3, False, "RUNNING"),
        ({"COMPLETED": 2}, 3, False, "RUNNING"),
        ({"COMPLETED": 2, "RUNNING": 1}, 3, False, "RUNNING"),
        ({"COMPLETED": 2, "FAILED": 1}, 4, False, "RUNNING"),
        ({"FAILED": 3}, 4, False, "RUNNING"),
        ({"COMPLETED": 3}, 3, False, "COMPLETED"),
        ({"COMPLETED": 2, "FAILED": 1}, 3, False, "PARTIAL"),
        ({"COMPLETED": 1, "CANCELLED": 2}, 3, False, "PARTIAL"),
        ({"FAILED": 3}, 3, False, "FAILED"),
        ({"FAILED": 1, "CANCELLED": 2}, 3, False, "FAILED"),
        ({"CANCELLED": 3}, 3, False, "FAILED"),
        ({}, 3, True, "CANCELLED"),
        ({}, 0, True, "CANCELLED"),
        ({"CANCELLED": 1}, 3, True, "CANCELLED"),
        ({"COMPLETED": 1, "CANCELLED": 1}, 3, True, "CANCELLED"),
        ({"COMPLETED": 1, "RUNNING": 1}, 3, True, "RUNNING"),
        ({"COMPLETED": 3}, 3, True, "COMPLETED"),
    ],
)
def test_the_state_of_a_task_follows_from_its_jobs(
    counts: Dict[str, int], expected: int, cancelled: bool, state: str
) -> None:
    assert task_state({JobState(name): n for name, n in counts.items()}, expected, cancelled).value == state


@same_each_time
@given(
    st.dictionaries(st.sampled_from(list(JobState)), st.integers(1, 5)),
    st.integers(0, 40),
    st.booleans(),
)
def test_a_task_has_ended_exactly_when_no_job_of_it_can_move_any_more(
    counts: Dict[JobState, int], unformed: int, cancelled: bool
) -> None:
    formed = sum(counts.values())
    alive = formed - sum(counts.get(state, 0) for state in FINAL)
    state = task_state(counts, formed + unformed, cancelled)
    assert (state in TASK_FINAL) == (not alive and (cancelled or not unformed))
    if state is TaskState.COMPLETED:
        assert counts.get(JobState.COMPLETED, 0) == formed + unformed
