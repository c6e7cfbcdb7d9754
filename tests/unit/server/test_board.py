"""Whom news of jobs wakes: as many as there are jobs, those whose offer fits, the longest-waiting first."""

from __future__ import annotations

import json

import pytest

from protocol.messages import to_wire
from protocol.resources import Needs, Offer, ResourceType
from server.waiting.board import RECENT_SECONDS, Board, Place
from server.waiting.tickets import Ticket
from server.waiting.wake import News


def key(**needs: object) -> str:
    """As the brokerage writes the key of a class."""
    return json.dumps(to_wire(Needs(**needs)), sort_keys=True)  # type: ignore[arg-type]


class Hall:
    """A board, its clock, and who was told what."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.board = Board(lambda: self.now)
        self.told: list[tuple[str, bool]] = []

    def park(self, pilot: str, asked_at: float | None = None, **offer: object) -> Place | None:
        values = {"resource_type": ResourceType.CPU, "queue": "CPU", **offer}
        ticket = Ticket(pilot, Offer(**values), self.now if asked_at is None else asked_at)  # type: ignore[arg-type]
        return self.board.park(ticket, lambda jobs: self.told.append((pilot, jobs)))

    def tell(self, jobs: dict[str, int], queue: str = "") -> dict[str, int]:
        return self.board.tell(News(jobs, queue))

    @property
    def woken(self) -> list[str]:
        return [pilot for pilot, jobs in self.told if jobs]


@pytest.fixture
def hall() -> Hall:
    return Hall()


def test_as_many_are_woken_as_there_are_jobs_and_the_longest_waiting_first(hall: Hall) -> None:
    """Also across kinds of offers: every second pilot has more memory."""
    for number in range(200):
        hall.park(f"p{number}", memory_mb=1000 * (number % 2))
    assert hall.tell({key(): 10}) == {}
    assert hall.woken == [f"p{number}" for number in range(10)]
    assert len(hall.board) == 190
    hall.tell({key(memory_mb=500): 3})
    assert hall.woken[10:] == ["p11", "p13", "p15"]


def test_only_those_are_woken_whose_offer_fits(hall: Hall) -> None:
    hall.park("gpu", resource_type=ResourceType.GPU, queue="GPU", gpus=1)
    hall.park("small", cores=1)
    hall.park("large", cores=8)
    hall.park("tagged", cores=8, tags=("cvmfs",))
    assert hall.tell({key(cores=8, tags=("cvmfs",)): 5}) == {key(cores=8, tags=("cvmfs",)): 4}
    assert hall.woken == ["tagged"]
    hall.tell({key(cores=4): 5})
    assert hall.woken == ["tagged", "large"]


def test_one_pilot_is_woken_once_whatever_the_number_of_classes(hall: Hall) -> None:
    hall.park("p")
    hall.park("q")
    hall.tell({key(label="user"): 1, key(label="managed"): 1})
    assert sorted(hall.woken) == ["p", "q"]


def test_a_queue_that_came_online_wakes_its_own_pilots_alone(hall: Hall) -> None:
    hall.park("here", queue="A")
    hall.park("there", queue="B")
    assert hall.tell({key(): 2}, "B") == {key(): 1}
    assert hall.woken == ["there"]


def test_who_has_left_is_not_woken(hall: Hall) -> None:
    first = hall.park("first")
    hall.park("second")
    assert first is not None
    hall.board.leave(first)
    hall.board.leave(first)
    hall.tell({key(): 1})
    assert hall.woken == ["second"]


def test_a_pilot_waits_in_one_place(hall: Hall) -> None:
    """The connection that its node has forgotten would take a wake from somebody."""
    hall.park("p")
    hall.park("p")
    assert hall.told == [("p", False)]
    assert len(hall.board) == 1
    assert hall.tell({key(): 2}) == {key(): 1}


def test_news_that_crossed_a_pilots_question_reaches_it(hall: Hall) -> None:
    """It asked, then the job became READY, then it came to wait: as many go at once as there are such jobs."""
    asked = hall.now
    hall.now += 0.1
    hall.tell({key(): 2})
    hall.now += 0.1
    assert [hall.park(f"p{number}", asked) for number in range(2)] == [None, None]
    assert hall.park("p2", asked) is not None


def test_news_from_before_the_question_wakes_nobody(hall: Hall) -> None:
    """That job was there to be given when the pilot asked."""
    hall.tell({key(): 5})
    hall.now += 0.1
    assert hall.park("p") is not None


def test_old_news_and_news_for_others_wakes_nobody(hall: Hall) -> None:
    asked = hall.now
    hall.tell({key(cores=16): 5})
    hall.tell({key(): 5}, "OTHER")
    assert hall.park("p", asked) is not None
    hall.tell({key(cores=2): 5})
    hall.now += 2 * RECENT_SECONDS
    hall.tell({key(cores=4): 1})
    assert hall.park("q", asked, cores=2) is not None


@pytest.mark.parametrize("bad", ["", "x", "5", "[", "null"])
def test_a_class_that_is_none_wakes_nobody(hall: Hall, bad: str) -> None:
    hall.park("p")
    with pytest.raises((ValueError, TypeError)):
        hall.tell({key(): 1, bad: 1})
    assert hall.told == []
    assert len(hall.board) == 1


def test_all_are_sent_away_at_the_end(hall: Hall) -> None:
    for number in range(3):
        hall.park(f"p{number}", cores=number + 1)
    hall.board.close()
    assert hall.told == [("p0", False), ("p1", False), ("p2", False)]
    assert len(hall.board) == 0
