"""Datasets and their files: all or nothing, names once, closed for good."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest

from protocol.messages.requests import DatasetSpec, FileSpec
from server import catalogue
from server.models import Dataset, File
from server.paging import Cursor
from tests.integration.server.world import World, at_once, files

BAD_FILES = {
    "b1": ("../../etc/cron.d/x", "BAD_LFN"),
    "b2": ("/abs/path", "BAD_LFN"),
    "b3": ("a/../../b", "BAD_LFN"),
    "b3 backslash": ("..\\", "BAD_LFN"),
    "b4 nul": ("a\0b", "BAD_LFN"),
    "b4 newline": ("a\nb", "BAD_LFN"),
    "b4 escape": ("\x1b[2J", "BAD_LFN"),
    "b4 right-to-left": ("a\u200fb", "BAD_LFN"),
    "b4 long": ("x" * 4000, "BAD_LFN"),
    "b4 component": ("x" * 256, "BAD_LFN"),
    "b4 dots": ("..", "BAD_LFN"),
    "b4 twin": (unicodedata.normalize("NFD", "ü.spd"), "BAD_LFN"),
    "b4 surrogate": ("a\ud800", "BAD_LFN"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_name_among_good_ones_leaves_nothing_behind(world: World, case: str) -> None:
    lfn, error = BAD_FILES[case]
    specs = [*files(2), FileSpec(lfn, 1, "file:///x"), *files(2, first=5)]
    with world.refused(error, r"files\[2\]"):
        catalogue.create(world.core, DatasetSpec("in", files=specs))
    world.dataset(1, close=False)
    with world.refused(error, r"files\[2\]"):
        catalogue.add_files(
            world.core, "in", [*files(2, first=10), FileSpec(lfn, 1, "file:///x")], close=True
        )


@pytest.mark.parametrize(
    ("file", "error"),
    [
        (FileSpec("a", 1, "file:///x/../y"), "BAD_PATH"),
        (FileSpec("a", 1, "file://other.host/x"), "BAD_PATH"),
        (FileSpec("a", 1, "/no/url"), "BAD_PATH"),
        (FileSpec("a", 1, "file:///x", {"sha1": "0" * 40}), "CHECKSUM_NOT_SUPPORTED"),
        (FileSpec("a", 1, "file:///x", {"md5": "0"}), "BAD_REQUEST"),
        (FileSpec("f00000.spd", 1, "file:///x"), "ALREADY_EXISTS"),
    ],
)
def test_a_bad_url_checksum_or_a_name_that_is_there_twice_is_refused(
    world: World, file: FileSpec, error: str
) -> None:
    with world.refused(error, r"files\[1\]"):
        catalogue.create(world.core, DatasetSpec("in", files=[*files(1), file]))


def test_a_name_that_the_scope_has_already_is_refused_with_all_that_came_with_it(world: World) -> None:
    world.dataset(450, close=False)
    with world.refused("ALREADY_EXISTS", "f00449.spd"):
        catalogue.add_files(world.core, "in", files(300, first=449), close=False)
    with world.refused("ALREADY_EXISTS"):
        catalogue.create(world.core, DatasetSpec("other", scope="in", files=files(1)))
    catalogue.create(world.core, DatasetSpec("other", files=files(1)))
    assert File.select().count() == 451, "another scope, another file"


def test_a_dataset_has_its_name_alone(world: World) -> None:
    world.dataset()
    with world.refused("ALREADY_EXISTS"):
        catalogue.create(world.core, DatasetSpec("in"))


def test_of_many_that_take_a_name_at_once_one_gets_it(world: World) -> None:
    futures = at_once([lambda: catalogue.create(world.core, DatasetSpec("in", files=files(3)))] * 8)
    errors = [future.exception() for future in futures]
    assert errors.count(None) == 1
    refused = [error for error in errors if error is not None]
    assert {getattr(error, "name", repr(error)) for error in refused} == {"ALREADY_EXISTS"}
    assert (Dataset.select().count(), File.select().count()) == (1, 3)


def test_a_closed_dataset_takes_no_file_and_stays_closed(world: World) -> None:
    world.dataset(2)
    with world.refused("WRONG_STATE", "closed"):
        catalogue.add_files(world.core, "in", files(1, first=5), close=False)
    with world.refused("WRONG_STATE", "closed"):
        catalogue.add_files(world.core, "in", [], close=True)
    with world.unchanged():
        assert catalogue.close(world.core, "in").state == "closed"


def test_files_may_come_in_parts_and_the_last_part_closes(world: World) -> None:
    world.dataset(2, close=False)
    catalogue.add_files(world.core, "in", files(2, first=2), close=False)
    view = catalogue.add_files(world.core, "in", files(1, first=4), close=True)
    assert (view.state, view.n_files, view.size) == ("closed", 5, 50)


def test_checksums_are_kept_in_lower_case_and_seen_again(world: World) -> None:
    spec = FileSpec("a", 5, "file:///x", {"md5": "AB" * 16, "adler32": "DEADBEEF"})
    catalogue.create(world.core, DatasetSpec("in", files=[spec]))
    [seen] = catalogue.files(Cursor(), dataset="in").items
    assert seen.checksums == {"md5": "ab" * 16, "adler32": "deadbeef"}
    assert (seen.lfn, seen.scope, seen.dataset, seen.size, seen.url) == ("a", "in", "in", 5, "file:///x")


@pytest.mark.parametrize("size", [0, 1, 2**20 - 1, 2**20, 2**63 - 1])
def test_the_size_of_a_dataset_is_right_however_large_its_files(world: World, size: int) -> None:
    specs = [FileSpec(f"f{n}", size, "file:///x") for n in range(3)]
    view = catalogue.create(world.core, DatasetSpec("in", files=specs))
    assert (view.n_files, view.size) == (3, 3 * size)


def test_an_empty_dataset_has_no_files_and_no_size(world: World) -> None:
    view = catalogue.create(world.core, DatasetSpec("in", close=True))
    assert (view.n_files, view.size, view.state) == (0, 0, "closed")


@pytest.mark.parametrize(
    ("query", "lfns"),
    [
        ({"dataset": "b"}, ["f00000.spd", "f00001.spd"]),
        ({"scope": "a"}, ["f00000.spd"]),
        ({"lfn": "f00000.spd"}, ["f00000.spd", "f00000.spd"]),
        ({"lfn": "f00000.spd", "scope": "b"}, ["f00000.spd"]),
        ({"lfn": "f%"}, []),
        ({"lfn": "' OR 1=1 --"}, []),
        ({"scope": "' OR 1=1 --"}, []),
    ],
)
def test_b15_files_are_found_by_what_they_are(world: World, query: dict[str, Any], lfns: list[str]) -> None:
    world.dataset(1, "a")
    world.dataset(2, "b")
    assert [file.lfn for file in catalogue.files(Cursor(), **query).items] == lfns


@pytest.mark.parametrize(
    ("part", "found"),
    [("a", ["abc", "xaz"]), ("%", []), ("_", []), ("'", []), ("b", ["abc"]), ("", ["abc", "xaz"])],
)
def test_b15_datasets_are_found_by_a_part_of_their_name(world: World, part: str, found: list[str]) -> None:
    for name in ("abc", "xaz"):
        catalogue.create(world.core, DatasetSpec(name))
    assert [dataset.name for dataset in catalogue.datasets(Cursor(), name=part).items] == found


@pytest.mark.parametrize("state", ["open", "closed", "deleted"])
def test_datasets_are_found_by_their_state(world: World, state: str) -> None:
    world.dataset(0, "shut")
    world.dataset(0, "wide", close=False)
    expected = {"open": ["wide"], "closed": ["shut"], "deleted": []}[state]
    assert [dataset.name for dataset in catalogue.datasets(Cursor(), state=state).items] == expected


def test_what_is_not_there_is_not_found(world: World) -> None:
    for call in (
        lambda: catalogue.find("nope"),
        lambda: catalogue.files(Cursor(), dataset="nope"),
        lambda: catalogue.close(world.core, "nope"),
        lambda: catalogue.add_files(world.core, "nope", [], close=False),
    ):
        with world.refused("NOT_FOUND"):
            call()
