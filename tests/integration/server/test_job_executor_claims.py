"""Handing out: what fits, in which order, to one pilot only, and again to who asks again."""

from __future__ import annotations

import peewee
import pytest

from protocol.messages.pilots import JobSpec
from protocol.messages.requests import QueueSpec, QueueStateSpec
from protocol.resources import ResourceType
from protocol.states import JobState
from server import computing, job_executor, task_manager
from server.core import Core, Limits
from server.database import proxy
from server.jobs import claiming, statements
from server.models import Attempt, Job
from tests.integration.server.world import World, at_once


def job_ids(jobs: list[JobSpec]) -> list[int]:
    return [job.job_id for job in jobs]


# -- the same request again -------------------------------------------------------------------------------------------------


def test_the_same_request_yields_the_same_attempts_with_the_same_tokens(world: World) -> None:
    world.dataset(3)
    world.task(outputs=["{stem}.out"])
    world.form()
    world.pilot()
    first = world.claim(n_jobs=2, request_id="request-a")
    assert len({job.attempt_token for job in first}) == 2
    with world.unchanged(ignore=("last_seen",)):
        assert world.claim(n_jobs=2, request_id="request-a") == first


def test_the_same_request_after_a_word_about_the_attempt_still_yields_it(world: World) -> None:
    world.ready()
    first = world.claim(request_id="request-a")
    world.say(first[0], JobState.OBTAINED, JobState.RUNNING)
    assert world.claim(request_id="request-a") == first
    assert world.state() is JobState.RUNNING


def test_the_same_request_after_the_end_of_its_job_yields_no_other_job(world: World) -> None:
    world.ready(2)
    world.complete(world.claim(request_id="request-a")[0])
    assert world.claim(request_id="request-a") == []
    assert world.state(2) is JobState.READY


def test_the_same_request_id_of_another_pilot_is_another_request(world: World) -> None:
    world.ready(2)
    world.pilot("p2")
    assert job_ids(world.claim("p1", request_id="request-a")) == [1]
    assert job_ids(world.claim("p2", request_id="request-a")) == [2]


def test_f07_a_request_sent_twice_at_once_is_answered_once(world: World) -> None:
    """The pilot's connection broke and it asks again while the first request is still worked on."""
    world.ready(20)
    request = world.request(n_jobs=3, request_id="request-a")
    answers = [future.result() for future in at_once([lambda: job_executor.claim(world.core, request)] * 8)]
    assert len(answers[0]) == 3
    assert all(answer == answers[0] for answer in answers)
    assert Attempt.select().count() == 3


def test_a_request_that_found_nothing_may_find_something_later(world: World) -> None:
    world.pilot()
    assert world.claim(request_id="request-a") == []
    world.task(n_jobs=1)
    world.form()
    assert job_ids(world.claim(request_id="request-a")) == [1]


# -- one job, one pilot -----------------------------------------------------------------------------------------------------


def test_f11_no_two_pilots_get_the_same_job(world: World) -> None:
    pilots = [world.pilot(f"p{index}") for index in range(12)]
    world.task(n_jobs=40)
    world.form()

    def take(pilot: str) -> list[JobSpec]:
        taken: list[JobSpec] = []
        while jobs := world.claim(pilot, n_jobs=2):
            taken += jobs
        return taken

    futures = at_once([lambda pilot=pilot: take(pilot) for pilot in pilots])
    taken = [job for future in futures for job in future.result()]
    assert sorted(job_ids(taken)) == list(range(1, 41))
    assert len({job.attempt_id for job in taken}) == 40
    assert {row.state for row in Job.select()} == {JobState.EXTRACTED.value}
    assert {row.attempt_nr for row in Job.select()} == {1}
    assert world.claim("p0") == []


def test_f11_more_requests_than_jobs_give_as_many_grants_as_there_are_jobs(world: World) -> None:
    pilots = [world.pilot(f"p{index}") for index in range(30)]
    world.task(n_jobs=5)
    world.form()
    futures = at_once([lambda pilot=pilot: world.claim(pilot) for pilot in pilots])
    granted = [job.job_id for future in futures for job in future.result()]
    # A job whose row another claim holds is passed over, so a second round may be needed: never a second grant.
    granted += [job.job_id for pilot in pilots for job in world.claim(pilot)]
    assert sorted(granted) == [1, 2, 3, 4, 5]


def test_a_claim_never_gives_more_than_was_asked_for(world: World) -> None:
    world.ready(5)
    assert len(world.claim(n_jobs=3)) == 3
    assert len(world.claim(n_jobs=3)) == 2
    assert world.claim(n_jobs=3) == []


def test_a_claim_does_not_wait_for_another_that_is_under_way(postgres_core: Core) -> None:
    world = World(postgres_core)
    world.ready(3)
    world.pilot("p2")
    world.claim()

    def under_way() -> list[JobSpec]:
        first = world.claim("p1")
        [second] = at_once([lambda: world.claim("p2")])
        return first + second.result()

    assert job_ids(postgres_core.database.write(under_way)) == [2, 3]


