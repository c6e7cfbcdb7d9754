"""The pilot's words: each legal move, each illegal one, repetitions, and words of those who do not hold the job."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from protocol.errors import PilotageError
from protocol.messages.pilots import (
    AttemptUpdate,
    Command,
    Heartbeat,
    HeldAttempt,
    JobSpec,
    LogReport,
    Move,
    UpdateReply,
)
from protocol.states import PILOT_OWNED, SUCCESS, JobState
from server import job_executor, job_manager
from server.models import STATE_TIMES, Attempt, File, Pilot, Replica
from tests.integration.server.world import MD5, World, at_once, refusing

S = JobState
OWNED = [S.OBTAINED, S.PRE_PROCESSING, S.STAGE_IN, S.RUNNING, S.FINISHED, S.POST_PROCESSING, S.STAGE_OUT]
NOT_A_PILOTS = ["REGISTERED", "READY", "EXTRACTED", "CANCELLED", "running", "ENDED", "", "RUNNING\n"]


def bring(world: World, job: JobSpec, state: JobState) -> None:
    """Let the attempt stand in this state."""
    if state is S.FAILED:
        world.fail(job, "MISSING_OUTPUT")
    elif state is S.COMPLETED:
        world.complete(job)
    elif state is S.CANCELLED:
        job_executor.cancel(world.core, [job.job_id], "ada", "a test says so")
    elif state is not S.EXTRACTED:
        world.say(job, state)


def one_word(world: World, job: JobSpec, state: str) -> AttemptUpdate:
    """The word that moves to this state and is right otherwise."""
    error = "PAYLOAD_FAILED" if state == "FAILED" else ""
    outputs = [] if state == "COMPLETED" else None
    return AttemptUpdate(
        job.attempt_id, job.attempt_token, world.seq(job), [Move(state, 5.0)], error=error, outputs=outputs
    )


# -- every pair -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [S.EXTRACTED, *OWNED], ids=str)
def test_a_pilot_may_move_to_any_later_state_of_its_own(world: World, source: JobState) -> None:
    later = OWNED[OWNED.index(source) + 1 :] if source in OWNED else OWNED
    targets = [*later, S.COMPLETED, S.FAILED]
    world.ready(len(targets), max_attempts=1)
    for job, target in zip(world.claim(n_jobs=len(targets)), targets):
        bring(world, job, source)
        answer = job_executor.update(world.core, one_word(world, job, target.value))
        assert answer == UpdateReply(job.attempt_id, target.value, Command.CONTINUE)
        assert (world.state(job.job_id), world.attempt(job.attempt_id).state) == (target, target.value)


@pytest.mark.parametrize("source", [S.EXTRACTED, *OWNED], ids=str)
def test_b17_every_other_move_is_refused_and_changes_nothing(world: World, source: JobState) -> None:
    world.ready()
    [job] = world.claim()
    bring(world, job, source)
    earlier = OWNED[: OWNED.index(source)] if source in OWNED else []
    with world.unchanged():
        for target in earlier:
            with refusing("WRONG_STATE"):
                job_executor.update(world.core, one_word(world, job, target.value))
        for word in NOT_A_PILOTS:
            with refusing("BAD_REQUEST", "is no state that a pilot reports"):
                job_executor.update(world.core, one_word(world, job, word))
    assert world.state() is source


@pytest.mark.parametrize("source", [S.COMPLETED, S.FAILED, S.CANCELLED], ids=str)
def test_b17_from_an_end_nothing_moves(world: World, source: JobState) -> None:
    world.ready()
    [job] = world.claim()
    bring(world, job, source)
    with world.unchanged():
        for target in [*OWNED, S.COMPLETED, S.FAILED]:
            with refusing("STALE_ATTEMPT"):
                job_executor.update(world.core, one_word(world, job, target.value))
    assert world.state() is source


@pytest.mark.parametrize("state", OWNED, ids=str)
def test_a_word_that_names_the_state_it_is_in_is_no_move_and_no_error(world: World, state: JobState) -> None:
    world.ready()
    [job] = world.claim()
    bring(world, job, state)
    assert world.say(job, state).command is Command.CONTINUE
    assert world.state() is state


def test_moves_of_one_word_must_be_in_the_order_of_the_states(world: World) -> None:
    world.ready()
    [job] = world.claim()
    with world.unchanged():
        for later, earlier in itertools.combinations_with_replacement([S.COMPLETED, *reversed(OWNED)], 2):
            with refusing("BAD_REQUEST", "are not in the order of the states"):
                world.say(job, later, earlier)


def test_the_eleven_words_are_seen_in_order_with_the_pilots_times(world: World) -> None:
    job = world.job_with_outputs()
    for state in PILOT_OWNED:
        assert world.say(job, state).state == state.value
        assert world.state() is state
    world.complete(job)
    history = job_manager.details(world.job()).history or []
    assert [line.state for line in history] == [state.value for state in SUCCESS]
    assert [line.by for line in history] == ["task-executor"] * 2 + ["dispatcher"] + ["pilot p1"] * 8
    assert history[3].at == "1970-01-01T00:16:40.000Z"


def test_moves_that_ride_along_keep_their_own_times(world: World) -> None:
    world.ready()
    [job] = world.claim()
    world.say(job, S.OBTAINED, S.STAGE_IN, S.RUNNING)
    attempt = world.attempt(job.attempt_id)
    assert [getattr(attempt, STATE_TIMES[state].name) for state in OWNED] == [
        *(1000.0, None, 1001.0, 1002.0),
        *(None, None, None),
    ]


@pytest.mark.parametrize(
    ("states", "rest", "detail"),
    [
        ([S.FAILED], {}, "FAILED needs the name of an error"),
        ([S.RUNNING], {"error": "PAYLOAD_FAILED"}, "error: only with a move to FAILED"),
        ([], {"error": "PAYLOAD_FAILED"}, "error: only with a move to FAILED"),
        ([S.COMPLETED], {"error": "PAYLOAD_FAILED"}, "error: only with a move to FAILED"),
        ([S.RUNNING], {"outputs": []}, "outputs: only with a move to COMPLETED"),
        ([S.FAILED], {"outputs": [], "error": "PAYLOAD_FAILED"}, "outputs: only with a move to COMPLETED"),
        ([S.FAILED], {"error": "LOST_HEARTBEAT"}, "for the server to say"),
        ([S.FAILED], {"error": "NOT_ACKNOWLEDGED"}, "for the server to say"),
        ([S.FAILED], {"error": "CANCELLED_BY_USER"}, "for the server to say"),
        ([S.FINISHED], {"log": LogReport(1, {"md5": "x"})}, "checksum md5"),
    ],
)
def test_a_word_that_contradicts_itself_is_refused(
    world: World, states: list[JobState], rest: dict[str, Any], detail: str
) -> None:
    world.ready()
    [job] = world.claim()
    with world.refused("BAD_REQUEST", detail):
        world.say(job, *states, **rest)


def test_a_word_that_was_refused_does_not_use_up_its_number(world: World) -> None:
    world.ready()
    [job] = world.claim()
    with world.refused("BAD_REQUEST"):
        world.say(job, S.FAILED, seq=1)
    assert world.say(job, S.RUNNING, seq=1).state == "RUNNING"


# -- acknowledgement --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "acknowledge",
    [
        lambda world, job: world.say(job, S.OBTAINED),
        lambda world, job: world.say(job),
        lambda world, job: world.say(job, metrics={"cpu": 1.0}),
        lambda world, job: world.beat(job)[0],
    ],
    ids=["by OBTAINED", "by a word without a move", "by metrics", "by a heartbeat"],
)
def test_the_first_word_acknowledges_whatever_it_is(
    world: World, acknowledge: Callable[[World, JobSpec], UpdateReply]
) -> None:
    world.ready()
    [job] = world.claim()
    assert acknowledge(world, job) == UpdateReply(job.attempt_id, "OBTAINED", Command.CONTINUE)
    assert world.state() is S.OBTAINED
    assert world.attempt(job.attempt_id).obtained_at is not None
    assert world.attempt(job.attempt_id).lease_until == 60


def test_obtained_after_the_heartbeat_that_acknowledged_is_no_error(world: World) -> None:
    world.ready()
    [job] = world.claim()
    world.beat(job)
    assert world.say(job, S.OBTAINED).state == "OBTAINED"
    world.say(job, S.RUNNING)
    assert world.beat(job) == [UpdateReply(job.attempt_id, "RUNNING", Command.CONTINUE)]


# -- the same word again ----------------------------------------------------------------------------------------------------


def test_a_repeated_word_gets_the_same_answer_and_has_no_effect(world: World) -> None:
    job = world.job_with_outputs()
    words = [
        world.word(job, S.OBTAINED),
        world.word(job, S.RUNNING, metrics={"cpu": 1.0}),
        world.completed(job),
        world.word(job, log=LogReport(7, MD5)),
    ]
    for word in words:
        answer = job_executor.update(world.core, word)
        for _ in range(3):
            with world.unchanged():
                assert job_executor.update(world.core, word) == answer


def test_f08_completed_sent_fifty_times_at_once_is_one_transition(world: World) -> None:
    job = world.job_with_outputs()
    world.say(job, S.RUNNING)
    word = world.completed(job)
    answers = [f.result() for f in at_once([lambda: job_executor.update(world.core, word)] * 50)]
    assert answers == [UpdateReply(job.attempt_id, "COMPLETED", Command.CONTINUE)] * 50
    outputs = File.select().where(File.job_id == job.job_id)
    assert [(row.lfn, row.state) for row in outputs.order_by(File.id)] == [
        ("f00000.a", "available"),
        ("f00000.b", "available"),
    ]
    assert Replica.select().where(Replica.file.in_(outputs)).count() == 2
    assert Pilot.get().n_done == 1
    history = job_manager.details(world.job()).history or []
    assert [line.state for line in history].count("COMPLETED") == 1


def test_f09_an_older_word_that_comes_late_changes_nothing(world: World) -> None:
    world.ready()
    [job] = world.claim()
    world.say(job, S.OBTAINED, seq=1)
    world.say(job, S.FINISHED, seq=3)
    with world.unchanged():
        assert world.say(job, S.RUNNING, seq=2).state == "FINISHED"


def test_f09_failed_sent_many_times_at_once_charges_one_failure(world: World) -> None:
    world.ready(max_attempts=3)
    [job] = world.claim()
    word = world.word(job, S.FAILED, error="PAYLOAD_FAILED")
    answers = [f.result() for f in at_once([lambda: job_executor.update(world.core, word)] * 12)]
    assert answers == [UpdateReply(job.attempt_id, "FAILED", Command.CONTINUE)] * 12
    assert (world.job().payload_failures, world.state()) == (1, S.READY)


def test_different_words_at_once_end_the_job_once(world: World) -> None:
    job = world.job_with_outputs()
    words = [
        world.word(job, S.RUNNING),
        world.word(job, S.FINISHED),
        world.completed(job),
        world.word(job, S.FAILED, error="MISSING_OUTPUT"),
    ]
    futures = at_once([lambda word=word: job_executor.update(world.core, word) for word in words])
    for future in futures:
        error = future.exception()
        assert error is None or isinstance(error, PilotageError), error
        assert error is None or error.name in ("STALE_ATTEMPT", "WRONG_STATE")
    assert world.state() in (S.COMPLETED, S.FAILED)
    assert world.attempt(job.attempt_id).state == world.state().value
    available = File.select().where(File.job_id == job.job_id, File.state == "available").count()
    assert available == (2 if world.state() is S.COMPLETED else 0)


# -- words of others --------------------------------------------------------------------------------------------------------


def forgeries(job: JobSpec, other: JobSpec) -> dict[str, tuple[int, str]]:
    """Attempt ids and tokens that do not belong together."""
    token = job.attempt_token
    return {
        "empty": (job.attempt_id, ""),
        "wrong": (job.attempt_id, "0" * 64),
        "another attempt's": (job.attempt_id, other.attempt_token),
        "for another attempt": (other.attempt_id, token),
        "upper case": (job.attempt_id, token.upper()),
        "trailing space": (job.attempt_id, token + " "),
        "cut": (job.attempt_id, token[:-1]),
        "unknown attempt": (999_999, token),
        "largest attempt": (2**63 - 1, token),
        "not ascii": (job.attempt_id, "é" * 64),
    }


def test_b19_a_forged_token_is_refused_and_changes_nothing(world: World) -> None:
    world.ready(2)
    job, other = world.claim(n_jobs=2)
    words = [
        world.word(job, S.RUNNING, seq=99),
        world.word(job, S.COMPLETED, outputs=[], seq=99),
        world.word(job, metrics={"a": 1.0}, seq=99),
    ]
    with world.unchanged():
        for attempt_id, token in forgeries(job, other).values():
            for word in words:
                forged = dataclasses.replace(word, attempt_id=attempt_id, attempt_token=token)
                with refusing("STALE_ATTEMPT"):
                    job_executor.update(world.core, forged)


def test_b19_a_forged_token_in_a_heartbeat_renews_nothing(world: World) -> None:
    world.ready(2)
    job, other = world.claim(n_jobs=2)
    with world.unchanged(ignore=("last_seen",)):
        for attempt_id, token in forgeries(job, other).values():
            forged = dataclasses.replace(job, attempt_id=attempt_id, attempt_token=token)
            assert world.beat(forged) == [UpdateReply(attempt_id, "", Command.STOP)]


def test_a_token_made_with_another_key_is_refused(world: World) -> None:
    world.ready()
    [job] = world.claim()
    restored = dataclasses.replace(world.core, key=b"x" * 32)
    with world.refused("STALE_ATTEMPT"):
        job_executor.update(restored, world.word(job, S.RUNNING))


def take_over(world: World) -> tuple[JobSpec, JobSpec]:
    """A job whose first attempt fell silent while it ran, and is another pilot's now."""
    job = world.job_with_outputs()
    world.say(job, S.RUNNING)
    world.pass_seconds(70)
    world.pilot("p2")
    [second] = world.claim("p2")
    assert (second.job_id, second.attempt_nr) == (job.job_id, 2)
    return job, second


