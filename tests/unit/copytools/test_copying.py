from __future__ import annotations

import errno
import hashlib
import os
import threading
from pathlib import Path
from typing import Any, Optional

import pytest

from copytools import copying
from copytools.base import Deadline, Learned
from copytools.copying import (
    Copied,
    Plan,
    Stage,
    copy,
    hidden_name,
    make_directories,
    rename_to_new,
    withdraw,
)
from protocol.errors import PilotageError

IN, OUT = Plan(Stage.IN, ("md5",)), Plan(Stage.OUT, ("md5",))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "a").write_bytes(b"bytes of a file" * 1000)
    return tmp_path / "a"


def go(source: Path, target: Path, plan: Plan = OUT) -> Copied:
    return copy(source, target, plan, Deadline(60))


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "x" * 255, "ж" * 127, "x" + "ж" * 127])
def test_a_hidden_name_fits_and_begins_like_its_final_name(name: str) -> None:
    hidden = hidden_name(name)
    assert len(os.fsencode(hidden)) <= copying.LONGEST_NAME
    assert hidden.startswith("." + name[:100]) and hidden.endswith(".part")
    hidden.encode("utf-8")
    assert hidden != hidden_name(name)


def test_a_rename_to_a_new_name_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    (tmp_path / "new").write_text("new")
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(FileExistsError):
            rename_to_new(directory, "old", "new")
        rename_to_new(directory, "old", "newer")
    finally:
        os.close(directory)
    assert (tmp_path / "new").read_text() == "new"
    assert (tmp_path / "newer").read_text() == "old"


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL])
def test_a_file_system_that_knows_no_file_without_a_name_gets_a_hidden_one(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    really, seen = os.open, []

    def refuse(path: Any, flags: int, *args: Any, **more: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(number, os.strerror(number))
        seen.append(str(path))
        return really(path, flags, *args, **more)

    monkeypatch.setattr(os, "open", refuse)
    go(source, tmp_path / "b", IN)
    assert any(name.endswith(".part") for name in seen)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_without_proc_a_file_gets_its_name_too(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_has_proc", lambda: False)
    go(source, tmp_path / "b", IN)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_link_whose_first_answer_was_lost_is_a_success(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An NFS client sends the request again, and the server says that the name exists."""
    really = os.link

    def link_twice(*args: Any, **more: Any) -> None:
        really(*args, **more)
        really(*args, **more)

    monkeypatch.setattr(os, "link", link_twice)
    monkeypatch.setattr(copying, "same_bytes", lambda *args: pytest.fail("it is the very same file"))
    made = go(source, tmp_path / "b", Plan(Stage.OUT, ("md5",), named=True)).made
    assert made == ((tmp_path / "b").stat().st_dev, (tmp_path / "b").stat().st_ino)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_hidden_file_that_cannot_be_removed_does_not_hide_the_error(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any, **more: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.setattr(os, "unlink", fail)
    with pytest.raises(PilotageError, match="STAGE_OUT_FAILED|could not be copied to the storage"):
        go(source, tmp_path / "b", Plan(Stage.OUT, ("md5",), durable=True, named=True))
    assert "could not remove a file" in caplog.text
    assert not (tmp_path / "b").exists()


# -- taking back ------------------------------------------------------------------------------------------------------


def test_only_the_file_that_was_made_is_withdrawn(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "b"
    made = go(source, target).made
    (tmp_path / "c").write_text("somebody else's")
    os.rename(tmp_path / "c", target)
    withdraw(target, made)
    withdraw(target, None)
    assert target.read_text() == "somebody else's"
    target.unlink()
    withdraw(target, go(source, target).made)
    assert not target.exists()


def test_a_file_that_was_there_with_the_same_bytes_is_not_ours_to_withdraw(
    source: Path, tmp_path: Path
) -> None:
    (tmp_path / "b").write_bytes(source.read_bytes())
    assert go(source, tmp_path / "b").made is None


# -- which way --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "size", "cores", "threads"),
    [
        ("adler32", 10, 4, False),
        ("adler32", copying.SMALL, 4, False),
        ("adler32", copying.SMALL + 1, 4, True),
        ("adler32", copying.SMALL + 1, 1, False),
        ("md5", copying.SMALL_FOR_MD5, 4, False),
        ("md5", copying.SMALL_FOR_MD5 + 1, 4, True),
        ("md5", copying.SMALL_FOR_MD5 + 1, 1, False),
    ],
)
def test_large_files_take_the_kernel_and_a_thread_where_there_is_a_second_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str, size: int, cores: int, threads: bool
) -> None:
    way = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.setattr(copying, "_one_pass", lambda r, w, size, *more: way.append(False) or size)
    monkeypatch.setattr(copying, "_kernel_and_thread", lambda r, w, h, size, *more: way.append(True) or size)
    with open(tmp_path / "a", "wb") as file:
        file.truncate(size)
    go(tmp_path / "a", tmp_path / "b", Plan(Stage.IN, (algorithm,)))
    assert way == [threads]


@pytest.mark.parametrize("hash_source", [True, False])
def test_the_plan_says_whose_bytes_are_hashed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hash_source: bool
) -> None:
    """Shown by a kernel that copies wrongly: what was written is hashed, or what was read."""
    monkeypatch.setattr(copying, "SMALL", 0)
    monkeypatch.setattr(copying, "SMALL_FOR_MD5", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})

    def wrong(reading: int, writing: int, offset: int, count: int) -> int:
        return os.write(writing, bytes(count))

    monkeypatch.setattr(copying, "WAYS", (wrong,))
    plan = Plan(Stage.OUT, ("md5",), hash_source=hash_source)
    read, written = copying.reread(source, ("md5",), Deadline(9)), None
    learned = go(source, tmp_path / "b", plan).checksums
    written = copying.reread(tmp_path / "b", ("md5",), Deadline(9))
    assert learned == (read if hash_source else written)
    assert read != written


def test_an_error_of_the_hashing_thread_ends_the_copy_and_no_thread_is_left(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "SMALL", 0)
    monkeypatch.setattr(copying, "SMALL_FOR_MD5", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})

    def fail(*args: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    before = threading.active_count()
    with pytest.raises(PilotageError) as caught:
        go(source, tmp_path / "b")
    assert caught.value.name == "STAGE_OUT_FAILED"
    assert threading.active_count() == before
    assert os.listdir(tmp_path) == ["a"]


def test_a_large_copy_that_nobody_waits_for_any_more_ends_at_the_next_stride(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "SMALL", 0)
    monkeypatch.setattr(copying, "SMALL_FOR_MD5", 0)
    monkeypatch.setattr(copying, "STRIDE", 100)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    strides = []

    def spy(reading: int, writing: int, offset: int, count: int) -> int:
        strides.append(offset)
        return os.write(writing, bytes(count))

    monkeypatch.setattr(copying, "WAYS", (spy,))
    with pytest.raises(PilotageError, match="stopped"):
        copy(source, tmp_path / "b", OUT, Deadline(60, lambda: len(strides) == 3))
    assert len(strides) == 3


def test_what_a_network_file_system_tells_at_a_close_is_heard_before_there_is_a_name(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def over_quota(descriptor: int) -> int:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "dup", over_quota)  # of which the first close tells
    with pytest.raises(PilotageError) as caught:
        go(source, tmp_path / "b", IN)
    assert caught.value.name == "NO_LOCAL_SPACE"
    assert os.listdir(tmp_path) == ["a"]


# -- directories ------------------------------------------------------------------------------------------------------


def test_somebody_else_may_make_a_directory_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = os.mkdir

    def slower(path: Any, *args: Any) -> None:
        really(path, *args)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "mkdir", slower)
    make_directories(tmp_path / "scope/set", durable=True)
    assert (tmp_path / "scope/set").is_dir()


# -- many small ones --------------------------------------------------------------------------------------------------


def small(source: Path, target: Path, stopped: bool = False) -> Optional[Learned]:
    [learned] = copying.copy_small([(str(source), str(target))], ("md5",), lambda: stopped)
    return learned


def test_a_small_file_is_copied_with_what_is_learned_of_it(source: Path, tmp_path: Path) -> None:
    data = source.read_bytes()
    assert small(source, tmp_path / "b") == Learned(len(data), {"md5": hashlib.md5(data).hexdigest()})
    assert (tmp_path / "b").read_bytes() == data
    (tmp_path / "empty").write_bytes(b"")
    learned = small(tmp_path / "empty", tmp_path / "c")
    assert learned is not None and learned.size == 0 and (tmp_path / "c").exists()


@pytest.mark.parametrize("kind", ["missing", "link", "directory", "large", "there", "nowhere", "stopped"])
def test_a_small_file_that_is_not_as_usual_is_left_to_the_long_way(
    source: Path, tmp_path: Path, kind: str
) -> None:
    target = tmp_path / "made" / "b"
    if kind != "nowhere":
        target.parent.mkdir()
    if kind == "missing":
        source.unlink()
    elif kind == "link":
        source.rename(tmp_path / "real")
        source.symlink_to(tmp_path / "real")
    elif kind == "directory":
        source.unlink()
        source.mkdir()
    elif kind == "large":
        source.write_bytes(bytes(copying.TINY + 1))
    elif kind == "there":
        target.write_bytes(b"mine")
    assert small(source, target, kind == "stopped") is None
    assert target.read_bytes() == b"mine" if kind == "there" else not target.exists()


def test_a_small_file_that_cannot_be_without_a_name_is_left_to_the_long_way(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = os.open

    def refuse(path: Any, flags: int, *args: Any, **more: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no")
        return really(path, flags, *args, **more)

    monkeypatch.setattr(os, "open", refuse)
    assert small(source, tmp_path / "b") is None
    assert os.listdir(tmp_path) == ["a"]
