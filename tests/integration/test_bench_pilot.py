"""`pilotage bench pilot` with tiny numbers: each row is measured by a real pilot, and nothing is left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from server.bench.pilot import ROWS
from tests.integration.test_bench import environment, left_running


def bench(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "client.cli", "bench", "pilot", "--sizes", "tiny", *words]
    return subprocess.run(
        command, cwd=place, env=environment(place), capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "tmp").mkdir()
    return tmp_path / "tmp"


def test_every_row_of_the_pilot_is_measured_and_nothing_is_left(place: Path) -> None:
    done = bench(place, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert len(rows) > len(ROWS)
    assert all(row["median"] is not None for row in rows)
    rates = {row["name"]: row for row in rows if row["unit"] == "jobs/s"}
    assert all(row["median"] > 0 and row["cpuMs"] > 0 and row["reference"] > 0 for row in rates.values())
    [memory] = [row for row in rows if row["name"] == "memory of a pilot with 1 slot"]
    assert 10 < memory["median"] < 200, "resident memory of one process in MB"
    [start] = [row for row in rows if row["name"] == "start of a pilot to its first job"]
    assert 0.02 < start["median"] < 30, "seconds"
    assert list(place.iterdir()) == []
    assert left_running(place.parent) == []


def test_a_peer_that_is_not_there_is_named(place: Path) -> None:
    done = bench(place, "--only", "no-op", "--peers", sys.executable)
    assert done.returncode != 0
    assert "parsl could not be measured" in done.stderr and "No module named 'parsl'" in done.stderr
    assert left_running(place.parent) == []
