from __future__ import annotations

import errno
from pathlib import Path

import pytest

from copytools.base import CopyTool, Deadline, FileTool, Option, shown
from protocol.errors import PilotageError
from protocol.values import Bounds, Type


class Slow(CopyTool):
    schemes = ("slow",)
    OPTIONS = {"speed_mb": Option(Type.INTEGER, "5", "megabytes a second", Bounds(1, 10))}


def refusal(tool: type, **options: object) -> PilotageError:
    with pytest.raises(PilotageError) as caught:
        tool(options)
    return caught.value


def test_options_have_the_types_and_defaults_of_their_rows() -> None:
    assert Slow({}).options["speed_mb"] == 5
    assert Slow({"speed_mb": "7"}).options["speed_mb"] == 7
    assert Slow({"data_root": "/data"}).options["data_root"] == Path("/data")
    assert Slow({"data_root": Path("/data")}).options["data_root"] == Path("/data")
    assert Slow({"data_root": None}).options["data_root"] is None


def test_an_unknown_option_is_refused_with_the_nearest_known_one() -> None:
    error = refusal(Slow, sped_mb="7")
    assert error.name == "BAD_SETTINGS"
    assert "did you mean speed_mb?" in error.detail


@pytest.mark.parametrize("value", ["0", "eleven", ""])
def test_a_wrong_value_is_refused_naming_section_and_key(value: str) -> None:
    error = refusal(Slow, speed_mb=value)
    assert error.name == "BAD_SETTINGS"
    assert error.detail.startswith("[copytool:test_base] speed_mb")


def test_checksums_that_cannot_be_calculated_are_refused_at_the_start() -> None:
    assert refusal(Slow, checksums="crc32").name == "CHECKSUM_NOT_SUPPORTED"
    assert Slow({"checksums": "md5, adler32"}).algorithms == ("md5", "adler32")


def test_a_relative_allowed_directory_is_refused() -> None:
    assert refusal(FileTool, directories="/data, scratch").name == "BAD_SETTINGS"


@pytest.mark.parametrize("root", ["/", "relative to the node's data root"])
def test_below_a_storage_that_is_missing_there_are_no_paths(root: str, tmp_path: Path) -> None:
    tool = FileTool({} if root == "/" else {"data_root": str(tmp_path)})
    tool.storage = f"file://{tmp_path}/out" if root == "/" else "file:out"
    with pytest.raises(PilotageError, match="there is no directory") as caught:
        tool.path_of(f"{tool.storage}/task/file.1")
    assert caught.value.name == "NODE_MOUNT_MISSING"
    assert tool.path_of(f"file://{tmp_path}/input") == tmp_path / "input", "others are none of its business"
    (tmp_path / "out").mkdir()
    assert tool.path_of(f"{tool.storage}/task/file.1") == tmp_path / "out" / "task" / "file.1"


def test_a_tool_for_one_job_stops_alone() -> None:
    tool = Slow({})
    for_one_job = tool.until(lambda: True)
    with pytest.raises(OSError, match="stopped") as caught:
        for_one_job.deadline(9).check()
    assert caught.value.errno == errno.ECANCELED
    tool.deadline(9).check()
    assert type(for_one_job) is Slow


def test_a_deadline_that_is_over_raises_and_a_pause_ends_with_it() -> None:
    over = Deadline(0)
    assert over.left() == 0
    with pytest.raises(TimeoutError):
        over.check()
    with pytest.raises(TimeoutError):
        over.pause(1000)
    with pytest.raises(OSError, match="stopped"):
        Deadline(1000, lambda: True).pause(1000)
    Deadline(1000).pause(0)


def test_what_is_shown_has_one_line_and_no_password() -> None:
    assert shown("root://me:hunter2@storage//a\nb") == "root://me:(hidden)@storage//a\\nb"


def test_an_interface_without_verbs_says_so() -> None:
    assert Slow({}).unusable() is None
    with pytest.raises(NotImplementedError):
        Slow({}).copy_in("slow:a", Path("a"), 1)
    with pytest.raises(NotImplementedError):
        Slow({}).copy_out(Path("a"), "slow:a", 1)
