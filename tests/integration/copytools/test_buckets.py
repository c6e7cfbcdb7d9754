"""The copytools s3 and objectstore: where keys come from, uploads in parts, and who was faster. With a real SeaweedFS."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Callable, Dict

import pytest

import copytools
from copytools import buckets
from copytools.base import CopyTool
from protocol.errors import PilotageError
from tests.components import require
from tests.storages import seaweed
from tests.storages.seaweed import ACCOUNTS, BUCKET, Bucket

FOREVER = 30.0
MIB = 1024 * 1024


@pytest.fixture
def storage() -> Bucket:
    require("seaweed")
    found = seaweed.shared()
    found.clear()
    return found


@pytest.fixture
def tool(storage: Bucket) -> CopyTool:
    return copytools.load("s3", storage.options)


@pytest.fixture(autouse=True)
def no_keys_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    buckets._made_client.cache_clear()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "a"
    made.write_bytes(os.urandom(1000))
    return made


def refused(action: Callable[[], object]) -> PilotageError:
    with pytest.raises(PilotageError) as caught:
        action()
    return caught.value


def without(options: Dict[str, str], *names: str) -> Dict[str, str]:
    return {name: value for name, value in options.items() if name not in names}


# -- keys ---------------------------------------------------------------------------------------------------------------


def test_s3_takes_address_and_keys_from_the_environment(
    storage: Bucket, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, secret, _ = ACCOUNTS["pilot"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("AWS_ENDPOINT_URL", storage.options["endpoint"])
    copytools.load("s3", {}).copy_out(path, storage.url("a.1"), FOREVER)
    assert storage.read("a.1") == path.read_bytes()


def test_objectstore_takes_nothing_from_the_environment(
    storage: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, secret, _ = ACCOUNTS["pilot"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    reason = copytools.load(
        "objectstore", without(storage.options, "credentials_file", "endpoint")
    ).unusable()
    assert reason == "[copytool:objectstore] lacks endpoint and credentials_file"
    assert copytools.load("objectstore", storage.options).unusable() is None
    assert "objectstore" not in copytools.usual(), "only where a queue names it"


def test_without_keys_nothing_is_tried(storage: Bucket, path: Path) -> None:
    mine = copytools.load("s3", without(storage.options, "credentials_file"))
    assert refused(lambda: mine.copy_out(path, storage.url("a.1"), FOREVER)).name == "NO_S3_CREDENTIALS"


@pytest.mark.parametrize(
    ("text", "mode", "expected"),
    [
        ("[default]\naws_access_key_id = AK\naws_secret_access_key = geheim\n", 0o644, "BAD_SETTINGS"),
        ("[other]\naws_access_key_id = AK\naws_secret_access_key = geheim\n", 0o600, "NO_S3_CREDENTIALS"),
        ("[default]\naws_access_key_id = AK\n", 0o600, "NO_S3_CREDENTIALS"),
        ("geheim\n", 0o600, "NO_S3_CREDENTIALS"),
        (
            "[default]\naws_access_key_id = AK\naws_secret_access_key = geheim\n",
            0o600,
            "STAGE_OUT_AUTHENTICATION",
        ),
    ],
    ids=["others-can-read-it", "other-section", "half", "no-ini", "unknown-key"],
)
def test_188_a_file_of_keys_that_is_not_right_is_told_without_its_content(
    storage: Bucket, path: Path, tmp_path: Path, text: str, mode: int, expected: str
) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    file.chmod(mode)
    mine = copytools.load("s3", {**storage.options, "credentials_file": str(file)})
    error = refused(lambda: mine.copy_out(path, storage.url("a.1"), FOREVER))
    assert error.name == expected
    assert "geheim" not in str(error)


def test_keys_that_were_renewed_are_used_at_once(storage: Bucket, path: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes((storage.directory / "stranger").read_bytes())
    file.chmod(0o600)
    mine = copytools.load("s3", {**storage.options, "credentials_file": str(file)})
    refused(lambda: mine.copy_out(path, storage.url("a.1"), FOREVER))
    file.write_bytes((storage.directory / "pilot").read_bytes())
    mine.copy_out(path, storage.url("a.1"), FOREVER)
    assert storage.read("a.1") == path.read_bytes()


@pytest.mark.parametrize("endpoint", ["s3.example", "ftp://s3.example", "https://AK:geheim@s3.example"])
def test_an_endpoint_that_is_none_is_refused(endpoint: str) -> None:
    error = refused(lambda: copytools.load("s3", {"endpoint": endpoint}))
    assert error.name == "BAD_SETTINGS" and "[copytool:s3] endpoint" in error.detail
    assert "geheim" not in str(error)


def test_a_node_without_boto3_is_told_what_it_needs(storage: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install boto3" in str(copytools.load("s3", storage.options).unusable())


# -- objects ------------------------------------------------------------------------------------------------------------


def test_a_bucket_that_is_not_there_is_told_so(storage: Bucket, tmp_path: Path) -> None:
    mine = copytools.load("s3", {**storage.options, "credentials_file": f"{storage.directory}/admin"})
    error = refused(lambda: mine.copy_in("s3://nobodys/a", tmp_path / "b", FOREVER))
    assert error.name == "S3_BUCKET_MISSING"


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch, path: Path) -> Path:
    """A file that is too large for one piece, though it is small: S3 allows no part below 5 MiB but the last."""
    monkeypatch.setattr(buckets, "LARGEST_PUT", 6 * MIB)
    monkeypatch.setattr(buckets, "PART", 5 * MIB)
    path.write_bytes(os.urandom(11 * MIB))
    return path


def test_a_large_file_goes_in_parts_and_comes_back_whole(
    storage: Bucket, tool: CopyTool, in_parts: Path, tmp_path: Path
) -> None:
    tool.copy_out(in_parts, storage.url("a.1"), FOREVER)
    told = storage.client.head_object(Bucket=BUCKET, Key="a.1")["ETag"]
    assert told.endswith('-3"'), "it went in one piece"
    tool.copy_in(storage.url("a.1"), tmp_path / "back", FOREVER)
    assert (tmp_path / "back").read_bytes() == in_parts.read_bytes()
    tool.copy_out(in_parts, storage.url("a.1"), FOREVER)  # the same again is an earlier try


def test_f14_a_part_with_other_bytes_than_were_read_is_refused_and_nothing_stays(
    storage: Bucket, tool: CopyTool, in_parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "_base64", lambda digest: "AAAAAAAAAAAAAAAAAAAAAA==")
    error = refused(lambda: tool.copy_out(in_parts, storage.url("a.1"), FOREVER))
    assert error.name == "STAGE_OUT_MISMATCH"
    assert storage.files() == {}
    assert not storage.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads")
