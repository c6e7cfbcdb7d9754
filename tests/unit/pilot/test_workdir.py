"""Directories of pilots and jobs, and log archives."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import tarfile
from pathlib import Path
from typing import Dict, Iterator

import pytest

from pilot import workdir
from pilot.workdir import JobLogs, PilotDirectory
from protocol.errors import PilotageError
from protocol.logs import bound
from protocol.messages.pilots import JobSpec
from protocol.redaction import Secrets


def opened(base: Path, name: str, keep: bool = False) -> PilotDirectory:
    directory = PilotDirectory(base, name, keep)
    directory.open()
    return directory


def test_a_pilots_directory_is_private_and_gone_afterwards(tmp_path: Path) -> None:
    directory = opened(tmp_path / "a" / "b", "p1")
    assert stat.S_IMODE(directory.path.stat().st_mode) == 0o700
    spec = JobSpec(5, 1, 1, 9, 2, "", [])
    assert directory.job_path(spec) == directory.path / "job-5-2"
    directory.close()
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_only_what_dead_pilots_left_is_removed(tmp_path: Path) -> None:
    alive, dead, kept = (
        opened(tmp_path, "alive"),
        opened(tmp_path, "dead"),
        opened(tmp_path, "kept", keep=True),
    )
    for directory in (alive, dead, kept):
        (directory.path / "job-1-1").mkdir()
    dead._lock.release()
    kept.close()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    (dead.path / "link").symlink_to(outside)
    (tmp_path / "pilot-link").symlink_to(outside)
    opened(tmp_path, "new")
    left = {path.name for path in tmp_path.iterdir() if path.is_dir() and not path.is_symlink()}
    assert left == {"pilot-alive", "pilot-kept", "pilot-new", "outside"}
    assert (outside / "precious").exists()


def test_what_could_not_be_removed_is_tried_again_by_the_next_pilot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = opened(tmp_path, "dead")
    dead._lock.release()
    with monkeypatch.context() as broken:
        broken.setattr(workdir, "remove", bool)  # a storage that refuses
        opened(tmp_path, "second")
    assert dead.path.exists()
    opened(tmp_path, "third")
    assert not dead.path.exists()


def test_a_work_directory_that_cannot_be_made_makes_the_node_unfit(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PilotageError) as caught:
        opened(tmp_path / "file" / "x", "p")
    assert caught.value.name == "NODE_UNFIT"


def test_a_job_that_is_kept_for_debugging_is_not_removed(tmp_path: Path) -> None:
    directory = opened(tmp_path, "p", keep=True)
    job = directory.path / "job-1-1"
    workdir.make(job)
    directory.remove_job(job)
    directory.close()
    assert job.exists()


def test_a_directory_that_is_there_already_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PilotageError) as caught:
        workdir.make(tmp_path)
    assert caught.value.name == "MKDIR_FAILED"


def test_the_measure_counts_what_is_on_the_disk_and_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "job" / "deep").mkdir(parents=True)
    (tmp_path / "job" / "deep" / "file").write_bytes(os.urandom(1 << 20))
    (tmp_path / "big").write_bytes(os.urandom(8 << 20))
    (tmp_path / "job" / "link").symlink_to(tmp_path / "big")
    with open(tmp_path / "job" / "sparse", "wb") as sparse:
        sparse.truncate(1 << 40)
    os.utime(tmp_path / "job" / "deep" / "file", (5e9, 5e9))
    found = workdir.measure(tmp_path / "job")
    assert 1 << 20 <= found.size < 2 << 20
    assert found.changed == 5e9
    assert workdir.measure(tmp_path / "none") == (0, 0.0, True)


def packed(archive: Path) -> Dict[str, bytes]:
    with tarfile.open(archive) as opened_archive:
        return {member.name: opened_archive.extractfile(member).read() for member in opened_archive}  # type: ignore[union-attr]


def test_the_archive_holds_plain_files_under_their_names(tmp_path: Path) -> None:
    root = tmp_path / "job"
    (root / "sub").mkdir(parents=True)
    (root / "payload.stdout").write_bytes(b"out")
    (root / "sub" / "note").write_bytes(b"note")
    (tmp_path / "secret").write_bytes(b"token")
    (root / "payload.stderr").symlink_to(tmp_path / "secret")
    os.mkfifo(root / "pipe")
    files = [
        root / name for name in ("payload.stdout", "payload.stderr", "none", "pipe", "sub/note", "sub/note")
    ]
    workdir.pack(tmp_path / "log.tar.gz", files, root, 1000)
    assert packed(tmp_path / "log.tar.gz") == {"payload.stdout": b"out", "sub/note": b"note"}


@pytest.mark.parametrize("size", [999, 1000, 1001, 50_000_000])
def test_of_a_long_file_head_and_tail_are_kept(size: int, tmp_path: Path) -> None:
    data = bytes(range(250)) * (size // 250) + b"x" * (size % 250)
    (tmp_path / "text").write_bytes(data)
    workdir.pack(tmp_path / "log.tar.gz", [tmp_path / "text"], tmp_path, 1000)
    kept = packed(tmp_path / "log.tar.gz")["text"]
    if size <= 1000:
        assert kept == data
    else:
        assert kept.startswith(data[:500]) and kept.endswith(data[-500:])
        assert f"{size - 1000} bytes are left out".encode() in kept


def test_a_file_that_is_cut_while_it_is_packed_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"12345")
    with open(tmp_path / "text", "r+b") as file:
        shortened = workdir._Shortened(file, 5, 1000)
        file.truncate(2)
        assert shortened.read(5) == b"12\0\0\0"


def test_the_jobs_own_log_keeps_its_records_and_no_others(tmp_path: Path) -> None:
    secrets = Secrets()
    secrets.add("attempt-token")
    logs = JobLogs(secrets)
    logs.open(5, tmp_path / "log")
    logger = logging.getLogger("test.joblog")
    logger.addHandler(logs)
    try:
        with bound(attempt_id=5):
            logger.warning("mine attempt-token")
            assert not (tmp_path / "log").exists(), "kept in memory until somebody wants it, or it is much"
        with bound(attempt_id=6):
            logger.warning("another's")
        logger.warning("nobody's")
        logs.write(5)
        with bound(attempt_id=5):
            logger.warning("later %s", "x" * workdir.MOST_UNWRITTEN)
    finally:
        logger.removeHandler(logs)
        logs.close()
    text = (tmp_path / "log").read_text()
    assert "mine" in text and "attempt-token" not in text
    assert "another" not in text and "nobody" not in text
    assert text.index("mine") < text.index("later"), "much is written at once, behind what is there"


@pytest.mark.parametrize("inside", ("text", "link", "folder"))
def test_a_jobs_directory_is_removed_and_what_a_link_leads_to_is_not(tmp_path: Path, inside: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    directory = tmp_path / "job-1-1"
    directory.mkdir()
    (directory / "payload.stdout").write_text("x")
    if inside == "link":
        (directory / "link").symlink_to(elsewhere)
    elif inside == "folder":
        (directory / "folder").mkdir(mode=0o000)
    workdir.remove(directory)
    assert not directory.exists() and (elsewhere / "kept").exists()


def test_a_link_in_the_place_of_a_jobs_directory_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    (tmp_path / "job-1-1").symlink_to(elsewhere)
    workdir.remove(tmp_path / "job-1-1")
    assert (elsewhere / "kept").exists()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Where no test that fails leaves what pytest cannot remove."""
    yield tmp_path
    subprocess.run(["rm", "-rf", *tmp_path.iterdir()], check=True)