def test_f05_every_word_of_a_zombie_is_refused_and_changes_nothing(world: World) -> None:
    zombie, _ = take_over(world)
    last = world.attempt(zombie.attempt_id).seq
    words = [
        world.word(zombie, S.FINISHED),
        world.completed(zombie),
        world.word(zombie, S.FAILED, error="PAYLOAD_FAILED"),
        world.word(zombie, log=LogReport(7, MD5)),
        world.word(zombie, metrics={"cpu": 1.0}),
        world.word(zombie),
    ]
    with world.unchanged():
        for seq in (1, last, last + 1, 2**62):
            for word in words:
                with refusing("STALE_ATTEMPT"):
                    job_executor.update(world.core, dataclasses.replace(word, seq=seq))


def test_f05_a_heartbeat_tells_a_zombie_to_stop_and_renews_the_others(world: World) -> None:
    zombie, second = take_over(world)
    [stop] = world.beat(zombie)
    assert stop.command is Command.STOP
    with world.unchanged(ignore=("last_seen", "lease_until")):
        world.beat(zombie)
    world.task("more", n_jobs=1)
    world.form()
    [other] = world.claim("p1")
    answers = world.beat(zombie, other)
    assert [answer.command for answer in answers] == [Command.STOP, Command.CONTINUE]
    assert [answer.attempt_id for answer in answers] == [zombie.attempt_id, other.attempt_id]
    assert world.beat(second, pilot_id="p2")[0].command is Command.CONTINUE


