from __future__ import annotations

from pathlib import Path
from typing import Optional

import pytest

import copytools
from copytools import cp, nfs, null
from copytools.base import CopyTool
from protocol.errors import PilotageError


def detail_of(action: object, *arguments: object) -> str:
    assert callable(action)
    with pytest.raises(PilotageError) as caught:
        action(*arguments)
    assert caught.value.name == "UNKNOWN_COPYTOOL"
    return caught.value.detail


def test_every_module_of_the_folder_is_a_tool_or_a_named_part() -> None:
    assert set(copytools.names()) >= {"cp", "nfs", "null"}
    for name in copytools.names():
        tool = copytools.load(name, {})
        assert isinstance(tool, CopyTool)
        assert tool.schemes, f"{name} knows no URL"


def test_a_tool_is_found_by_its_file_name() -> None:
    assert type(copytools.load("cp", {})) is cp.Tool
    assert type(copytools.load("nfs", {})) is nfs.Tool


@pytest.mark.parametrize("name", ["nope", "", "base", "copying", "../cp", "cp.Tool", "os", "CP", "x" * 5000])
def test_an_unknown_tool_is_refused_with_the_names_there_are(name: str) -> None:
    assert detail_of(copytools.load, name, {}).endswith(f"there are {', '.join(copytools.names())}")


def bring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str, module: str = "") -> None:
    """Install a package that has this entry point and, if given, this module."""
    info = tmp_path / "outside-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[pilotage.copytools]\n{entry}\n")
    if module:
        (tmp_path / f"{entry.split(' = ')[1]}.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)


def test_an_outside_tool_does_not_hide_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bring(tmp_path, monkeypatch, "cp = outside_cp", "raise SystemExit('never imported')")
    assert type(copytools.load("cp", {})) is cp.Tool


def test_an_outside_tool_that_cannot_be_imported_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(tmp_path, monkeypatch, "far = outside_far", "import a_module_that_is_not_there")
    assert "far" in copytools.names()
    assert "a_module_that_is_not_there" in detail_of(copytools.load, "far", {})


def test_an_outside_module_without_a_tool_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bring(tmp_path, monkeypatch, "odd = outside_odd", "Tool = 3")
    assert "has no class Tool" in detail_of(copytools.load, "odd", {})


# -- by address -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "allowed", "expected"),
    [
        ("file:///a", [], cp.Tool),
        ("file:a", ["cp", "nfs"], cp.Tool),
        ("file:a", ["nfs", "cp"], nfs.Tool),
        ("FILE:///a", ["null", "nfs"], nfs.Tool),
        ("null:a", [], null.Tool),
    ],
)
def test_the_first_allowed_tool_that_knows_the_scheme_is_taken(
    url: str, allowed: list, expected: type
) -> None:
    assert type(copytools.for_url(url, allowed, {})) is expected


@pytest.mark.parametrize("url", ["gopher://host//a", "/a", "", "file", "ftp://me:secret@h/a"])
def test_b25_an_address_that_no_tool_knows_is_refused(url: str) -> None:
    detail = detail_of(copytools.for_url, url, [], {})
    assert "cp knows file" in detail
    assert "secret" not in detail


def test_a_tool_that_is_not_allowed_is_not_taken() -> None:
    assert detail_of(copytools.for_url, "file:///a", ["null"], {}) == "file:///a: null knows null"


def test_a_name_that_does_not_exist_is_no_silent_exception() -> None:
    assert detail_of(copytools.for_url, "file:///a", ["xrdpc", "cp"], {}).startswith(
        "no copytool xrdpc; there are"
    )


def test_a_tool_that_does_not_work_here_is_passed_over_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unusable(self: CopyTool) -> Optional[str]:
        return "its server is away"

    monkeypatch.setattr(cp.Tool, "unusable", unusable)
    assert type(copytools.for_url("file:///a", ["cp", "nfs"], {})) is nfs.Tool
    assert "cp: its server is away" in detail_of(copytools.for_url, "file:///a", ["cp"], {})


def test_options_reach_the_tool() -> None:
    assert copytools.for_url("file:a", [], {"data_root": "/data"}).options["data_root"] == Path("/data")


def test_null_remembers_what_it_was_asked_for() -> None:
    tool = null.Tool({})
    tool.copy_in("null:a", Path("/scratch/a"), 5)
    tool.until(lambda: False).copy_out(Path("/scratch/b"), "null:b", 6)
    assert tool.calls == [
        null.Call("copy_in", "null:a", Path("/scratch/a"), 5),
        null.Call("copy_out", "null:b", Path("/scratch/b"), 6),
    ]
