"""What NFS does to a file is in tests/conformance/test_copytools.py; here is what the tool asks for while it waits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, List

import pytest

from copytools import nfs
from protocol.errors import PilotageError


def test_the_pauses_grow_and_last_as_long_as_they_may() -> None:
    pauses = list(nfs._doubling(30))
    assert sum(pauses) == pytest.approx(30)
    assert pauses[:3] == [0.1, 0.2, 0.4]
    assert max(pauses) == nfs.LONGEST_PAUSE
    assert list(nfs._doubling(0)) == []


def test_between_two_looks_the_directory_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which makes a real NFS client forget that the name did not exist."""
    asked: List[Any] = []
    really = os.scandir
    monkeypatch.setattr(os, "scandir", lambda place: asked.append(place) or really(place))
    with pytest.raises(PilotageError, match="No such file"):
        nfs.Tool({"visible_seconds": "0.05"}).copy_in(f"file://{tmp_path}/never", tmp_path / "a", 9)
    assert asked == [tmp_path]


def test_a_work_directory_that_is_missing_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"a")
    monkeypatch.setattr("copytools.base.Deadline.pause", lambda *args: pytest.fail("it waits"))
    with pytest.raises(PilotageError):
        nfs.Tool({}).copy_in(f"file://{tmp_path}/a", tmp_path / "no/a", 9)
    with pytest.raises(PilotageError):
        nfs.Tool({}).copy_out(tmp_path / "no", f"file://{tmp_path}/b", 9)
