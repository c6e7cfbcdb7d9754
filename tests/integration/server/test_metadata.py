"""What people say of datasets, and finding them by it."""

from __future__ import annotations

import pytest

from protocol.messages.requests import DatasetSpec, MetadataChange
from server import catalogue
from server.paging import Cursor
from tests.integration.server.world import World, refusing


def say(world: World, name: str, **values: str) -> None:
    catalogue.set_metadata(world.core, name, MetadataChange(values))


@pytest.fixture
def runs(world: World) -> World:
    for number in (6, 7, 8):
        catalogue.create(world.core, DatasetSpec(f"run-{number}"))
        say(world, f"run-{number}", run=str(number), beam="pp" if number < 8 else "dd")
    catalogue.create(world.core, DatasetSpec("other"))
    say(world, "other", run="none", note="a=b, <c> 100% 'x'")
    return world


def found(*where: str) -> list[str]:
    return [dataset.name for dataset in catalogue.datasets(Cursor(), where=where).items]


@pytest.mark.parametrize(
    ("where", "names"),
    [
        (["run=7"], ["run-7"]),
        (["run=07"], []),
        (["run>=7"], ["run-7", "run-8"]),
        (["run>6", "run<8"], ["run-7"]),
        (["run<=6.5"], ["run-6"]),
        (["beam=pp", "run<1e3"], ["run-6", "run-7"]),
        (["run=none"], ["other"]),
        (["note=a=b, <c> 100% 'x'"], ["other"]),
        (["beam=%"], []),
        (["nothing=1"], []),
        ([], ["run-6", "run-7", "run-8", "other"]),
    ],
)
def test_datasets_are_found_by_what_is_said_of_them(runs: World, where: list[str], names: list[str]) -> None:
    assert found(*where) == names


@pytest.mark.parametrize(
    "condition", ["run", "", "=7", "run>x", "run>nan", "run<inf", "a b=c", "run!=7", "' OR 1=1 --"]
)
def test_b15_a_condition_of_another_shape_is_refused(runs: World, condition: str) -> None:
    with refusing("BAD_REQUEST", "where"):
        found(condition)


def test_values_are_changed_and_taken_away_and_the_others_stay(runs: World) -> None:
    view = catalogue.set_metadata(
        runs.core, "run-7", MetadataChange({"beam": "dd", "new": "1"}, ["run", "nothing"])
    )
    assert view.metadata == {"beam": "dd", "new": "1"}
    assert found("beam=dd") == ["run-7", "run-8"]
    assert catalogue.set_metadata(runs.core, "run-7", MetadataChange(unset=["beam", "new"])).metadata is None


@pytest.mark.parametrize(
    "values",
    [{"a b": "x"}, {"": "x"}, {"a=b": "x"}, {"a": ""}, {"a": "x" * 501}, {"a": "x\ny"}, {"a": "\x1b[2J"}],
)
def test_what_is_no_key_or_no_value_is_refused_with_all_that_came_with_it(
    runs: World, values: dict[str, str]
) -> None:
    with runs.refused("BAD_REQUEST"):
        catalogue.set_metadata(runs.core, "run-7", MetadataChange({"good": "1", **values}))


def test_a_dataset_has_so_many_keys_and_no_more(runs: World) -> None:
    say(runs, "run-7", **{f"k{number}": "\U0001f600" * 500 for number in range(98)})
    with runs.refused("BAD_REQUEST", "at most 100 keys"):
        say(runs, "run-7", one="more")


def test_a_closed_dataset_may_be_described_and_a_deleted_one_not(runs: World) -> None:
    catalogue.close(runs.core, "run-7")
    say(runs, "run-7", quality="good")
    catalogue.delete(runs.core, "run-7", "ada")
    with runs.refused("WRONG_STATE", "was deleted"):
        say(runs, "run-7", quality="bad")
    assert found("quality=good") == []
    with runs.refused("NOT_FOUND"):
        say(runs, "nope", quality="bad")
