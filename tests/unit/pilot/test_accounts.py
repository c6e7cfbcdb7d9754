"""How a job's files become another account's: in which order, and however deep they lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pilot import accounts
from pilot.accounts import Account

SOMEBODY = Account("somebody", 4711, 4711, ())


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was handed over, in this order; only root may do so in earnest."""
    paths: list[str] = []
    monkeypatch.setattr(os, "lchown", lambda path, uid, gid: paths.append(os.path.normpath(path)))
    return paths


def test_the_directory_itself_comes_last_since_nobody_gets_in_before(
    given: list[str], tmp_path: Path
) -> None:
    """A leftover of the account would exchange `inputs` for a link, and root hand over what that leads to."""
    job = tmp_path / "job"
    (job / "inputs").mkdir(parents=True)
    (job / "inputs" / "in.txt").touch()
    (job / "inputs" / "elsewhere").symlink_to("/etc")
    (tmp_path / "others").touch()
    os.link(tmp_path / "others", job / "shared")
    accounts.give(job, SOMEBODY)
    inside = {str(job / "inputs" / name) for name in ("", "in.txt", "elsewhere")}
    assert set(given[:-1]) == inside, "never what lies behind a link, nor what is somebody else's as well"
    assert given[-1] == str(job)


def test_what_lies_a_thousand_folders_deep_is_handed_over_too(given: list[str], tmp_path: Path) -> None:
    folders = [tmp_path / "job"]
    folders[0].mkdir()
    for _ in range(1200):
        folders.append(folders[-1] / "d")
        folders[-1].mkdir()
    try:
        accounts.give(folders[0], SOMEBODY)
        assert len(given) == len(folders)
    finally:
        for folder in reversed(folders):
            folder.rmdir()
