"""What users do to tasks after they were accepted: pause, priority, retry, dependencies, cancelling with what comes after."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from flask.testing import FlaskClient

from protocol import __version__
from protocol.errors import PilotageError
from protocol.messages.pilots import PilotRegistration
from protocol.messages.requests import QueueSpec, QueueStateSpec, RetrySpec, StorageSpec, TaskSpec
from protocol.states import JobState
from server import catalogue, computing, job_executor, job_manager, task_manager
from server.access.tokens import Role
from server.core import Core, Limits
from server.jobs import cancelling, operations
from server.models import AdminEvent, File, Job, JobEvent, Node, Task, TaskDependency
from server.pace import Pace
from server.paging import Cursor
from server.upkeep import archive
from tests.integration.server.http import Speaker, refusal
from tests.integration.server.world import OWNER, Bearer, World, refusing


def states(task: str = "t") -> dict[str, int]:
    return task_manager.view(task_manager.find(task)).counts


def run(world: World, job_nrs: dict[int, str], n_jobs: int = 0) -> None:
    """Claim all jobs; those that are named fail with that error (or are cancelled for ""), the others complete."""
    for job in world.claim(n_jobs=n_jobs or 100):
        if job.job_nr not in job_nrs:
            world.complete(job)
        elif job_nrs[job.job_nr]:
            world.fail(job, job_nrs[job.job_nr])
        else:
            job_executor.cancel(world.core, [job.job_id], "ada", "no more")


def retry(world: World, task: str = "t", **wish: Any) -> Any:
    return operations.retry(world.core, task, RetrySpec(**wish), "ada")


# -- pause ------------------------------------------------------------------------------------------------------------------


def test_of_a_paused_task_nothing_is_handed_out_and_what_runs_goes_on(world: World) -> None:
    world.ready(5)
    (held,) = world.claim()
    operations.pause(world.core, "t", "ada")
    assert world.claim(n_jobs=10) == []
    world.say(held, JobState.RUNNING)
    world.complete(held)
    assert states() == {"READY": 4, "COMPLETED": 1}
    view = task_manager.view(task_manager.find("t"))
    assert (view.paused, view.state) == (True, "RUNNING")
    operations.resume(world.core, "t", "ada")
    assert [job.job_nr for job in world.claim(n_jobs=10)] == [2, 3, 4, 5]


def test_of_a_paused_task_nothing_is_formed(world: World) -> None:
    world.task(n_jobs=3)
    operations.pause(world.core, "t", "ada")
    assert world.form() == 0
    operations.resume(world.core, "t", "ada")
    assert world.form() == 3


def test_a_job_that_comes_back_while_its_task_is_paused_waits_as_well(world: World) -> None:
    world.ready(3, max_attempts=3)
    first, second, third = world.claim(n_jobs=3)
    operations.pause(world.core, "t", "ada")
    world.form()
    world.fail(first)
    world.fail(second, "STAGE_IN_FAILED")
    world.pass_seconds(1000)
    world.form()
    assert states() == {"READY": 3}
    assert world.claim(n_jobs=10) == []
    operations.resume(world.core, "t", "ada")
    world.form()
    assert {job.job_nr for job in world.claim(n_jobs=10)} == {1, 2, 3}


def test_a_pause_that_was_interrupted_is_made_good_by_the_next_pass(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.ready(6)
    monkeypatch.setattr(operations, "LEAST", 1)
    monkeypatch.setattr(operations, "Pace", lambda **_: Pace(first=2, most=2))
    whole, calls = operations._settle_some, []

    def breaks(*arguments: Any) -> bool:
        calls.append(arguments)
        if len(calls) == 2:
            raise PilotageError("SERVER_UNAVAILABLE", "a test says so")
        return whole(*arguments)

    monkeypatch.setattr(operations, "_settle_some", breaks)
    with refusing("SERVER_UNAVAILABLE"):
        operations.pause(world.core, "t", "ada")
    assert Job.select().where(Job.ready_nr.is_null(False)).count() == 4
    world.form()
    assert Job.select().where(Job.ready_nr.is_null(False)).count() == 0
    assert not Task.get().unsettled
    calls.clear()
    with refusing("SERVER_UNAVAILABLE"):
        operations.resume(world.core, "t", "ada")
    world.form()
    assert len(world.claim(n_jobs=10)) == 6


def test_pausing_twice_is_pausing_once_and_a_task_that_has_ended_is_refused(world: World) -> None:
    world.ready(2)
    operations.pause(world.core, "t", "ada")
    operations.pause(world.core, "t", "ada")
    operations.resume(world.core, "t", "ada")
    operations.resume(world.core, "t", "ada")
    run(world, {})
    world.close_tasks()
    for change in (operations.pause, operations.resume):
        with pytest.raises(PilotageError, match="has ended as COMPLETED") as refused, world.unchanged():
            change(world.core, "t", "ada")
        assert refused.value.next_step == "nothing: every job of it has completed"


def test_of_a_task_that_has_ended_badly_the_retry_is_told(world: World) -> None:
    world.ready(2, max_attempts=1)
    run(world, {1: "PAYLOAD_FAILED"})
    world.close_tasks()
    with pytest.raises(PilotageError, match="has ended as PARTIAL") as refused, world.unchanged():
        operations.pause(world.core, "t", "ada")
    assert refused.value.next_step.endswith("pilotage task retry t")


# -- priority ---------------------------------------------------------------------------------------------------------------


def test_a_new_priority_counts_for_the_jobs_that_wait_and_for_those_to_come(world: World) -> None:
    world.ready(3)
    world.task("u", n_jobs=3)
    world.form()
    (held,) = world.claim()
    operations.set_priority(world.core, "u", 5, "ada")
    assert [job.task_id for job in world.claim(n_jobs=3)] == [2, 2, 2]
    operations.set_priority(world.core, "t", 9, "ada")
    world.fail(held)
    assert {job.priority for job in Job.select().where(Job.task == 1)} == {9}
    assert task_manager.view(task_manager.find("t")).priority == 9


def test_a_new_priority_of_a_paused_task_leaves_it_paused(world: World) -> None:
    world.ready(3)
    operations.pause(world.core, "t", "ada")
    operations.set_priority(world.core, "t", 5, "ada")
    assert world.claim() == []
    operations.resume(world.core, "t", "ada")
    assert {job.priority for job in Job.select()} == {5}
    assert len(world.claim(n_jobs=9)) == 3


# -- retry ------------------------------------------------------------------------------------------------------------------


def partial(world: World, n_jobs: int = 4) -> None:
    """A task over files that has ended: its second job failed, its third was cancelled, the others completed."""
    world.dataset(n_jobs)
    world.task(outputs=["{stem}.o"], max_attempts=1)
    world.form()
    world.pilot()
    run(world, {2: "PAYLOAD_FAILED", 3: ""})
    world.close_tasks()


def test_a_task_that_ended_goes_on_and_its_output_is_whole_in_the_end(world: World) -> None:
    partial(world)
    assert task_manager.view(task_manager.find("t")).state == "PARTIAL"
    reply = retry(world)
    assert (reply.n_jobs, reply.n_left) == (2, 0)
    view = task_manager.view(task_manager.find("t"))
    assert (view.state, view.ended, view.output_state) == ("RUNNING", None, "open")
    assert view.counts == {"COMPLETED": 2, "READY": 2}
    world.close_tasks()
    jobs = world.claim(n_jobs=9)
    assert [(job.job_nr, job.attempt_nr) for job in jobs] == [(2, 2), (3, 2)]
    assert [output.lfn for job in jobs for output in job.outputs] == ["f00001.o", "f00002.o"]
    for job in jobs:
        world.complete(job)
    world.close_tasks()
    view = task_manager.view(task_manager.find("t"))
    assert (view.state, view.output_state, view.n_outputs) == ("COMPLETED", "closed", 4)
    assert sorted(file.lfn for file in catalogue.files(Cursor(), dataset="t.out").items) == [
        f"f0000{n}.o" for n in range(4)
    ]


@pytest.mark.parametrize(
    ("wish", "job_nrs"),
    [({}, [2, 3]), ({"failed": True}, [2]), ({"cancelled": True}, [3]), ({"failed": True, "cancelled": True}, [2, 3]),
     ({"job_nr": 3}, [3])],
)  # fmt: skip
def test_a_user_says_which_jobs_are_tried_again(
    world: World, wish: dict[str, Any], job_nrs: list[int]
) -> None:
    partial(world)
    assert retry(world, **wish).n_jobs == len(job_nrs)
    assert [job.job_nr for job in world.claim(n_jobs=9)] == job_nrs


def test_a_retried_job_has_whole_budgets_and_no_error(world: World) -> None:
    world.ready(max_attempts=2)
    for _ in range(2):
        world.fail(world.claim()[0])
    assert world.state() is JobState.FAILED
    Job.update(losses=3, kills=2, unacknowledged=4, avoid_node="n", avoid_until=99).execute()
    operations.retry_job(world.core, 1, "ada")
    job = world.job()
    assert (job.payload_failures, job.losses, job.kills, job.unacknowledged) == (0, 0, 0, 0)
    assert (job.error, job.error_detail, job.avoid_node, job.ended_at, job.counted) == (
        None,
        None,
        None,
        None,
        False,
    )
    world.fail(world.claim()[0])
    assert world.state() is JobState.READY, "it may fail once more"


def test_the_numbers_of_a_task_stay_right_when_counted_jobs_are_tried_again(world: World) -> None:
    partial(world)
    numbers = ("n_completed", "n_failed", "n_cancelled", "n_attempts")
    assert [getattr(Task.get(), name) for name in numbers] == [2, 1, 1, 4]
    retry(world)
    assert [getattr(Task.get(), name) for name in numbers] == [2, 0, 0, 2]
    run(world, {2: "PAYLOAD_FAILED"})
    world.close_tasks()
    assert [getattr(Task.get(), name) for name in numbers] == [3, 1, 0, 6]
    view = task_manager.view(task_manager.find("t"))
    assert (view.counts, view.n_attempts) == ({"COMPLETED": 3, "FAILED": 1}, 6)


def test_a_job_that_failed_in_a_task_that_goes_on_is_tried_again_at_once(world: World) -> None:
    world.dataset(2)
    world.task(outputs=["{stem}.o"], max_attempts=1)
    world.form()
    world.pilot()
    first, second = world.claim(n_jobs=2)
    world.fail(first)
    assert retry(world, failed=True).n_jobs == 1
    (again,) = world.claim()
    assert (again.job_id, again.attempt_nr, len(again.outputs)) == (first.job_id, 2, 1)
    assert File.select().where(File.job_id == first.job_id).count() == 1


def test_the_pilot_of_the_attempt_before_a_retry_has_no_say(world: World) -> None:
    world.ready(max_attempts=1)
    (old,) = world.claim()
    job_executor.cancel(world.core, [old.job_id], "ada", "no more")
    operations.retry_job(world.core, old.job_id, "ada")
    with world.refused("STALE_ATTEMPT"):
        world.complete(old)
    (new,) = world.claim()
    assert new.attempt_id != old.attempt_id
    world.complete(new)
    assert world.state() is JobState.COMPLETED


def test_of_a_paused_task_a_retried_job_waits(world: World) -> None:
    world.ready(2, max_attempts=1)
    world.fail(world.claim()[0])
    operations.pause(world.core, "t", "ada")
    retry(world)
    assert world.claim(n_jobs=5) == []
    operations.resume(world.core, "t", "ada")
    assert len(world.claim(n_jobs=5)) == 2


def test_what_a_later_task_has_read_is_not_changed_any_more(world: World) -> None:
    partial(world)
    world.task("next", input_dataset="t.out")
    world.form()
    with world.refused("WRONG_STATE", "task next has read t.out"):
        retry(world)
    with world.refused("WRONG_STATE", "task next has read t.out"):
        operations.retry_job(world.core, 2, "ada")


def test_a_later_task_that_has_not_begun_reads_what_the_retry_brings_too(world: World) -> None:
    partial(world)
    world.task("next", input_dataset="t.out")
    assert retry(world).n_jobs == 2
    assert world.form() == 0, "the dataset is open again"
    run(world, {})
    world.close_tasks()
    assert world.form() == 4


def test_a_task_that_was_cancelled_early_forms_the_rest_when_it_is_tried_again(core: Core) -> None:
    world = World(dataclasses.replace(core, limits=dataclasses.replace(core.limits, ready_stock=2)))
    world.task(n_jobs=5)
    assert world.form() == 2
    task_manager.cancel(world.core, "t", "ada")
    world.close_tasks()
    assert task_manager.view(task_manager.find("t")).state == "CANCELLED"
    assert retry(world, cancelled=True).n_jobs == 2
    world.pilot()
    for _ in range(3):
        run(world, {})
        world.form()
    run(world, {})
    world.close_tasks()
    assert task_manager.view(task_manager.find("t")).state == "COMPLETED"


def test_of_a_cancelled_task_one_job_alone_may_be_tried_again(core: Core) -> None:
    world = World(dataclasses.replace(core, limits=dataclasses.replace(core.limits, ready_stock=2)))
    world.task(n_jobs=5)
    world.form()
    task_manager.cancel(world.core, "t", "ada")
    retry(world, job_nr=1)
    assert world.form() == 0
    world.pilot()
    run(world, {})
    world.close_tasks()
    view = task_manager.view(task_manager.find("t"))
    assert (view.state, view.counts) == ("CANCELLED", {"COMPLETED": 1, "CANCELLED": 1})


def test_a_job_whose_output_name_was_given_to_another_file_is_left(world: World) -> None:
    world.dataset(2)
    world.task(outputs=["{stem}.o"], max_attempts=1)
    world.form()
    world.pilot()
    run(world, {1: "PAYLOAD_FAILED", 2: "PAYLOAD_FAILED"})
    world.close_tasks()
    File.create(dataset=1, scope="t.out", lfn="f00000.o")
    reply = retry(world)
    assert (reply.n_jobs, reply.n_left) == (1, 1)
    assert "other files" in reply.reason
    assert [job.job_nr for job in world.claim(n_jobs=5)] == [2]


def test_what_has_not_ended_badly_is_not_tried_again(world: World) -> None:
    world.ready(2, max_attempts=1)
    first, _ = world.claim(n_jobs=2)
    world.complete(first)
    for wish, words in (
        ({}, "no job of task t is CANCELLED or FAILED; the task is RUNNING"),
        ({"failed": True}, "no job of task t is FAILED; the task is RUNNING"),
        ({"job_nr": 1}, "job 1 of task t is COMPLETED; what is CANCELLED or FAILED can be tried again"),
        ({"job_nr": 2}, "job 2 of task t is EXTRACTED"),
        ({"job_nr": 77}, "task t has 2 jobs, numbered from 1, and no job 77; the task is RUNNING"),
    ):
        with world.refused("WRONG_STATE", words):
            retry(world, **wish)
    with world.refused("WRONG_STATE"):
        operations.retry_job(world.core, 1, "ada")
    with world.refused("NOT_FOUND"):
        operations.retry_job(world.core, 77, "ada")


def test_a_retry_is_on_record(world: World) -> None:
    world.ready(max_attempts=1)
    world.fail(world.claim()[0])
    operations.retry_job(world.core, 1, "ada")
    event = JobEvent.get(JobEvent.event == "RETRIED")
    assert (event.actor, event.attempt_nr, event.detail) == ("user", 1, "ada: was FAILED")
    line = AdminEvent.select().order_by(AdminEvent.id.desc()).get()
    assert (line.who, line.action, line.subject) == ("ada", "task retry", "t")
    history = [line.state for line in job_manager.details(job_manager.find(1)).history or ()]
    assert history[-3:] == ["FAILED", "RETRIED", "READY"]


def test_many_are_tried_again_in_parts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "LEAST", 1)
    monkeypatch.setattr(operations, "Pace", lambda **_: Pace(first=3, most=3))
    world.ready(8, max_attempts=1)
    run(world, dict.fromkeys(range(1, 9), "PAYLOAD_FAILED"))
    world.close_tasks()
    assert retry(world).n_jobs == 8
    assert [job.job_nr for job in world.claim(n_jobs=9)] == list(range(1, 9)), "in their order"


def test_a_request_has_so_many_tried_again_as_it_has_time_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "LEAST", 1)
    monkeypatch.setattr(operations, "Pace", lambda **_: Pace(first=3, most=3))
    monkeypatch.setattr(operations, "RETRY_SECONDS", -1.0)
    world.ready(4, max_attempts=1)
    run(world, dict.fromkeys(range(1, 5), "PAYLOAD_FAILED"))
    reply = retry(world)
    assert (reply.n_jobs, reply.more) == (3, True)
    reply = retry(world)
    assert (reply.n_jobs, reply.more) == (1, False)


def test_a_job_in_the_archive_is_tried_again(world: World) -> None:
    partial(world)
    at_once = dataclasses.replace(
        world.core, limits=dataclasses.replace(world.core.limits, archive_after_seconds=0)
    )
    while archive.run_once(at_once):
        pass
    assert Job.select().count() == 0
    assert retry(world).n_jobs == 2
    jobs = world.claim(n_jobs=9)
    assert [(job.job_nr, job.attempt_nr, len(job.inputs), len(job.outputs)) for job in jobs] == [
        (2, 2, 1, 1),
        (3, 2, 1, 1),
    ]
    for job in jobs:
        world.complete(job)
    world.close_tasks()
    view = task_manager.view(task_manager.find("t"))
    assert (view.state, view.counts, view.n_outputs) == ("COMPLETED", {"COMPLETED": 4}, 4)


# -- dependencies -----------------------------------------------------------------------------------------------------------


def test_a_task_begins_when_all_that_it_waits_for_have_completed(world: World) -> None:
    world.ready(1)
    world.task("u", n_jobs=1)
    world.task("after", n_jobs=2, after=["t", "2"])
    world.form()
    run(world, {}, n_jobs=1)
    world.close_tasks()
    world.form()
    assert states("after") == {}
    run(world, {})
    world.close_tasks()
    world.form()
    assert states("after") == {"READY": 2}


def test_a_task_whose_predecessor_failed_waits_until_that_is_tried_again(world: World) -> None:
    world.ready(1, max_attempts=1)
    world.task("after", n_jobs=1, after=["t"])
    run(world, {1: "PAYLOAD_FAILED"})
    world.close_tasks()
    world.form()
    assert states("after") == {}
    retry(world)
    run(world, {})
    world.close_tasks()
    world.form()
    assert states("after") == {"READY": 1}


@pytest.mark.parametrize(
    ("after", "error", "detail"),
    [
        (["t"], "BAD_REQUEST", "cannot wait for itself"),
        (["nothing"], "NOT_FOUND", r"after\[0\]: no task"),
        (["mine", "99"], "NOT_FOUND", r"after\[1\]: no task"),
        (["-1"], "NOT_FOUND", "no task"),
        ([""], "NOT_FOUND", "no task"),
        (["9" * 5000], "NOT_FOUND", "no task"),
        (["mine", "another's"], "FORBIDDEN", "is bob's"),
    ],
)
def test_b27_a_dependency_that_cannot_be_is_refused(
    world: World, after: list[str], error: str, detail: str
) -> None:
    world.task("mine", n_jobs=1)
    task_manager.register(world.core, TaskSpec("another's", ["true"], n_jobs=1), "bob")
    with world.refused(error, detail):
        world.task(n_jobs=1, after=after)


def test_b27_a_million_dependencies_are_refused(client: FlaskClient, bearer: Bearer) -> None:
    body = {"name": "t", "command": ["true"], "nJobs": 1, "after": ["t"] * 1_000_000}
    reply = refusal(Speaker(client, bearer).post("/v1/tasks", body), 400, "BAD_REQUEST")
    assert "after" in reply.detail


def test_a_task_of_the_same_group_may_be_waited_for_and_twice_the_same_is_once(world: World) -> None:
    spec = TaskSpec("theirs", ["true"], n_jobs=1, working_group="spd")
    task_manager.register(world.core, spec, "bob")
    world.task(n_jobs=1, after=["theirs", "1"], working_group="spd")
    assert [(row.task_id, row.on_task_id) for row in TaskDependency.select()] == [(2, 1)]


def test_f23_cancelling_with_what_comes_after_ends_the_whole_chain(world: World) -> None:
    world.dataset(2)
    world.task(outputs=["{stem}.o"])
    world.task("reads", input_dataset="t.out", outputs=["{stem}.p"])
    world.task("reads-that", input_dataset="reads.out")
    world.task("waits", n_jobs=1, after=["reads-that"])
    world.task("apart", n_jobs=1)
    world.form()
    assert operations.cancel(world.core, "t", "ada", cascade=True) == [4, 3, 2]
    world.close_tasks()
    ended = {task.name: task_manager.state_of(task).value for task in Task.select()}
    assert ended == {
        **dict.fromkeys(("t", "reads", "reads-that", "waits"), "CANCELLED"),
        "apart": "RUNNING",
    }


def test_cancelling_one_leaves_those_after_it(world: World) -> None:
    world.task(n_jobs=1)
    world.task("waits", n_jobs=1, after=["t"])
    operations.cancel(world.core, "t", "ada")
    assert not Task.get(Task.name == "waits").cancelled


# -- boosts -----------------------------------------------------------------------------------------------------------------


class TestBoosts:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(chain_boost=10, tag_boosts=(("smb", 100), ("calibration", 50), ("low", -7)))

    def test_later_steps_and_favoured_tags_go_first(self, world: World) -> None:
        world.dataset(1)
        world.task(outputs=["{stem}.o"], tags=["smb"])
        world.task("step-2", input_dataset="t.out", outputs=["{stem}.p"], priority=1)
        world.task("step-3", input_dataset="step-2.out", tags=["calibration", "low", "unknown"])
        assert [task.boost for task in Task.select().order_by(Task.id)] == [100, 10, 63]
        assert [task.job_priority for task in Task.select().order_by(Task.id)] == [100, 11, 63]

    def test_the_boost_is_in_the_priority_of_the_jobs(self, world: World) -> None:
        world.ready(1)
        world.task("favoured", n_jobs=1, tags=["smb"])
        world.form()
        assert world.claim()[0].task_id == 2
        operations.set_priority(world.core, "favoured", 3, "ada")
        assert Job.get(Job.task == 2).priority == 103

    def test_without_a_boost_a_priority_is_a_priority(self, world: World) -> None:
        world.task(n_jobs=1, priority=5)
        assert Task.get().job_priority == 5


# -- queues, sites, nodes, storages, pilots ---------------------------------------------------------------------------------


def queue_state(world: World, name: str, state: str, reason: str = "") -> None:
    computing.set_queue_state(world.core, name, QueueStateSpec(state, reason), "root")


@pytest.mark.parametrize("state", ["drain", "offline"])
def test_a_closed_queue_hands_out_nothing_and_what_waited_goes_elsewhere(world: World, state: str) -> None:
    world.ready(2)
    computing.create_queue(world.core, QueueSpec("OTHER"))
    world.pilot("p2", "OTHER")
    queue_state(world, "CPU", state, "power cut")
    assert world.claim(n_jobs=2) == []
    reply = job_executor.next_jobs(world.core, world.request("p1"))
    assert (reply.jobs, reply.reason) == ([], f"the queue is in {state}: power cut")
    assert len(world.claim("p2", queue="OTHER", n_jobs=2)) == 2
    view = computing.queue_view(computing.find_queue("CPU"))
    assert (view.state, view.state_reason, view.state_by) == (state, "power cut", "root")
    line = AdminEvent.get()
    assert (line.who, line.action, line.subject, line.detail) == (
        "root",
        "queue set",
        "CPU",
        f"{state}: power cut",
    )


def test_no_queue_of_a_site_that_is_offline_hands_out_jobs(world: World) -> None:
    world.ready(2)
    computing.create_queue(world.core, QueueSpec("ELSEWHERE", site="FAR"))
    world.pilot("p2", "ELSEWHERE")
    computing.set_site_state(world.core, "LOCAL", QueueStateSpec("offline", "no power"), "root")
    assert world.claim() == []
    assert len(world.claim("p2", queue="ELSEWHERE")) == 1
    computing.set_site_state(world.core, "LOCAL", QueueStateSpec("online"), "root")
    assert len(world.claim()) == 1


def test_a_queue_in_test_gets_one_job_at_a_time(world: World) -> None:
    world.ready(5)
    world.pilot("p2")
    queue_state(world, "CPU", "test")
    (job,) = world.claim(n_jobs=3)
    assert world.claim("p2") == []
    world.complete(job)
    assert len(world.claim("p2", n_jobs=2)) == 1


def test_a_pilot_that_fell_silent_does_not_end_the_test_of_its_queue(world: World) -> None:
    world.ready(1, max_losses=9)
    queue_state(world, "CPU", "test")
    world.claim()
    world.pass_seconds(100)
    world.pilot("p2")
    assert len(world.claim("p2")) == 1


def test_a_node_that_was_put_aside_gets_jobs_when_it_is_lifted(
    world: World, client: FlaskClient, bearer: Bearer
) -> None:
    world.ready(2)
    admin = Speaker(client, bearer)
    closed = admin.ok("POST", "/v1/queues/CPU/nodes", {"node": "node1", "state": "offline", "reason": "disk"})
    assert closed["state"] == "offline" and closed["reason"] == "by admin: disk"
    assert world.claim() == []
    assert [row["node"] for row in admin.ok("GET", "/v1/nodes?queue=CPU")["items"]] == ["node1"]
    admin.ok("POST", "/v1/queues/CPU/nodes", {"node": "node1", "state": "online"})
    assert len(world.claim()) == 1
    Node.update(set_aside=1.0, quick_failures=5, reason="x").execute()
    computing.set_node_state(world.core, "CPU", computing.NodeStateSpec("node1", "online"), "root")
    assert (Node.get().quick_failures, Node.get().set_aside) == (0, None)
    refusal(admin.post("/v1/queues/CPU/nodes", {"node": "nope", "state": "online"}), 404, "NOT_FOUND")
    refusal(admin.post("/v1/queues/CPU/nodes", {"node": "node1", "state": "test"}), 400, "BAD_REQUEST")


def test_a_draining_pilot_gets_no_job_and_is_told(world: World, client: FlaskClient, bearer: Bearer) -> None:
    world.ready(5)
    world.pilot("p2")
    (held,) = world.claim()
    speaker = Speaker(client, bearer)
    shown = speaker.ok("POST", "/v1/pilots/p1/drain")
    assert (shown["draining"], shown["nHeld"]) == (True, 1)
    pilot = speaker.as_(Role.PILOT)
    word = {"requestId": "request-x", "pilotId": "p1", "queue": "CPU", "cores": 1}
    reply = pilot.ok("POST", "/v1/getJob", word)
    assert (reply["jobs"], reply["drain"]) == ([], True)
    beat = {"attemptId": held.attempt_id, "attemptToken": held.attempt_token}
    reply = pilot.ok("POST", "/v1/heartbeat", {"pilotId": "p1", "attempts": [beat]})
    assert (reply["drain"], reply["answers"][0]["command"]) == (True, "continue")
    world.complete(held)
    assert pilot.ok("POST", "/v1/heartbeat", {"pilotId": "p2"})["drain"] is False
    assert len(world.claim("p2")) == 1


def test_all_pilots_of_a_queue_are_drained_at_once_and_later_ones_are_not(
    world: World, client: FlaskClient, bearer: Bearer
) -> None:
    world.ready(5)
    world.pilot("p2")
    world.pilot("g1", "GPU")
    assert Speaker(client, bearer).ok("POST", "/v1/queues/CPU/drainPilots") == {"nPilots": 2}
    world.pilot("p3")
    assert world.claim() == world.claim("p2") == []
    assert len(world.claim("p3")) == 1
    assert job_manager.pilot("g1").draining is False


def test_a_pilot_that_is_to_be_replaced_is_told_so_and_one_that_drains_already_is_not(
    world: World, client: FlaskClient, bearer: Bearer
) -> None:
    world.pilot("p1")
    world.pilot("p2")
    speaker = Speaker(client, bearer)
    speaker.ok("POST", "/v1/pilots/p2/drain")
    shown = speaker.ok("POST", "/v1/pilots/p1/update")
    assert (shown["draining"], shown["updating"]) == (True, True)
    assert speaker.ok("POST", "/v1/pilots/p2/update")["updating"] is False
    pilot = speaker.as_(Role.PILOT)
    word = {"requestId": "request-x", "pilotId": "p1", "queue": "CPU", "cores": 1}
    for reply in (pilot.ok("POST", "/v1/getJob", word), pilot.ok("POST", "/v1/heartbeat", {"pilotId": "p1"})):
        assert (reply["drain"], reply["update"]) == (True, True)
    reply = pilot.ok("POST", "/v1/heartbeat", {"pilotId": "p2"})
    assert (reply["drain"], reply["update"]) == (True, False)
    assert [entry["action"] for entry in speaker.ok("GET", "/v1/trail")["items"]][:2] == [
        "pilot drain",
        "pilot update",
    ]
    refusal = speaker.as_(Role.PILOT).post("/v1/pilots/p1/update")
    assert refusal.status_code == 403


def test_only_pilots_of_another_version_make_way_if_so_wished(
    world: World, client: FlaskClient, bearer: Bearer
) -> None:
    world.pilot("p1")
    computing.register_pilot(world.core, PilotRegistration("new", "node1", __version__, queue="CPU"))
    speaker = Speaker(client, bearer)
    assert speaker.ok("POST", "/v1/queues/CPU/updatePilots?outdated=yes") == {"nPilots": 1}
    assert [computing.is_updating(world.core, name) for name in ("p1", "new")] == [True, False]
    assert speaker.ok("POST", "/v1/queues/CPU/updatePilots") == {"nPilots": 1}


def test_what_an_operator_names_wrongly_is_refused(world: World) -> None:
    core = world.core
    with world.refused("NOT_FOUND", "no queue"):
        queue_state(world, "NOPE", "online")
    with world.refused("BAD_REQUEST", "online or test or drain or offline"):
        queue_state(world, "CPU", "closed")
    with world.refused("NOT_FOUND", "no site"):
        computing.set_site_state(core, "NOPE", QueueStateSpec("online"), "root")
    with world.refused("BAD_REQUEST", "online or offline"):
        computing.set_site_state(core, "LOCAL", QueueStateSpec("drain"), "root")
    with world.refused("NOT_FOUND", "no site"):
        computing.create_storage(core, StorageSpec("S", "file:///x", site="NOPE"))
    with world.refused("NOT_FOUND", "no pilot"):
        computing.drain_pilot(core, "nobody", "root")


def test_a_queue_and_a_storage_are_as_they_were_made(world: World) -> None:
    computing.create_storage(world.core, StorageSpec("NEAR", "file:///near", site="LOCAL"))
    made = computing.create_queue(
        world.core,
        QueueSpec(
            "BIG", storage="NEAR", tags=["cvmfs", "avx2"], country_group="RU", requeue_delay_seconds=90
        ),
    )
    assert (made.tags, made.country_group, made.requeue_delay_seconds) == (["avx2", "cvmfs"], "RU", 90)
    assert [(row.name, row.site) for row in computing.storages().items] == [("LOCAL", ""), ("NEAR", "LOCAL")]


def test_a_queue_counts_the_jobs_that_may_go_there(world: World) -> None:
    computing.create_queue(world.core, QueueSpec("OTHER"))
    world.ready(2)
    world.task("bound", n_jobs=3, queue="OTHER")
    world.form()
    world.claim()
    views = {view.name: (view.n_ready, view.n_held, view.n_pilots) for view in computing.queues().items}
    assert views == {"CPU": (1, 1, 1), "OTHER": (4, 0, 0), "GPU": (0, 0, 0)}


# -- wishes that cross ------------------------------------------------------------------------------------------------------


def test_a_task_cancelled_while_it_is_retried_is_cancelled(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.ready(120)
    task_manager.cancel(world.core, "t", OWNER)
    world.close_tasks()
    chunks = []
    retry_some = operations._retry_paced

    def cancelled_between_two_chunks(*arguments: Any) -> int:
        chunks.append(retry_some(*arguments))
        return chunks[-1]

    write = type(world.core.database).write

    def writing(self: Any, work: Any, **options: Any) -> Any:
        if getattr(work, "func", None) is cancelled_between_two_chunks and len(chunks) == 1:
            task_manager.cancel(world.core, "t", OWNER)
        return write(self, work, **options)

    monkeypatch.setattr(operations, "_retry_paced", cancelled_between_two_chunks)
    monkeypatch.setattr(type(world.core.database), "write", writing)
    with refusing("WRONG_STATE", "cancelled meanwhile"):
        operations.retry(world.core, "t", RetrySpec(cancelled=True), OWNER)
    monkeypatch.undo()
    world.close_tasks()
    assert chunks[0] and not world.claim(n_jobs=5)
    assert not Job.select().where(Job.ended_at.is_null()).exists()
    assert Task.get().cancelled_by is None


def test_a_second_cancel_is_not_lost_in_the_end_of_the_first(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.ready(60)
    task_manager.cancel(world.core, "t", OWNER)
    world.core.database.write(lambda: Task.update(cancelled_by=OWNER).execute())  # the closer goes on with it
    open_jobs, seen = cancelling._open_jobs, []

    def a_user_changes_her_mind_twice(task: Task) -> Any:
        yield from open_jobs(task)
        if not seen:
            seen.append(operations.retry(world.core, "t", RetrySpec(cancelled=True), OWNER))
            world.core.database.write(lambda: Task.update(cancelled=True, cancelled_by=OWNER).execute())

    monkeypatch.setattr(cancelling, "_open_jobs", a_user_changes_her_mind_twice)
    cancelling.go_on(world.core, 1.0)
    assert seen and Job.select().where(Job.ended_at.is_null()).exists()
    world.close_tasks()
    assert not Job.select().where(Job.ended_at.is_null()).exists()


def test_only_pilots_of_another_version_are_told_to_end_if_so_wished(
    world: World, client: FlaskClient, bearer: Bearer
) -> None:
    world.pilot("old")
    computing.register_pilot(world.core, PilotRegistration("new", "node1", __version__, queue="CPU"))
    assert Speaker(client, bearer).ok("POST", "/v1/queues/CPU/drainPilots?outdated=yes") == {"nPilots": 1}
    world.core.recent.forget()
    assert computing.is_draining(world.core, "old")
    assert not computing.is_draining(world.core, "new")