# -- what fits --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("needs", "too_little", "enough"),
    [
        ({"cores": 4}, {"cores": 3}, {"cores": 4}),
        ({"memory_mb": 2000}, {"memory_mb": 1999}, {"memory_mb": 2000}),
        ({"disk_mb": 50}, {}, {"disk_mb": 51}),
        ({"walltime_seconds": 100}, {"walltime_seconds": 99}, {"walltime_seconds": 0}),
        ({"prod_source_label": "test"}, {"prod_source_label": "user"}, {"prod_source_label": "test"}),
        ({"prod_source_label": "test"}, {"prod_source_label": "user"}, {"prod_source_label": ""}),
    ],
)
def test_only_a_fitting_job_is_handed_out(
    world: World, needs: dict[str, object], too_little: dict[str, object], enough: dict[str, object]
) -> None:
    world.ready(1, **needs)
    assert world.claim(**too_little) == []
    assert job_ids(world.claim(**enough)) == [1]


def test_a_gpu_job_goes_to_a_gpu_pilot_only(world: World) -> None:
    world.task("cpu", n_jobs=1)
    world.task("gpu", n_jobs=1, resource_type=ResourceType.GPU, gpus=2)
    world.form()
    world.pilot("p1")
    world.pilot("g1", "GPU")
    gpu = {"queue": "GPU", "resource_type": ResourceType.GPU}
    assert world.claim("g1", gpus=1, **gpu) == []
    assert [job.task_id for job in world.claim("g1", n_jobs=5, gpus=2, **gpu)] == [2]
    assert [job.task_id for job in world.claim("p1", n_jobs=5)] == [1]


def test_a_task_bound_to_a_queue_goes_to_no_other(world: World) -> None:
    computing.create_queue(world.core, QueueSpec("SPECIAL"))
    world.ready(1, queue="SPECIAL")
    assert world.claim() == []
    world.pilot("p2", "SPECIAL")
    assert job_ids(world.claim("p2", queue="SPECIAL")) == [1]


def test_jobs_that_do_not_fit_hide_none_that_does(world: World) -> None:
    world.task("large", n_jobs=30, cores=64, priority=100)
    world.task("small", n_jobs=1)
    world.form()
    world.pilot()
    assert [job.task_id for job in world.claim(n_jobs=5)] == [2]


# -- in which order ---------------------------------------------------------------------------------------------------------


def test_first_come_first_served(world: World) -> None:
    world.ready(5)
    assert [world.claim()[0].job_nr for _ in range(5)] == [1, 2, 3, 4, 5]


def test_a_higher_priority_goes_first_also_across_different_needs(world: World) -> None:
    world.task("low", n_jobs=2, priority=-5)
    world.task("middle", n_jobs=2)
    world.task("high", n_jobs=2, priority=5, memory_mb=10)
    world.form()
    world.pilot()
    assert [job.task_id for job in world.claim(n_jobs=6, memory_mb=10)] == [3, 3, 2, 2, 1, 1]


def test_jobs_of_the_pilots_own_task_are_preferred_within_their_priority(world: World) -> None:
    world.task("a", n_jobs=2)
    world.task("b", n_jobs=2)
    world.task("c", n_jobs=1, priority=1)
    world.form()
    world.pilot()
    assert [job.task_id for job in world.claim(n_jobs=5, task_id=2)] == [3, 2, 2, 1, 1]


def test_a_job_that_comes_back_goes_to_the_end_of_its_class(world: World) -> None:
    world.ready(3)
    world.fail(world.claim()[0])
    assert [job.job_nr for job in world.claim(n_jobs=3)] == [2, 3, 1]


# -- who may ask ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["drain", "offline"])
def test_a_queue_that_is_not_open_hands_out_nothing(world: World, state: str) -> None:
    world.ready(2)
    before = world.claim(request_id="request-a")
    computing.set_queue_state(world.core, "CPU", QueueStateSpec(state), "root")
    assert world.claim() == []
    assert world.claim(request_id="request-a") == before, "what was handed out before can be asked for again"
    computing.set_queue_state(world.core, "CPU", QueueStateSpec("online"), "root")
    assert job_ids(world.claim()) == [2]


def test_a_queue_in_test_hands_out_jobs(world: World) -> None:
    world.ready()
    computing.set_queue_state(world.core, "CPU", QueueStateSpec("test"), "root")
    assert job_ids(world.claim()) == [1]


def test_who_asks_wrongly_is_told_and_gets_nothing(world: World) -> None:
    world.ready()
    for request, error in (
        (world.request(queue="NOWHERE"), "NOT_FOUND"),
        (world.request("stranger"), "NOT_FOUND"),
        (world.request(queue="GPU"), "WRONG_STATE"),
    ):
        with world.refused(error):
            job_executor.claim(world.core, request)


