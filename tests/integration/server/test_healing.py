"""Self-healing: failed jobs get more memory, another node or queue, or no further try, and their history says so."""

from __future__ import annotations

import dataclasses

import pytest

from protocol.errors import Retry
from protocol.messages.requests import QueueChange, QueueSpec, RetrySpec
from protocol.states import JobState
from server import computing, job_executor, job_manager
from server.brokerage import broker
from server.healing import Healing, Rule
from server.jobs import operations
from server.jobs.retrying import AVOID_SECONDS
from server.models import Node
from tests.integration.server.world import World

S = JobState


def with_rules(world: World, **rules: Rule) -> None:
    world.core = dataclasses.replace(world.core, healing=Healing(rules))


def history(world: World, event: str = "HEALED") -> list[str]:
    lines = job_manager.details(world.job()).history or []
    return [line.detail for line in lines if line.state == event and line.by == "self-healing"]


def ready(world: World, memory_mb: int = 1000, pilot_mb: int = 16_000, **spec: int) -> None:
    def work() -> None:
        world.ready(memory_mb=memory_mb, **{"max_attempts": 10, **spec})
        world.pilot(memory_mb=pilot_mb)

    world.core.database.write(work)


# -- more memory ------------------------------------------------------------------------------------------------------------


def test_98_a_job_that_ran_out_of_memory_gets_more_and_goes_where_there_is_more(world: World) -> None:
    ready(world)
    [first] = world.claim(memory_mb=1000)
    assert first.memory_mb == 1000
    world.fail(first, "PAYLOAD_OUT_OF_MEMORY", metrics={"memory_peak_mb": 990.5})
    assert history(world) == ["PAYLOAD_OUT_OF_MEMORY: with 2048 MB of memory, before: 1000 MB"]
    assert world.claim(memory_mb=1000) == []
    request = world.request(memory_mb=4000, n_jobs=1)
    [second] = job_executor.claim(world.core, request)
    assert second.memory_mb == 2048
    [again] = job_executor.claim(world.core, request)
    assert again == second
    world.complete(second)
    assert world.state() is S.COMPLETED


def test_the_history_tells_what_was_done_after_what_made_it_needed(world: World) -> None:
    ready(world, max_attempts=2)
    for _ in range(2):
        world.fail(world.claim(memory_mb=16_000)[0], "PAYLOAD_OUT_OF_MEMORY")
    operations.retry(world.core, "t", RetrySpec(), "ada")
    told = [line.state for line in job_manager.details(world.job()).history or []]
    first, rest = told.index(S.FAILED.value), told[told.index("HEALED") :]
    assert told[first + 1] == "HEALED"
    assert rest.index("RETRIED") == rest.index(S.FAILED.value) + 1 and rest[-1] == S.READY.value


def test_98_the_other_jobs_of_the_task_keep_their_needs(world: World) -> None:
    world.core.database.write(lambda: (world.ready(2, memory_mb=1000), world.pilot(memory_mb=16_000)))
    world.fail(world.claim(memory_mb=1000)[0], "PAYLOAD_MEMORY_LIMIT")
    assert [job.memory_mb for job in world.claim(memory_mb=16_000, n_jobs=5)] == [1000, 2048]


def test_98_what_was_measured_counts_where_the_task_asks_for_no_memory(world: World) -> None:
    ready(world, memory_mb=0)
    world.fail(world.claim()[0], "PAYLOAD_OUT_OF_MEMORY", metrics={"memory_peak_mb": 3000})
    assert world.claim(memory_mb=16_000)[0].memory_mb == 6144


@pytest.mark.parametrize("pilot_mb", [0, 1000])
def test_98_where_there_is_no_more_memory_the_job_is_tried_as_it_is(world: World, pilot_mb: int) -> None:
    ready(world, pilot_mb=pilot_mb)
    world.fail(world.claim(memory_mb=1000)[0], "PAYLOAD_OUT_OF_MEMORY")
    assert history(world) == ["PAYLOAD_OUT_OF_MEMORY: with the 1000 MB that it had, for there is no more"]
    assert world.claim(memory_mb=1000)[0].memory_mb == 1000


