"""The daemons: each goes on whatever a pass does, and together they bring a task to its end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from server import task_manager
from server.core import Core, Limits
from server.daemons import Daemon, Daemons
from server.job_executor import LEASE_CLOCK
from server.models import Counter
from tests.integration.server.world import World
from tests.waiting import wait_until


@pytest.fixture
def limits() -> Limits:
    return Limits(reaper_seconds=0.02, executor_seconds=0.01, closer_seconds=0.01)


@pytest.fixture
def daemons(core: Core) -> Iterator[Daemons]:
    daemons = Daemons(core)
    daemons.start()
    yield daemons
    daemons.stop()


def test_daemons_form_jobs_age_leases_and_close_tasks(world: World, daemons: Daemons) -> None:
    world.dataset(3)
    world.task(outputs=["{stem}.o"])
    world.pilot()
    done = 0
    while done < 3:
        for job in wait_until(lambda: world.claim(n_jobs=3), what="jobs to be formed"):
            world.complete(job)
            done += 1

    def closed() -> bool:
        return task_manager.view(task_manager.find("t")).output_state == "closed"

    wait_until(closed, what="the task to be closed")
    wait_until(lambda: Counter.get_by_id(LEASE_CLOCK).value > 0, what="the lease clock to go on")


def test_daemons_end_when_they_are_told_to(core: Core) -> None:
    daemons = Daemons(core)
    daemons.start()
    daemons.stop()
    assert not [
        thread for thread in threading.enumerate() if thread.name in {each.name for each in daemons.all}
    ]


def test_a_pass_that_fails_is_logged_and_the_next_one_is_made(
    core: Core, caplog: pytest.LogCaptureFixture
) -> None:
    stop, passes = threading.Event(), []

    def run_once(elapsed: float) -> None:
        passes.append(elapsed)
        if len(passes) == 1:
            raise RuntimeError("this pass went wrong")
        stop.set()

    daemon = Daemon("a daemon", 0.01, run_once)
    with caplog.at_level(logging.ERROR):
        daemon.loop(core, stop)
    assert len(passes) == 2
    assert daemon.failures == 0
    assert "this pass went wrong" in caplog.text
    assert all(0 < elapsed < 5 for elapsed in passes)
