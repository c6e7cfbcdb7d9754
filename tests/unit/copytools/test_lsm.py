"""A site's own commands: how they are written, what reaches them, what their codes mean, and the sections that the documentation shows."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Dict, List, Optional
from urllib.parse import quote

import pytest

from copytools import lsm
from protocol import ini
from protocol.errors import PilotageError

ROOT = Path(__file__).parent.parent.parent.parent
PAGE = ROOT / "docs" / "copytools.md"
NAMES = ["plain", "-rf", "two words", "'\"$(id)`;x", "--help=%s {url}", "Zürich\\"]


def wrong(action: object, *given: object) -> PilotageError:
    assert callable(action)
    with pytest.raises(PilotageError) as caught:
        action(*given)
    return caught.value


def tool(**options: str) -> lsm.Tool:
    return lsm.Tool(
        {"get_command": "cp -T -- {path} {local}", "put_command": "cp -nT -- {local} {path}", **options}
    )


# -- settings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"get_command": "get {where} {local}"}, "get_command: '{where}' in the get_command is no placeholder"),
        ({"stat_command": "stat {size}"}, "stat_command: '{size}'"),
        ({"put_command": "put 'half"}, "put_command: No closing quotation"),
        ({"put_command": "sh -c 'echo ${2%/}'"}, "put_command"),
        ({"exit_codes": "2"}, "exit_codes: 2 is no exit code"),
        ({"exit_codes": "2:NOSUCH"}, "exit_codes: 2:NOSUCH"),
        ({"exit_codes": "256:ENOENT"}, "exit_codes: 256:ENOENT"),
        ({"exit_codes": "2:errorcode"}, "exit_codes: 2:errorcode"),
        ({"checksum_algorithm": "sha1"}, "checksum_algorithm"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_told_with_what_would_be_right(options: Dict[str, str], expected: str) -> None:
    error = wrong(lambda: tool(**options))
    assert error.name == "BAD_SETTINGS" and expected in error.detail


def test_commands_that_are_not_set_or_not_there_make_it_unusable(tmp_path: Path) -> None:
    assert lsm.Tool({}).unusable() == "[copytool:lsm] get_command is not set"
    assert tool(remove_command=f"{tmp_path}/none {{url}}").unusable() == f"{tmp_path}/none cannot be run"
    assert tool().unusable() is None


# -- arguments ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_b24_a_name_is_a_part_of_one_argument_and_never_an_option(tmp_path: Path, name: str) -> None:
    """A stand-in writes down what it was started with."""
    program = f"{sys.executable} -c 'import json, sys; json.dump(sys.argv[1:], open(sys.argv[1], \"w\"))'"
    mine = tool(get_command=f"{program} {{local}} {{url}} {{path}} --from={{path}}", schemes="root")
    mine.get(f"root://host//s/{quote(name)}", tmp_path / "said", mine.deadline(30))
    said: List[str] = json.loads((tmp_path / "said").read_text())
    path = f"/s/{name}"
    assert said == [str(tmp_path / "said"), f"root://host//s/{quote(name)}", path, f"--from={path}"]


@pytest.mark.parametrize("url", ["root://host//a/../b", "root://host/%2e%2e/b", "root://host//a%0ab", "root://host/", "root://[/a"])  # fmt: skip
def test_b25_paths_that_lead_astray_reach_no_command(tmp_path: Path, url: str) -> None:
    mine = tool(get_command="touch {local}", schemes="root")
    assert wrong(mine.copy_in, url, tmp_path / "a", 30.0).name == "BAD_PATH"
    assert list(tmp_path.iterdir()) == []


def test_b25_a_file_on_this_node_lies_where_it_may(tmp_path: Path) -> None:
    mine = tool(directories="/nowhere")
    (tmp_path / "a").write_text("a")
    assert wrong(mine.copy_in, f"file://{tmp_path}/a", tmp_path / "b", 30.0).name == "BAD_PATH"


# -- what commands say --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("sh -c 'exit 2'", "INPUT_NOT_FOUND"),
        ("sh -c 'exit 51'", "STORAGE_UNREACHABLE"),
        ("sh -c 'exit 3'", "STAGE_IN_FAILED"),
        ("sh -c 'kill -9 $$'", "COPYTOOL_DIED"),
        ("/nowhere/get", "COPYTOOL_DIED"),
        ("true", "STAGE_IN_FAILED"),
    ],
)
def test_f14_exit_codes_mean_what_the_site_says(tmp_path: Path, command: str, expected: str) -> None:
    mine = tool(get_command=command, exit_codes="2:ENOENT, 51:EHOSTUNREACH")
    assert wrong(mine.copy_in, f"file://{tmp_path}/a", tmp_path / "b", 30.0).name == expected
    assert list(tmp_path.iterdir()) == []


def test_how_far_an_input_is_is_told_while_it_comes(tmp_path: Path) -> None:
    """The command ends once the first half was heard of."""
    told: List[int] = []

    def moved(n_bytes: int) -> None:
        told.append(n_bytes)
        if n_bytes:
            (tmp_path / "heard").touch()

    script = 'printf 12345 > "$1"; until test -e "$2"; do sleep 0.02; done; printf 67890 >> "$1"'
    mine = tool(get_command=f"sh -c '{script}' get {{local}} {tmp_path}/heard")
    mine.until(lambda: False, moved).copy_in(f"file://{tmp_path}/a", tmp_path / "b", 60)
    assert 5 in told and (tmp_path / "b").read_text() == "1234567890"


STORES = {"put_command": "cp -T -- {local} {path}"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"put_command": "true"}, None),
        ({"put_command": "true", "stat_command": "echo 6"}, "OUTPUT_EXISTS"),
        ({**STORES, "stat_command": "sh -c 'test -e \"$1\" || exit 2; echo 4' stat {path}"}, "STAGE_OUT_MISMATCH"),
        ({**STORES, "stat_command": "sh -c 'test -e \"$1\" || exit 2; echo no' stat {path}"}, "STAGE_OUT_FAILED"),
        ({**STORES, "checksum_command": f"echo {'0' * 32}"}, "STAGE_OUT_MISMATCH"),
        ({**STORES, "checksum_command": "echo none"}, "STAGE_OUT_FAILED"),
        ({**STORES, "checksum_command": "md5sum {path}"}, None),
    ],
)  # fmt: skip
def test_f14_what_is_verified_is_what_there_are_commands_for(
    tmp_path: Path, options: Dict[str, str], expected: Optional[str]
) -> None:
    (tmp_path / "a").write_text("12345")
    mine = tool(exit_codes="2:ENOENT", remove_command="rm -f -- {path}", **options)
    if expected is None:
        mine.copy_out(tmp_path / "a", f"file://{tmp_path}/b", 30)
    else:
        assert wrong(mine.copy_out, tmp_path / "a", f"file://{tmp_path}/b", 30.0).name == expected
        assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_what_cannot_be_removed_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a").write_text("12345")
    mine = tool(checksum_command="echo none", **STORES)
    assert wrong(mine.copy_out, tmp_path / "a", f"file://{tmp_path}/b", 30.0).name == "STAGE_OUT_FAILED"
    assert "remove_command is not set" in str([vars(record) for record in caplog.records])


def test_size_and_checksum_reach_the_command(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("12345")
    mine = tool(put_command='sh -c \'echo "$1 $2" > "$3"\' put {size} {checksum} {path}')
    mine.copy_out(tmp_path / "a", f"file://{tmp_path}/b", 30)
    assert (tmp_path / "b").read_text() == "5 md5:827ccb0eea8a706c4c34a16891f84e7b\n"


# -- the documentation --------------------------------------------------------------------------------------------------


def shown(title: str, here: Path) -> Dict[str, str]:
    """The section [copytool:lsm] below a title, as the pilot reads it, with the storage of the tests."""
    part = PAGE.read_text().partition(f"### {title}")[2]
    lines = re.findall(r"^    (.*)$", part.partition("###")[0], re.M)
    read = ini.parse("\n".join(lines).encode(), PAGE)
    assert {each.section for each in read.entries} == {"copytool:lsm"}
    return {each.key: re.sub(r"/(?:gpfs|storage)\b", str(here), each.text) for each in read.entries}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("title", ["mv", "storm"])
def test_the_sections_that_are_shown_work(tmp_path: Path, title: str, name: str) -> None:
    storage, node = tmp_path / "storage", tmp_path / "node"
    storage.mkdir()
    node.mkdir()
    mine = lsm.Tool(shown(title, storage))
    assert mine.unusable() is None
    root = "srm://storm.example/area" if title == "storm" else f"file://{storage}/area"
    url, place = f"{root}/{quote(name)}", storage / "area" / name
    (node / "out").write_text("an output")
    inode = (node / "out").stat().st_ino
    first = mine.copy_out(node / "out", url, 30)
    assert place.read_text() == "an output" and (place.stat().st_ino == inode) == (title == "mv")
    assert mine.copy_in(url, node / "in", 30) == first
    assert (node / "in").read_text() == "an output"

    (node / "other").write_text("other")
    assert wrong(mine.copy_out, node / "other", url, 30.0).name == "OUTPUT_EXISTS"
    assert place.read_text() == "an output"
    assert wrong(mine.copy_in, f"{root}/none", node / "none", 30.0).name == "INPUT_NOT_FOUND"
    mine.remove(url, mine.deadline(30))
    assert os.listdir(storage / "area") == []
    assert sorted(os.listdir(node)) == ["in", "other", "out"]


@pytest.mark.parametrize("title", ["mv", "storm"])
def test_a_put_that_finds_another_file_says_so_by_itself(tmp_path: Path, title: str) -> None:
    """Should somebody write that name between the look and the copy."""
    options = shown(title, tmp_path)
    path = "/b" if title == "storm" else f"{tmp_path}/b"
    (tmp_path / "a").write_text("ours")
    (tmp_path / "b").write_text("theirs")
    script = shlex.split(options["put_command"])
    words = [each.format(local=f"{tmp_path}/a", path=path) for each in script]
    assert os.spawnvp(os.P_WAIT, words[0], words) == 17
    assert (tmp_path / "b").read_text() == "theirs" and (tmp_path / "a").read_text() == "ours"


def test_without_a_stat_command_it_neither_looks_at_files_nor_removes_what_may_be_anybodys(
    tmp_path: Path,
) -> None:
    (tmp_path / "theirs").write_bytes(b"theirs")
    (tmp_path / "ours").write_bytes(b"ours")
    mine = tool(put_command="false", remove_command="rm -f -- {path}")
    with pytest.raises(PilotageError) as caught:
        mine.look(f"file://{tmp_path}/theirs", 9)
    assert caught.value.name == "UNKNOWN_COPYTOOL" and "stat_command is not set" in caught.value.detail
    with pytest.raises(PilotageError):
        mine.copy_out(tmp_path / "ours", f"file://{tmp_path}/theirs", 9)
    assert (tmp_path / "theirs").read_bytes() == b"theirs"
