"""A pilot in a batch job: what it was given bounds what it offers, and it ends before the batch system ends it."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Callable

import pytest

from protocol.errors import PilotExit
from tests.fakes.dispatcher import Dispatcher
from tests.machines import environment
from tests.pilots import Site
from tests.waiting import wait_until


def slurm(seconds: float, **more: str) -> dict[str, str]:
    """The environment of a job that ends so soon. No squeue is needed: this Slurm tells the end itself."""
    return {**environment("slurm-cpu"), "SLURM_JOB_END_TIME": str(int(time.time() + seconds)), **more}


def test_the_pilot_tells_who_it_is_and_offers_what_it_was_given(site: Site, dispatcher: Dispatcher) -> None:
    given = slurm(3600, SLURM_MEM_PER_NODE="1000", SLURM_CPUS_ON_NODE="1")
    site.run("--idle", "0", **given)
    (word,) = dispatcher.bodies("registerPilot")
    assert (word["batchSystem"], word["batchId"]) == ("slurm", "1")
    assert (word["cores"], word["memoryMb"]) == (1, 1000)
    body = dispatcher.bodies("getJob")[0]
    assert (body["cores"], body["memoryMb"]) == (1, 1000)
    assert 3200 <= body["walltimeSeconds"] <= 3300, "an hour less the margin of 300 s"


def test_a_job_longer_than_what_is_left_is_not_asked_for(site: Site, dispatcher: Dispatcher) -> None:
    site.run("--idle", "0", **slurm(700), PILOTAGE_LIMITS__WALLTIME_MARGIN_SECONDS="100")
    assert 500 < dispatcher.bodies("getJob")[0]["walltimeSeconds"] <= 600


def test_the_shorter_of_lifetime_and_batch_job_counts(site: Site, dispatcher: Dispatcher) -> None:
    site.run("--idle", "0", "-l", "200", **slurm(3600))
    assert 190 <= dispatcher.bodies("getJob")[0]["walltimeSeconds"] <= 200, (
        "no margin of the lifetime is kept"
    )


def test_a_batch_job_that_is_nearly_over_asks_for_nothing(site: Site, dispatcher: Dispatcher) -> None:
    dispatcher.add("true")
    code = site.run(**slurm(120))
    assert code == PilotExit.NO_JOBS
    assert not dispatcher.bodies("getJob")
    (last,) = dispatcher.bodies("endPilot")
    told = re.search(r"the batch job ends too soon for a further job: (\d+) s are left of it", last["reason"])
    assert told and 60 <= int(told[1]) <= 120, last["reason"]
    assert "walltime_margin_seconds" in last["reason"]


def test_the_queue_sets_the_margin(site: Site, dispatcher: Dispatcher) -> None:
    dispatcher.queue.pilot_settings = {"limits.walltime_margin_seconds": "1000"}
    site.run("--idle", "0", **slurm(3600))
    assert 2500 <= dispatcher.bodies("getJob")[0]["walltimeSeconds"] <= 2600


def test_what_runs_when_the_margin_begins_may_finish_and_nothing_new_is_begun(
    site: Site, dispatcher: Dispatcher, tmp_path: Path, reached: Callable[..., None]
) -> None:
    """The margin begins some seconds after the start, in the midst of the payload."""
    first = dispatcher.add("sh", "-c", f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done")
    second = dispatcher.add("true")
    given, margin_begins = slurm(64), time.time() + 4
    pilot = site.start("--idle", "60", **given, PILOTAGE_LIMITS__WALLTIME_MARGIN_SECONDS="60")
    reached(first, "RUNNING")
    wait_until(lambda: time.time() > margin_begins, 10, "the margin")
    (tmp_path / "go").touch()
    assert pilot.wait() == PilotExit.DONE
    assert dispatcher.attempt(first).state == "COMPLETED"
    assert not dispatcher.attempt(second).states
    assert "ends too soon" in dispatcher.bodies("endPilot")[0]["reason"]


def test_f20_what_still_runs_shortly_before_the_batch_job_ends_is_given_back(
    site: Site, dispatcher: Dispatcher
) -> None:
    """15 s before the end, while there is still time to tell."""
    number = dispatcher.add("sleep", "60")
    code = site.run("--idle", "60", **slurm(19), PILOTAGE_LIMITS__WALLTIME_MARGIN_SECONDS="0")
    assert code == PilotExit.DONE
    assert dispatcher.attempt(number).end.error == "KILL_SIGNAL"


@pytest.mark.parametrize(("system", "told"), [("plain", ("plain", "")), ("slurm", ("slurm", "1"))])
def test_the_setting_goes_before_what_the_environment_shows(
    system: str, told: tuple[str, str], site: Site, dispatcher: Dispatcher
) -> None:
    site.run("--idle", "0", "--batch-system", system, **slurm(3600), KUBERNETES_SERVICE_HOST="10.96.0.1")
    (word,) = dispatcher.bodies("registerPilot")
    assert (word["batchSystem"], word["batchId"]) == told


def test_an_unknown_batch_system_is_a_wrong_setting(site: Site, dispatcher: Dispatcher) -> None:
    assert site.run("--batch-system", "lsf") == PilotExit.BAD_SETTINGS
    assert "no resource plugin lsf" in site.pilots[0].log
    assert not dispatcher.said


def test_a_resource_plugin_from_outside_is_chosen_by_its_name(site: Site, dispatcher: Dispatcher) -> None:
    place = site.place / "packages"
    (place / "lsf-1.dist-info").mkdir(parents=True)
    (place / "lsfplugin.py").write_text(
        "from pilot.plugins.resources.base import ResourcePlugin\n"
        "class Plugin(ResourcePlugin):\n"
        "    def batch_id(self):\n"
        "        return self.text('LSB_JOBID')\n"
        "    def cores(self):\n"
        "        return self.number('LSB_DJOB_NUMPROC')\n"
    )
    (place / "lsf-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: lsf\nVersion: 1\n")
    (place / "lsf-1.dist-info" / "entry_points.txt").write_text("[pilotage.resources]\nlsf = lsfplugin\n")
    environ = {"LSB_JOBID": "31", "LSB_DJOB_NUMPROC": "1", "PYTHONPATH": str(place)}
    assert site.run("--idle", "0", "--batch-system", "lsf", **environ) == PilotExit.NO_JOBS
    (word,) = dispatcher.bodies("registerPilot")
    assert (word["batchSystem"], word["batchId"], word["cores"]) == ("lsf", "31", 1)
