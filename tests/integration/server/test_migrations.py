"""Migrations of a database with data, killed at each statement: the old schema or the new one, and no third."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import server.database as database_module
from protocol.states import FINAL, JobState
from server.database import Database, proxy
from server.failures import Failures
from server.models import Attempt, Job, TaskOutcome
from server.upkeep.backup import known_migrations

SOAK = bool(os.environ.get("PILOTAGE_SOAK"))
FEW, MANY = 2_000, 1_000_000 if SOAK else 5_000
FIRST = "0001_initial"


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.component("postgres"))])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/old.db"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def old_url(empty_url: str, tmp_path: Path) -> str:
    """A database of the first schema, with some jobs in it."""
    make_old(empty_url, tmp_path, FEW)
    return empty_url


def make_old(url: str, tmp_path: Path, n_jobs: int) -> None:
    folder = tmp_path / "first"
    folder.mkdir()
    shutil.copy(database_module.MIGRATIONS / f"{FIRST}.py", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database_module, "MIGRATIONS", folder)
        with opened(url) as database:
            assert database.migrate() == [FIRST]
            database.write(lambda: plant(database.is_sqlite, n_jobs))


class opened:
    """A database, and a connection of this thread."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)

    def __enter__(self) -> Database:
        self._reading = self.database.reading()
        self._reading.__enter__()
        return self.database

    def __exit__(self, *exc_info: Any) -> None:
        self._reading.__exit__(None, None, None)
        self.database.close()


def plant(is_sqlite: bool, n_jobs: int) -> None:
    """Jobs of every state; of two thirds the second attempt holds or ended them, the first one was lost."""
    numbers = (
        f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {n_jobs})"
        if is_sqlite
        else f"WITH n(i) AS (SELECT generate_series(1, {n_jobs}))"
    )
    states = [state.value for state in JobState]
    # No percent sign: it is a parameter to psycopg.
    cases = " ".join(f"WHEN {index} THEN '{word}'" for index, word in enumerate(states))
    state = f"CASE i - {len(states)} * (i / {len(states)}) {cases} END"
    for statement in (
        "INSERT INTO site (name, state) VALUES ('LOCAL', 'online')",
        "INSERT INTO storage (name, url) VALUES ('s', 'file:///srv/s')",
        "INSERT INTO queue (name, site_id, resource_type, state, storage_id, copytools, lease_seconds,"
        " heartbeat_seconds, timefloor_seconds) VALUES ('CPU', 'LOCAL', 'cpu', 'online', 's', '[]', 90, 20, 0)",
        "INSERT INTO job_class (key) VALUES ('{}')",
        "INSERT INTO dataset (name, scope, state, created) VALUES ('in', 'in', 'closed', 1)",
        "INSERT INTO task (name, owner, spec, resource_type, priority, job_class_id, input_dataset_id, n_formed,"
        " last_file_id, all_formed, cancelled, created)"
        f" VALUES ('t', 'ada', '{{}}', 'cpu', 0, 1, 1, {n_jobs}, {n_jobs}, TRUE, FALSE, 1)",
        f"{numbers} INSERT INTO file (dataset_id, scope, lfn, state, size, checksums, created)"
        " SELECT 1, 'in', 'f' || i, 'available', i, '{}', 1 FROM n",
        f"{numbers} INSERT INTO job (task_id, job_nr, job_class_id, state, priority, attempt_nr, attempt_id,"
        " payload_failures, losses, unacknowledged, registered, changed)"
        f" SELECT 1, i, 1, {state}, 0, 2, i + {n_jobs}, 0, 0, 0, 1, 2 FROM n",
        f"{numbers} INSERT INTO job_input (task_id, file_id, job_id) SELECT 1, i, i FROM n",
        *(
            f"{numbers} INSERT INTO attempt (job_id, attempt_nr, pilot_id, node, queue, request_id, nonce, state, seq,"
            " lease_until, ready_at, extracted_at, ended_at, storage_id, log_url)"
            f" SELECT i, {nr}, 'p', 'n', 'CPU', 'request-' || {nr} || '-' || (i / 3), 'x', {state}, 1, 0, 1, 1, {ended},"
            " 's', 'file:///srv/s/log' FROM n"
            for nr, ended in ((1, "2"), (2, "NULL"))
        ),
        f"{numbers} INSERT INTO job_event (job_id, attempt_nr, at, actor, event, detail)"
        " SELECT i, 1, 1, 'reaper', 'LOST_HEARTBEAT', '' FROM n WHERE 10 * (i / 10) = i",
    ):
        proxy.execute_sql(statement)


def fingerprint(url: str) -> tuple[list[str], str]:
    """Which migrations are applied, and the whole schema in words."""
    with opened(url) as database:
        applied = [
            name
            for (name,) in proxy.execute_sql("SELECT name FROM schema_migration ORDER BY name").fetchall()
        ]
        if database.is_sqlite:
            rows = proxy.execute_sql("SELECT name, sql FROM sqlite_master ORDER BY name, sql").fetchall()
        else:
            rows = proxy.execute_sql(
                "SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns"
                " WHERE table_schema = 'public' ORDER BY 1, 2"
            ).fetchall()
            rows += proxy.execute_sql(
                "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1"
            ).fetchall()
            rows += proxy.execute_sql("SELECT sequencename FROM pg_sequences ORDER BY 1").fetchall()
    return applied, repr(rows)


