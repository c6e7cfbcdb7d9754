"""A dispatcher of the tests, and a node whose pilots pull from it."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Iterator

import pytest

from tests.fakes.dispatcher import Dispatcher
from tests.pilots import Site
from tests.waiting import wait_until


@pytest.fixture
def dispatcher(tmp_path: Path) -> Iterator[Dispatcher]:
    storage = tmp_path / "storage"
    (storage / "log").mkdir(parents=True)
    with Dispatcher(storage) as running:
        yield running


@pytest.fixture
def site(tmp_path: Path, dispatcher: Dispatcher) -> Iterator[Site]:
    place = tmp_path / "node"
    place.mkdir()
    made = Site(place, dispatcher)
    yield made
    made.clear()


@pytest.fixture
def reached(dispatcher: Dispatcher) -> Callable[..., None]:
    """Wait until an attempt has been in a state."""

    def wait(number: int, state: str, seconds: float = 10) -> None:
        wait_until(
            lambda: state in dispatcher.attempt(number).states, seconds, f"attempt {number} in {state}"
        )

    return wait
