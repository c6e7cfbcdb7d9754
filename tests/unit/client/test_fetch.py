"""Fetching a dataset: of a file that is damaged in one place the next replica is taken."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from client import fetch
from protocol.errors import PilotageError
from protocol.messages.views import FileView, ReplicaView

CONTENT = b"the bytes of a file"


def session_with(*places: Path) -> Any:
    """A dataset of one file, which lies in these places; the first one is the best as far as the server knows."""
    replicas = [ReplicaView("", f"file://{place}", "good") for place in places]
    sums = {"md5": hashlib.md5(CONTENT).hexdigest()}
    file = FileView("a", "s", "d", len(CONTENT), sums, replicas[0].url, "available", replicas=replicas)
    closed = SimpleNamespace(state="closed")
    return SimpleNamespace(
        dataset=lambda name: closed, dataset_files=lambda name: iter([file]), data_root=None
    )


def test_the_next_replica_is_taken_of_a_file_that_is_damaged_or_gone(tmp_path: Path) -> None:
    damaged, gone, right = (tmp_path / name for name in ("damaged", "gone", "right"))
    damaged.write_bytes(CONTENT.upper())
    right.write_bytes(CONTENT)
    fetched = fetch.fetch(session_with(damaged, gone, right), "d", tmp_path / "to", quiet=True)
    assert fetched.copied == 1
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["a"], "nothing half is left"
    assert (tmp_path / "to" / "a").read_bytes() == CONTENT


def test_where_no_replica_is_right_the_first_failure_is_told(tmp_path: Path) -> None:
    (tmp_path / "damaged").write_bytes(CONTENT.upper())
    with pytest.raises(PilotageError) as caught:
        fetch.fetch(session_with(tmp_path / "damaged", tmp_path / "gone"), "d", tmp_path / "to", quiet=True)
    [problem] = caught.value.fields["problems"]
    assert "md5" in problem and not list((tmp_path / "to").iterdir())
