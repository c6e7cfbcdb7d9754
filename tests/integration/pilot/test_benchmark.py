"""The benchmark of a node: what its dictionary has, that it leaves nothing behind, and what the pilot takes of any dictionary."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

import pytest

from pilot import benchmark
from pilot.api import services
from pilot.control.benchmarking import report_of
from protocol.errors import PilotageError
from server import pilot_package
from tests.components import old_python

SOURCE = Path(benchmark.__file__)


def run(*options: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(SOURCE), "--seconds", "0.2", *options]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=30, check=False)


def test_169_it_runs_as_a_file_of_its_own_with_the_cores_that_it_is_given(tmp_path: Path) -> None:
    done = run("--cores", "3", "--disk-mb", "4", "--output", "benchmark.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "benchmark.json").read_text())
    assert found["cores"] == 3 and found["name"] == "pilotage" and found["node"]
    kinds = ("integer", "float", "memory_mb_per_second")
    assert all(found["scores"][kind] >= 2.9 * found["scores"][f"{kind}_slowest"] > 0 for kind in kinds)
    assert found["scores"]["disk_write_mb_per_second"] > 0 and found["scores"]["disk_read_mb_per_second"] > 0
    assert os.listdir(tmp_path) == ["benchmark.json"]


def test_168_the_pilots_one_file_measures_a_node_and_so_does_a_program_that_uses_it(tmp_path: Path) -> None:
    archive = tmp_path / "pilot.pyz"
    pilot_package.build(archive)
    program = (
        "from pilot.api import services; print(services.benchmark(cores=1, seconds=0.2, disk_mb=0)['cores'])"
    )
    for python in filter(None, (sys.executable, old_python())):
        words = [python, str(archive), "benchmark", "--cores", "1", "--seconds", "0.2", "--json"]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0 and json.loads(done.stdout)["cores"] == 1, done.stderr
        done = subprocess.run(
            [python, "-c", program], cwd=tmp_path, env={"PYTHONPATH": str(archive)}, capture_output=True, text=True,
            timeout=30, check=False,
        )  # fmt: skip
        assert done.stdout == "1\n", done.stderr


def test_a_disk_that_cannot_be_written_costs_only_its_scores(tmp_path: Path) -> None:
    done = run("--directory", str(tmp_path / "nowhere"), cwd=tmp_path)
    found = json.loads(done.stdout)
    assert "No such file" in found["problem"] and "integer" in found["scores"]
    assert not any(name.startswith("disk") for name in found["scores"])


def test_f13_a_full_disk_costs_only_its_scores() -> None:
    scores: Dict[str, float] = {}
    original = os.statvfs
    try:
        os.statvfs = lambda path: original("/proc")  # type: ignore[assignment,misc]  # it has no space at all
        assert "not enough space" in benchmark._disk("/tmp", 64, 0.1, scores)
    finally:
        os.statvfs = original
    assert not scores


def test_159_the_services_api_measures_in_a_process_of_its_own(tmp_path: Path) -> None:
    report = services.benchmark(tmp_path, cores=1, seconds=0.2, disk_mb=4)
    assert report["cores"] == 1 and report["scores"]["integer"] > 0
    described = services.described(report, leave_out=["node", "system"], site="DUBNA")
    assert described["site"] == "DUBNA" and not {"node", "system"} & set(described)
    assert report["node"]


def test_159_the_services_api_reports_the_memory_of_a_process_and_what_it_starts(tmp_path: Path) -> None:
    work = "import os, time; x = bytearray(40_000_000); os.fork(); time.sleep(0.6)"
    child = subprocess.Popen([sys.executable, "-c", work], env={**os.environ, "PMI_RANK": "2"})
    with services.MemoryMonitor(child.pid, tmp_path, seconds=0.1) as monitor:
        child.wait()
    assert monitor.report()["ranks"]["2"]["peak_mb"] > 40
    assert services.add_to_job_report(monitor.report(), tmp_path) == ""
    assert set(json.loads((tmp_path / "jobReport.json").read_text())) == {"memory_monitor"}
    assert json.loads((tmp_path / "memory_monitor.json").read_text())["seconds"]


def test_b22_of_any_dictionary_only_bounded_plain_text_and_numbers_are_taken() -> None:
    found: Dict[str, Any] = {
        "name": "HS23\x1b[2J\n" + "x" * 500,
        "cores": 10**400,
        "seconds": float("inf"),
        "node": {"a": 1},
        "scores": {"good": 1.5, "bad": "7", "nan": float("nan"), "huge": 10**400, "flag": True, "x" * 300: 2},
    }
    report = report_of(found, "payload")
    assert "\x1b" not in report.name and len(report.name) == 100 and report.node == ""
    assert report.scores == {"good": 1.5, "x" * 100: 2.0} and report.cores == 0 and report.seconds == 0.0
    many = {"scores": {f"s{number}": 1.0 for number in range(1000)}}
    assert len(report_of(many, "payload").scores) == 50


@pytest.mark.parametrize("scores", [None, [], {}, {"a": "b"}, 5])
def test_a_dictionary_without_scores_is_no_benchmark(scores: object) -> None:
    with pytest.raises(PilotageError, match="no scores"):
        report_of({"name": "x", "scores": scores}, "payload")
