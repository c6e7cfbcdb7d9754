"""The server of a module, and for each test a world beside it; `own_world` has a server that a test may kill."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.world import World
from tests.running_server import RunningServer, serving


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One server for the tests of a module; each of them has queues, tasks and datasets of its own."""
    with serving(tmp_path_factory.mktemp("shared") / "server") as server:
        yield server


@pytest.fixture
def world(shared_server: RunningServer, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    """Pilots and commands beside the server of this module."""
    yield from _world(shared_server, tmp_path, request)


@pytest.fixture
def own_world(
    running_server: RunningServer, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[World]:
    """The same beside a server of its own."""
    yield from _world(running_server, tmp_path, request)


def _world(server: RunningServer, directory: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    words = re.sub(r"\W+", "-", request.node.name.removeprefix("test_"))[:30].strip("-")
    world = World(server, directory, words)
    yield world
    world.close()
