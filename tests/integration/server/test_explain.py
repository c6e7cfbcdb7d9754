"""Why a job or a task is where it is: each thing that can keep it is said in plain words, and what does not is not said."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from flask.testing import FlaskClient

from protocol.messages.pilots import PilotRegistration
from protocol.messages.requests import QueueChange, QueueSpec, QueueStateSpec, RetrySpec
from protocol.messages.views import Explanation, QueueFit
from protocol.resources import ResourceType
from protocol.states import JobState
from server import computing, job_executor, task_manager
from server.access.tokens import Role
from server.brokerage import explain
from server.core import Limits
from server.jobs import operations
from server.models import Account, Dataset, Job
from server.upkeep import archive
from tests.integration.server.http import Speaker, refusal
from tests.integration.server.world import Bearer, World


def why(world: World, job_id: int = 1) -> Explanation:
    return explain.job(world.core, job_id)


def why_task(world: World, name: str = "t") -> Explanation:
    return explain.task(world.core, task_manager.find(name))


def said(told: Explanation) -> str:
    return "\n".join(told.reasons)


def fit(told: Explanation, queue: str) -> QueueFit:
    (found,) = [each for each in told.queues if each.queue == queue]
    return found


# -- READY ------------------------------------------------------------------------------------------------------------------


def test_a_job_that_has_only_to_wait_its_turn_says_who_is_before_it(world: World) -> None:
    world.ready(4)
    world.task("higher", n_jobs=2, priority=5)
    world.task("bigger", n_jobs=3, priority=7, cores=1, memory_mb=10)
    world.task("elsewhere", n_jobs=9, priority=9, resource_type=ResourceType.GPU)
    world.form()
    told = why(world, 3)
    assert told.n_before == 2 + 2 + 3
    assert "7 jobs are before it" in said(told)
    assert "queues that can take it: CPU (1 of 1 pilots)" in said(told)
    assert (told.job_nr, told.task, told.state, told.retry_seconds) == (3, "t", "READY", None)
    first = Job.get(Job.task == 3, Job.job_nr == 1)
    assert "no job is before it" in said(why(world, first.id))


def test_before_a_job_are_counted_no_more_than_a_bound(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "MOST_BEFORE", 3)
    world.ready(9)
    told = why(world, 8)
    assert told.n_before == 3
    assert "3 jobs or more are before it" in said(told)


WANTED: list[tuple[dict[str, Any], str, str]] = [
    (
        {"cores": 64},
        "no pilot that is alive has 64 cores for a job (at most 4)",
        "it needs 64 cores and 4 are offered",
    ),
    (
        {"memory_mb": 9000},
        "no pilot that is alive has 9000 MB of memory for a job (at most 100)",
        "it needs 9000 MB of memory",
    ),
    (
        {"disk_mb": 7000},
        "no pilot that is alive has 7000 MB of disk for a job (at most 50)",
        "it needs 7000 MB of disk",
    ),
    (
        {"requires": ["cvmfs", "avx2"]},
        "it requires avx2, cvmfs",
        "it requires avx2, cvmfs, which the node does not have",
    ),
    ({"queue": "OTHER"}, "OTHER: no pilot is alive there", "it is bound to the queue OTHER"),
    ({"site": "FAR"}, "OTHER: no pilot is alive there", "it is bound to the site FAR"),
    ({"resource_type": ResourceType.GPU}, "GPU: no pilot is alive there", "it needs a gpu queue"),
]


@pytest.mark.parametrize(("spec", "sentence", "missing"), WANTED, ids=lambda value: str(value)[:30])
def test_what_is_missing_is_said_of_each_queue_and_in_a_line(
    world: World, spec: dict[str, Any], sentence: str, missing: str
) -> None:
    computing.create_queue(world.core, QueueSpec("OTHER", site="FAR"))
    world.pilot(cores=4, memory_mb=100, disk_mb=50)
    world.task(n_jobs=1, **spec)
    world.form()
    told = why(world)
    assert "nobody can take it now" in said(told)
    assert sentence in said(told)
    assert any(missing in reason for reason in fit(told, "CPU").missing)
    assert (fit(told, "CPU").n_pilots, fit(told, "CPU").n_fitting) == (1, 0)
    hint = explain.hint(task_manager.find("t"))
    assert hint is not None and sentence in hint and hint.endswith("; see 'pilotage task why t'")


def test_a_slot_has_its_share_of_what_the_pilot_has(world: World) -> None:
    world.pilot(cores=8, slots=4)
    world.task(n_jobs=1, cores=4)
    world.form()
    assert "no pilot that is alive has 4 cores for a job (at most 2)" in said(why(world))


def test_a_slot_has_a_core_though_there_are_more_slots(world: World) -> None:
    world.pilot(cores=2, slots=8)
    world.task(n_jobs=1, cores=64)
    world.form()
    assert "no pilot that is alive has 64 cores for a job (at most 1)" in said(why(world))


def test_a_queue_without_containers_is_said_with_the_option_that_lets_them_in(world: World) -> None:
    world.ready(1, image="docker://debian:12")
    told = why(world)
    without = "it names a container image, and CPU runs no containers for tasks (payload.task_images)"
    assert fit(told, "CPU").missing == [without]
    assert f"nobody can take it now: CPU: {without}" in said(told)
    assert "'pilotage queue set CPU --pilot-setting payload.task_images=yes'" in said(told)
    assert without in said(why_task(world))
    hint = explain.hint(task_manager.find("t"))
    assert hint is not None and without in hint
    computing.change_queue(
        world.core, "CPU", QueueChange(pilot_settings={"payload.task_images": "yes"}), "root"
    )
    assert "queues that can take it: CPU (1 of 1 pilots)" in said(why(world))
    assert "pilots take it that run containers (payload.executor)" in said(why(world))


def test_a_new_task_that_no_queue_takes_is_told_so_at_once(
    world: World, client: FlaskClient, bearer: Bearer
) -> None:
    user = Speaker(client, bearer, Role.USER)
    body = {"command": ["true"], "nJobs": 1}
    assert "waiting" not in user.ok("POST", "/v1/tasks", {"name": "fits", **body})
    told = user.ok("POST", "/v1/tasks", {"name": "boxed", "image": "/cvmfs/x.sif", **body})["waiting"]
    assert told.startswith("no queue takes its jobs: CPU: it names a container image")
    assert told.endswith("; see 'pilotage task why boxed'")


def test_tags_of_queue_and_pilot_count_together(world: World) -> None:
    computing.create_queue(world.core, QueueSpec("TAGGED", tags=["cvmfs"]))
    world.pilot("p2", "TAGGED", tags=["avx2"])
    world.task(n_jobs=1, requires=["cvmfs", "avx2"])
    world.form()
    assert "queues that can take it: TAGGED (1 of 1 pilots)" in said(why(world))


def test_without_a_pilot_that_is_what_is_missing(world: World) -> None:
    world.task(n_jobs=1)
    world.form()
    told = why(world)
    assert "CPU: no pilot is alive there" in said(told)
    assert "to start a pilot on a node: 'pilotage pilot run -q CPU'" in told.reasons
    world.pilot()
    world.pass_seconds(1000)
    assert fit(why(world), "CPU").missing == ["no pilot is alive there"]


def test_a_closed_queue_site_or_node_is_said_with_its_reason(world: World) -> None:
    world.ready(1)
    core = world.core
    computing.set_queue_state(core, "CPU", QueueStateSpec("drain", "new disks"), "root")
    assert fit(why(world), "CPU").missing == ["the queue is in drain: new disks"]
    assert "the queue is in drain: new disks" in said(why(world))
    computing.set_queue_state(core, "CPU", QueueStateSpec("online"), "root")
    computing.set_site_state(core, "LOCAL", QueueStateSpec("offline", "no power"), "root")
    assert fit(why(world), "CPU").missing == ["the site LOCAL is offline: no power"]
    assert fit(why(world), "CPU").state == "offline"
    computing.set_site_state(core, "LOCAL", QueueStateSpec("online"), "root")
    computing.set_node_state(core, "CPU", computing.NodeStateSpec("node1", "offline", "bad disk"), "root")
    assert fit(why(world), "CPU").missing == ["the node node1 is put aside: by root: bad disk"]
    computing.set_node_state(core, "CPU", computing.NodeStateSpec("node1", "online"), "root")
    computing.drain_pilot(core, "p1", "root")
    assert fit(why(world), "CPU").missing == ["the pilot is draining"]


def test_a_queue_in_test_takes_it_one_at_a_time(world: World) -> None:
    world.ready(1)
    computing.set_queue_state(world.core, "CPU", QueueStateSpec("test"), "root")
    assert "a queue in test gets one job at a time" in said(why(world))


def test_what_only_a_request_tells_is_said_as_such(world: World) -> None:
    world.ready(1, prod_source_label="ptest", walltime_seconds=600)
    assert "another label than ptest" in said(why(world))
    assert "600 s of its time left" in said(why(world))
    world.pass_seconds(1000)
    assert "'pilotage pilot run -q CPU -j ptest'" in said(why(world))


def test_a_label_that_nobody_chose_is_not_spoken_of(world: World) -> None:
    world.ready(1)
    assert "label" not in said(why(world))


def test_a_job_that_pauses_says_for_how_long_and_why(world: World) -> None:
    world.ready(1)
    world.fail(world.claim()[0], "STAGE_IN_FAILED")
    told = why(world)
    assert told.retry_seconds == world.core.limits.retry_seconds
    assert (
        f"handed out again in {told.retry_seconds} s, since its last attempt failed with STAGE_IN_FAILED"
        in said(told)
    )
    assert told.n_before is None
    world.pass_seconds(4)
    assert why(world).retry_seconds == world.core.limits.retry_seconds - 4


def test_a_job_that_avoids_a_node_says_which(world: World) -> None:
    world.ready(1)
    Job.update(avoid_node="node1", avoid_until=300, error="SETUP_FAILED").execute()
    told = why(world)
    assert "for 300 s it avoids the node node1, by whose fault it failed with SETUP_FAILED" in said(told)
    assert "nobody can take it now: CPU: the job avoids the node node1 for a while" in said(told)
    assert (fit(told, "CPU").n_pilots, fit(told, "CPU").n_fitting) == (1, 0)
    computing.register_pilot(world.core, PilotRegistration("p2", "node2", "1", queue="CPU"))
    assert "queues that can take it: CPU (1 of 2 pilots)" in said(why(world))
    world.pass_seconds(301)
    computing.register_pilot(world.core, PilotRegistration("p1", "node1", "1", queue="CPU"))
    assert "avoids" not in said(why(world))
    assert fit(why(world), "CPU").missing == []


def test_a_job_that_avoids_a_queue_counts_none_of_its_pilots(world: World) -> None:
    world.ready(1)
    Job.update(avoid_queue="CPU", avoid_until=300, error="SETUP_FAILED").execute()
    told = why(world)
    assert "for 300 s it avoids the queue CPU, by the server's rule" in said(told)
    assert "nobody can take it now: CPU: the job avoids this queue for a while" in said(told)
    assert fit(told, "CPU").missing == ["the job avoids this queue for a while"]


def test_a_job_whose_pilot_fell_silent_says_so(world: World) -> None:
    world.ready(1)
    world.say(world.claim()[0], JobState.RUNNING)
    world.pass_seconds(1000)
    assert "pilot p1 on node node1 fell silent with it" in said(why(world))


def test_a_job_of_a_paused_task_says_so_first(world: World) -> None:
    world.ready(1)
    operations.pause(world.core, "t", "ada")
    told = why(world)
    assert told.reasons[0] == "its task is paused; 'pilotage task resume t' lets it go on"
    assert told.n_before is None


# -- held and ended ---------------------------------------------------------------------------------------------------------


def test_a_job_with_a_pilot_says_with_which_and_what_happens_if_that_is_silent(world: World) -> None:
    world.ready(1)
    (job,) = world.claim()
    assert "does not acknowledge it within 60 s" in said(why(world))
    world.say(job, JobState.RUNNING)
    told = why(world)
    assert told.reasons[0] == "the payload runs: pilot p1 holds it on node node1 of queue CPU, attempt 1"
    assert "was heard" in said(told)
    assert "silent for 60 s more" in said(told)


def test_a_job_that_ended_says_how_and_what_to_do(world: World) -> None:
    world.ready(3, max_attempts=1)
    first, second, third = world.claim(n_jobs=3)
    world.complete(first)
    world.fail(second, "WALLTIME_EXCEEDED")
    job_executor.cancel(world.core, [third.job_id], "ada", "no more")
    assert said(why(world, first.job_id)) == "it has completed: its outputs are registered"
    told = said(why(world, second.job_id))
    assert "it has ended with WALLTIME_EXCEEDED" in told and "a test says so" in told
    assert "by the fault of the payload; what to do: " in told and "pilotage job retry" in told
    assert "ada: no more" in said(why(world, third.job_id))


def test_a_job_in_the_archive_is_explained_too(world: World) -> None:
    world.ready(1, max_attempts=1)
    world.fail(world.claim()[0])
    world.close_tasks()
    at_once = dataclasses.replace(
        world.core, limits=dataclasses.replace(world.core.limits, archive_after_seconds=0)
    )
    while archive.run_once(at_once):
        pass
    assert "it has ended with PAYLOAD_FAILED" in said(why(world))


# -- tasks ------------------------------------------------------------------------------------------------------------------


def test_a_task_that_waits_for_others_says_for_which(world: World) -> None:
    world.ready(1, max_attempts=1)
    world.task("after", n_jobs=1, after=["t"])
    assert "it waits for task t to complete, which is RUNNING" in said(why_task(world, "after"))
    world.fail(world.claim()[0])
    world.close_tasks()
    told = said(why_task(world, "after"))
    assert "it waits for task t, which has ended as FAILED: retry that one" in told
    hint = explain.hint(task_manager.find("after"))
    assert hint is not None and "ended as FAILED" in hint
    operations.retry(world.core, "t", RetrySpec(), "ada")
    world.complete(world.claim()[0])
    world.close_tasks()
    assert "waits for" not in said(why_task(world, "after"))


def test_a_task_whose_input_is_not_there_says_what_is_missing(world: World) -> None:
    world.dataset(2)
    world.task(outputs=["{stem}.o"])
    world.task("reads", input_dataset="t.out")
    assert "its input t.out is the output of task t, which has not ended" in said(why_task(world, "reads"))
    world.dataset(3, "open", close=False, first=10)
    world.task("grows", input_dataset="open", files_per_job=2)
    world.form()
    assert "its input open is open: 1 of the 2 files of its next job are there" in said(
        why_task(world, "grows")
    )
    Dataset.update(state="closed").where(Dataset.name == "open").execute()
    assert "is open" not in said(why_task(world, "grows"))


def test_a_task_that_is_paused_or_has_ended_says_so(world: World) -> None:
    world.ready(1, max_attempts=1)
    operations.pause(world.core, "t", "ada")
    assert said(why_task(world)).startswith("it is paused")
    assert explain.hint(task_manager.find("t")) == "it is paused; see 'pilotage task why t'"
    operations.resume(world.core, "t", "ada")
    world.fail(world.claim()[0])
    world.close_tasks()
    told = why_task(world)
    assert told.reasons == [
        "it has ended as FAILED",
        "1 of its jobs has failed: PAYLOAD_FAILED 1; what they say: 'pilotage task errors t'; "
        "which they are: 'pilotage job list --task t --state FAILED'",
        "what ended badly can be tried again: 'pilotage task retry t'",
    ]
    assert explain.hint(task_manager.find("t")) is None


def test_a_task_says_what_keeps_its_first_job(world: World) -> None:
    world.ready(3)
    world.task("big", n_jobs=2, cores=64)
    world.form()
    told = why_task(world, "big")
    assert told.reasons[0] == "2 of its jobs are READY"
    assert told.reasons[1].startswith(
        "the first of them is job 4: nobody can take it now: no pilot that is alive has 64 cores for a job"
    )
    assert told.queues and fit(told, "CPU").n_fitting == 0
    world.claim()
    assert "1 of its jobs is with pilots" in said(why_task(world))
    assert explain.hint(task_manager.find("t")) is None


class TestLimitedForming:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(ready_stock=2)

    def test_a_full_stock_is_said(self, world: World) -> None:
        world.task(n_jobs=5)
        world.form()
        assert "2 jobs of its kind are READY already" in said(why_task(world))


def test_a_used_up_quota_is_said(world: World) -> None:
    Account.create(name="ada", max_open_jobs=2)
    world.task(n_jobs=5)
    world.form()
    assert "quota of ada: 2 of 2 open jobs" in said(why_task(world))


def test_a_task_whose_jobs_have_all_ended_waits_for_nobody(
    world: World, client: FlaskClient, bearer: Bearer
) -> None:
    """Its pilot may be gone before the closer has come by."""
    world.ready(1)
    world.complete(*world.claim())
    speaker = Speaker(client, bearer)
    shown = speaker.ok("GET", "/v1/tasks/t")
    assert (shown["state"], shown.get("waiting")) == ("COMPLETED", None)


# -- the door ---------------------------------------------------------------------------------------------------------------


def test_it_is_asked_by_http(world: World, client: FlaskClient, bearer: Bearer) -> None:
    world.ready(1, cores=64)
    speaker = Speaker(client, bearer)
    told = speaker.ok("GET", "/v1/jobs/1/why")
    assert (told["jobId"], told["state"], told["nBefore"]) == (1, "READY", 0)
    assert {queue["queue"] for queue in told["queues"]} == {"CPU", "GPU"}
    assert speaker.ok("GET", "/v1/tasks/t/why")["reasons"]
    assert "64 cores" in speaker.ok("GET", "/v1/tasks/t")["waiting"]
    refusal(speaker.get("/v1/jobs/99/why"), 404, "NOT_FOUND")
    refusal(speaker.get("/v1/tasks/nope/why"), 404, "NOT_FOUND")
    with world.unchanged():
        speaker.ok("GET", "/v1/jobs/1/why")