def test_98_more_memory_is_bounded_by_the_rule_and_by_the_payloads_budget(world: World) -> None:
    with_rules(world, PAYLOAD_FAILED=Rule(Retry.MORE_MEMORY, times=3, limit_mb=3000))
    ready(world, max_attempts=3)
    for memory_mb in (1000, 2048, 3000):
        [job] = world.claim(memory_mb=16_000)
        assert job.memory_mb == memory_mb
        world.fail(job)
    assert world.state() is S.FAILED
    assert history(world)[0].endswith("(1 of 3, by the server's rule)")


# -- where and when ---------------------------------------------------------------------------------------------------------


def test_98_a_rule_sends_a_job_to_another_queue_for_a_while(world: World) -> None:
    with_rules(world, blame_storage=Rule(Retry.ELSEWHERE, 3, avoid_queue=True))
    world.core.database.write(lambda: computing.create_queue(world.core, QueueSpec("CPU2")))
    world.core.database.write(world.ready)
    world.pilot("p2", "CPU2")
    world.fail(world.claim()[0], "STAGE_IN_FAILED")
    assert world.claim(node="node2") == []
    [job] = world.claim("p2", queue="CPU2")
    world.fail(job, "STAGE_IN_FAILED")
    assert world.claim("p2", queue="CPU2") == []
    world.pass_seconds(AVOID_SECONDS)
    assert len(world.claim("p2", queue="CPU2")) == 1


def test_98_a_job_whose_container_a_queue_does_not_run_leaves_that_queue_and_ends_by_a_budget(
    world: World,
) -> None:
    images = {"payload.task_images": "yes"}
    for name in ("CPU", "CPU2"):
        if name != "CPU":
            computing.create_queue(world.core, QueueSpec(name))
        computing.change_queue(world.core, name, QueueChange(pilot_settings=images), "root")
    ready(world, memory_mb=0, image="docker://debian:12", max_losses=1000)  # type: ignore[arg-type]
    world.pilot("p2", "CPU2")
    world.fail(world.claim()[0], "QUEUE_WITHOUT_CONTAINERS")
    assert world.claim(node="node2") == [], "no other node of that queue either"
    world.fail(world.claim("p2", queue="CPU2")[0], "QUEUE_WITHOUT_CONTAINERS")
    assert history(world)[0].startswith(
        "QUEUE_WITHOUT_CONTAINERS: on another queue than CPU, for 600 s (1 of 2"
    )
    world.fail(world.claim()[0], "QUEUE_WITHOUT_CONTAINERS")
    assert world.state() is S.FAILED
    assert history(world, "GIVEN_UP") == [
        "QUEUE_WITHOUT_CONTAINERS: elsewhere has been tried 2 times, by the server's rule"
    ]
    assert not Node.select().exists(), "no node is at fault"


def test_98_what_a_pilot_cannot_do_another_one_on_the_same_node_does_soon(world: World) -> None:
    ready(world, memory_mb=0)
    world.pilot("p2")
    world.fail(world.claim()[0], "NOT_SUPPORTED")
    pause = world.core.limits.retry_seconds
    assert history(world) == [f"NOT_SUPPORTED: later, in {pause} s"]
    assert world.claim() == world.claim("p2") == [], "nobody gets it again and again within a second"
    world.pass_seconds(pause)
    world.form()
    [job] = world.claim("p2")
    world.complete(job)
    assert world.state() is S.COMPLETED
    assert (world.job().payload_failures, world.job().losses) == (0, 1)


def test_98_what_no_pilot_can_do_ends_by_its_budget(world: World) -> None:
    ready(world, memory_mb=0, max_losses=2)
    for _ in range(3):
        assert world.state() is S.READY
        world.fail(world.claim()[0], "NOT_SUPPORTED")
        world.pass_seconds(60)
        world.form()
    assert (world.state(), world.job().error) == (S.FAILED, "NOT_SUPPORTED")


def test_jobs_that_are_given_back_cost_nobody_anything(world: World) -> None:
    n = 3 * world.core.limits.black_hole_failures
    ready(world, memory_mb=0, max_losses=1, max_attempts=1)
    for _ in range(n):
        world.fail(world.claim()[0], "GIVEN_BACK")
    assert world.state() is S.READY, "at once, without a pause"
    assert (world.job().losses, world.job().payload_failures) == (0, 0)
    assert not Node.select().exists()
    assert len(world.claim()) == 1


