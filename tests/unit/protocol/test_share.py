"""The folders that travel with the package are found from the tree; from a wheel: tests/test_packaging.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol import share

ROOT = Path(__file__).parents[3]


def test_a_folder_of_the_tree_is_found() -> None:
    assert share.shared_path("wrappers") == ROOT / "wrappers"
    assert share.shared_path("etc/README.md") == ROOT / "etc" / "README.md"


def test_an_installation_is_preferred_to_what_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("protocol/shared/etc", "etc"):
        (tmp_path / place).mkdir(parents=True)
    monkeypatch.setattr(share, "_INSTALLED", tmp_path / "protocol" / "shared")
    monkeypatch.setattr(share, "_TREE", tmp_path)
    assert share.shared_path("etc") == tmp_path / "protocol" / "shared" / "etc"


def test_a_missing_file_is_refused_with_the_places_looked_at() -> None:
    with pytest.raises(FileNotFoundError, match=r"etc/none\.ini.*protocol/shared/etc/none\.ini"):
        share.shared_path("etc/none.ini")


@pytest.mark.parametrize("name", ["server/app.py", "etc/../server/app.py", "", "/etc/passwd"])
def test_a_path_outside_the_shared_folders_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must start with"):
        share.shared_path(name)
