"""Installations for fault tests: one per database that all share, and a factory of own ones for tests that kill the server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.acceptance.world import World
from tests.faults.installation import Installation, installed

DATABASES = ["sqlite", pytest.param("postgres", marks=pytest.mark.component("postgres"))]


class Install(Protocol):
    def __call__(self, *options: str, **extra: Any) -> AbstractContextManager[Installation]: ...


@pytest.fixture(scope="session", params=DATABASES)
def database(request: pytest.FixtureRequest) -> str:
    """Each in turn, for the whole session: all tests of one database run together."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def shared(
    database: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """A server that no test ends."""
    cluster = request.getfixturevalue("postgres_cluster") if database == "postgres" else None
    with installed(tmp_path_factory.mktemp("faults") / "server", cluster) as installation:
        yield installation


@pytest.fixture
def where(shared: Installation) -> Installation:
    return shared.beginning()


@pytest.fixture
def install(database: str, request: pytest.FixtureRequest, tmp_path: Path) -> Install:
    """Another installation: `with install("--option", …) as where`."""
    cluster = request.getfixturevalue("postgres_cluster") if database == "postgres" else None
    return lambda *options, **extra: installed(tmp_path / "server", cluster, *options, **extra)


@pytest.fixture
def world(
    shared: Installation, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """Real pilots beside the shared server."""
    name = re.sub(r"\W+", "-", request.node.name.removeprefix("test_"))[:20].strip("-")
    world = World(shared.server, tmp_path_factory.mktemp(name), name)
    yield world
    world.close()
