"""A control of the pilot that dies, whichever it is: the pilot ends in order, what it held is told, and nothing is left."""

from __future__ import annotations

from typing import Dict

import pytest

from protocol.errors import PilotExit
from tests.fakes.dispatcher import Dispatcher
from tests.pilots import Site

BROKEN = """
import importlib
from pilot.plugins.base import ExperimentPlugin as Plugin

def broken(*args, **named):
    if "{where}".endswith("_round") and not any(job.running_told.is_set() for job in args[0]._context.jobs.all()):
        return works(*args, **named)  # the reporter shall die when there is something to report
    raise RuntimeError("a mistake in the pilot")

module, _, name = "{where}".partition(":")
owner = importlib.import_module(module)
*path, last = name.split(".")
for each in path:
    owner = getattr(owner, each)
works = getattr(owner, last)
setattr(owner, last, broken)
"""

CONTROLS: Dict[str, str] = {
    "reporter": "pilot.control.reporter:Reporter._round",
    "heartbeat": "pilot.debug:Desk.held",
    "monitor": "pilot.plugins.monitors:Monitors.sample",
    "payload-1, its monitors": "pilot.plugins.monitors:Monitors.close",
    "prepare-1": "pilot.workdir:make",
    "stage-in": "copytools.cp:Tool.copy_in",
    "payload": "pilot.control.launch:start",
    "stage-out": "copytools.cp:Tool.copy_out",
    "finish": "pilot.workdir:PilotDirectory.remove_job",
    "asking": "pilot.control.job:Asking._accept",
}
ENDS_BEFORE = {"finish"}
"""The job is over by then, and its end is told."""


@pytest.mark.parametrize("control", CONTROLS)
def test_a_pilot_whose_control_dies_ends_in_order_and_its_job_is_told(
    control: str, site: Site, dispatcher: Dispatcher
) -> None:
    place = site.place / "packages"
    (place / "broken-1.dist-info").mkdir(parents=True)
    (place / "brokenplugin.py").write_text(BROKEN.replace("{where}", CONTROLS[control]))
    (place / "broken-1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: broken\nVersion: 1\n"
    )
    (place / "broken-1.dist-info" / "entry_points.txt").write_text(
        "[pilotage.plugins]\nbroken = brokenplugin:Plugin\n"
    )
    dispatcher.queue.heartbeat_seconds = 0.5
    dispatcher.queue.pilot_settings["get_job.stage_ahead"] = "1"  # then each step is a control of its own
    seconds = {"heartbeat": 300, "monitor": 300, "reporter": 1, "payload-1, its monitors": 3}.get(control, 0)
    number = dispatcher.add(
        "sh", "-c", f"echo > out; exec sleep {seconds}", inputs=[site.input("in", b"x")], outputs=["out"]
    )  # fmt: skip
    pilot = site.start("--pilotuser", "broken", PYTHONPATH=str(place))
    assert pilot.wait(30) == PilotExit.BROKEN
    end = dispatcher.attempt(number).end
    assert end is not None, "the end is told, without a reporter too"
    assert control == "reporter" or end.error == ("" if control in ENDS_BEFORE else "PILOT_EXCEPTION"), end
    assert "a control died" in pilot.log and "a mistake in the pilot" in pilot.log
    (last,) = dispatcher.bodies("endPilot")
    assert last["exitCode"] == PilotExit.BROKEN and dispatcher.said[-1].verb == "endPilot"
    assert not site.processes()
    assert [path.name for path in site.work.iterdir()] == ["outbox"]
