"""Programs that copy: their end, their words, and what they leave."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from copytools import commands
from copytools.base import Deadline
from copytools.failures import DIED
from tests.waiting import wait_until


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_exit_code_and_the_words_of_both_ways_are_told() -> None:
    done = commands.run(["sh", "-c", "echo one; echo two >&2; exit 7"], Deadline(30), {})
    assert done == (7, "one two")


def test_a_command_that_dies_of_a_signal_says_so() -> None:
    done = commands.run(["sh", "-c", "kill -9 $$"], Deadline(30), {})
    assert done.code == -9 and commands.died(done)


def test_only_the_end_of_long_words_is_kept_in_one_line_and_without_passwords() -> None:
    program = "print('x' * 100000); print('root://user:hunter22@host/x'); print('\\x1b[2Jend')"
    done = commands.run([sys.executable, "-c", program], Deadline(30), {})
    assert len(done.text) <= 2 * commands.LONGEST_TEXT
    assert "hunter22" not in done.text and "\x1b" not in done.text and done.text.endswith("end")


def test_its_environment_is_ours_and_what_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "1")
    assert commands.run(["sh", "-c", "echo $OURS$GIVEN"], Deadline(30), {"GIVEN": "2"}).text == "12"


def test_a_program_that_is_not_there_is_no_file_that_is_not_there() -> None:
    with pytest.raises(OSError, match="/nowhere/program could not be started") as caught:
        commands.run(["/nowhere/program"], Deadline(30), {})
    assert caught.value.errno == DIED


@pytest.mark.parametrize("ignores", ["", "trap '' TERM; "], ids=["ends", "ignores SIGTERM"])
def test_one_that_takes_too_long_is_ended_with_all_that_it_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ignores: str
) -> None:
    monkeypatch.setattr(commands, "GRACE_SECONDS", 0.2)
    script = f"{ignores}sleep 1000 & echo $! >{tmp_path}/pid.part; mv {tmp_path}/pid.part {tmp_path}/pid; while :; do wait; done"

    def asked_to_stop() -> bool:
        return (tmp_path / "pid").exists()

    with pytest.raises(OSError) as caught:
        commands.run(["sh", "-c", script], Deadline(60, asked_to_stop), {})
    assert caught.value.errno == errno.ECANCELED
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not is_alive(pid), 20, "the end of what it had started")


def test_only_named_descriptors_are_handed_down(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("open")
    descriptor = os.open(tmp_path / "a", os.O_RDONLY)
    try:
        command = ["cat", f"/proc/self/fd/{descriptor}"]
        assert commands.run(command, Deadline(30), {}, (descriptor,)).text == "open"
        assert commands.run(command, Deadline(30), {}).code != 0
    finally:
        os.close(descriptor)
