"""What an attempt's end means for its job: two budgets, the catalogue's rule for a retry, and hand-overs nobody acknowledged."""

from __future__ import annotations

import pytest

from protocol.errors import BY_NAME, CATALOGUE, Budget, Retry
from protocol.states import JobState
from server import job_executor, job_manager
from server.core import Limits
from server.models import Job
from tests.integration.server.world import World

S = JobState

REPORTED_BY_PILOTS = [
    entry
    for entry in CATALOGUE
    if (entry.code < 3100 or entry.name == "OUTPUTS_REFUSED") and entry.name not in job_executor.TAKEN_AWAY
]


def test_each_error_charges_its_budget_and_is_tried_again_as_the_catalogue_says(world: World) -> None:
    world.ready(len(REPORTED_BY_PILOTS))
    jobs = world.claim(n_jobs=len(REPORTED_BY_PILOTS))
    for job, entry in zip(jobs, REPORTED_BY_PILOTS, strict=True):
        world.fail(job, entry.name)
        row = Job.get_by_id(job.job_id)
        charged = (row.payload_failures, row.losses, row.unacknowledged)
        assert (
            charged
            == {
                Budget.PAYLOAD: (1, 0, 0),
                Budget.INFRASTRUCTURE: (0, 1, 0),
                Budget.NONE: (0, 0, 0),
            }[entry.budget]
        ), entry.name
        assert row.error == entry.name
        if entry.retry is Retry.NEVER:
            assert row.state == S.FAILED.value, entry.name
        else:
            assert row.state == S.READY.value, entry.name
            later = entry.retry is Retry.LATER
            assert (row.ready_nr is None, row.ready_after) == (later, 10 if later else None), entry.name


def test_an_error_that_the_catalogue_does_not_know_is_kept_as_a_detail(world: World) -> None:
    world.ready()
    [job] = world.claim()
    world.fail(job, "SOMETHING_NEWER")
    row = world.job()
    assert (row.error, row.error_detail) == ("GENERAL_ERROR", "SOMETHING_NEWER: a test says so")
    assert (row.payload_failures, row.losses) == (0, 1)


def test_a_long_detail_is_cut(world: World) -> None:
    world.ready(max_attempts=1)
    [job] = world.claim()
    world.say(job, S.FAILED, error="PAYLOAD_FAILED", error_detail="a" * 4000)
    assert len(world.job().error_detail) <= 1000
    assert len(world.attempt(job.attempt_id).error_detail) <= 1000


# -- the payload's budget ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_attempts", [1, 2, 3])
def test_the_payload_may_fail_as_often_as_the_task_says(world: World, max_attempts: int) -> None:
    world.ready(max_attempts=max_attempts, max_losses=0)
    for attempt_nr in range(1, max_attempts + 1):
        [job] = world.claim()
        assert job.attempt_nr == attempt_nr
        world.fail(job)
    assert (world.state(), world.job().error) == (S.FAILED, "PAYLOAD_FAILED")
    assert world.claim() == []


def test_an_error_that_makes_no_sense_to_repeat_ends_the_job_at_once(world: World) -> None:
    world.ready(max_attempts=100)
    world.fail(world.claim()[0], "TRANSFORM_NOT_FOUND")
    assert (world.state(), world.job().error) == (S.FAILED, "TRANSFORM_NOT_FOUND")


@pytest.mark.parametrize(
    ("errors", "state"),
    [
        (["INPUT_SIZE_MISMATCH", "INPUT_SIZE_MISMATCH"], S.FAILED),
        (["INPUT_SIZE_MISMATCH", "STAGE_IN_MD5_MISMATCH"], S.READY),
        (["INPUT_SIZE_MISMATCH", "KILL_SIGNAL", "INPUT_SIZE_MISMATCH"], S.READY),
        (["KILL_SIGNAL", "KILL_SIGNAL"], S.READY),
    ],
)
def test_an_input_that_is_wrong_twice_in_a_row_is_wrong_wherever_it_is_read(
    world: World, errors: list[str], state: JobState
) -> None:
    world.ready()
    for error in errors:
        world.fail(world.claim()[0], error)
    assert (world.state(), world.job().error) == (state, errors[-1])


# -- the infrastructure's budget --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_losses", [0, 1, 2])
def test_a_job_may_be_lost_as_often_as_the_task_says_by_reports(world: World, max_losses: int) -> None:
    world.ready(max_attempts=1, max_losses=max_losses)
    for _ in range(max_losses):
        world.fail(world.claim()[0], "PILOT_SIGTERM")
        assert world.state() is S.READY
    world.fail(world.claim()[0], "PILOT_SIGTERM")
    assert (world.state(), world.job().error, world.job().losses) == (
        S.FAILED,
        "PILOT_SIGTERM",
        max_losses + 1,
    )


@pytest.mark.parametrize("max_losses", [0, 1, 2])
def test_a_job_may_be_lost_as_often_as_the_task_says_by_silence(world: World, max_losses: int) -> None:
    world.ready(max_attempts=1, max_losses=max_losses)
    for _ in range(max_losses):
        [job] = world.claim()
        world.say(job, S.STAGE_IN)
        world.pass_seconds(65)
        assert world.state() is S.READY
    [job] = world.claim()
    world.say(job, S.STAGE_IN)
    world.pass_seconds(65)
    row = world.job()
    assert (row.state, row.error) == (S.FAILED.value, "INFRASTRUCTURE_BUDGET_SPENT")
    assert (row.losses, row.payload_failures) == (max_losses + 1, 0)
    assert "LOST_HEARTBEAT" in row.error_detail
    attempts = job_manager.details(row).attempts or []
    assert [(each.state, each.error) for each in attempts] == [("FAILED", "LOST_HEARTBEAT")] * (
        max_losses + 1
    )
    assert world.claim() == []


