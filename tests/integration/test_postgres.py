"""The Postgres that tests start themselves: as root and as another user, the system's and the wheel's."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import postgres
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]


def psycopg_connect(url: str):  # type: ignore[no-untyped-def]
    import psycopg

    return psycopg.connect(url)


@pytest.mark.parametrize("turn", [1, 2])
def test_each_test_gets_an_empty_database(postgres_url: str, turn: int) -> None:
    with psycopg_connect(postgres_url) as connection:
        connection.execute("CREATE TABLE once (x int)")


def test_a_crashed_server_starts_again_with_its_databases(own_postgres_cluster: postgres.Cluster) -> None:
    own_postgres_cluster.execute("CREATE DATABASE kept")
    own_postgres_cluster.stop(signal.SIGQUIT)
    own_postgres_cluster.start()
    psycopg_connect(own_postgres_cluster.url("kept")).close()


PROGRAM = """
import sys
from tests.postgres import Cluster
cluster = Cluster()
cluster.start()
print(cluster.process.pid, cluster.root, cluster.url("postgres"), flush=True)
sys.stdin.read()
cluster.remove()
"""


def _own_program(choice: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={**os.environ, "PILOTAGE_TEST_POSTGRES": choice},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _gone(pid: int) -> bool:
    """Gone, or a zombie that process 1 has not yet collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.component("postgres")
def test_postgres_ends_when_the_tests_are_killed() -> None:
    program = _own_program()
    assert program.stdout is not None
    pid, root, _ = program.stdout.readline().split()
    program.kill()
    program.communicate()
    wait_until(lambda: _gone(int(pid)), 10, "Postgres to end")
    shutil.rmtree(root)


@pytest.mark.parametrize(
    "choice",
    [pytest.param(kind, marks=pytest.mark.component(f"postgres-{kind}")) for kind in ("system", "wheel")],
)
def test_either_postgres_starts_and_leaves_nothing(choice: str) -> None:
    """As whoever runs the tests; under root the process is another user's, also from a wheel below root's home."""
    program = _own_program(choice)
    assert program.stdout is not None
    pid, root, url = program.stdout.readline().split()
    assert os.stat(f"/proc/{pid}").st_uid != 0
    psycopg_connect(url).close()
    program.communicate("")
    assert program.returncode == 0
    assert _gone(int(pid))
    assert not Path(root).exists()
