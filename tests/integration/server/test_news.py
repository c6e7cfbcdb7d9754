"""News of jobs that wait, as it is read from the database and sent to the waiting process."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Iterator

import pytest

from protocol.messages.requests import QueueStateSpec
from server import computing
from server.core import Core, Waiting
from server.models import Job
from server.waiting import news, wake
from server.waiting.wake import News
from tests.integration.server.world import World


class Told:
    """What a waiting process would be told."""

    def __init__(self, core: Core) -> None:
        self._listener = wake.listen(core.state_directory / wake.SOCKET)

    def take(self) -> list[News]:
        taken = []
        while True:
            try:
                sender, _ = self._listener.accept()
            except BlockingIOError:
                return taken
            with sender:
                sender.setblocking(True)
                taken.append(wake.read_news(sender.recv(wake.LARGEST, socket.MSG_WAITALL)))

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def waited_for(core: Core) -> Core:
    """The core of a dispatcher with a waiting process."""
    return dataclasses.replace(core, waiting=Waiting(1, b"key"))


@pytest.fixture
def told(core: Core) -> Iterator[Told]:
    made = Told(core)
    yield made
    made.close()


def ids() -> list[int]:
    return [job.id for job in Job.select(Job.id)]


def key(n: int = 0) -> str:
    """The key of the class of the jobs that there are."""
    return str(list(Job.select().order_by(Job.id))[n].job_class.key)


def test_jobs_are_told_of_by_class_and_only_those_that_can_be_claimed(
    world: World, waited_for: Core, told: Told
) -> None:
    world.ready(3)
    job = Job.select().first()
    world.core.database.write(lambda: Job.update(ready_nr=None).where(Job.id == job.id).execute())
    news.of_jobs(waited_for, ids())
    assert told.take() == [News({key(): 2})]
    news.of_jobs(waited_for, [])
    news.of_jobs(waited_for, [job.id])
    assert told.take() == []


def test_a_queue_that_hands_out_again_is_told_what_waits(world: World, waited_for: Core, told: Told) -> None:
    world.ready(2)
    for state, expected in (("offline", []), ("drain", []), ("online", [News({key(): 2}, "CPU")])):
        computing.set_queue_state(waited_for, "CPU", QueueStateSpec(state), "ada")
        assert told.take() == expected


def test_where_nobody_can_wait_nothing_is_read_or_told(world: World, core: Core, told: Told) -> None:
    world.ready(1)
    news.of_jobs(core, ids())
    news.of_queue(core, "CPU")
    wake.poke(core, {key(): 1})
    assert told.take() == []


def test_a_poke_never_fails_whoever_is_away(world: World, waited_for: Core, told: Told) -> None:
    told.close()
    wake.poke(waited_for, {"class": 1})
    (waited_for.state_directory / wake.SOCKET).unlink()
    wake.poke(waited_for, {"class": 1})
    gone = dataclasses.replace(waited_for, state_directory=waited_for.state_directory / "gone")
    wake.poke(gone, {"class": 1})
