"""`--replicate K`: K copies of a job run at the same time on different nodes, and the first that completes is its outcome."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from protocol.errors import PilotageError
from protocol.messages.pilots import Command, JobSpec, UpdateReply
from protocol.messages.requests import RetrySpec
from protocol.states import FINAL, JobState
from server import job_executor, job_manager
from server.brokerage import explain
from server.core import Core, Limits
from server.database import proxy
from server.jobs import operations
from server.models import Attempt, File, Job, Queue, Replica
from server.upkeep import archive
from tests.auditing import assert_clean, look
from tests.integration.server.conftest import SharedPostgres
from tests.integration.server.http import Speaker, refusal
from tests.integration.server.world import OWNER, Bearer, World, at_once, giving_back, reports
from tests.waiting import wait_until

S = JobState
ROUNDS = 20
NODES = {"p1": "node1", "p2": "node2", "p3": "node3"}


@pytest.fixture
def url(core: Core, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """Where the database of `core` is."""
    if core.database.is_sqlite:
        return f"sqlite:///{tmp_path}/pilotage.db"
    return str(request.getfixturevalue("shared_postgres").url)


def begin(world: World, n_jobs: int = 1, replicate: int = 2, **spec: Any) -> None:
    """Jobs with an output each, and a pilot on each of three nodes."""
    world.ready(n_jobs, outputs=["{job_nr}.out"], replicate=replicate, **spec)
    for pilot_id in list(NODES)[1:]:
        world.pilot(pilot_id)


def claim(world: World, pilot_id: str, n_jobs: int = 1, **rest: Any) -> list[JobSpec]:
    return world.claim(pilot_id, n_jobs, node=NODES[pilot_id], **rest)


def two(world: World, **spec: Any) -> tuple[JobSpec, JobSpec]:
    """The leading copy of a job, on node1, and its rival on node2; both run."""
    begin(world, **spec)
    [leader], [rival] = claim(world, "p1"), claim(world, "p2")
    assert leader.job_id == rival.job_id
    world.say(leader, S.RUNNING)
    world.say(rival, S.STAGE_IN)
    return leader, rival


def alive() -> set[int]:
    return {attempt.id for attempt in Attempt.select().where(Attempt.ended_at.is_null())}


def charged(world: World) -> tuple[int, int, int, int]:
    row = world.job()
    return (row.payload_failures, row.losses, row.unacknowledged, row.kills)


# -- handing out ------------------------------------------------------------------------------------------------------------


def test_each_copy_goes_to_another_node_and_there_are_no_more_than_k(world: World) -> None:
    begin(world, replicate=2)
    [leader] = claim(world, "p1")
    assert claim(world, "p1") == [], "the same node gets no second copy"
    assert claim(world, "p1", task_id=leader.task_id) == [], "nor one that prefers the task"
    [rival] = claim(world, "p2", task_id=leader.task_id)
    assert (leader.job_id, leader.attempt_nr) == (1, 1)
    assert (rival.job_id, rival.attempt_nr) == (1, 2)
    assert leader.attempt_token != rival.attempt_token
    assert claim(world, "p3") == []
    row = world.job()
    assert (row.attempt_id, row.attempt_nr, row.copies, row.ready_nr) == (leader.attempt_id, 2, 0, None)


def test_the_third_copy_goes_to_neither_of_the_two_nodes(world: World) -> None:
    begin(world, replicate=3)
    claim(world, "p1")
    claim(world, "p2")
    assert claim(world, "p1") == claim(world, "p2") == []
    [third] = claim(world, "p3")
    assert third.attempt_nr == 3


@pytest.mark.parametrize("preferred", [None, 1])
def test_f11_pilots_of_one_node_that_ask_at_the_same_time_get_one_copy_of_each_job(
    world: World, preferred: int | None
) -> None:
    n_pilots = 6
    begin(world, ROUNDS, replicate=5)
    works = [lambda: claim(world, "p1", 4, task_id=preferred) for _ in range(n_pilots)] * 2
    given = [job.job_id for future in at_once(works) for job in future.result()]
    given += [job.job_id for job in claim(world, "p1", ROUNDS)]
    assert sorted(given) == list(range(1, ROUNDS + 1))


def test_a_request_that_is_repeated_gets_the_same_copy(world: World) -> None:
    begin(world)
    claim(world, "p1")
    assert claim(world, "p2", request_id="again") == claim(world, "p2", request_id="again")
    assert Attempt.select().count() == 2


def test_a_job_whose_copies_wait_for_other_nodes_is_in_nobodys_way(world: World) -> None:
    begin(world, 2)
    world.task("plain", n_jobs=1)
    world.form()
    assert [job.task_id for job in claim(world, "p1", 9)] == [1, 1, 2]
    assert [job.task_id for job in claim(world, "p2", 9)] == [1, 1]


def test_further_copies_are_handed_out_while_the_first_one_speaks(world: World) -> None:
    begin(world)
    [leader] = claim(world, "p1")
    world.beat(leader)
    for state in (S.STAGE_IN, S.RUNNING):
        world.say(leader, state)
    [rival] = claim(world, "p2")
    assert rival.job_id == leader.job_id


def test_a_rivals_words_are_its_own(world: World) -> None:
    leader, rival = two(world)
    world.say(rival, S.STAGE_OUT)
    world.beat(rival, pilot_id="p2")
    assert world.state() is S.RUNNING, "the job shows what its leading copy does"
    assert world.attempt(rival.attempt_id).state == S.STAGE_OUT.value
    world.say(leader, S.FINISHED)
    assert world.state() is S.FINISHED


def test_words_of_both_copies_in_one_request_leave_the_job_as_its_leader_is(world: World, url: str) -> None:
    begin(world, n_jobs=30)
    leaders, rivals = claim(world, "p1", 30), claim(world, "p2", 30)
    both = [*rivals, *leaders]
    job_executor.update_all(world.core, [world.word(job) for job in both])
    assert {job.state for job in Job.select()} == {S.OBTAINED.value}
    job_executor.update_all(world.core, [world.word(job, S.STAGE_IN) for job in both])
    assert {job.state for job in Job.select()} == {S.STAGE_IN.value}
    assert_clean(url, storages=False)


def test_a_pause_keeps_further_copies_back(world: World) -> None:
    begin(world)
    claim(world, "p1")
    operations.pause(world.core, "t", OWNER)
    assert claim(world, "p2") == []
    operations.resume(world.core, "t", OWNER)
    assert [job.attempt_nr for job in claim(world, "p2")] == [2]


def test_a_pilot_that_waits_is_told_of_a_further_copy(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr("server.waiting.news.of_jobs", lambda core, job_ids: told.extend(job_ids))
    begin(world, replicate=3)
    for pilot_id, expected in (("p1", [1]), ("p2", [1, 1]), ("p3", [1, 1])):
        claim(world, pilot_id)
        assert told == expected


# -- the first one wins -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("winner", [0, 1], ids=["leader", "rival"])
def test_the_first_copy_that_completes_wins_and_the_other_is_stopped(
    world: World, url: str, winner: int
) -> None:
    copies = two(world)
    first, second = copies[winner], copies[1 - winner]
    loser_pilot = ["p2", "p1"][winner]
    assert world.complete(first).state == S.COMPLETED.value
    row = world.job()
    assert (row.state, row.attempt_id, row.ready_nr, row.error) == ("COMPLETED", first.attempt_id, None, None)
    lost = world.attempt(second.attempt_id)
    assert (lost.state, lost.error) == (S.CANCELLED.value, "ANOTHER_COPY_WON")
    with world.refused("STALE_ATTEMPT", "ANOTHER_COPY_WON"):
        world.complete(second)
    [reply] = world.beat(second, pilot_id=loser_pilot)
    assert reply.command is Command.STOP
    [replica] = Replica.select()
    assert replica.url.endswith(f".{first.attempt_id}")
    world.close_tasks()
    assert charged(world) == (0, 0, 0, 0)
    assert_clean(url, storages=False)


def test_a_copy_without_outputs_wins_too_and_alone(world: World, url: str) -> None:
    world.ready(replicate=2)
    world.pilot("p2")
    [leader], [rival] = claim(world, "p1"), claim(world, "p2")
    answers = job_executor.update_all(
        world.core, [world.completed(rival, outputs=None), world.completed(leader, outputs=None)]
    )
    assert isinstance(answers[0], UpdateReply)
    assert isinstance(answers[1], PilotageError)
    assert (answers[0].state, answers[1].name) == (S.COMPLETED.value, "STALE_ATTEMPT")
    assert (world.job().attempt_id, alive()) == (rival.attempt_id, set())
    assert_clean(url, storages=False)


def test_completed_said_twice_by_the_winner_is_said_once(world: World) -> None:
    _, rival = two(world)
    word = world.completed(rival)
    first = job_executor.update(world.core, word)
    with world.unchanged():
        assert job_executor.update(world.core, word) == first


def test_wrong_outputs_of_a_copy_change_nothing(world: World) -> None:
    leader, rival = two(world)
    with world.refused("BAD_REQUEST"):
        job_executor.update(world.core, world.completed(rival, outputs=None))
    with world.refused("BAD_REQUEST"):
        job_executor.update(world.core, world.completed(leader, outputs=reports(leader) * 2))
    assert alive() == {leader.attempt_id, rival.attempt_id}


def test_copies_that_were_not_handed_out_when_the_first_completed_never_are(world: World, url: str) -> None:
    begin(world, replicate=5)
    [leader] = claim(world, "p1")
    world.complete(leader)
    assert claim(world, "p2") == []
    assert_clean(url, storages=False)


@pytest.mark.parametrize("third", ["nothing", "claims", "fails"])
def test_f08_of_copies_that_complete_at_the_same_time_exactly_one_wins(
    world: World, url: str, third: str
) -> None:
    begin(world, ROUNDS, replicate=3)
    leaders = {job.job_id: job for job in claim(world, "p1", ROUNDS)}
    rivals = {job.job_id: job for job in claim(world, "p2", ROUNDS)}
    thirds = {job.job_id: job for job in claim(world, "p3", ROUNDS)} if third == "fails" else {}
    for job_id, leader in leaders.items():
        works: list[Callable[[], Any]] = [
            lambda job=leader: world.complete(job),
            lambda job=rivals[job_id]: world.complete(job),
        ]
        if third == "claims":
            works.append(lambda: claim(world, "p3"))
        elif third == "fails":
            works.append(lambda job=thirds[job_id]: world.fail(job))
        done = at_once(works)
        errors = [future.exception() for future in done]
        told = [error.name if isinstance(error, PilotageError) else error for error in errors[:2]]
        assert sorted(told, key=str) == [None, "STALE_ATTEMPT"]
        completed = [leader, rivals[job_id]][told.index(None)]
        row = world.job(job_id)
        assert (row.state, row.attempt_id) == (S.COMPLETED.value, completed.attempt_id)
        mine = Attempt.select().where(Attempt.job == job_id)
        assert not [each.id for each in mine if each.ended_at is None]
        if third != "claims":
            assert [each.id for each in mine if each.state == S.COMPLETED.value] == [completed.attempt_id]
        elif not errors[2]:
            # It may have got a copy of the next job.
            assert all(
                job.job_id == job_id or world.job(job.job_id).ended_at is None for job in done[2].result()
            )
    assert File.select().where(File.state == "available").count() == Replica.select().count() == ROUNDS
    world.close_tasks()
    assert_clean(url, storages=False)


@pytest.mark.component("postgres")
@pytest.mark.parametrize("completes", [True, False], ids=["completes", "fails"])
def test_f08_an_end_that_comes_upon_the_claim_of_another_copy_takes_it_into_account(
    postgres_core: Core, shared_postgres: SharedPostgres, completes: bool
) -> None:
    world = World(postgres_core)
    begin(world)
    [leader] = claim(world, "p1")
    tell = world.complete if completes else world.fail
    end = threading.Thread(target=giving_back(lambda: tell(leader)), daemon=True)

    def claim_under_way() -> JobSpec:
        [rival] = claim(world, "p2")
        end.start()
        wait_until(somebody_waits, 30)
        return rival

    rival = postgres_core.database.write(claim_under_way)
    end.join(30)
    with postgres_core.database.reading():
        if completes:
            assert world.attempt(rival.attempt_id).error == "ANOTHER_COPY_WON"
            assert (world.job().attempt_id, alive()) == (leader.attempt_id, set())
        else:
            assert (world.state(), charged(world)) == (S.EXTRACTED, (0, 0, 0, 0))
            assert (world.job().attempt_id, alive()) == (rival.attempt_id, {rival.attempt_id})
    assert_clean(shared_postgres.url, storages=False)


def somebody_waits() -> bool:
    """For a row that another transaction has locked."""
    return bool(proxy.execute_sql("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()[0])


def test_f08_a_leader_that_fails_while_its_rivals_speak_leaves_the_job_as_the_new_leader_is(
    world: World, url: str
) -> None:
    begin(world, ROUNDS)
    leaders = {job.job_id: job for job in claim(world, "p1", ROUNDS)}
    rivals = {job.job_id: job for job in claim(world, "p2", ROUNDS)}
    for job_id, leader in leaders.items():
        rival = rivals[job_id]
        for future in at_once(
            [
                lambda job=leader: world.fail(job),
                lambda job=rival: world.say(job, S.RUNNING),
                lambda job=rival: world.beat(job, pilot_id="p2"),
            ]
        ):
            future.result()
        row = world.job(job_id)
        assert (row.attempt_id, row.state) == (rival.attempt_id, S.RUNNING.value)
    assert_clean(url, storages=False)


# -- failures ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loser", [0, 1], ids=["leader", "rival"])
@pytest.mark.parametrize("error", ["PAYLOAD_FAILED", "TRANSFORM_NOT_FOUND", "NODE_UNFIT"])
def test_while_another_copy_runs_a_failure_charges_nothing(
    world: World, url: str, loser: int, error: str
) -> None:
    copies = two(world, max_attempts=1, max_losses=0)
    failed, other = copies[loser], copies[1 - loser]
    assert world.fail(failed, error).state == S.FAILED.value
    row = world.job()
    assert (row.attempt_id, row.state) == (other.attempt_id, world.attempt(other.attempt_id).state)
    assert (charged(world), row.error) == ((0, 0, 0, 0), None)
    assert claim(world, "p3") == [], "a copy that failed is not made good while another one runs"
    assert_clean(url, storages=False)
    world.complete(other)
    assert world.state() is S.COMPLETED


def test_when_all_copies_have_failed_a_budget_is_charged_once_and_the_retry_has_copies_again(
    world: World, url: str
) -> None:
    leader, rival = two(world, max_attempts=2)
    world.fail(leader)
    world.fail(rival)
    assert (world.state(), charged(world), world.job().copies) == (S.READY, (1, 0, 0, 0), 1)
    [third], [fourth] = claim(world, "p1"), claim(world, "p2")
    assert (third.attempt_nr, fourth.attempt_nr) == (3, 4)
    assert claim(world, "p3") == []
    world.fail(fourth)
    world.fail(third)
    assert (world.state(), charged(world)) == (S.FAILED, (2, 0, 0, 0))
    world.close_tasks()
    assert_clean(url, storages=False)


def test_a_user_who_tries_again_gets_copies_again(world: World) -> None:
    leader, rival = two(world, max_attempts=1)
    world.fail(leader)
    world.fail(rival)
    assert world.state() is S.FAILED
    operations.retry(world.core, "t", RetrySpec(), OWNER)
    assert [job.attempt_nr for pilot in NODES for job in claim(world, pilot)] == [3, 4]


class TestFromTheArchive:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(archive_after_seconds=0)

    def test_also_when_the_job_was_in_the_archive(self, world: World, url: str) -> None:
        leader, rival = two(world, max_attempts=1)
        world.fail(leader)
        world.fail(rival)
        world.close_tasks()
        assert archive.run_once(world.core) == 1
        operations.retry(world.core, "t", RetrySpec(), OWNER)
        [third], [fourth] = claim(world, "p2"), claim(world, "p1")
        world.complete(fourth)
        assert world.attempt(third.attempt_id).error == "ANOTHER_COPY_WON"
        world.close_tasks()
        assert_clean(url, storages=False)


# -- silence ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("silent", [0, 1], ids=["leader", "rival"])
def test_a_copy_that_falls_silent_ends_and_the_other_goes_on(world: World, url: str, silent: int) -> None:
    copies = two(world, max_losses=0)
    lost, other = copies[silent], copies[1 - silent]
    world.pass_seconds(40)
    world.beat(other, pilot_id=["p2", "p1"][silent])
    assert world.pass_seconds(40) == 1
    ended = world.attempt(lost.attempt_id)
    assert (ended.state, ended.error) == (S.FAILED.value, "LOST_HEARTBEAT")
    row = world.job()
    assert (row.attempt_id, row.state) == (other.attempt_id, world.attempt(other.attempt_id).state)
    assert charged(world) == (0, 0, 0, 0)
    with world.refused("STALE_ATTEMPT"):
        world.complete(lost)
    assert_clean(url, storages=False)
    world.complete(other)
    assert world.state() is S.COMPLETED


def test_when_all_copies_are_silent_one_loss_is_charged_and_all_are_handed_out_again(
    world: World, url: str
) -> None:
    two(world)
    assert world.pass_seconds(70) == 2
    assert world.state() is S.READY
    [third], [fourth] = claim(world, "p1"), claim(world, "p2")
    assert (third.attempt_nr, fourth.attempt_nr) == (3, 4)
    assert charged(world)[1] == 1
    assert alive() == {third.attempt_id, fourth.attempt_id}
    assert_clean(url, storages=False)


def test_a_late_word_of_the_last_copy_keeps_its_job_and_further_copies_come(world: World) -> None:
    _, rival = two(world)
    world.pass_seconds(70)
    world.say(rival, S.RUNNING)
    assert world.state() is S.RUNNING
    [third] = claim(world, "p3")
    assert third.attempt_nr == 3
    world.complete(rival)
    assert world.attempt(third.attempt_id).error == "ANOTHER_COPY_WON"


def test_also_where_the_queue_lets_lost_jobs_wait(world: World, url: str) -> None:
    begin(world)
    world.core.database.write(Queue.update(requeue_delay_seconds=50).execute)
    world.core.recent.forget()
    [leader] = claim(world, "p1")
    world.say(leader, S.RUNNING)
    world.pass_seconds(70)
    world.say(leader, S.STAGE_OUT)
    assert claim(world, "p2") == []
    assert_clean(url, storages=False)
    world.beat(leader)
    world.pass_seconds(55)
    world.form()
    assert [job.attempt_nr for job in claim(world, "p2")] == [2]


def test_a_copy_that_nobody_acknowledged_is_no_hand_over_to_be_counted(world: World) -> None:
    begin(world)
    [leader] = claim(world, "p1")
    claim(world, "p2")
    for _ in range(3):
        world.beat(leader)
        world.pass_seconds(50)
    assert (charged(world), alive()) == ((0, 0, 0, 0), {leader.attempt_id})


# -- the end by a user ------------------------------------------------------------------------------------------------------


def test_a_cancellation_ends_all_copies(world: World, url: str) -> None:
    leader, rival = two(world)
    assert job_executor.cancel(world.core, [1], OWNER, "a test says so") == 1
    assert alive() == set()
    for job, pilot_id in ((leader, "p1"), (rival, "p2")):
        assert world.attempt(job.attempt_id).error == "CANCELLED_BY_USER"
        assert world.beat(job, pilot_id=pilot_id)[0].command is Command.STOP
    assert claim(world, "p3") == []
    assert_clean(url, storages=False)


# -- what is to be seen -----------------------------------------------------------------------------------------------------


def test_why_and_show_say_how_many_copies_run(world: World) -> None:
    begin(world, replicate=3)
    claim(world, "p1")
    assert "1 of 3 copies run; 2 more may be handed out" in " ".join(explain.job(world.core, 1).reasons)
    [rival] = claim(world, "p2")
    assert "2 of 3 copies run; 1 more may be" in " ".join(explain.job(world.core, 1).reasons)
    shown = job_manager.details(world.job())
    assert (shown.replicate, [attempt.ended for attempt in shown.attempts or ()]) == (3, [None, None])
    world.complete(rival)
    shown = job_manager.details(world.job())
    ends = [(line.attempt_nr, line.state) for line in shown.history or () if JobState(line.state) in FINAL]
    assert ends == [(1, "CANCELLED"), (2, "COMPLETED")]


def test_a_job_without_copies_says_nothing_of_them(world: World) -> None:
    world.ready()
    world.claim()
    assert (world.job().copies, job_manager.details(world.job()).replicate) == (None, 1)
    assert "copies" not in " ".join(explain.job(world.core, 1).reasons)


@pytest.mark.parametrize("state", [S.COMPLETED, S.READY], ids=str)
def test_a_copy_that_lives_on_is_found_by_the_audit(world: World, url: str, state: JobState) -> None:
    leader, rival = two(world)
    if state is S.COMPLETED:
        world.complete(rival)
    else:
        world.fail(leader)
        world.fail(rival)
    plant = Attempt.update(state=S.RUNNING.value, ended_at=None, error=None)
    world.core.database.write(plant.where(Attempt.id == leader.attempt_id).execute)
    assert "one-attempt" in {each.check for each in look(url, storages=False).findings}


# -- what users say ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [0, 6, -1, "two", 1.5, None, True])
def test_wrong_numbers_of_copies_are_refused(client: FlaskClient, bearer: Bearer, wrong: object) -> None:
    body = {"name": "t", "command": ["true"], "nJobs": 1, "replicate": wrong}
    error = refusal(Speaker(client, bearer).post("/v1/tasks", body), 400, "BAD_REQUEST")
    assert "replicate" in error.detail


def test_a_task_says_how_many_copies_it_wants(client: FlaskClient, bearer: Bearer) -> None:
    admin = Speaker(client, bearer)
    for name, body, expected in (("t", {"replicate": 5}, 5), ("u", {}, 1)):
        admin.ok("POST", "/v1/tasks", {"name": name, "command": ["true"], "nJobs": 1, **body})
        assert admin.ok("GET", f"/v1/tasks/{name}")["spec"]["replicate"] == expected