def test_f15_only_the_second_attempts_outputs_are_published(world: World) -> None:
    zombie, second = take_over(world)
    with pytest.raises(PilotageError):
        world.complete(zombie)
    world.complete(second)
    urls = {row.url for row in Replica.select().where(Replica.storage.is_null(False))}
    assert urls == {output.url for output in second.outputs}


def test_a_heartbeat_of_an_unknown_pilot_is_refused(world: World) -> None:
    world.ready()
    [job] = world.claim()
    with world.refused("NOT_FOUND"):
        world.beat(job, pilot_id="stranger")


def test_heartbeats_and_ends_of_one_pilot_at_once_hinder_each_other_for_no_result(world: World) -> None:
    """Both write the pilot's row and the jobs' rows."""
    world.ready(12)
    jobs = world.claim(n_jobs=12)
    works: list[Callable[[], Any]] = [lambda job=job: world.complete(job) for job in jobs]
    works += [lambda: world.beat(*jobs), lambda: world.beat(*reversed(jobs))] * 3
    for future in at_once(works):
        future.result()
    assert {world.state(job.job_id) for job in jobs} == {S.COMPLETED}
    assert Pilot.get().n_done == 12


# -- the log ----------------------------------------------------------------------------------------------------------------


def test_the_log_of_a_failed_attempt_is_added_once(world: World) -> None:
    world.ready(max_attempts=1)
    [job] = world.claim()
    world.fail(job)
    assert world.log(job) == UpdateReply(job.attempt_id, "FAILED", Command.CONTINUE)
    attempt = world.attempt(job.attempt_id)
    assert (attempt.log_size, attempt.state) == (7, "FAILED")
    with world.refused("STALE_ATTEMPT"):
        world.log(job)
    [seen] = job_manager.details(world.job()).attempts or []
    assert seen.log_url == job.log_url


