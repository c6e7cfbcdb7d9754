"""`pilotage pilot check`: a node is looked at, and no job is asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from protocol.errors import PilotExit
from tests.fakes.dispatcher import Dispatcher
from tests.pilots import ROOT, Site


def check(site: Site, *options: str, url: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "pilot"), "check", "--url", url or site.dispatcher.url, "-q", "CPU",
               "--token-file", str(site.token), "-a", str(site.work), *options]  # fmt: skip
    return subprocess.run(
        command, cwd=site.place, env={**site.environment, **environment}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def rows(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return {row["check"]: row for row in json.loads(done.stdout)["checks"]}


def test_a_node_that_is_fit(site: Site, dispatcher: Dispatcher) -> None:
    dispatcher.add("true")
    done = check(site)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "cores=" in lines[0] and "memory_mb=" in lines[0]
    assert lines[-1] == "fit for work"
    assert any(line.startswith("scratch ") and " ok " in line for line in lines)
    assert not dispatcher.bodies("getJob") and len(dispatcher.waiting) == 1
    (last,) = dispatcher.bodies("endPilot")
    assert (last["exitCode"], last["reason"]) == (0, "a check of the node: fit")


def test_a_node_that_is_not_as_a_program_reads_it(site: Site, dispatcher: Dispatcher) -> None:
    dispatcher.queue.pilot_settings = {"validation.tools": "no-such-program"}
    done = check(
        site,
        "--json",
        "--batch-system",
        "slurm",
        SLURM_JOB_ID="77",
        PILOTAGE_LIMITS__FREE_DISK_MB="900000000",
    )
    assert done.returncode == PilotExit.NODE_UNFIT
    report = json.loads(done.stdout)
    assert report["fit"] is False
    assert (report["node"]["batch_system"], report["node"]["batch_id"]) == ("slurm", "77")
    assert rows(done)["tool"] == {
        "check": "tool", "result": "unfit", "detail": "the program no-such-program is not on PATH",
    }  # fmt: skip
    assert rows(done)["scratch"]["result"] == "unfit"
    assert rows(done)["server"]["result"] == "ok"
    (last,) = dispatcher.bodies("endPilot")
    assert last["exitCode"] == PilotExit.NODE_UNFIT and "no-such-program" in last["reason"]


def test_without_a_server_the_rest_is_looked_at_all_the_same(site: Site) -> None:
    done = check(site, "--json", url="http://127.0.0.1:9")
    assert done.returncode == PilotExit.NODE_UNFIT
    assert rows(done)["server"]["result"] == "unfit"
    assert rows(done)["scratch"]["result"] == "ok"
    assert rows(done)["clock"]["result"] == "warning"


def test_a_refused_token_is_told(site: Site, dispatcher: Dispatcher) -> None:
    dispatcher.token = "another"
    done = check(site)
    assert done.returncode == PilotExit.NODE_UNFIT
    assert "not fit: 1 of" in done.stdout
    assert not dispatcher.bodies("endPilot")


def test_a_work_directory_that_cannot_be_made_is_told(site: Site, dispatcher: Dispatcher) -> None:
    site.work.write_text("a file")
    done = check(site, "--json")
    assert done.returncode == PilotExit.NODE_UNFIT
    assert "cannot be written" in rows(done)["scratch"]["detail"]
    assert "Traceback" not in done.stderr


def test_a_wrong_setting_is_told_in_one_sentence(site: Site) -> None:
    done = check(site, "--batch-system", "lsf")
    assert done.returncode == PilotExit.BAD_SETTINGS
    assert "no resource plugin lsf" in done.stderr and not done.stdout


def test_the_command_of_users_is_the_same(site: Site, dispatcher: Dispatcher) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "client.cli", "pilot", "check", "--help"],
        cwd=ROOT, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert "No job is asked for" in done.stdout and "pilotage pilot check -q CPU" in done.stdout


def test_a_pilot_that_its_queue_makes_unfit_for_work_tells_the_server_that_it_ends(
    site: Site, dispatcher: Dispatcher
) -> None:
    dispatcher.queue.copytools = ["nope"]
    assert site.run() == PilotExit.BAD_SETTINGS
    (last,) = dispatcher.bodies("endPilot")
    assert last["exitCode"] == PilotExit.BAD_SETTINGS and "no copytool nope" in last["reason"]
