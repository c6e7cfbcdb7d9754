"""A network that loses answers or repeats requests costs time, and neither a job nor a result."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from protocol.states import SUCCESS, JobState
from tests.acceptance.proxy import Proxy, between
from tests.acceptance.world import QUICK, World, errors, words
from tests.running_server import RunningServer

GET, UPDATE, BEAT, REGISTER = "/v1/getJob", "/v1/updateJob", "/v1/heartbeat", "/v1/registerPilot"


@pytest.fixture
def proxy(shared_server: RunningServer) -> Iterator[Proxy]:
    with between(shared_server.url) as proxy:
        yield proxy


def pilot_behind(world: World, proxy: Proxy, queue: str) -> None:
    world.start(
        "-m", "pilot", "--url", proxy.url, "-q", queue, "--token-file", str(world.server.pilot_token), "-a", "work",
        extra=QUICK, log="pilot-behind-the-proxy",
    )  # fmt: skip


def test_f07_a_job_whose_getjob_reply_got_lost_is_had_by_asking_again_and_is_the_same_attempt(
    world: World, proxy: Proxy
) -> None:
    queue = world.queue()
    task = world.submit(queue, ["true"], n_jobs=3)
    world.until(lambda: world.session.task(task.task_id).counts.get("READY") == 3, "three jobs")
    proxy.lose[GET] = 5
    pilot_behind(world, proxy, queue)
    assert world.ended(task).state == "COMPLETED"
    assert proxy.lost[GET] == 5
    assert [errors(job) for job in world.jobs(task)] == [[None]] * 3


def test_f08_a_result_whose_answer_got_lost_is_told_again_and_counts_once(world: World, proxy: Proxy) -> None:
    queue = world.queue()
    pilot_behind(world, proxy, queue)
    go = world.directory / "go"
    script = f"until [ -e {go} ]; do sleep 0.05; done; echo result > {{output}}"
    task = world.submit_shell(queue, script, outputs=["out"])
    world.reached(task, JobState.RUNNING)
    proxy.lose[UPDATE] = 7
    go.touch()
    assert world.ended(task).state == "COMPLETED"
    world.until(lambda: proxy.lost[UPDATE] == 7, "all the repetitions")
    world.until(lambda: not list(world.directory.glob("work/outbox/*/*.json")), "an empty outbox")
    job = world.job(task)
    assert (errors(job), words(job)) == ([None], [state.value for state in SUCCESS])
    (pilot,) = world.session.pilots(queue=queue)
    assert pilot.n_done == 1


def test_f08_a_failure_whose_answer_got_lost_is_charged_once_and_its_log_arrives(
    world: World, proxy: Proxy
) -> None:
    queue = world.queue()
    pilot_behind(world, proxy, queue)
    proxy.lose[UPDATE] = 4
    task = world.submit_shell(queue, "echo words; exit 1", max_attempts=2)
    assert world.ended(task).state == "FAILED"
    assert errors(world.job(task)) == ["PAYLOAD_FAILED"] * 2
    assert world.log(task).count("\nwords\n") == 2


def test_f08_every_request_sent_three_times_has_the_effect_of_one(world: World, proxy: Proxy) -> None:
    proxy.times = dict.fromkeys((REGISTER, GET, UPDATE, BEAT), 3)
    queue = world.queue()
    pilot_behind(world, proxy, queue)
    script = "echo {job_nr} > {output}; test {job_nr} != 2 -o {attempt_nr} = 2"
    task = world.submit_shell(queue, script, n_jobs=4, outputs=["out-{job_nr}"])
    assert world.ended(task).state == "COMPLETED"
    assert [errors(job) for job in world.jobs(task)] == [[None], ["PAYLOAD_FAILED", None], [None], [None]]
    (pilot,) = world.session.pilots(queue=queue)
    assert pilot.n_done == 5