def test_the_log_may_come_after_the_next_attempt_began(world: World) -> None:
    world.ready(max_attempts=3)
    [job] = world.claim()
    world.fail(job)
    [second] = world.claim()
    before = world.attempt(second.attempt_id).seq
    assert world.beat(job)[0].command is Command.CONTINUE, "it was its own end, the log is still to come"
    world.log(job)
    assert world.attempt(job.attempt_id).log_size == 7
    assert world.attempt(second.attempt_id).log_size is None
    assert world.attempt(second.attempt_id).seq == before


def test_a_log_with_a_wrong_checksum_is_refused(world: World) -> None:
    world.ready(max_attempts=1)
    [job] = world.claim()
    world.fail(job)
    with world.refused("CHECKSUM_NOT_SUPPORTED"):
        world.say(job, log=LogReport(7, {"sha1": "0" * 40}))


def test_a_log_with_a_move_is_refused_after_the_end(world: World) -> None:
    world.ready(max_attempts=1)
    [job] = world.claim()
    world.fail(job)
    with world.refused("STALE_ATTEMPT"):
        world.say(job, S.STAGE_OUT, log=LogReport(7, MD5))


def test_an_attempt_without_a_log_shows_none(world: World) -> None:
    world.ready(max_attempts=1)
    [job] = world.claim()
    world.fail(job)
    [seen] = job_manager.details(world.job()).attempts or []
    assert seen.log_url is None


