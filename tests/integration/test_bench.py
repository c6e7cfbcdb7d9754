"""`pilotage bench dispatch` with tiny numbers: the shape of what it says, and that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from server.bench import postgres
from server.bench.dispatch import ROWS
from tests.postgres import Cluster
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
FIELDS = {"name", "median", "min", "max", "runs", "unit", "reference", "ratio", "goal", "holds"}


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "client.cli", "bench", "dispatch", "--sizes", "tiny", *words]


def environment(place: Path) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PILOTAGE_")}
    return {**ours, "TMPDIR": str(place), "PYTHONPATH": str(ROOT)}


def run(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words), cwd=place, env=environment(place), capture_output=True, text=True, check=False
    )


def left_running(place: Path) -> list[str]:
    """Processes that work in this directory."""
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and Path(os.readlink(process / "cwd")).is_relative_to(place / "tmp"):
                found.append((process / "cmdline").read_text())
    return found


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "tmp").mkdir()
    return tmp_path / "tmp"


def check(place: Path, done: subprocess.CompletedProcess[str], database: str) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    rows: list[dict[str, Any]] = said["rows"]
    for row in rows:
        assert set(row) >= FIELDS
        assert row["database"] == database
        assert row["median"] is not None, row
        assert row["min"] <= row["median"] <= row["max"]
        assert isinstance(row["holds"], bool)
    assert len({row["name"] for row in rows}) == len(rows)
    assert said["machine"]["cores"] == os.cpu_count()
    assert list(place.iterdir()) == []
    assert left_running(place.parent) == []
    return rows


@pytest.mark.slow
def test_every_row_is_measured_on_sqlite_and_nothing_is_left(place: Path) -> None:
    rows = check(place, run(place, "--database", "sqlite", "--json"), "sqlite")
    assert len(rows) > len(ROWS)
    rates = [row for row in rows if row["unit"] == "jobs/s"]
    assert all(row["reference"] > 0 and row["ratio"] > 0 for row in rates)
    assert all(row["cpuMs"] is not None and row["clientCpuMs"] is not None for row in rates)


@pytest.mark.slow
@pytest.mark.component("postgres")
def test_every_row_is_measured_on_a_given_postgres_and_its_databases_are_gone(
    place: Path, postgres_cluster: Cluster
) -> None:
    url = postgres_cluster.url("postgres")
    names = "SELECT datname FROM pg_database WHERE datname LIKE 'postgres_%'"
    rows = check(place, run(place, "--database", url, "--json"), "postgres")
    assert len(rows) > len(ROWS)
    with psycopg.connect(url) as connection:
        assert connection.execute(names).fetchall() == []


@pytest.mark.component("postgres-system")
def test_the_own_cluster_is_durable_and_gone_afterwards() -> None:
    with postgres.own() as server:
        with psycopg.connect(server.url) as connection:
            for name in ("fsync", "synchronous_commit", "full_page_writes"):
                assert connection.execute(f"SHOW {name}").fetchone() == ("on",)
        assert server.pid is not None
        (root,) = {Path(os.readlink(f"/proc/{server.pid}/cwd")).parent}
    assert not root.exists()
    assert not Path(f"/proc/{server.pid}").exists()


def test_one_that_is_ended_in_the_middle_ends_what_it_started(place: Path) -> None:
    with open(place.parent / "said", "wb") as said:
        words = command("--database", "sqlite", "--only", "life-cycle", "--runs", "100")
        process = subprocess.Popen(words, cwd=place.parent, env=environment(place), stderr=said, stdout=said)
    wait_until(lambda: len(left_running(place.parent)) >= 2, 30, "a server to run")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    wait_until(lambda: not left_running(place.parent), 10, "all that was started to end")
    assert list(place.iterdir()) == []


def test_a_table_is_for_people(place: Path) -> None:
    done = run(place, "--database", "sqlite", "--only", "panda")
    assert done.returncode == 0, done.stderr
    assert "getJob + running + finished, 8 clients" in done.stdout
    assert "≥ 490 jobs/s" in done.stdout


def test_a_wrong_name_is_told_with_the_right_ones(place: Path) -> None:
    done = run(place, "--only", "everything")
    assert done.returncode == 2
    assert "life-cycle, panda" in done.stderr


def test_a_database_that_is_none_is_told(place: Path) -> None:
    done = run(place, "--database", "oracle")
    assert done.returncode == 1
    assert "sqlite, postgres, both" in done.stderr
    assert list(place.iterdir()) == []
