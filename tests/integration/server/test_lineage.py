"""Of what datasets were made, and what was made of them."""

from __future__ import annotations

import pytest
from playhouse.test_utils import count_queries

from protocol.messages.requests import ContainerSpec
from server import catalogue, containers, lineage
from server.jobs import operations
from tests.integration.server.world import World


def told(name: str) -> list[tuple[int, str, str, list[str]]]:
    steps = lineage.of(catalogue.find(name)).steps
    return [(step.level, step.dataset, step.task, step.inputs) for step in steps]


@pytest.fixture
def chain(world: World) -> World:
    """raw, other → c → reco → reco.out → sum → sum.out; raw → check → check.out."""
    world.dataset(1, "raw")
    world.dataset(1, "other")
    containers.create(world.core, ContainerSpec("c", ["raw", "other"]), "ada")
    world.task("reco", input_dataset="c", outputs=["{job_nr}.reco"])
    world.task("sum", input_dataset="reco.out", outputs=["{stem}.sum"])
    world.task("check", input_dataset="raw", outputs=["{stem}.check"])
    return world


def test_a_dataset_is_followed_to_its_beginning_through_containers(chain: World) -> None:
    assert told("sum.out") == [
        (-2, "raw", "", []),
        (-2, "other", "", []),
        (-1, "reco.out", "reco", ["raw", "other"]),
        (0, "sum.out", "sum", ["reco.out"]),
    ]


def test_and_to_all_that_was_made_of_it(chain: World) -> None:
    assert told("raw") == [
        (0, "raw", "", []),
        (1, "reco.out", "reco", ["raw", "other"]),
        (1, "check.out", "check", ["raw"]),
        (2, "sum.out", "sum", ["reco.out"]),
    ]
    assert [name for _, name, _, _ in told("other")] == ["other", "reco.out", "sum.out"]


def test_what_was_deleted_is_told_with_what_made_it(chain: World) -> None:
    for name in ("reco", "sum", "check"):
        operations.cancel(chain.core, name, "ada", False)
    chain.close_tasks()
    catalogue.delete(chain.core, "reco.out", "ada")
    steps = {step.dataset: step for step in lineage.of(catalogue.find("sum.out")).steps}
    assert (steps["reco.out"].state, steps["reco.out"].command) == ("deleted", "true")


def test_of_very_many_some_are_told_and_that_there_are_more(
    chain: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineage, "MOST", 2)
    found = lineage.of(catalogue.find("raw"))
    assert found.more and [step.dataset for step in found.steps] == ["raw", "reco.out"]


def test_of_very_many_inputs_of_a_task_some_are_told_and_that_there_are_more(
    chain: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineage, "MOST_INPUTS", 1)
    found = lineage.of(catalogue.find("reco.out"))
    assert found.more
    assert {step.dataset: step.inputs for step in found.steps if step.task} == {
        "reco.out": ["raw"],
        "sum.out": ["reco.out"],
    }
    assert not lineage.of(catalogue.find("check.out")).more


def test_the_database_is_asked_by_level_and_not_by_dataset(chain: World) -> None:
    def asked() -> int:
        with count_queries() as counted:
            lineage.of(catalogue.find("raw"))
        return int(counted.count)

    before = asked()
    for nr in range(5):
        chain.task(f"more{nr}", input_dataset="raw", outputs=["{stem}.more"])
    assert len(told("raw")) == 9
    assert asked() == before


def test_a_dataset_that_nobody_made_or_read_stands_alone(world: World) -> None:
    world.dataset(1, "alone")
    assert told("alone") == [(0, "alone", "", [])]
