"""From SQLite to Postgres: row by row the same, and the installation goes on there as if nothing had been."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import psycopg
import pytest

from protocol.states import JobState
from server.core import Limits
from server.database import proxy
from server.models import Counter, Task
from server.upkeep import archive, copying
from tests.integration.server.lived import live, pictures
from tests.integration.server.test_backup import Machine
from tests.integration.server.world import World, refusing

pytestmark = pytest.mark.component("postgres")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "state", f"sqlite:///{tmp_path}/state/pilotage.db")


def archive_all(world: World) -> None:
    archive.run_once(dataclasses.replace(world.core, limits=Limits(archive_after_seconds=0)), 60)


def rows_of(world: World) -> Any:
    """Every row, with 1 and TRUE and 1.0 told apart by nobody."""
    return {
        name: [
            tuple(float(value) if isinstance(value, (bool, int)) else value for value in row) for row in rows
        ]
        for name, rows in world.rows().items()
    }


def test_a_lived_in_installation_goes_on_in_postgres(machine: Machine, postgres_url: str) -> None:
    with machine as world:
        held = live(world)
        archive_all(world)
        assert Task.select().where(Task.archived).exists()
        before, seen = rows_of(world), pictures(world)
        numbers = Counter.get_by_id("ready_nr").value
    told: list[int] = []
    proofs = copying.copy(machine.url, postgres_url, told.append)
    assert sum(told) == 2 * copying.count(machine.url) == 2 * sum(proof.n_rows for proof in proofs)
    moved = Machine(machine.directory, postgres_url)
    with moved as world:
        assert rows_of(world) == before
        assert pictures(world) == seen
        # Pilots keep their jobs, and no number is given again.
        world.say(held[0], JobState.RUNNING, seq=7)
        world.task("more", n_jobs=1)
        world.form()
        jobs = world.claim(n_jobs=5)
        assert jobs
        assert min(job.attempt_id for job in jobs) > max(job.attempt_id for job in held)
        assert max(job.job_id for job in jobs) > max(job.job_id for job in held)
        assert world.core.database.write(lambda: world.core.database.next_numbers("ready_nr", 1))[0] > numbers


def test_numbers_that_are_gone_from_their_table_are_not_given_again(
    machine: Machine, postgres_url: str
) -> None:
    with machine as world:
        world.ready(2)
        gone = world.claim(n_jobs=2)
        for job in gone:
            world.complete(job)
        world.close_tasks()
        archive_all(world)
    copying.copy(machine.url, postgres_url, lambda n: None)
    with Machine(machine.directory, postgres_url) as world:
        world.task("more", n_jobs=1)
        world.form()
        (job,) = world.claim()
        assert job.job_id > max(each.job_id for each in gone)
        assert job.attempt_id > max(each.attempt_id for each in gone)


def test_what_differs_after_the_copy_undoes_all_of_it(
    machine: Machine, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine as world:
        live(world)
    read_back = copying._read_back

    def with_a_flip(table: Any, advance: Any) -> copying.Proof:
        proof = read_back(table, advance)
        return copying.Proof(proof.table, proof.n_rows, proof.digest ^ (proof.table == "attempt"))

    monkeypatch.setattr(copying, "_read_back", with_a_flip)
    with refusing("WRONG_STATE", "attempt: "):
        copying.copy(machine.url, postgres_url, lambda n: None)
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT count(*) FROM site").fetchone() == (0,)


def test_a_postgres_that_was_used_is_left_alone(machine: Machine, tmp_path: Path, postgres_url: str) -> None:
    with machine as world:
        live(world)
    used = Machine(tmp_path / "other", postgres_url)
    with used as world:
        before = world.rows()
    with refusing("ALREADY_EXISTS", "empty one"):
        copying.copy(machine.url, postgres_url, lambda n: None)
    with used as world:
        assert world.rows() == before


def test_an_older_schema_is_migrated_first(machine: Machine, postgres_url: str) -> None:
    with machine as world:
        assert world.core.database.is_sqlite
        proxy.execute_sql("DELETE FROM schema_migration WHERE name LIKE '0003%'")
    with refusing("WRONG_STATE", "db migrate"):
        copying.copy(machine.url, postgres_url, lambda n: None)


def test_only_from_sqlite_to_postgres(machine: Machine, tmp_path: Path, postgres_url: str) -> None:
    with machine:
        pass
    with refusing("BAD_REQUEST"):
        copying.copy(machine.url, f"sqlite:///{tmp_path}/other.db", lambda n: None)
    with refusing("NOT_FOUND"):
        copying.count(f"sqlite:///{tmp_path}/nothing.db")
    with refusing("NOT_FOUND"):
        copying.count(postgres_url)
