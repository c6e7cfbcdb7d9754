"""A node that is not fit asks for no job, says why, and gives its slot back."""

from __future__ import annotations

import pytest

from protocol.errors import PilotExit
from tests.fakes.dispatcher import Dispatcher
from tests.filesystems import mounted
from tests.pilots import Site

UNFIT_PLUGIN = """
from pilot.plugins.base import ExperimentPlugin
from protocol.errors import PilotageError

class Plugin(ExperimentPlugin):
    def check_node(self, node):
        raise PilotageError("NODE_UNFIT", "no detector geometry here")
"""


def assert_unfit(site: Site, dispatcher: Dispatcher, code: int, reason: str) -> None:
    assert code == PilotExit.NODE_UNFIT
    assert not dispatcher.bodies("getJob"), "no job is asked for"
    (last,) = dispatcher.bodies("endPilot")
    assert last["exitCode"] == PilotExit.NODE_UNFIT
    assert reason in last["reason"], "the server is told why"
    assert reason in site.pilots[0].log


def test_too_little_free_disk(site: Site, dispatcher: Dispatcher) -> None:
    code = site.run(PILOTAGE_LIMITS__FREE_DISK_MB="1000000000")
    assert_unfit(site, dispatcher, code, "MiB are free")


def test_no_copytool_that_works(site: Site, dispatcher: Dispatcher) -> None:
    place = site.place / "packages"
    (place / "absent-1.dist-info").mkdir(parents=True)
    (place / "absenttool.py").write_text(
        "from copytools.base import CopyTool\n"
        "class Tool(CopyTool):\n"
        "    schemes = ('x',)\n"
        "    def unusable(self):\n"
        "        return 'its program is not on PATH'\n"
    )
    (place / "absent-1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: absent\nVersion: 1\n"
    )
    (place / "absent-1.dist-info" / "entry_points.txt").write_text(
        "[pilotage.copytools]\nabsent = absenttool\n"
    )
    dispatcher.queue.copytools = ["absent"]
    code = site.run(PYTHONPATH=str(place))
    assert_unfit(site, dispatcher, code, "no copytool works here; allowed are absent")
    assert "its program is not on PATH" in site.pilots[0].log


def test_what_the_experiment_finds_wrong(site: Site, dispatcher: Dispatcher) -> None:
    place = site.place / "packages"
    (place / "geometry-1.dist-info").mkdir(parents=True)
    (place / "geometryplugin.py").write_text(UNFIT_PLUGIN)
    (place / "geometry-1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: geometry\nVersion: 1\n"
    )
    (place / "geometry-1.dist-info" / "entry_points.txt").write_text(
        "[pilotage.plugins]\ngeometry = geometryplugin:Plugin\n"
    )
    code = site.run("--pilotuser", "geometry", PYTHONPATH=str(place))
    assert_unfit(site, dispatcher, code, "no detector geometry here")


def test_a_work_directory_that_is_none(site: Site, dispatcher: Dispatcher) -> None:
    site.work.write_text("a file")
    assert site.run() == PilotExit.NODE_UNFIT
    assert not dispatcher.said


@pytest.mark.component("mount")
def test_f13_a_full_disk_costs_neither_the_result_nor_the_next_job(
    site: Site, dispatcher: Dispatcher
) -> None:
    """Neither log archive nor outbox can be written; what the job did is told all the same, and its directory is removed."""
    first = dispatcher.add("sh", "-c", "head -c 20000000 /dev/zero > fill; exit 5")
    second = dispatcher.add("true")
    with mounted("size=16m") as small:
        code = site.run("-a", str(small), "--max-jobs", "2", PILOTAGE_LIMITS__FREE_DISK_MB="10")
    assert code == PilotExit.DONE
    end = dispatcher.attempt(first).end
    assert (end.exit_code, end.error) == (5, "NO_LOCAL_SPACE"), "not the payload is to blame"
    assert "the outbox cannot be written" in site.pilots[0].log
    assert dispatcher.attempt(second).state == "COMPLETED", "the node is fit again"


@pytest.mark.component("mount")
def test_f13_an_input_that_does_not_fit_on_the_disk_is_told_as_that(
    site: Site, dispatcher: Dispatcher
) -> None:
    file = site.input("big", bytes(20_000_000))
    number = dispatcher.add("true", inputs=[file])
    with mounted("size=16m") as small:
        site.run("-a", str(small), "--max-jobs", "1", PILOTAGE_LIMITS__FREE_DISK_MB="10")
    assert dispatcher.attempt(number).end.error == "NO_LOCAL_SPACE"


def test_a_queue_that_names_an_unknown_copytool_is_a_wrong_setting(
    site: Site, dispatcher: Dispatcher
) -> None:
    dispatcher.queue.copytools = ["teleport"]
    assert site.run() == PilotExit.BAD_SETTINGS
    assert "teleport" in site.pilots[0].log


def test_everything_that_is_wrong_is_told_at_once(site: Site, dispatcher: Dispatcher) -> None:
    dispatcher.queue.pilot_settings = {
        "validation.tools": "no-such-program",
        "validation.mounts": "/no/such/mount",
    }
    dispatcher.clock_ahead = 7200.0
    dispatcher.add("true")
    code = site.run(
        *("--resource-type", "gpu"), PILOTAGE_VALIDATION__CLOCK_SKEW_SECONDS="600", CUDA_VISIBLE_DEVICES=""
    )
    for reason in (
        "the program no-such-program is not on PATH",
        "/no/such/mount is not to be used",
        "s behind the server's; 600 are allowed",
        "this node shows no GPU",
    ):
        assert_unfit(site, dispatcher, code, reason)


def test_f19_a_clock_that_is_a_day_off_is_only_warned_about(site: Site, dispatcher: Dispatcher) -> None:
    dispatcher.clock_ahead = -86_400.0
    number = dispatcher.add("true")
    assert site.run() == PilotExit.DONE
    assert dispatcher.attempt(number).state == "COMPLETED"
    assert "s ahead of the server's" in site.pilots[0].log


def test_a_queue_whose_wish_no_pilot_knows_is_a_wrong_setting(site: Site, dispatcher: Dispatcher) -> None:
    dispatcher.queue.pilot_settings = {"validation.toools": "git"}
    assert site.run() == PilotExit.BAD_SETTINGS
    assert "queue CPU: [validation] toools is not for the queue to set" in site.pilots[0].log
