"""Status and prune: what a database is told to be like, and what goes from it and what stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psycopg
import pytest

from server import accounting
from server.access import tokens
from server.access.tokens import Role
from server.core import Core, Limits
from server.models import (
    AdminEvent,
    ArchivedJob,
    Attempt,
    Bundle,
    File,
    Job,
    JobClass,
    Pilot,
    Task,
    Token,
    Usage,
)
from server.upkeep import archive, health
from server.upkeep.health import Pruned
from tests.auditing import look
from tests.integration.server.lived import live
from tests.integration.server.world import World

DAY = 86_400.0
LONG_AGO = 1000.0


@pytest.fixture
def limits() -> Limits:
    return Limits(archive_after_seconds=0)


def url_of(core: Core) -> str:
    return f"sqlite:///{core.state_directory}/pilotage.db" if core.database.is_sqlite else "postgresql://"


# -- status -----------------------------------------------------------------------------------------------------------------


def test_status_tells_schema_sizes_and_jobs(world: World) -> None:
    live(world)
    archive.run_once(world.core, 60)
    world.core.database.write(lambda: health.proxy.execute_sql("ANALYZE"))
    found = health.status(url_of(world.core), world.core.database)
    assert (found.missing, found.unknown) == ([], [])
    assert found.version == health.known_migrations()[-1]
    assert found.size > 50_000
    assert {table.name for table in found.tables} == {table._meta.table_name for table in health.TABLES}
    if world.core.database.is_sqlite:
        assert (found.n_hot_jobs, found.n_archived_jobs) == (3, 7)
        assert found.wal_size


def test_status_tells_what_is_missing_and_what_is_unknown(world: World) -> None:
    world.core.database.write(
        lambda: health.proxy.execute_sql(
            "UPDATE schema_migration SET name = '9999_x' WHERE name = '0002_dispatcher'"
        )
    )
    try:
        found = health.status(url_of(world.core), world.core.database)
    finally:
        health.proxy.execute_sql("UPDATE schema_migration SET name = '0002_dispatcher' WHERE name = '9999_x'")
    assert found.missing == ["0002_dispatcher"]
    assert found.unknown == ["9999_x"]
    assert "newer version" in found.advice[0]


@pytest.mark.component("postgres")
def test_an_old_transaction_that_holds_back_vacuum_is_named(
    postgres_core: Core, monkeypatch: pytest.MonkeyPatch, postgres_core_url: str
) -> None:
    monkeypatch.setattr(health, "OLD_TRANSACTION_SECONDS", -1)
    with psycopg.connect(postgres_core_url, application_name="a forgotten shell") as other:
        other.execute("SELECT 1")
        with postgres_core.database.reading():
            found = health.status("postgresql://", postgres_core.database)
    assert found.oldest is not None
    assert "a forgotten shell" in found.oldest
    assert any("pg_terminate_backend" in line for line in found.advice)


def test_bloat_is_advised_about_only_where_it_is() -> None:
    assert health._bloat(1000, 9_000) == ""
    assert health._bloat(1_000_000, 200_000) == ""
    assert "VACUUM" in health._bloat(100_000, 50_000)


# -- prune ------------------------------------------------------------------------------------------------------------------


def bundle(core: Core, digest: str, age: float) -> Path:
    folder = core.state_directory / "bundles"
    folder.mkdir(exist_ok=True)
    path = folder / digest
    path.write_bytes(b"code")
    os.utime(path, (time.time() - age, time.time() - age))
    return path


@pytest.fixture
def old(world: World) -> World:
    """Old things that may go, and beside each one that must stay."""
    live(world)
    archive.run_once(world.core, 60)
    core = world.core

    def work() -> None:
        ArchivedJob.update(ended_at=LONG_AGO).where(ArchivedJob.task_id == 1).execute()
        Task.update(ended=LONG_AGO).where(Task.id == 1).execute()
        world.pilot("gone")
        world.pilot("silent")
        Pilot.update(ended=LONG_AGO).where(Pilot.pilot_id == "gone").execute()
        # p1 has been silent for as long, but still holds jobs.
        Pilot.update(last_seen=LONG_AGO).where(Pilot.pilot_id.in_(["silent", "p1"])).execute()
        AdminEvent.create(at=LONG_AGO, who="ada", action="x")
        AdminEvent.create(who="ada", action="y")
        for name in ("expired", "revoked", "valid"):
            tokens.create(name, Role.USER)
        Token.update(expires=LONG_AGO).where(Token.name == "expired").execute()
        Token.update(revoked=LONG_AGO).where(Token.name == "revoked").execute()
        JobClass.create(key="nobody's")
        for digest, created in (("aa" * 32, LONG_AGO), ("bb" * 32, LONG_AGO), ("cc" * 32, time.time())):
            Bundle.create(digest=digest, size=4, owner="ada", created=created)
        task = Task.get_by_id(1)
        spec = task.spec.replace('"bundle": ""', f'"bundle": "{"bb" * 32}"')
        assert spec != task.spec
        Task.update(spec=spec).where(Task.id == 1).execute()

    core.database.write(work)
    for digest in ("aa" * 32, "bb" * 32, "dd" * 32, ".incoming-x"):
        bundle(core, digest, 100 * DAY)
    for digest in ("cc" * 32, "ee" * 32, ".incoming-y"):
        bundle(core, digest, 0)
    return world


EXPECTED = {
    "archived jobs": 4,
    "pilots that ended or were lost": 3,  # p2 too
    "administrative actions": 1,
    "tokens that expired or were revoked": 2,
    "classes of needs without tasks": 1,
    "bundles that no task names": 2,
    "bundles that never arrived": 1,
}


def counts(pruned: list[Pruned]) -> dict[str, int]:
    return {each.what: each.n for each in pruned}


def test_a_dry_run_says_what_would_go_and_leaves_it(old: World) -> None:
    Pilot.update(ended=LONG_AGO).where(Pilot.pilot_id == "p2").execute()
    files = sorted(path.name for path in (old.core.state_directory / "bundles").iterdir())
    with old.unchanged():
        pruned = health.prune(old.core, 90 * DAY, dry_run=True)
    assert counts(pruned) == EXPECTED
    assert not any(each.removed for each in pruned)
    assert sorted(path.name for path in (old.core.state_directory / "bundles").iterdir()) == files


def test_what_is_old_goes_and_the_rest_stays(old: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CHUNK", 2)
    Pilot.update(ended=LONG_AGO).where(Pilot.pilot_id == "p2").execute()
    kept = {table: table.select().count() for table in (Task, File, Job, Attempt, Usage)}
    used = accounting.report(old.core, "owner", FIRST, LAST)
    dry = health.prune(old.core, 90 * DAY, dry_run=True)
    pruned = health.prune(old.core, 90 * DAY, dry_run=False)
    assert counts(pruned) == counts(dry) == EXPECTED
    assert {table: table.select().count() for table in kept} == kept
    assert accounting.report(old.core, "owner", FIRST, LAST) == used
    assert {row.task_id for row in ArchivedJob.select()} == {2}
    assert {row.pilot_id for row in Pilot.select()} == {"p1"}
    assert {row.action for row in AdminEvent.select()} >= {"y"}
    assert {row.name for row in Token.select()} == {"valid"}
    names = {path.name for path in (old.core.state_directory / "bundles").iterdir()}
    assert names == {"bb" * 32, "cc" * 32, "ee" * 32, ".incoming-y"}
    assert {row.digest for row in Bundle.select()} == {"bb" * 32, "cc" * 32}
    assert set(counts(health.prune(old.core, 90 * DAY, dry_run=False)).values()) == {0}


def test_after_a_prune_the_audit_finds_no_more_than_before(old: World, url: str, storage: Path) -> None:
    Task.update(ended=LONG_AGO).where(Task.id == 2).execute()
    for row in ArchivedJob.select():
        log = storage / "log" / f"task-{row.task_id}" / f"job-{row.id}.{row.id}.tar.gz"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"log")
    before = set(map(str, look(url).findings))
    health.prune(old.core, 90 * DAY, dry_run=False)
    assert not ArchivedJob.select().exists()
    assert set(map(str, look(url).findings)) <= before


def test_jobs_of_a_task_that_goes_on_are_not_pruned(old: World) -> None:
    Task.update(ended=None).where(Task.id == 1).execute()
    assert counts(health.prune(old.core, 90 * DAY, dry_run=False))["archived jobs"] == 0
    assert {row.task_id for row in ArchivedJob.select()} == {1, 2}


def test_a_prune_of_the_trail_is_in_the_trail(old: World) -> None:
    health.prune(old.core, 90 * DAY, dry_run=True)
    assert not AdminEvent.select().where(AdminEvent.action == "db prune").exists()
    health.prune(old.core, 90 * DAY, dry_run=False)
    entry = AdminEvent.get(AdminEvent.action == "db prune")
    assert (entry.who, entry.subject) == ("operator", "older than 90 days")
    assert "4 archived jobs" in entry.detail and "1 administrative actions" in entry.detail
    health.prune(old.core, 0, dry_run=False)
    last = AdminEvent.select().order_by(AdminEvent.id.desc()).first()
    assert (last.action, last.subject) == ("db prune", "older than 0 days"), "it leaves itself"


def test_the_archived_past_of_a_job_that_is_tried_again_stays(old: World) -> None:
    row = ArchivedJob.select().where(ArchivedJob.task_id == 1).first()
    old.core.database.write(lambda: archive.revive([row]))
    health.prune(old.core, 90 * DAY, dry_run=False)
    assert ArchivedJob.get_or_none(ArchivedJob.id == row.id) is not None


def test_free_pages_are_given_back(sqlite_core_url: str, tmp_path: Path) -> None:
    database = health.Database(sqlite_core_url)
    try:
        with database.reading():
            world = World(Core(database, b"k", tmp_path))
            world.dataset(2000)
            database.write(lambda: health.proxy.execute_sql("DELETE FROM replica"))
            before, after = health.compact(sqlite_core_url)
    finally:
        database.close()
    assert after < before


FIRST, LAST = accounting.datetime.date(1970, 1, 1), accounting.datetime.date(9999, 12, 30)