# -- what is handed out -----------------------------------------------------------------------------------------------------


def test_a_job_comes_with_all_that_its_pilot_needs(world: World) -> None:
    world.dataset(2)
    world.task(
        files_per_job=2,
        outputs=["{stem}.out", "n{job_nr}.log"],
        environment={"A": "b"},
        data_type="raw",
        cores=2,
        memory_mb=100,
        disk_mb=10,
        walltime_seconds=60,
    )
    world.form()
    world.pilot()
    [job] = world.claim(cores=2, memory_mb=100, disk_mb=10, walltime_seconds=60)
    assert (job.command, job.environment, job.data_type) == (["true"], {"A": "b"}, "raw")
    assert (job.cores, job.memory_mb, job.disk_mb, job.walltime_seconds) == (2, 100, 10, 60)
    assert [(each.lfn, each.url) for each in job.inputs] == [
        ("f00000.spd", "file:///data/f00000.spd"),
        ("f00001.spd", "file:///data/f00001.spd"),
    ]
    assert [(each.lfn, each.dataset, each.scope) for each in job.outputs] == [
        ("f00000.out", "t.out", "t.out"),
        ("n1.log", "t.out", "t.out"),
    ]


def test_each_attempt_has_physical_names_of_its_own(world: World) -> None:
    first = world.job_with_outputs()
    world.fail(first)
    second = world.claim()[0]
    names = [{output.url for output in job.outputs} | {job.log_url} for job in (first, second)]
    assert not names[0] & names[1]
    assert [output.lfn for output in first.outputs] == [output.lfn for output in second.outputs]
    assert all(f".{second.attempt_id}" in name for name in names[1])
    assert (second.job_id, second.attempt_nr) == (first.job_id, 2)


def test_names_are_quoted_in_urls(world: World) -> None:
    world.dataset()
    world.task(outputs=["{stem} #1 50%ü.out"])
    world.form()
    world.pilot()
    [output] = world.claim()[0].outputs
    assert output.lfn == "f00000 #1 50%ü.out"
    assert output.url == "file:///srv/storage/t.out/f00000%20%231%2050%25%C3%BC.out.1"


def test_the_token_of_an_attempt_is_not_in_the_database(world: World) -> None:
    world.ready()
    token = world.claim()[0].attempt_token
    assert len(token) > 64
    assert token not in repr(world.rows())


def test_each_attempt_has_a_nonce_of_its_own(world: World) -> None:
    """Ids may come again when a backup is restored; tokens must not."""
    world.ready(5)
    world.claim(n_jobs=5)
    assert len({attempt.nonce for attempt in Attempt.select()}) == 5


def test_a_claim_marks_the_task_as_started_once(world: World) -> None:
    world.ready(2)
    assert task_manager.find("t").started is None
    world.claim()
    started = task_manager.find("t").started
    world.claim()
    assert task_manager.find("t").started == started is not None


class TestManyClasses:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(ready_stock=1000)

    def test_each_class_is_read_in_its_own_order(self, world: World) -> None:
        for index in range(6):
            world.task(f"t{index}", n_jobs=2, memory_mb=index, priority=index % 3)
        world.form()
        world.pilot()
        taken = [job for _ in range(4) for job in world.claim(n_jobs=3, memory_mb=9)]
        priorities = [int(task_manager.find(str(job.task_id)).priority) for job in taken]
        assert len(taken) == 12
        assert priorities == sorted(priorities, reverse=True)


def test_a_claim_of_many_jobs_reads_its_rows_by_an_index(world: World) -> None:
    """Or SQLite reads all that were picked again for each that was made: three seconds for a thousand."""
    if world.core.database.is_sqlite:
        [text] = [text for part, text, _ in statements.CLAIM.sqlite if part.name == "claimed"]
        plan = proxy.obj.connection().execute(f"EXPLAIN QUERY PLAN {text}", {"made": "[]", "picked": "[]"})
        assert any("AUTOMATIC" in row[3] for row in plan)


def test_a_getjob_gives_no_more_at_once_than_a_short_transaction_holds(world: World) -> None:
    world.ready(claiming.MOST_AT_ONCE + 1)
    assert len(world.claim(n_jobs=1000)) == claiming.MOST_AT_ONCE
    assert len(world.claim(n_jobs=1000)) == 1


def test_what_is_no_repetition_is_no_silent_empty_answer(world: World) -> None:
    """An attempt number that is taken already is a fault, and must be seen."""
    world.ready()
    [job] = world.claim()
    world.fail(job, "STAGE_OUT_FAILED")
    Job.update(attempt_nr=0, ready_nr=1, ready_after=None, state=JobState.READY.value).execute()
    with pytest.raises(peewee.IntegrityError, match="attempt_nr"):
        world.claim()