def test_g9_losses_do_not_eat_the_payloads_budget_nor_the_other_way_round(world: World) -> None:
    world.ready(max_attempts=2, max_losses=2)
    for error in ("KILL_SIGNAL", "PAYLOAD_FAILED", "KILL_SIGNAL"):
        world.fail(world.claim()[0], error)
        assert world.state() is S.READY
    world.fail(world.claim()[0], "PAYLOAD_KILLED")
    assert world.state() is S.FAILED
    assert (world.job().payload_failures, world.job().losses) == (2, 2)


# -- later ------------------------------------------------------------------------------------------------------------------


def test_pauses_grow_with_the_losses(world: World) -> None:
    world.ready(max_losses=20)
    pauses = []
    for _ in range(9):
        world.fail(world.claim()[0], "STAGE_IN_FAILED")
        pauses.append(world.job().ready_after - job_executor.lease_clock())
        Job.update(ready_after=0).execute()
        world.form()
    assert pauses == [10, 20, 40, 80, 160, 320, 600, 600, 600]


def test_a_job_that_waits_is_promoted_once_its_time_has_come(world: World) -> None:
    world.ready()
    world.fail(world.claim()[0], "STAGE_IN_FAILED")
    world.pass_seconds(5)
    world.form()
    assert world.claim() == []
    world.pass_seconds(5)
    world.form()
    assert world.job().ready_after is None
    assert len(world.claim()) == 1


def test_a_job_that_is_cancelled_while_it_is_promoted_stays_out_of_the_queue(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looking for what is due and putting it into the queue, on Postgres, anything may happen."""
    world.ready(2)
    world.fail(world.claim()[0], "STAGE_IN_FAILED")
    world.pass_seconds(10)
    real = world.core.database.next_numbers

    def cancelled_meanwhile(sequence: str, n: int) -> range:
        Job.update(state=S.CANCELLED.value, ready_after=None, ready_nr=None).where(Job.id == 1).execute()
        return real(sequence, n)

    with monkeypatch.context() as patch:
        patch.setattr(world.core.database, "next_numbers", cancelled_meanwhile)
        job_executor.promote(world.core)
    assert (world.state(), world.job().ready_nr) == (S.CANCELLED, None)
    assert [job.job_id for job in world.claim()] == [2], "no dead entry in front of the queue"


def test_all_that_is_due_at_once_is_promoted_in_one_pass(world: World) -> None:
    """After the failure of a site, say."""
    world.ready(500)
    Job.update(ready_nr=None, ready_after=0).execute()
    assert world.claim() == []
    assert job_executor.promote(world.core) == 500
    assert len(world.claim(n_jobs=500)) + len(world.claim(n_jobs=500)) == 500


# -- not acknowledged -------------------------------------------------------------------------------------------------------


def test_five_hand_overs_that_nobody_acknowledged_end_the_job(world: World) -> None:
    world.ready(max_attempts=1, max_losses=0)
    for attempt_nr in range(1, 6):
        assert world.state() is S.READY
        [job] = world.claim()
        assert job.attempt_nr == attempt_nr
        world.pass_seconds(65)
    row = world.job()
    assert (row.state, row.error, row.unacknowledged) == (S.FAILED.value, "NEVER_ACKNOWLEDGED", 5)
    assert (row.payload_failures, row.losses) == (0, 0), "charged to no budget"
    attempts = job_manager.details(row).attempts or []
    assert [each.error for each in attempts] == ["NOT_ACKNOWLEDGED"] * 5
    assert world.claim() == []


def test_four_hand_overs_that_nobody_acknowledged_do_no_harm(world: World) -> None:
    world.ready(max_attempts=1, max_losses=0)
    for _ in range(4):
        world.claim()
        world.pass_seconds(65)
    world.complete(world.claim()[0])
    assert world.state() is S.COMPLETED


class TestAShortPatience:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(acknowledge_seconds=10, unacknowledged=1)

    def test_the_operator_may_set_it(self, world: World) -> None:
        world.ready()
        world.claim()
        world.pass_seconds(10)
        assert world.state() is S.EXTRACTED
        world.pass_seconds(5)
        assert (world.state(), world.job().error) == (S.FAILED, "NEVER_ACKNOWLEDGED")


def test_attempts_are_numbered_without_gap_or_twin(world: World) -> None:
    world.ready(max_attempts=10, max_losses=10)
    for error in ("PAYLOAD_FAILED", "", "KILL_SIGNAL", "", "PAYLOAD_FAILED"):
        [job] = world.claim()
        if error:
            world.fail(job, error)
        else:
            world.pass_seconds(65)
    world.complete(world.claim()[0])
    attempts = job_manager.details(world.job()).attempts or []
    assert [each.attempt_nr for each in attempts] == [1, 2, 3, 4, 5, 6]
    assert [each.error for each in attempts] == [
        *("PAYLOAD_FAILED", "NOT_ACKNOWLEDGED", "KILL_SIGNAL", "NOT_ACKNOWLEDGED", "PAYLOAD_FAILED", None)
    ]


def test_the_catalogue_knows_every_verdict_of_the_server() -> None:
    for name in (*job_executor.TAKEN_AWAY, "NEVER_ACKNOWLEDGED", "INFRASTRUCTURE_BUDGET_SPENT"):
        assert name in BY_NAME
