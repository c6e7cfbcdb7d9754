"""`pilotage data` as a user types it: no server, the exit code, the results, and an end by Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.storages import STORAGES
from tests.storages.tcp import before
from tests.users import place_for_all
from tests.waiting import wait_until

PILOTAGE = [sys.executable, "-m", "client.cli", "data"]
ROOT = Path(__file__).parent.parent.parent.parent


def run(*words: object, at: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [*PILOTAGE, *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PILOTAGE_COPYTOOLS__BACKOFF_SECONDS": "0"}
    return subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        cwd=at,
        env=environment,
        timeout=120,
    )


def test_156_files_go_out_and_come_back_by_the_list_of_what_went_out(tmp_path: Path) -> None:
    names = ["a.spd", "two words"]
    for name in names:
        (tmp_path / name).write_bytes(os.urandom(1000))
    out = run("stage-out", *names, "--to", f"file://{tmp_path}/storage", "--json", at=tmp_path)
    assert out.returncode == 0, out.stderr
    told: list[dict[str, Any]] = json.loads(out.stdout)
    assert [(each["state"], each["size"]) for each in told] == [("copied", 1000)] * 2
    assert "2 of 2 files" in out.stderr
    back = run("stage-in", "--from", "-", "--to", "back", at=tmp_path, stdin=out.stdout)
    assert back.returncode == 0, back.stderr
    for name in names:
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / name).read_bytes()
        assert name in back.stdout


def test_each_file_has_its_own_result_and_one_that_fails_is_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(b"good")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "there").write_bytes(b"mine")
    (tmp_path / "there").write_bytes(b"theirs")
    urls = [f"file://{tmp_path}/{name}" for name in ("good", "missing", "there")]
    done = run("stage-in", *urls, "--to", "here", "--retries", 0, "--json", at=tmp_path)
    assert done.returncode == 1
    states = {Path(each["path"]).name: each.get("error", each["state"]) for each in json.loads(done.stdout)}
    assert states == {"good": "copied", "missing": "INPUT_NOT_FOUND", "there": "ALREADY_EXISTS"}
    assert "1 of 3 files" in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "here" / "there").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stage-in"], "name addresses"),
        (["stage-in", "nobody://knows/this", "--retries", "0"], "none of the usable copytools takes"),
        (["stage-in", "file:///a", "--copytool", "xrdpc"], "no copytool xrdpc; there are"),
        (["stage-out", "/etc/hostname", "--to", "/tmp"], "is no address of a storage"),
        (["stage-out", "/nowhere/x", "--to", "file:///tmp"], "does not exist"),
    ],
)
def test_what_is_wrong_is_told_in_words(tmp_path: Path, words: list[str], said: str) -> None:
    done = run(*words, at=tmp_path)
    assert done.returncode in (1, 2) and said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.component("xrootd")
def test_ctrl_c_ends_a_transfer_that_hangs_and_leaves_nothing(tmp_path: Path) -> None:
    with place_for_all() as place, STORAGES["xrdcp-xrootd"](place) as storage, before(storage.port) as proxy:
        storage.write("a.spd", b"x" * 1000)
        proxy.is_frozen = True
        command = [*PILOTAGE, "stage-in", f"{storage.through(proxy.port)}a.spd", "--to", str(tmp_path / "in")]
        child = subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
        )
        wait_until(lambda: proxy.n_connections > 0, 60, "the transfer")
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=60)
    assert child.returncode == 130 and "Traceback" not in said, said
    assert list((tmp_path / "in").iterdir()) == []