def steps(url: str, tmp_path: Path) -> Iterator[tuple[list[str], str]]:
    """The schema after each migration, one after the other, on this database."""
    for n in range(2, len(known_migrations()) + 1):
        folder = tmp_path / f"first-{n}"
        folder.mkdir()
        for name in known_migrations()[:n]:
            shutil.copy(database_module.MIGRATIONS / f"{name}.py", folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(database_module, "MIGRATIONS", folder)
            with opened(url) as database:
                database.migrate()
        yield fingerprint(url)


def migrate_and_die(url: str, after: int) -> bool:
    """Migrate in a process of its own, which is killed when that many statements are done; whether it came to its end."""
    child = os.fork()
    if child == 0:
        try:
            done = 0
            execute = database_module.peewee.Database.execute_sql

            def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
                nonlocal done
                result = execute(self, *args, **kwargs)
                done += 1
                if done == after:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            database_module.peewee.Database.execute_sql = counted
            Database(url).migrate()
            os._exit(0)
        finally:
            os._exit(9)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the migration itself failed"
    return os.WIFEXITED(status)


def test_f22_a_migration_killed_at_any_statement_leaves_the_old_schema_or_the_new_one(
    old_url: str, tmp_path: Path
) -> None:
    if old_url.startswith("sqlite"):
        copy = f"sqlite:///{tmp_path}/copy.db"
        shutil.copy(tmp_path / "old.db", tmp_path / "copy.db")
        found = [fingerprint(copy), *steps(copy, tmp_path)]
        whole = {len(applied): schema for applied, schema in found}
    else:
        whole = {1: fingerprint(old_url)[1]}
    # On Postgres a kill costs half a second: each fourth statement here, each one by `make soak`.
    stride = 1 if old_url.startswith("sqlite") or SOAK else 4
    kills, after, n_applied = 0, 1, 1
    while not migrate_and_die(old_url, after):
        kills += 1
        applied, schema = fingerprint(old_url)
        assert applied == known_migrations()[: len(applied)]
        assert whole.setdefault(len(applied), schema) == schema
        # What is applied stays; from there on each statement is the last one in its turn.
        after = after + stride if len(applied) == n_applied else 1
        n_applied = len(applied)
    assert kills > 50 / stride
    assert fingerprint(old_url)[0] == known_migrations()
    check(old_url, FEW)


def check(url: str, n_jobs: int) -> None:
    """Every row is there, and is what the new schema makes of it."""
    with opened(url) as database:
        assert Job.select().count() == n_jobs
        assert Attempt.select().count() == 2 * n_jobs
        final = [state.value for state in FINAL]
        assert not Job.select().where(Job.state.in_(final), Job.ended_at.is_null()).exists()
        assert not Job.select().where(Job.state.not_in(final), Job.ended_at.is_null(False)).exists()
        assert Attempt.select().where(Attempt.lease_seconds == 90).count() == 2 * n_jobs
        assert Attempt.select().where(Attempt.request_nr == 2).exists()
        if database.is_sqlite:
            assert proxy.execute_sql("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert proxy.execute_sql("PRAGMA foreign_key_check").fetchall() == []


@pytest.mark.timeout(1800)
def test_f22_a_database_with_many_jobs_is_migrated(empty_url: str, tmp_path: Path) -> None:
    """5,000 jobs here, a million by `make soak`."""
    make_old(empty_url, tmp_path, MANY)
    began = time.monotonic()
    with opened(empty_url) as database:
        assert database.migrate() == known_migrations()[1:]
    print(f"{MANY} jobs: {time.monotonic() - began:.1f} s")
    check(empty_url, MANY)


def test_the_migrations_make_the_tables_of_the_models(old_url: str) -> None:
    from playhouse.schema_diff import diff_models

    from server.models import TABLES

    with opened(old_url) as database:
        database.migrate()
        difference = diff_models(database._peewee, TABLES)
        odd = {re.sub(r"\s+", " ", str(each)) for each in (*difference.add_columns, *difference.drop_columns)}
        assert not odd
        assert not difference.create_tables


def test_98_what_the_archive_kept_of_failures_before_is_told_by_its_signature(
    empty_url: str, tmp_path: Path
) -> None:
    """Whether all of them said the same is not known any more."""
    before = tmp_path / "before"
    before.mkdir()
    for path in database_module.MIGRATIONS.glob("0*.py"):
        if path.name < "0015":
            shutil.copy(path, before)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database_module, "MIGRATIONS", before)
        with opened(empty_url) as database:
            database.migrate()
            database.write(
                lambda: proxy.execute_sql(
                    "INSERT INTO task_outcome (task_id, error, signature, node, queue, storage, n_attempts, n_jobs,"
                    " n_spread, n_recovered, first_job, example)"
                    " VALUES (1, 'PAYLOAD_FAILED', 'exit code N', 'n', 'q', '', 2, 2, 0, 0, 1, 'exit code 3')"
                )
            )
    with opened(empty_url) as database:
        assert database.migrate()[0] == "0015_same_texts"
        row = TaskOutcome.select().get()
    assert Failures(row.error, row.signature, row.example, row.last_example).text == "exit code N"
