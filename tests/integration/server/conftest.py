"""A server core on each database: on SQLite and on a real Postgres, with the schema that the migrations make."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from server import computing
from server.access import tokens
from server.access.tokens import Role
from server.app import create_app
from server.core import Core, Limits
from server.database import Database, proxy
from server.models import Storage
from tests.integration.server.tenants import Tenants
from tests.integration.server.world import KEY, OWNER, Bearer, World
from tests.postgres import Cluster

POSTGRES = pytest.param("postgres", marks=pytest.mark.component("postgres"))
NAME = "pilotage"


def _set_up(url: str) -> None:
    """Bring an empty database to where a new installation stands."""
    database = Database(url)
    core = Core(database, b"", Path("/nowhere"))
    try:
        database.migrate()
        database.write(lambda: computing.set_up_defaults(core, "file:///srv/storage"))
    finally:
        database.close()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file with the schema in it: a copy costs less than the migrations."""
    path = tmp_path_factory.mktemp("template") / "pilotage.db"
    _set_up(f"sqlite:///{path}")
    return path


class SharedPostgres:
    """One database for all tests, and its connections: to bring it back to its beginning takes 2 ms, another one 70 ms."""

    def __init__(self, cluster: Cluster) -> None:
        import psycopg

        cluster.execute(f"CREATE DATABASE {NAME} TEMPLATE template0")
        self.url = cluster.url(NAME)
        _set_up(self.url)
        self._database = Database(self.url)
        self._connection = psycopg.connect(self.url, autocommit=True)
        query = (
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'schema_migration'"
        )
        tables = [name for (name,) in self._connection.execute(query)]
        first = {name: self._connection.execute(f'SELECT * FROM "{name}"').fetchall() for name in tables}
        self._first = {name: rows for name, rows in first.items() if rows}
        sequences = self._connection.execute(
            "SELECT sequencename FROM pg_sequences"
            " WHERE schemaname = 'public' AND sequencename NOT LIKE 'schema_migration%'"
        )
        words = [f'DELETE FROM "{name}"' for name in tables]
        words += [f"SELECT setval('{name}', 1, false)" for (name,) in sequences]
        # A superuser's way to say: no foreign keys for now.
        self._empty = "SET session_replication_role = replica; " + "; ".join(words)

    def database(self) -> Database:
        """As after a new installation, and what the models are bound to."""
        self.reset()
        proxy.initialize(self._database._peewee)
        return self._database

    def reset(self) -> None:
        """Whoever a test left in a transaction is put out, and only the rows of a new installation are there."""
        self._connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'"
        )
        self._connection.execute(self._empty)
        for name, rows in self._first.items():
            marks = ", ".join(["%s"] * len(rows[0]))
            for row in rows:
                self._connection.execute(f'INSERT INTO "{name}" VALUES ({marks})', row)

    def close(self) -> None:
        self._database.close()
        self._connection.close()


@pytest.fixture(scope="session")
def shared_postgres(postgres_cluster: Cluster) -> Iterator[SharedPostgres]:
    shared = SharedPostgres(postgres_cluster)
    yield shared
    shared.close()


@pytest.fixture
def sqlite_core_url(sqlite_template: Path, tmp_path: Path) -> str:
    """The URL of a fresh database with a new installation's rows in it."""
    path = tmp_path / "pilotage.db"
    shutil.copy(sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgres_core_url(shared_postgres: SharedPostgres) -> str:
    """The same on Postgres."""
    shared_postgres.reset()
    return shared_postgres.url


@pytest.fixture(params=["sqlite", POSTGRES])
def database_url(request: pytest.FixtureRequest) -> str:
    """On each database in turn."""
    url: str = request.getfixturevalue(f"{request.param}_core_url")
    return url


@pytest.fixture
def limits() -> Limits:
    """A test that wants others overrides this."""
    return Limits()


@pytest.fixture(params=["sqlite", POSTGRES])
def core(request: pytest.FixtureRequest, tmp_path: Path, limits: Limits) -> Iterator[Core]:
    """A core with the queues CPU and GPU at LOCAL, and no pilots, datasets or tasks; on each database in turn."""
    if request.param == "postgres":
        database = request.getfixturevalue("shared_postgres").database()
    else:
        database = Database(request.getfixturevalue("sqlite_core_url"))
    try:
        with database.reading():
            yield Core(database, KEY, tmp_path, limits)
    finally:
        if database.is_sqlite:
            database.close()


@pytest.fixture
def world(core: Core) -> World:
    return World(core)


@pytest.fixture
def postgres_core(shared_postgres: SharedPostgres, tmp_path: Path) -> Core:
    """For what SQLite with its one writer cannot do."""
    return Core(shared_postgres.database(), KEY, tmp_path)


class CurrentCore:
    """The core of the test that runs now: to make an application takes longer than most of the tests."""

    now: Core

    def __getattr__(self, name: str) -> Any:
        return getattr(self.now, name)


@pytest.fixture(scope="session")
def application() -> tuple[Flask, CurrentCore]:
    current: Any = CurrentCore()
    return create_app(current), current


@pytest.fixture
def client(core: Core, application: tuple[Flask, CurrentCore]) -> FlaskClient:
    """Speaks to the application without a socket."""
    app, current = application
    current.now = core
    (core.state_directory / "pilot.pyz").write_bytes(b"not a real pilot")
    return app.test_client()


@pytest.fixture
def bearer(core: Core) -> Bearer:
    """A token of each role; the user is the owner of what `World` makes."""
    names = {Role.PILOT: "pilot", Role.USER: OWNER, Role.GROUP: "manager", Role.ADMIN: "admin"}
    return Bearer(
        core.database.write(lambda: {role: tokens.create(name, role) for role, name in names.items()})
    )


@pytest.fixture
def tenants(core: Core, client: FlaskClient, bearer: Bearer) -> Tenants:
    return Tenants(core, client, bearer)


@pytest.fixture
def url(core: Core, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """Where the database of `core` is."""
    if core.database.is_sqlite:
        return f"sqlite:///{tmp_path}/pilotage.db"
    return str(request.getfixturevalue("shared_postgres").url)


@pytest.fixture
def storage(core: Core, tmp_path: Path) -> Path:
    """The storage of the queues, on this disk."""
    directory = tmp_path / "storage"
    directory.mkdir()
    core.database.write(lambda: Storage.update(url=f"file://{directory}").execute())
    return directory
