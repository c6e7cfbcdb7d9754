"""The copytool gfal beside what its conformance tests show: which Python, whose modules, files of this node."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from copytools import checksum, gfal
from protocol.errors import PilotageError
from tests.storages.gfal import PYTHON

pytestmark = pytest.mark.component("gfal")


def test_a_python_without_the_library_makes_it_unusable() -> None:
    assert gfal.Tool({}).unusable() is None
    for python in ("/nowhere/python3", sys.executable):
        reason = gfal.Tool({"python": python}).unusable()
        assert reason is not None and "python3-gfal2" in reason


@pytest.mark.parametrize("name", ["plain", "two words", "100%41", "a#b?c=d", "'\"$(id)`", "Zürich"])
def test_files_of_this_node_go_there_and_back(tmp_path: Path, name: str) -> None:
    tool = gfal.Tool({})
    url = f"file://{tmp_path}/store/{quote(name)}"
    (tmp_path / name).write_text("some bytes")
    first = tool.copy_out(tmp_path / name, url, 30)
    assert (tmp_path / "store" / name).read_text() == "some bytes"
    assert tool.copy_in(url, tmp_path / "back", 30) == first == checksum.of(tmp_path / "back", first)
    tool.remove(url, tool.deadline(30))
    tool.remove(url, tool.deadline(30))
    assert list((tmp_path / "store").iterdir()) == []


def test_b25_a_file_on_this_node_lies_where_it_may(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    with pytest.raises(PilotageError, match="none of the allowed directories"):
        gfal.Tool({"directories": "/nowhere"}).copy_in(f"file://{tmp_path}/a", tmp_path / "b", 30)


def test_no_module_of_the_present_directory_is_taken_for_the_library(tmp_path: Path) -> None:
    (tmp_path / "gfal2.py").write_text("raise SystemExit('not the library')")
    (tmp_path / "errno.py").write_text("raise SystemExit('not the library')")
    command = [PYTHON, "-c", gfal.PROGRAM, "stat", f"file://{tmp_path}/none", "", "10"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "gfal2 error 2: " in done.stderr, done.stderr