def test_98_a_node_is_not_at_fault_for_what_one_of_its_pilots_cannot_do(world: World) -> None:
    n = 3 * world.core.limits.black_hole_failures
    world.core.database.write(lambda: world.ready(n + 1))
    for job in world.claim(n_jobs=n):
        world.fail(job, "NOT_SUPPORTED")
    assert not Node.select().exists()
    assert len(world.claim()) == 1


def test_98_a_failure_by_its_nodes_fault_is_told_with_the_node_that_is_avoided(world: World) -> None:
    ready(world)
    world.fail(world.claim(memory_mb=1000)[0], "NO_LOCAL_SPACE")
    assert history(world) == [f"NO_LOCAL_SPACE: on another node than node1, for {AVOID_SECONDS} s"]
    assert world.claim(memory_mb=1000) == []
    assert len(world.claim(memory_mb=1000, node="node2")) == 1


def test_98_a_rule_says_how_long_later_is(world: World) -> None:
    with_rules(world, PAYLOAD_FAILED=Rule(Retry.LATER, 3, pause_seconds=100))
    ready(world, memory_mb=0)
    world.fail(world.claim()[0])
    world.pass_seconds(90)
    world.form()
    assert world.claim() == []
    world.pass_seconds(15)
    world.form()
    assert len(world.claim()) == 1


# -- not at all -------------------------------------------------------------------------------------------------------------


def test_98_a_rule_ends_a_job_that_its_budgets_would_let_go_on(world: World) -> None:
    with_rules(world, PAYLOAD_FAILED=Rule(Retry.NEVER, 3))
    ready(world, memory_mb=0)
    world.fail(world.claim()[0])
    assert world.state() is S.FAILED
    assert history(world, "GIVEN_UP") == ["PAYLOAD_FAILED: never tried again, by the server's rule"]


def test_98_a_rule_is_applied_so_many_times_and_anew_after_a_user_retries(world: World) -> None:
    with_rules(world, PAYLOAD_ABORTED=Rule(Retry.NOW, times=2))
    ready(world, memory_mb=0)
    for _ in range(3):
        assert world.state() is S.READY
        world.fail(world.claim()[0], "PAYLOAD_ABORTED")
    assert world.state() is S.FAILED
    assert len(history(world)) == 2
    assert "now has been tried 2 times" in history(world, "GIVEN_UP")[0]
    operations.retry(world.core, "t", RetrySpec(), "ada")
    world.fail(world.claim()[0], "PAYLOAD_ABORTED")
    assert world.state() is S.READY


def test_98_a_rule_for_a_blame_counts_for_each_error_by_itself(world: World) -> None:
    with_rules(world, blame_payload=Rule(Retry.NOW, times=1))
    ready(world, memory_mb=0)
    for error in ("PAYLOAD_ABORTED", "PAYLOAD_SEGFAULT"):
        world.fail(world.claim()[0], error)
        assert world.state() is S.READY
    world.fail(world.claim()[0], "PAYLOAD_ABORTED")
    assert world.state() is S.FAILED
    assert history(world, "GIVEN_UP")[0].startswith("PAYLOAD_ABORTED: now has been tried 1 times")


def test_98_an_error_without_budget_is_bounded_by_its_rule(world: World) -> None:
    with_rules(world, KILLED_BY_SERVER=Rule(Retry.NOW, times=2))
    ready(world, memory_mb=0)
    for _ in range(3):
        world.fail(world.claim()[0], "KILLED_BY_SERVER")
    assert world.state() is S.FAILED


def test_98_jobs_with_more_memory_share_few_classes(world: World) -> None:
    n = 20
    world.core.database.write(lambda: (world.ready(n), world.pilot(memory_mb=64_000)))
    for nr, job in enumerate(world.claim(n_jobs=n)):
        world.fail(job, "PAYLOAD_OUT_OF_MEMORY", metrics={"memory_peak_mb": 2000.0 + nr})
    assert len({broker.needs_in(world.job(i).job_class.key).memory_mb for i in range(1, n + 1)}) == 1
