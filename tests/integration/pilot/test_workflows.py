"""Workflows in real pilots: what they ask for, and one from an installed package that does something of its own."""

from __future__ import annotations

import re

import pytest

from protocol.errors import PilotExit
from tests.fakes.dispatcher import Dispatcher
from tests.pilots import ROOT, Site
from tests.waiting import wait_until


def package(site: Site, text: str) -> str:
    """An installed package with a workflow `stagein`; the path to it."""
    place = site.place / "packages"
    (place / "stagein-1.dist-info").mkdir(parents=True)
    (place / "stagein.py").write_text(text)
    (place / "stagein-1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: stagein\nVersion: 1\n"
    )
    (place / "stagein-1.dist-info" / "entry_points.txt").write_text(
        "[pilotage.workflows]\nstagein = stagein:Workflow\n"
    )
    return str(place)


def documented() -> str:
    """The workflow that docs/pilot.md shows."""
    found = re.search(
        r"```python\n(.*?class Workflow.*?)```", (ROOT / "docs" / "pilot.md").read_text(), re.DOTALL
    )
    assert found
    return found[1]


@pytest.mark.parametrize(
    ("options", "label", "task"),
    [
        (("-w", "production"), "managed", None),
        (("-w", "production", "-j", "ptest"), "ptest", None),
        (("-w", "analysis"), "user", 7),
    ],
)
def test_141_a_workflow_asks_for_its_own_kind_of_jobs(
    options: tuple[str, ...], label: str, task: int | None, site: Site, dispatcher: Dispatcher
) -> None:
    dispatcher.add("true")
    assert site.run(*options, "--idle", "0") == PilotExit.DONE
    bodies = dispatcher.bodies("getJob") + [
        body["next"] for body in dispatcher.bodies("updateJob") if body.get("next")
    ]
    assert {body["prodSourceLabel"] for body in bodies} == {label}
    assert bodies[-1].get("taskId") == task, "a user's pilot goes on with the task that it began with"


def test_178_a_workflow_from_an_installed_package_stages_in_and_runs_nothing(
    site: Site, dispatcher: Dispatcher
) -> None:
    place = site.place / "handover"
    place.mkdir()
    good = site.input("good.dat", b"good", adler32="042f01aa")
    bad = site.input("bad.dat", b"bad", adler32="00000000")
    brought = dispatcher.add("touch", str(site.place / "ran"), inputs=[good])
    refused = dispatcher.add("touch", str(site.place / "ran"), inputs=[bad])
    pilot = site.start(
        "-w", "stagein", "--idle", "20", PYTHONPATH=package(site, documented()), HANDOVER=str(place)
    )
    wait_until(lambda: dispatcher.attempt(refused).end and dispatcher.attempt(brought).end, 20, "both to end")
    assert (place / "pilot-is-here").exists()
    pilot.signal(15)
    assert pilot.wait() == PilotExit.TERMINATED
    held = dispatcher.attempt(brought)
    assert held.state == "COMPLETED" and "STAGE-IN" in held.states and "RUNNING" not in held.states
    assert [path.name for path in place.iterdir()] == ["good.dat"] and (
        place / "good.dat"
    ).read_bytes() == b"good"
    end = dispatcher.attempt(refused).end
    assert end is not None and end.error == "STAGE_IN_ADLER32_MISMATCH"
    assert not (site.place / "ran").exists()
    assert dispatcher.bodies("getJob")[0]["prodSourceLabel"] == "stagein"


BROKEN = """
from pilot.plugins.workflows.base import Workflow as Base

class Workflow(Base):
    def threads(self, context):
        def die_beside_a_payload():
            while not context.watches.all():
                context.stop.wait(0.02)
            raise ZeroDivisionError

        return {"sign": die_beside_a_payload}
"""


def test_a_thread_of_a_workflow_that_dies_ends_the_pilot_in_order(site: Site, dispatcher: Dispatcher) -> None:
    number = dispatcher.add("sleep", "60")
    assert site.run("-w", "stagein", PYTHONPATH=package(site, BROKEN)) == PilotExit.BROKEN
    [end] = dispatcher.bodies("endPilot")
    assert "the control workflow-sign died: ZeroDivisionError" in end["reason"]
    told = dispatcher.attempt(number).end
    assert told is not None and told.error == "PILOT_EXCEPTION"


def test_a_workflow_that_nobody_knows_ends_the_start(site: Site, dispatcher: Dispatcher) -> None:
    """Also that of Pilot 2 which is not there yet: such a pilot would take jobs that it cannot do."""
    assert site.run("-w", "eventservice") == PilotExit.BAD_SETTINGS
    assert "no workflow eventservice; there are analysis, generic, production, user" in site.pilots[-1].log
    assert not dispatcher.said
