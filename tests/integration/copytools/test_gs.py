"""The copytool gs: where its key comes from. What it does with a storage is in tests/conformance/test_storages.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Callable, Dict

import pytest

import copytools
from protocol.errors import PilotageError

pytestmark = pytest.mark.component("fake_gcs")


def refused(action: Callable[[], object]) -> PilotageError:
    with pytest.raises(PilotageError) as caught:
        action()
    return caught.value


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [("{}", 0o644, "chmod 600"), ('{"private_key": "geheim"}', 0o600, "no key"), ("geheim", 0o600, "no key"), (None, 0, "No such")],
    ids=["others-can-read-it", "half", "no-json", "not-there"],
)  # fmt: skip
def test_188_a_key_file_that_is_not_right_is_told_without_its_content(
    tmp_path: Path, text: str | None, mode: int, words: str
) -> None:
    file = tmp_path / "key.json"
    if text is not None:
        file.write_text(text)
        file.chmod(mode)
    tool = copytools.load("gs", {"key_file": str(file)})
    error = refused(lambda: tool.copy_in("gs://bucket/a", tmp_path / "a", 10))
    assert error.name == "BAD_SETTINGS" and words in error.detail and str(file) in error.detail
    assert "geheim" not in str(error)


def test_without_a_key_nothing_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environ: Dict[str, str] = {
        "HOME": str(tmp_path),
        "NO_GCE_CHECK": "true",
        "CLOUDSDK_CONFIG": str(tmp_path),
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    tool = copytools.load("gs", {})
    assert (
        refused(lambda: tool.copy_in("gs://bucket/a", tmp_path / "a", 10)).name == "STAGE_IN_AUTHENTICATION"
    )


def test_a_node_without_the_library_is_told_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install google-cloud-storage" in str(copytools.load("gs", {}).unusable())
