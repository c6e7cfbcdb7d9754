"""Lists of files as people and programs write them, and what is said of a wrong one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pilot import staging
from protocol.errors import PilotageError

HERE = Path("/here")
MD5 = "0123456789abcdef0123456789abcdef"


def test_a_line_is_an_address_and_its_checksums() -> None:
    files = staging.from_list(
        f"# run 1\n\nroot://h//s/a%20b  adler32:0a1b2c3d md5:{MD5}\nfile:///s/c\n", HERE
    )
    assert [(file.url, file.path) for file in files] == [
        ("root://h//s/a%20b", HERE / "a b"), ("file:///s/c", HERE / "c"),
    ]  # fmt: skip
    assert files[0].checksums == {"adler32": "0a1b2c3d", "md5": MD5}


@pytest.mark.parametrize("as_lines", [False, True], ids=["array", "lines"])
def test_what_dataset_files_prints_is_a_list(as_lines: bool) -> None:
    rows = [
        {"lfn": "a.spd", "url": "file:///s/a.spd.17", "size": 7, "checksums": {"md5": MD5}, "state": "available"},
        {"lfn": "b.spd", "url": "file:///s/b.spd.18", "size": None, "checksums": None},
    ]  # fmt: skip
    text = "\n".join(map(json.dumps, rows)) if as_lines else json.dumps(rows, indent=2)
    files = staging.from_list(text, HERE)
    assert [(file.path.name, file.size, dict(file.checksums)) for file in files] == [
        ("a.spd", 7, {"md5": MD5}), ("b.spd", None, {}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file:///s/a\nfile:///s/b md5", "line 2: 'md5' is no checksum"),
        ("file:///s/a crc99:00", "line 1: 'crc99'; known are"),
        ("file:///s/..", "line 1: '..'"),
        ("file://[/a", "no URL"),
        ("{", "line 1 is no JSON"),
        ("[1,", "the list is no JSON"),
        ("[" * 100_000, "the list is no JSON"),
        ("[7]", 'file 1: a file is an object with a "url"'),
        ('{"lfn": "a"}', 'line 1: a file is an object with a "url"'),
        ('[{"url": "file:///a", "size": "7"}]', "file 1: size is '7', not a int"),
        ('[{"url": "file:///a", "lfn": "../../etc/passwd"}]', "file 1: '../../etc/passwd' contains a slash"),
        ('[{"url": "file:///a", "checksums": {"md5": "x"}}]', "file 1: a checksum md5 has 32"),
    ],
)
def test_b01_what_is_wrong_in_a_list_is_told_with_its_place(text: str, said: str) -> None:
    with pytest.raises(PilotageError) as caught:
        staging.from_list(text, HERE)
    assert said in str(caught.value) and len(str(caught.value)) < 600


def test_two_files_of_one_name_are_refused() -> None:
    with pytest.raises(PilotageError) as caught:
        staging.check_names(staging.from_arguments(["file:///s/a", "file:///t/a"], HERE))
    assert "file:///s/a and file:///t/a would both be a" in str(caught.value)


def test_outputs_go_below_the_address_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "two words").write_bytes(b"1234")
    (file,) = staging.outgoing([tmp_path / "two words"], "root://h//s/")
    assert (file.url, file.size) == ("root://h//s/two%20words", 4)
