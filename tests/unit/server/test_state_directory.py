"""The state directory: private, on a disk of this machine, and one server's alone."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.errors import PilotageError
from server import state_directory
from server.state_directory import (
    database_url,
    locked,
    note_database,
    prepare,
    read_running,
    write_running,
)

ROOT = Path(__file__).parents[3]

HOLD = """
import sys
from pathlib import Path
from server.state_directory import locked, write_running
with locked(Path(sys.argv[1])):
    write_running(Path(sys.argv[1]), "http://127.0.0.1:1", "sqlite")
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_new_directory_is_private(tmp_path: Path) -> None:
    directory = prepare(tmp_path / "a" / "b")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert list(directory.iterdir()) == []
    assert prepare(directory) == directory


@pytest.mark.parametrize("name", ["file", "file/below", "x" * 300])
def test_what_cannot_be_a_directory_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PilotageError) as caught:
        prepare(tmp_path / name)
    assert caught.value.name == "STATE_DIRECTORY_UNFIT"
    assert str(tmp_path) in caught.value.detail


# -- where it lies ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mount table that tests write."""
    table = tmp_path / "mounts"
    monkeypatch.setattr(state_directory, "MOUNTS", table)
    return table


def write(table: Path, *lines: tuple[Path | str, str]) -> None:
    octal = {" ": "\\040", "\t": "\\011", "\\": "\\134"}
    rows = [("/", "ext4"), *lines]
    text = [
        f"some/device {''.join(octal.get(c, c) for c in str(point))} {kind} rw 0 0\n" for point, kind in rows
    ]
    table.write_text("".join(text), encoding="utf-8")


@pytest.mark.parametrize("kind", sorted(state_directory.NETWORK_FILE_SYSTEMS))
@pytest.mark.parametrize("depth", [0, 1])
def test_a_network_file_system_is_refused_with_its_name(
    tmp_path: Path, mounts: Path, kind: str, depth: int
) -> None:
    directory = tmp_path / "home" / "state"
    write(mounts, ([directory, directory.parent][depth], kind))
    with pytest.raises(PilotageError, match=rf"network file system \({kind}\)") as caught:
        prepare(directory)
    assert caught.value.name == "STATE_DIRECTORY_UNFIT"


@pytest.mark.parametrize("kind", ["ext4", "xfs", "tmpfs", "overlay", "btrfs", "zfs", "fuse.portal"])
def test_a_local_file_system_is_taken(tmp_path: Path, mounts: Path, kind: str) -> None:
    write(mounts, (tmp_path, kind))
    assert prepare(tmp_path / "state") == tmp_path / "state"


def test_the_nearest_mount_counts_and_of_two_at_one_place_the_later(tmp_path: Path, mounts: Path) -> None:
    state = tmp_path / "state"
    write(mounts, (tmp_path, "nfs4"), (state, "xfs"))
    prepare(state)
    write(mounts, (state, "xfs"), (tmp_path, "nfs4"), (tmp_path / "stat", "nfs"))
    prepare(state)
    write(mounts, (tmp_path, "autofs"), (tmp_path, "nfs"))
    with pytest.raises(PilotageError):
        prepare(state)


@pytest.mark.parametrize("name", ["with blank", "Größe", "back\\slash", "tab\there"])
def test_a_mount_point_with_signs_in_it_is_recognized(tmp_path: Path, mounts: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    write(mounts, (tmp_path / name, "nfs"))
    with pytest.raises(PilotageError, match="network file system"):
        prepare(tmp_path / name / "state")


def test_a_link_into_a_network_file_system_is_seen_through(tmp_path: Path, mounts: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "state").symlink_to(tmp_path / "net")
    write(mounts, (tmp_path / "net", "nfs"))
    with pytest.raises(PilotageError, match="network file system"):
        prepare(tmp_path / "state")


def test_the_real_mount_table_is_read(tmp_path: Path) -> None:
    assert state_directory._file_system(Path("/proc/self")) == "proc"
    assert state_directory._file_system(tmp_path)


# -- one server -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the directory."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_server_on_the_same_directory_is_refused_and_told_who_is_there(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    with (
        pytest.raises(PilotageError, match=f"process {holder.pid} at http://127.0.0.1:1") as caught,
        locked(tmp_path),
    ):
        pass
    assert caught.value.name == "STATE_DIRECTORY_IN_USE"
    assert f"pilotage server stop --state {tmp_path}" in caught.value.fields["advice"]
    running = read_running(tmp_path)
    assert running is not None, "the one that was refused left the other's file alone"
    assert (running.pid, running.database) == (holder.pid, "sqlite")