def made_deep(directory: Path, n_levels: int, last: int = 0o700) -> None:
    """Directories within each other, deeper than any path or stack of calls can be, with a file in each."""
    directory.mkdir(exist_ok=True)
    here = os.open(directory, os.O_DIRECTORY)
    for _ in range(n_levels):
        os.mkdir("d", dir_fd=here)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        inner = os.open("d", os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = inner
    os.fchmod(here, last)
    os.close(here)


def test_a_directory_that_is_deeper_than_any_path_is_removed(place: Path) -> None:
    directory = place / "job-1-1"
    made_deep(directory, 5000, last=0o000)
    made_deep(directory / "beside", 20)
    (directory / ".removed-1").mkdir()
    before = os.listdir("/proc/self/fd")
    workdir.remove(directory)
    assert not directory.exists()
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_payload_cannot_hide_bytes_where_no_path_leads(place: Path) -> None:
    made_deep(place / "job-1-1", 1000)
    assert workdir.measure(place / "job-1-1").is_whole
    made_deep(place / "job-2-1", 2500)
    assert not workdir.measure(place / "job-2-1").is_whole


def test_what_a_dead_pilot_left_deep_does_not_stop_the_next_one(place: Path) -> None:
    dead = opened(place, "dead")
    made_deep(dead.path / "job-1-1", 1500)
    dead._lock.release()
    opened(place, "new")
    assert [path.name for path in place.iterdir() if path.is_dir()] == ["pilot-new"]


def test_closed_directories_with_something_in_them_are_removed(tmp_path: Path) -> None:
    directory = tmp_path / "job-1-1"
    (directory / "a" / "b" / "c").mkdir(parents=True)
    (directory / "a" / "b" / "c" / "file").touch()
    (directory / "a" / "b" / "link").symlink_to(tmp_path)
    for name in ("a/b/c", "a/b", "a", "."):
        (directory / name).chmod(0o500 if name == "a" else 0o000)
    workdir.remove(directory)
    assert not directory.exists() and tmp_path.exists()


def test_what_cannot_be_removed_is_told_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a/b/fast", "a/c/file", "d/file"):
        (tmp_path / "job" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "job" / name).touch()
    unlink = os.unlink

    def refuse(path: str, *, dir_fd: int) -> None:
        if path == "fast":
            raise PermissionError(path)
        unlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", refuse)
    workdir.remove(tmp_path / "job")
    left = [path for path in (tmp_path / "job").rglob("*") if path.is_file()]
    assert [path.name for path in left] == ["fast"], "all else is gone"
    assert "could not be removed" in caplog.text


def test_a_hard_link_to_a_file_of_the_pilots_account_is_not_packed(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "token").write_bytes(b"secret")
    os.link(tmp_path / "token", tmp_path / "job" / "payload.stderr")
    (tmp_path / "job" / "payload.stdout").write_bytes(b"out")
    files = [tmp_path / "job" / name for name in ("payload.stdout", "payload.stderr")]
    workdir.pack(tmp_path / "log.tar.gz", files, tmp_path / "job", 1000)
    assert packed(tmp_path / "log.tar.gz") == {"payload.stdout": b"out"}
