"""The APIs as programs of others use them: the examples of docs/pilot-apis.md, and what each needs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Dict

import pytest

from protocol.errors import PilotExit
from server import pilot_package
from tests.fakes.dispatcher import TOKEN, Dispatcher
from tests.pilots import ROOT
from tests.users import PYTHON, place_for_all

APIS = ("data", "communicator", "environment", "services", "container")


def examples() -> Dict[str, str]:
    """API → its example."""
    text = (ROOT / "docs" / "pilot-apis.md").read_text()
    parts = re.split(r"^## (\w+)$", text, flags=re.MULTILINE)[1:]
    found = (
        (name.lower(), re.search(r"```python\n(.*?)```", part, re.DOTALL))
        for name, part in zip(parts[::2], parts[1::2])
    )
    return {name: match[1] for name, match in found if match}


def python(place: Path, *words: str, **environ: str) -> str:
    """What a program prints; it has our modules, and is no pilot."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PILOTAGE_", "SLURM_"))}
    done = subprocess.run(
        [sys.executable, *words], cwd=place, env={**kept, "PYTHONPATH": str(ROOT), **environ},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(name: str, place: Path) -> str:
    return python(place, "-W", "error", "-c", examples()[name])


def test_each_api_has_an_example() -> None:
    assert tuple(examples()) == APIS


def test_156_the_example_of_the_data_api_stages_out_and_in(tmp_path: Path) -> None:
    said = run("data", tmp_path)
    assert "20 of 20: file:///" in said and said.count("is there and verified") == 20
    for number in range(20):
        assert (tmp_path / "again" / f"{number}.txt").read_text() == f"result {number}\n"


def test_157_the_example_of_the_communicator_does_a_job(tmp_path: Path, dispatcher: Dispatcher) -> None:
    (tmp_path / "pilot.token").write_text(f"{TOKEN}\n")
    number = dispatcher.add("touch", "done")
    program = examples()["communicator"].replace("http://127.0.0.1:8080", dispatcher.url)
    assert python(tmp_path, "-W", "error", "-c", program) == f"job {1000 + number} ended with 0\n"
    assert (tmp_path / "done").exists()
    assert dispatcher.attempt(number).states == ["OBTAINED", "RUNNING", "COMPLETED"]
    assert [said.verb for said in dispatcher.said][-1] == "endPilot"


def test_158_the_example_of_the_environment_api_shows_the_node(tmp_path: Path) -> None:
    name = os.uname().nodename
    assert re.match(rf"{re.escape(name)} \d+ cores \d+ MiB", run("environment", tmp_path))


def test_158_a_program_in_a_batch_job_learns_what_was_given_to_it(tmp_path: Path) -> None:
    lines = (ROOT / "tests" / "fixtures" / "batch" / "slurm-cpu.env").read_text().splitlines()
    environ = dict(line.partition("=")[::2] for line in lines if line and not line.startswith("#"))
    found = json.loads(
        python(
            tmp_path,
            "-m",
            "pilot.api.environment",
            **{**environ, "SLURM_CPUS_ON_NODE": "1", "PATH": str(tmp_path)},
        )
    )
    assert (
        found["allocation"]["system"] == "slurm"
        and found["allocation"]["batch_id"] == environ["SLURM_JOB_ID"]
    )
    assert found["node"]["cores"] == 1


def test_159_the_example_of_the_services_api_measures_and_reports(tmp_path: Path) -> None:
    assert "DUBNA" in run("services", tmp_path)
    assert json.loads((tmp_path / "jobReport.json").read_text())


def test_160_the_example_of_the_container_api_ends_a_command_that_takes_too_long(tmp_path: Path) -> None:
    assert re.match(r"True -\d+ \d\.\d s reconstructed\n", run("container", tmp_path))


@pytest.mark.component("bubblewrap")
def test_171_a_pilot_runs_within_a_container(dispatcher: Dispatcher) -> None:
    """As a wrapper starts it: the pilot and its payloads see no more of the node than what is named here."""
    number = dispatcher.add("sh", "-c", f"test ! -e {ROOT} && test ! -e {dispatcher.storage}")
    with place_for_all() as place:
        pilot_package.build(place / "pilot.pyz")
        (place / "token").write_text(TOKEN)
        (place / "token").chmod(0o600)
        words = f"-m pilot.api.container --executor bubblewrap --network --read ../token --read ../pilot.pyz --timeout 60 -- {PYTHON} {place}/pilot.pyz"
        options = f"--url {dispatcher.url} --token-file {place}/token -q CPU --max-jobs 1"
        (place / "work").mkdir()
        done = subprocess.run(
            [PYTHON, *words.split(), *options.split()], cwd=place / "work", env={"PATH": os.environ["PATH"], "PYTHONPATH": str(place / "pilot.pyz")},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == PilotExit.DONE, (place / "work" / "command.stderr").read_text()
    assert dispatcher.attempt(number).state == "COMPLETED", "neither of them is there"


@pytest.mark.parametrize("name", APIS)
def test_a_program_that_uses_an_api_loads_no_pilot_and_nothing_that_a_node_may_lack(
    name: str, tmp_path: Path
) -> None:
    program = f"import pilot.api.{name}, sys; print(*sorted(name.partition('.')[0] if 'pilot' not in name else name for name in sys.modules))"
    modules = set(python(tmp_path, "-c", program).split())
    beside = {"urllib3"} if name == "communicator" else set()
    assert not modules & ({"click", "psutil", "filelock", "blake3", "urllib3", "server", "client"} - beside)
    assert not {"pilot.run", "pilot.settings", "pilot.context", "pilot.control"} & modules


def test_what_an_api_promises_is_there() -> None:
    import importlib

    for name in APIS:
        module = importlib.import_module(f"pilot.api.{name}")
        assert module.__all__ and all(getattr(module, each).__doc__ for each in module.__all__), name
