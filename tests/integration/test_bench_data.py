"""`pilotage bench data` with tiny numbers: each row is measured beside its reference, and nothing is left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from server.bench.data import ROWS
from tests.integration.test_bench import environment, left_running


def bench(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "client.cli", "bench", "data", *words]
    return subprocess.run(
        command, cwd=place, env=environment(place), capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "tmp").mkdir()
    return tmp_path / "tmp"


def test_every_row_of_the_data_is_measured_and_nothing_is_left(place: Path) -> None:
    done = bench(place, "--sizes", "tiny", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert len(rows) > len(ROWS)
    assert all(row["median"] > 0 and isinstance(row["holds"], bool) for row in rows)
    compared = [row for row in rows if "of the reference" in row["goal"]]
    assert len(compared) == 7 and all(row["reference"] > 0 and row["ratio"] > 0 for row in compared)
    [memory] = [row for row in rows if row["unit"] == "MB"]
    assert 10 < memory["median"] < 200
    assert list(place.iterdir()) == []
    assert left_running(place.parent) == []


def test_more_than_the_disk_holds_is_refused_before_anything_is_written(place: Path) -> None:
    done = bench(place, "--only", "registration", "--files", "10000")
    assert done.returncode == 1
    assert "GB are needed" in done.stderr and "--files" in done.stderr
    assert list(place.iterdir()) == []


def test_what_fails_is_told_and_nothing_is_left(place: Path) -> None:
    programs = place.parent / "programs"
    programs.mkdir()
    (programs / "dd").write_text("#!/bin/sh\necho no such luck >&2\nexit 1\n")
    (programs / "dd").chmod(0o755)
    command = [sys.executable, "-m", "client.cli", "bench", "data", "--sizes", "tiny", "--only", "daq"]
    ours = environment(place)
    done = subprocess.run(
        command, cwd=place, env={**ours, "PATH": f"{programs}:{ours['PATH']}"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "no such luck" in done.stderr and "Traceback" not in done.stderr
    assert list(place.iterdir()) == []
