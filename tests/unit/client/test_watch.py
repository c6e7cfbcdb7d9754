"""Following tasks: until each has ended, whatever the server does meanwhile."""

from __future__ import annotations

from typing import Dict, List, Sequence

import pytest

from client import watch
from protocol.errors import PilotageError
from protocol.messages.views import TaskView
from protocol.states import JobState


def view(name: str, counts: Dict[str, int], ended: bool = False, state: str = "RUNNING") -> TaskView:
    return TaskView(
        len(name), name, "me", state, 4, counts, 0, "2026-01-01T00:00:00.000Z", "cpu", 0,
        ended="2026-01-01T00:00:09.000Z" if ended else None,
    )  # fmt: skip


class Server:
    """Gives the views of each task one after the other; an error is raised."""

    def __init__(self, **answers: Sequence[object]) -> None:
        self.answers = {name: list(given) for name, given in answers.items()}
        self.names = {len(name): name for name in answers}
        self.asked: List[str] = []

    def task(self, task: object) -> TaskView:
        name = self.names[task] if isinstance(task, int) else str(task)
        self.asked.append(name)
        answer = self.answers[name].pop(0)
        if isinstance(answer, PilotageError):
            raise answer
        assert isinstance(answer, TaskView)
        return answer


def follow(server: Server, *tasks: str) -> List[TaskView]:
    return watch.follow(server, tasks, interval=0.001)  # type: ignore[arg-type]


READY, RUNNING, DONE = JobState.READY.value, JobState.RUNNING.value, JobState.COMPLETED.value


def test_each_task_is_asked_about_until_it_has_ended_and_no_longer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = Server(
        a=[view("a", {DONE: 4}, True, "COMPLETED")],
        bb=[view("bb", {READY: 4}), view("bb", {DONE: 4}), view("bb", {DONE: 4}, True, "COMPLETED")],
    )
    views = follow(server, "a", "bb")
    assert [each.name for each in views if each.ended] == ["a", "bb"]
    assert server.asked == ["a", "bb", "bb", "bb"]
    assert capsys.readouterr().err.splitlines()[-1] == "bb: COMPLETED, 4 of 4 jobs ended (COMPLETED 4)"


def test_a_task_is_over_when_its_output_dataset_is_closed_too() -> None:
    """The server sets the end with the closing, a moment after the last job."""
    server = Server(a=[view("a", {DONE: 4}, state="COMPLETED"), view("a", {DONE: 4}, True, "COMPLETED")])
    assert follow(server, "a")[0].ended is not None


@pytest.mark.parametrize("name", ["SERVER_UNREACHABLE", "SERVER_UNAVAILABLE"])
def test_a_server_that_is_away_is_asked_again(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    away = PilotageError(name, "gone")
    server = Server(a=[view("a", {READY: 4}), away, away, view("a", {DONE: 4}, True, "COMPLETED")])
    assert follow(server, "a")[0].ended is not None
    assert capsys.readouterr().err.count("asking again") == 1


def test_a_task_that_is_not_there_ends_the_watching() -> None:
    with pytest.raises(PilotageError, match="no task"):
        follow(Server(a=[PilotageError("NOT_FOUND", "no task a")]), "a")


def test_what_the_check_raises_ends_the_watching() -> None:
    def check(views: object) -> None:
        raise PilotageError("PROGRAM_FAILED", "a pilot died")

    with pytest.raises(PilotageError, match="a pilot died"):
        watch.follow(Server(a=[view("a", {})]), ["a"], interval=0.001, check=check)  # type: ignore[arg-type]


def test_lines_come_at_most_once_a_second_but_for_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    moving = [view("a", {READY: 4 - n, DONE: n}) for n in range(4)]
    follow(Server(a=[*moving, view("a", {DONE: 4}, True, "COMPLETED")]), "a")
    assert capsys.readouterr().err.splitlines() == [
        "a: RUNNING, 0 of 4 jobs ended (READY 4)", "a: COMPLETED, 4 of 4 jobs ended (COMPLETED 4)"
    ]  # fmt: skip
