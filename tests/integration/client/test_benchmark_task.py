"""`pilotage task submit --benchmark` against a real server, and `pilotage pilot benchmark` without one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from client.session import Session
from tests.integration.client.conftest import Pilotage

pytestmark = pytest.mark.usefixtures("server")


def test_169_a_benchmark_task_is_made_of_its_options_alone(pilotage: Pilotage, session: Session) -> None:
    done = pilotage("task", "submit", "--benchmark", "--jobs", 3, "--cores", 8, "--env", "A=1", "--json")
    spec = session.task(json.loads(done.out)["taskId"]).spec or {}
    assert spec["name"].startswith("benchmark-") and spec["cores"] == 8 and spec["nJobs"] == 3
    assert spec["outputs"] == ["benchmark-{job_nr}.json"] and spec["bundle"]
    assert spec["environment"] == {"A": "1", "PILOTAGE_BENCHMARK": "benchmark-{job_nr}.json"}
    assert spec["command"][2:4] == ["--cores", "8"]


WRONG = {
    "a command": ("--", "true"),
    "an input": ("--input", "in"),
    "outputs": ("--output", "{job_nr}.x"),
    "a step": ("--pre", "true"),
    "code": ("--ship", __file__),
}


@pytest.mark.parametrize("what", WRONG)
def test_169_a_benchmark_task_takes_nothing_of_another_task(pilotage: Pilotage, what: str) -> None:
    done = pilotage("task", "submit", "--benchmark", *WRONG[what])
    assert done.code == 2 and "--benchmark is a task of its own" in done.err


def test_168_a_node_is_measured_without_server_and_pilot(pilotage: Pilotage, tmp_path: Path) -> None:
    options = ("pilot", "benchmark", "--cores", 2, "--seconds", "0.2", "-a", tmp_path)
    found = json.loads(pilotage(*options, "--json").out)
    assert found["cores"] == 2 and found["scores"]["integer"] > 0
    shown = pilotage(*options).out
    assert re.search(r"^disk write +[0-9.]+ MiB/s$", shown, re.MULTILINE)
    assert re.search(r"^float slowest +[0-9.]+ million rounds/s$", shown, re.MULTILINE)
    done = pilotage(*options, "--send")
    assert done.code != 0 and "collector" in done.err
