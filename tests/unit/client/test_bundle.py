"""Bundles of user code: the same content gives the same bytes, and only plain files travel."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import socket
import tarfile
from pathlib import Path

import pytest

from client import bundle
from protocol.errors import PilotageError


def names(made: bundle.Bundle) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(made.data), mode="r:gz") as archive:
        return archive.getnames()


def code(folder: Path) -> Path:
    (folder / "lib").mkdir(parents=True)
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o700)
    (folder / "lib" / "tool.py").write_text("x = 1\n")
    return folder


def test_the_digest_is_the_sha256_of_the_bytes(tmp_path: Path) -> None:
    made = bundle.make(code(tmp_path / "a"))
    assert made.digest == hashlib.sha256(made.data).hexdigest()


def test_a_directory_is_packed_by_what_it_holds(tmp_path: Path) -> None:
    assert names(bundle.make(code(tmp_path / "a"))) == ["lib", "lib/tool.py", "run.sh"]


def test_a_file_is_packed_under_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "hash.py").write_text("print(1)\n")
    assert names(bundle.make(tmp_path / "hash.py")) == ["hash.py"]


def test_the_same_content_elsewhere_later_and_with_other_rights_gives_the_same_bytes(tmp_path: Path) -> None:
    first = bundle.make(code(tmp_path / "a"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    os.utime(tmp_path / "b" / "lib" / "tool.py", (1, 1))
    (tmp_path / "b" / "lib" / "tool.py").chmod(0o600)
    (tmp_path / "b" / "run.sh").chmod(0o755)
    assert bundle.make(tmp_path / "b") == first


@pytest.mark.parametrize("change", ["content", "name", "executable"])
def test_a_change_gives_another_digest(tmp_path: Path, change: str) -> None:
    first = bundle.make(code(tmp_path / "a"))
    tool = tmp_path / "a" / "lib" / "tool.py"
    if change == "content":
        tool.write_text("x = 2\n")
    elif change == "name":
        tool.rename(tool.with_name("other.py"))
    else:
        tool.chmod(0o755)
    assert bundle.make(tmp_path / "a").digest != first.digest


def test_executables_stay_executable_and_nothing_belongs_to_anybody(tmp_path: Path) -> None:
    made = bundle.make(code(tmp_path / "a"))
    with tarfile.open(fileobj=io.BytesIO(made.data), mode="r:gz") as archive:
        modes = {member.name: (member.mode, member.uid, member.uname) for member in archive}
    assert modes["run.sh"] == (0o755, 0, "")
    assert modes["lib/tool.py"] == (0o644, 0, "")


def test_compiled_files_and_the_history_stay_at_home(tmp_path: Path) -> None:
    first = bundle.make(code(tmp_path / "a"))
    (tmp_path / "a" / ".git").mkdir()
    (tmp_path / "a" / ".git" / "HEAD").write_text("x")
    (tmp_path / "a" / "lib" / "__pycache__").mkdir()
    (tmp_path / "a" / "lib" / "__pycache__" / "tool.pyc").write_text("x")
    assert bundle.make(tmp_path / "a") == first


@pytest.mark.parametrize("kind", ["link", "link to a directory", "pipe", "socket"])
def test_links_and_special_files_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    folder = code(tmp_path / "a")
    odd = folder / "odd"
    if kind == "link":
        odd.symlink_to(folder / "run.sh")
    elif kind == "link to a directory":
        odd.symlink_to(folder / "lib")
    elif kind == "pipe":
        os.mkfifo(odd)
    else:
        with socket.socket(socket.AF_UNIX) as door:
            door.bind(str(odd))
    with pytest.raises(
        PilotageError, match="odd (is a link|is no regular file|cannot be read: it is a socket)"
    ) as caught:
        bundle.make(folder)
    assert caught.value.name == "BAD_PATH"


def test_a_link_as_the_thing_to_ship_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(code(tmp_path / "a"))
    with pytest.raises(PilotageError, match="is a link; ship what it leads to"):
        bundle.make(tmp_path / "link")


def test_more_than_the_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(os.urandom(200_000))
    with pytest.raises(PilotageError, match=r"is larger than 0\.09\d* MiB when packed") as caught:
        bundle.make(tmp_path / "big", limit=100_000)
    assert caught.value.name == "TOO_LARGE"
    assert len(bundle.make(tmp_path / "big", limit=210_000).data) > 200_000


def test_what_a_pilot_would_not_unpack_is_refused_before_it_is_packed(tmp_path: Path) -> None:
    with open(tmp_path / "zeros", "wb") as file:
        file.truncate(bundle.UNPACKED_BYTES + 1)
    with pytest.raises(PilotageError, match="at most 50000 of 1024 MiB can be shipped"):
        bundle.make(tmp_path / "zeros")


@pytest.mark.parametrize(("make", "what"), [(False, "does not exist"), (True, "holds no file to ship")])
def test_nothing_to_ship_is_told(tmp_path: Path, make: bool, what: str) -> None:
    if make:
        (tmp_path / "there").mkdir()
    with pytest.raises(PilotageError, match=what):
        bundle.make(tmp_path / "there")
