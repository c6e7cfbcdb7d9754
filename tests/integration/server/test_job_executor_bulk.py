"""Several words at once, the next job with the last word, heartbeats that leave out: the same promises in fewer round trips."""

from __future__ import annotations

import dataclasses

import pytest
from flask.testing import FlaskClient

from protocol.messages import to_wire
from protocol.messages.pilots import AttemptUpdates, Command
from protocol.states import JobState
from server import job_executor
from server.access import tokens
from server.access.tokens import Role
from server.models import Attempt, Pilot
from tests.integration.server.http import Speaker, refusal
from tests.integration.server.world import Bearer, World, at_once, refusing

S = JobState


def many(world: World, words: list, request: object = None):  # type: ignore[no-untyped-def,type-arg]
    return job_executor.update_and_next(world.core, words, request)  # type: ignore[arg-type]


# -- many words -------------------------------------------------------------------------------------------------------------


def test_words_about_many_jobs_are_taken_at_once_and_answered_in_their_order(world: World) -> None:
    world.ready(20)
    jobs = world.claim(n_jobs=20)
    replies = many(world, [world.word(job, S.RUNNING) for job in reversed(jobs)])
    assert [answer.attempt_id for answer in replies.answers] == [job.attempt_id for job in reversed(jobs)]
    assert {answer.state for answer in replies.answers} == {"RUNNING"}
    many(world, [world.completed(job) for job in jobs])
    assert {world.state(job.job_id) for job in jobs} == {S.COMPLETED}
    assert Pilot.get().n_done == 20


def test_each_word_is_taken_or_refused_by_itself(world: World) -> None:
    world.ready(6, max_attempts=1)
    good, failed, stale, forged, twice, wrong = world.claim(n_jobs=6)
    world.say(stale, S.RUNNING)
    world.pass_seconds(61)
    job_executor.cancel(world.core, [stale.job_id], "ada", "")
    for job in (good, failed, twice, wrong):
        world.say(job, S.RUNNING)
    again = world.word(twice, S.FINISHED)
    job_executor.update(world.core, again)
    answers = many(
        world,
        [
            world.word(good, S.FINISHED),
            world.word(failed, S.FAILED, error="PAYLOAD_FAILED"),
            world.word(stale, S.FINISHED),
            dataclasses.replace(world.word(forged, S.RUNNING), attempt_token="0" * 64),
            again,
            world.word(wrong, S.OBTAINED),
        ],
    ).answers
    assert [(answer.state, answer.error) for answer in answers] == [
        ("FINISHED", None),
        ("FAILED", None),
        ("", "STALE_ATTEMPT"),
        ("", "STALE_ATTEMPT"),
        ("FINISHED", None),
        ("", "WRONG_STATE"),
    ]
    assert [world.state(job.job_id) for job in (good, failed, wrong)] == [S.FINISHED, S.FAILED, S.RUNNING]


def test_outputs_that_are_wrong_spoil_only_their_own_word(world: World) -> None:
    world.dataset(3)
    world.task(outputs=["{stem}.a"])
    world.form()
    world.pilot()
    first, second, third = world.claim(n_jobs=3)
    answers = many(
        world,
        [
            world.completed(first),
            world.completed(second, outputs=[]),
            world.completed(third, outputs=world.completed(first).outputs),
        ],
    ).answers
    assert [answer.error for answer in answers] == [None, "BAD_REQUEST", "BAD_REQUEST"]
    assert [world.state(job.job_id) for job in (first, second, third)] == [
        S.COMPLETED,
        S.EXTRACTED,
        S.EXTRACTED,
    ]


def test_two_words_about_one_attempt_in_one_request_are_refused(world: World) -> None:
    world.ready(1)
    [job] = world.claim()
    words = [world.word(job, S.RUNNING), world.word(job, S.FINISHED)]
    with world.unchanged(), refusing("BAD_REQUEST", "two words about one attempt"):
        many(world, words)


def test_f08_many_words_sent_many_times_at_once_count_once(world: World) -> None:
    world.ready(10)
    jobs = world.claim(n_jobs=10)
    words = [world.completed(job) for job in jobs]
    for future in at_once([lambda: many(world, words), lambda: many(world, words[::-1])] * 6):
        assert {answer.error for answer in future.result().answers} == {None}
    assert {world.state(job.job_id) for job in jobs} == {S.COMPLETED}
    assert Pilot.get().n_done == 10


# -- the next job -----------------------------------------------------------------------------------------------------------


