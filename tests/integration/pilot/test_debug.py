"""Somebody looks at a payload that runs: a real pilot sends what is asked with its heartbeats, and only then."""

from __future__ import annotations

from typing import Callable, Iterator, List

import pytest

from protocol.errors import PilotExit
from protocol.messages.pilots import DebugOrder, DebugReport, InspectionOrder
from tests.fakes.dispatcher import Dispatcher
from tests.pilots import PilotProcess, Site
from tests.waiting import wait_until

WAITS = 'echo "out $1"; echo begun > log.txt; while [ ! -e go ]; do sleep 0.05; done; echo done >> log.txt'


@pytest.fixture
def running(site: Site, dispatcher: Dispatcher, reached: Callable[..., None]) -> Iterator[PilotProcess]:
    """A pilot with one payload, attempt 1, that waits for a file `go`."""
    dispatcher.add("sh", "-c", WAITS, "sh", site.token.read_text())
    dispatcher.queue.heartbeat_seconds = 1
    pilot = site.start()
    reached(1, "RUNNING")
    yield pilot


def reports(dispatcher: Dispatcher) -> List[DebugReport]:
    return dispatcher.attempt(1).reports


def let_go(site: Site) -> None:
    (folder,) = site.work.glob("pilot-*/job-*[0-9]")
    (folder / "go").touch()


def test_123_the_ends_of_the_files_come_with_heartbeats_while_somebody_looks(
    site: Site, dispatcher: Dispatcher, running: PilotProcess
) -> None:
    assert reports(dispatcher) == []
    dispatcher.attempt(1).debug = DebugOrder(1.0)
    report = wait_until(lambda: [each for each in reports(dispatcher) if each.file], 10, "a report")[0]
    assert report.stdout == "out (hidden)\n", "the pilot's token is a secret"
    assert (report.file, report.text) in (("log.txt", "begun\n"), ("payload.stderr", ""))
    dispatcher.attempt(1).debug = DebugOrder(1.0, "log.txt")
    wait_until(lambda: reports(dispatcher)[-1].file == "log.txt", 10, "the named file")
    dispatcher.attempt(1).debug = DebugOrder(1.0, "../../../token")
    wait_until(lambda: "no plain file" in reports(dispatcher)[-1].text, 10, "the refusal")
    let_go(site)
    assert running.wait() == PilotExit.DONE


def test_123_inspections_are_answered_once_each(
    site: Site, dispatcher: Dispatcher, running: PilotProcess
) -> None:
    kinds = ("ps", "ls", "du", "stack", "rm")
    orders = [InspectionOrder(number, kind) for number, kind in enumerate(kinds, start=1)]
    dispatcher.attempt(1).debug = DebugOrder(1.0, inspect=orders)

    def answers() -> dict[str, str]:
        return {each.kind: each.text for report in reports(dispatcher) for each in report.answers}

    wait_until(lambda: len(answers()) == 4, 30, "four answers")
    assert "sleep" in answers()["ps"] or "sh -c" in answers()["ps"]
    assert "log.txt" in answers()["ls"]
    assert "in all" in answers()["du"]
    assert "process " in answers()["stack"]
    assert all(report.stdout for report in reports(dispatcher)), "an answer does not take the text away"
    let_go(site)
    assert running.wait() == PilotExit.DONE
    numbers = [each.number for report in reports(dispatcher) for each in report.answers]
    assert sorted(numbers) == [1, 2, 3, 4], "asked again and again, answered once"


def test_a_payload_that_is_told_to_end_by_itself_may_complete(
    site: Site, dispatcher: Dispatcher, reached: Callable[..., None]
) -> None:
    dispatcher.add("sh", "-c", 'trap "echo saved; exit 0" TERM; touch ready; while :; do sleep 0.05; done')
    dispatcher.queue.heartbeat_seconds = 1
    pilot = site.start()
    reached(1, "RUNNING")
    wait_until(lambda: list(site.work.glob("pilot-*/job-*/ready")), 10, "the trap")
    dispatcher.attempt(1).soft_stop = True
    assert pilot.wait() == PilotExit.DONE
    assert dispatcher.attempt(1).state == "COMPLETED"