# -- what a word brings beside its moves ------------------------------------------------------------------------------------


def test_metrics_and_exit_code_are_kept_with_the_attempt(world: World) -> None:
    world.ready()
    [job] = world.claim()
    world.say(job, S.RUNNING, metrics={"cpu": 1.5})
    world.say(job, S.FINISHED, exit_code=0)
    [seen] = job_manager.details(world.job()).attempts or []
    assert (seen.metrics, seen.exit_code, seen.error) == ({"cpu": 1.5}, 0, None)


def test_a_completed_job_shows_no_error_of_an_earlier_attempt(world: World) -> None:
    world.ready(max_attempts=3)
    world.fail(world.claim()[0])
    assert world.job().error == "PAYLOAD_FAILED"
    world.complete(world.claim()[0])
    seen = job_manager.details(world.job())
    assert (seen.error, seen.error_detail, seen.attempt_nr) == (None, None, 2)
    assert [each.error for each in seen.attempts or []] == ["PAYLOAD_FAILED", None]
    assert Attempt.select().count() == 2


def test_a_metric_with_a_very_long_name_is_refused(world: World) -> None:
    world.ready()
    [job] = world.claim()
    metrics = {"x" * 101: 1.0}
    with world.refused("BAD_REQUEST", "metrics"):
        world.say(job, S.RUNNING, metrics=metrics)
    held = HeldAttempt(job.attempt_id, job.attempt_token, metrics)
    with world.refused("BAD_REQUEST", "metrics"):
        job_executor.heartbeat(world.core, Heartbeat("p1", [held]))
