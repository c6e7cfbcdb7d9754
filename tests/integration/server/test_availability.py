"""Queues that fail too often are put to the test, and come back when they work; what an operator has closed stays closed."""

from __future__ import annotations

import pytest

from protocol.messages.pilots import JobSpec
from protocol.messages.requests import QueueSpec, QueueStateSpec
from protocol.states import QueueState
from server import computing, job_executor
from server.brokerage import availability
from server.core import Limits
from server.models import AdminEvent, Queue
from tests.integration.server.world import World


@pytest.fixture
def limits() -> Limits:
    return Limits(judged_attempts=4, judged_percent=50, test_successes=3, black_hole_failures=1000)


def one(world: World) -> JobSpec:
    (job,) = world.claim()
    return job


def attempts(world: World, outcomes: str) -> None:
    """One attempt in CPU for each letter: c completes, n and s fail by node and storage, p by the payload, x is cancelled.

    h fails by the node as well, but only the payload's text says so.
    """
    for outcome in outcomes:
        job = one(world)
        if outcome == "c":
            world.complete(job)
        elif outcome == "x":
            job_executor.cancel(world.core, [job.job_id], "ada", "no more")
        else:
            world.fail(
                job,
                {
                    "n": "SETUP_FAILED",
                    "s": "STAGE_OUT_FAILED",
                    "p": "PAYLOAD_FAILED",
                    "h": "PAYLOAD_IO_ERROR",
                }[outcome],
            )


def plenty(world: World) -> None:
    world.ready(60, max_attempts=1, max_losses=0)


def queue_state(world: World, state: str, reason: str = "by hand") -> None:
    computing.set_queue_state(world.core, "CPU", QueueStateSpec(state, reason), "root")


def cpu() -> Queue:
    return Queue.get_by_id("CPU")


def test_a_queue_whose_attempts_fail_by_its_fault_is_put_to_the_test(world: World) -> None:
    plenty(world)
    attempts(world, "cnsn")
    assert availability.run_once(world.core) == 1
    queue = cpu()
    assert (queue.state, queue.state_by) == ("test", "server")
    assert queue.state_reason == (
        "3 of its last 4 attempts failed by the fault of node, site or storage, most with SETUP_FAILED"
    )
    line = AdminEvent.get()
    assert (line.who, line.action, line.subject) == ("server", "queue set", "CPU")
    assert line.detail == f"test: {queue.state_reason}"
    assert availability.run_once(world.core) == 0


@pytest.mark.parametrize(
    ("outcomes", "why"),
    [
        ("nnn", "too few attempts"),
        ("nncc", "not more than half of them"),
        ("nnnncccc", "what is long ago does not count"),
        ("pppp", "the payload's fault is not the queue's"),
        ("hhhh", "nobody closes a queue by what his payload prints"),
        ("nnxxp", "what a user ended says nothing"),
    ],
)
def test_a_queue_is_left_as_it_is(world: World, outcomes: str, why: str) -> None:
    plenty(world)
    attempts(world, outcomes)
    assert availability.run_once(world.core) == 0, why
    assert cpu().state == "online"


def test_a_queue_in_test_comes_back_when_jobs_complete_one_after_the_other(world: World) -> None:
    plenty(world)
    attempts(world, "nnnn")
    availability.run_once(world.core)
    for outcomes in ("c", "cn", "cc", "p"):  # the payload's failure says nothing either way
        attempts(world, outcomes)
        assert availability.run_once(world.core) == 0, outcomes
        assert cpu().state == "test"
    attempts(world, "c")
    assert availability.run_once(world.core) == 1
    assert (cpu().state, cpu().state_reason) == ("online", "3 jobs in a row completed in the test")
    assert availability.run_once(world.core) == 0, "what failed before the test is forgotten"


def test_while_the_server_tests_a_queue_it_gets_one_job_at_a_time(world: World) -> None:
    plenty(world)
    attempts(world, "nnnn")
    availability.run_once(world.core)
    world.core.recent.forget()
    job = world.claim(n_jobs=5)
    assert len(job) == 1
    assert world.claim() == []


@pytest.mark.parametrize("state", ["test", "drain", "offline"])
def test_a_queue_that_was_closed_by_hand_is_never_touched(world: World, state: str) -> None:
    plenty(world)
    queue_state(world, "online")
    attempts(world, "nnnn")
    queue_state(world, state)
    assert availability.run_once(world.core) == 0
    if state == "test":
        attempts(world, "ccccc")
        assert availability.run_once(world.core) == 0
    assert (cpu().state, cpu().state_by, cpu().state_reason) == (state, "root", "by hand")


def test_a_queue_that_was_opened_by_hand_is_judged_by_what_came_after(world: World) -> None:
    plenty(world)
    attempts(world, "nnnn")
    availability.run_once(world.core)
    queue_state(world, "online")
    attempts(world, "nnn")
    assert availability.run_once(world.core) == 0
    attempts(world, "n")
    assert availability.run_once(world.core) == 1
    assert cpu().state_by == "server"


def test_a_queue_that_somebody_sets_meanwhile_is_left_to_them(world: World) -> None:
    plenty(world)
    attempts(world, "nnnn")
    seen = cpu()
    queue_state(world, "offline")
    assert not world.core.database.write(
        lambda: availability.set_state("CPU", QueueState.TEST, "", "server", seen=seen)
    )
    assert cpu().state == "offline"


def test_each_queue_is_judged_by_itself(world: World) -> None:
    plenty(world)
    computing.create_queue(world.core, QueueSpec("OTHER"))
    world.pilot("p2", "OTHER")
    for _ in range(4):
        (job,) = world.claim("p2", queue="OTHER")
        world.fail(job, "SETUP_FAILED")
    attempts(world, "cccc")
    assert availability.run_once(world.core) == 1
    assert {queue.name: queue.state for queue in Queue.select()} == {
        "CPU": "online",
        "GPU": "online",
        "OTHER": "test",
    }


def test_what_waited_for_a_queue_that_is_tested_goes_elsewhere_but_for_what_is_bound_to_it(
    world: World,
) -> None:
    world.ready(6, max_attempts=1, max_losses=0, queue="CPU")
    computing.create_queue(world.core, QueueSpec("OTHER"))
    world.pilot("p2", "OTHER")
    attempts(world, "nnnn")
    availability.run_once(world.core)
    world.task("free", n_jobs=2)
    world.form()
    world.core.recent.forget()
    assert [job.task_id for job in world.claim("p2", queue="OTHER", n_jobs=5)] == [2, 2]
    assert len(world.claim(n_jobs=5)) == 1