def test_the_last_word_brings_the_next_job(world: World) -> None:
    world.ready(3)
    [job] = world.claim()
    done = [job.job_id]
    for _ in range(2):
        request = world.request(request_id=f"{job.attempt_id}.next")
        [job] = many(world, [world.completed(job)], request).next.jobs
        done.append(job.job_id)
    last = many(world, [world.completed(job)], world.request())
    assert (last.next.jobs, last.next.wait_seconds > 0) == ([], True)
    assert done == [1, 2, 3]


def test_f07_the_last_word_sent_again_brings_the_same_next_job(world: World) -> None:
    world.ready(3)
    [job] = world.claim()
    word, request = world.completed(job), world.request(request_id="1.next.request")
    first = many(world, [word], request)
    for future in at_once([lambda: many(world, [word], request)] * 8):
        assert future.result() == first
    assert Attempt.select().count() == 2


def test_a_word_that_is_refused_brings_the_next_job_all_the_same(world: World) -> None:
    world.ready(2)
    [job] = world.claim()
    job_executor.cancel(world.core, [job.job_id], "ada", "")
    replies = many(world, [world.completed(job)], world.request())
    assert replies.answers[0].error == "STALE_ATTEMPT"
    assert [each.job_id for each in replies.next.jobs] == [2]


def test_a_refusal_that_is_the_whole_answer_takes_no_job_which_it_could_not_bring(
    world: World, client: FlaskClient, bearer: Bearer
) -> None:
    world.ready(2)
    [job] = world.claim()
    job_executor.cancel(world.core, [job.job_id], "ada", "")
    word = dataclasses.replace(world.completed(job), next=world.request())
    refusal(Speaker(client, bearer, Role.PILOT).post("/v1/updateJob", to_wire(word)), 409, "STALE_ATTEMPT")
    assert world.state(2) is S.READY


def test_a_token_of_one_queue_takes_the_next_job_for_no_pilot_of_another(
    world: World, client: FlaskClient, bearer: Bearer
) -> None:
    world.ready(2)
    [job] = world.claim()
    world.pilot("g1", "GPU")
    token = world.core.database.write(lambda: tokens.create("of CPU", Role.PILOT, "CPU"))
    speaker = Speaker(client, Bearer({**bearer.tokens, Role.PILOT: token}), Role.PILOT)
    word, request = world.completed(job), world.request("g1")
    with world.unchanged(ignore=("last_seen",)):
        one = to_wire(dataclasses.replace(word, next=request))
        refusal(speaker.post("/v1/updateJob", one), 403, "FORBIDDEN")
        several = to_wire(AttemptUpdates([word], request))
        refusal(speaker.post("/v1/updateJobs", several), 403, "FORBIDDEN")


def test_a_request_that_is_wrong_does_not_undo_the_word(world: World) -> None:
    world.ready(2)
    [job] = world.claim()
    replies = many(world, [world.completed(job)], world.request(queue="NOWHERE"))
    assert world.state() is S.COMPLETED
    assert replies.next.jobs == []


# -- heartbeats that leave out ----------------------------------------------------------------------------------------------


def test_an_attempt_that_two_heartbeats_leave_out_is_taken_back(world: World) -> None:
    world.ready(2)
    kept, forgotten = world.claim(n_jobs=2)
    world.say(kept, S.RUNNING)
    world.say(forgotten, S.RUNNING)
    world.beat(kept)
    world.pass_seconds(1)
    assert world.state(forgotten.job_id) is S.RUNNING, "one may have crossed a word about it"
    world.beat(kept)
    world.pass_seconds(1)
    assert [world.state(job.job_id) for job in (kept, forgotten)] == [S.RUNNING, S.READY]
    assert [job.job_id for job in world.claim()] == [forgotten.job_id]


@pytest.mark.parametrize("how", ["named again", "a word"])
def test_one_that_is_heard_of_again_stays(world: World, how: str) -> None:
    world.ready(1)
    [job] = world.claim()
    world.say(job, S.RUNNING)
    for _ in range(4):
        world.beat()
        if how == "named again":
            assert world.beat(job)[0].command is Command.CONTINUE
        else:
            world.say(job)
    world.pass_seconds(1)
    assert world.state() is S.RUNNING


def test_a_job_whose_hand_over_is_on_its_way_may_be_left_out(world: World) -> None:
    world.ready(1)
    world.claim()
    for _ in range(5):
        world.beat()
    world.pass_seconds(1)
    assert world.state() is S.EXTRACTED
