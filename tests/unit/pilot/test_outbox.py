"""Results on disk."""

from __future__ import annotations

import json
import logging
import os
import stat
from pathlib import Path

import pytest

from pilot.outbox import Outbox
from protocol.errors import PilotageError
from protocol.messages.pilots import AttemptUpdate, Move

URL = "http://server:1"


def word(attempt: int = 5, seq: int = 3) -> AttemptUpdate:
    return AttemptUpdate(
        attempt, "token", seq, moves=[Move("FAILED", 1.5)], error="PAYLOAD_FAILED", error_detail="ä\n"
    )


def opened(place: Path, pilot: str = "p1", url: str = URL) -> Outbox:
    outbox = Outbox(place, pilot, url)
    outbox.open()
    return outbox


def dead(place: Path, *words: AttemptUpdate, url: str = URL) -> None:
    """A pilot that died with results in its outbox: its lock is free."""
    outbox = opened(place, "dead", url)
    for each in words:
        outbox.keep(each)
    outbox.close()


def test_a_result_is_a_private_file_until_it_is_dropped(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.keep(word())
    file = tmp_path / "p1" / "5-3.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text())["word"]["errorDetail"] == "ä\n"
    outbox.drop(word())
    assert not file.exists()
    outbox.close()
    assert list(tmp_path.iterdir()) == []


def test_a_result_is_on_the_disk_before_it_can_be_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    real_fsync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append("fsync"), real_fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("name"), real_replace(a, b))[1])
    opened(tmp_path).keep(word())
    assert done == ["fsync", "name", "fsync"], "the content, then its name, then the directory"


def test_what_a_dead_pilot_left_comes_back_in_order(tmp_path: Path) -> None:
    words = [word(5, 3), word(5, 10), word(4, 9)]
    dead(tmp_path, *words)
    (leftover,) = opened(tmp_path).leftovers()
    assert leftover.words() == [words[2], words[0], words[1]]
    for each in leftover.words():
        leftover.answered(each, "FAILED")
    leftover.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p1", "p1.lock"]


def test_what_is_refused_goes_away_as_well(tmp_path: Path) -> None:
    dead(tmp_path, word())
    (leftover,) = opened(tmp_path).leftovers()
    leftover.refused(leftover.words()[0], PilotageError("STALE_ATTEMPT"))
    assert leftover.is_empty()
    assert not list(tmp_path.rglob("*.json"))


def test_a_living_pilots_results_are_left_to_it(tmp_path: Path) -> None:
    first = opened(tmp_path, "alive")
    first.keep(word())
    assert opened(tmp_path, "second").leftovers() == []
    assert list(tmp_path.rglob("*.json"))


def test_only_one_pilot_delivers_what_is_left(tmp_path: Path) -> None:
    dead(tmp_path, word())
    (mine,) = opened(tmp_path, "second").leftovers()
    third = opened(tmp_path, "third")
    assert third.leftovers() == []
    mine.close()
    assert len(third.leftovers()) == 1, "what the second could not deliver"


def test_results_for_another_server_stay(tmp_path: Path) -> None:
    dead(tmp_path, word(), url="http://other:1")
    assert opened(tmp_path).leftovers() == []
    assert len(list(tmp_path.rglob("*.json"))) == 1


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "server": "http://server:1"}']
)
def test_what_is_no_result_is_passed_over(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dead(tmp_path, word())
    (tmp_path / "dead" / "7-1.json").write_text(content)
    (leftover,) = opened(tmp_path).leftovers()
    assert leftover.words() == [word()]
    assert "is no result" in caplog.text


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    dead(tmp_path / "outbox", word())
    secret = tmp_path / "secret"
    real = next((tmp_path / "outbox").rglob("*.json")).rename(secret)
    (tmp_path / "outbox" / "dead" / "5-3.json").symlink_to(real)
    assert opened(tmp_path / "outbox").leftovers() == []


def test_a_half_written_result_of_a_dead_pilot_is_no_result(tmp_path: Path) -> None:
    dead(tmp_path, word())
    (tmp_path / "dead" / "6-1.part").write_text('{"form')
    (leftover,) = opened(tmp_path).leftovers()
    leftover.answered(leftover.words()[0], "")
    leftover.close()
    assert not (tmp_path / "dead").exists()


def test_a_full_disk_costs_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = opened(tmp_path)

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with caplog.at_level(logging.ERROR):
        outbox.keep(word())
        outbox.keep(word(seq=4))
    assert caplog.text.count("the outbox cannot be written") == 1
    outbox.drop(word())


def test_an_outbox_that_cannot_be_made_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PilotageError, match="OUTBOX_DIRECTORY") as caught:
        opened(tmp_path / "file" / "outbox")
    assert caught.value.name == "BAD_SETTINGS"