@pytest.mark.parametrize("how", ["in order", "killed"])
def test_the_directory_is_free_when_its_server_has_gone_however_it_went(
    tmp_path: Path, holder: subprocess.Popen[str], how: str
) -> None:
    if how == "killed":
        holder.send_signal(signal.SIGKILL)
    holder.communicate("", timeout=10)
    assert read_running(tmp_path) is None
    with locked(tmp_path):
        pass
    assert not (tmp_path / "server.json").exists()


def test_a_server_that_does_not_run_any_more_is_not_taken_for_one_that_has_its_number(tmp_path: Path) -> None:
    write_running(tmp_path, "http://127.0.0.1:1", "sqlite")
    path = tmp_path / "server.json"
    assert read_running(tmp_path) is not None
    body = json.loads(path.read_text())
    path.write_text(json.dumps({**body, "start_time": body["start_time"] - 1}))
    assert read_running(tmp_path) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[1, 2, 3, 4]", "null", '{"url": "x"}', '{"pid": 1}', "\x00"]
)
def test_a_file_that_is_none_of_ours_is_no_running_server(tmp_path: Path, text: str) -> None:
    (tmp_path / "server.json").write_text(text)
    assert read_running(tmp_path) is None


def test_a_directory_that_everybody_may_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(PilotageError, match="chmod o-w"):
        prepare(tmp_path / "open")


# -- its database -----------------------------------------------------------------------------------------------------------


def test_where_no_other_database_was_used_it_is_the_one_in_the_directory(tmp_path: Path) -> None:
    own = f"sqlite:///{tmp_path}/pilotage.db"
    assert database_url(tmp_path) == own
    note_database(tmp_path, own)
    assert database_url(tmp_path) == own


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ada:geheim@db:5/pilotage", "postgresql://ada:(hidden)@db:5/pilotage"),
        ("postgresql://ada@db/pilotage?password=geheim", "postgresql://ada@db/pilotage"),
        ("postgresql:///pilotage?host=/run/postgresql", "postgresql:///pilotage?host=/run/postgresql"),
        ("sqlite:////elsewhere/pilotage.db", "sqlite:////elsewhere/pilotage.db"),
    ],
)
def test_a_directory_whose_server_works_elsewhere_has_no_database_of_its_own(
    tmp_path: Path, url: str, shown: str
) -> None:
    note_database(tmp_path, url)
    with pytest.raises(PilotageError) as caught:
        database_url(tmp_path)
    assert caught.value.name == "OTHER_DATABASE"
    assert shown in caught.value.detail
    assert "--database" in caught.value.next_step
    assert all("geheim" not in path.read_text() for path in tmp_path.iterdir())
    assert database_url(tmp_path, url) == url, "whoever names one gets it"


def test_a_server_goes_back_to_the_database_in_its_directory_when_that_is_named(tmp_path: Path) -> None:
    own = f"sqlite:///{tmp_path}/pilotage.db"
    note_database(tmp_path, "postgresql://ada@db/pilotage")
    note_database(tmp_path, database_url(tmp_path, f"sqlite:{tmp_path}/pilotage.db"))
    assert database_url(tmp_path) == own
    assert list(tmp_path.iterdir()) == [], "and the directory may be moved"
