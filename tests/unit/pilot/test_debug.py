"""What is collected of a job's directory for somebody who looks at it: bounded, as text, and never through a link."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pilot import debug, workdir
from protocol.messages.pilots import LONGEST_TAIL
from protocol.redaction import HIDDEN, Secrets
from tests.unit.pilot import test_workdir

SECRET = "s3cr3t-attempt-token"


@pytest.fixture
def secrets() -> Secrets:
    known = Secrets()
    known.add(SECRET)
    return known


def test_123_the_end_of_a_long_file_is_shown_and_its_size(tmp_path: Path, secrets: Secrets) -> None:
    (tmp_path / "log").write_text("".join(f"event {nr}\n" for nr in range(10_000)))
    shown = debug.tail(tmp_path, "log", secrets.hide)
    assert shown is not None
    assert shown.size == (tmp_path / "log").stat().st_size
    assert len(shown.text) == LONGEST_TAIL
    assert shown.text.endswith("event 9998\nevent 9999\n")


def test_123_a_short_file_is_shown_whole(tmp_path: Path, secrets: Secrets) -> None:
    (tmp_path / "log").write_text("hello\n")
    assert debug.tail(tmp_path, "log", secrets.hide) == (6, "hello\n")


@pytest.mark.parametrize("before", range(0, 40, 7))
def test_123_no_part_of_a_secret_is_shown_wherever_the_shown_part_begins(
    tmp_path: Path, secrets: Secrets, before: int
) -> None:
    text = f"{SECRET} " * 3000 + "x" * before
    (tmp_path / "log").write_text(text)
    shown = debug.tail(tmp_path, "log", secrets.hide)
    assert shown is not None
    assert set(shown.text.replace(HIDDEN, "").strip(" x")) <= set(HIDDEN)
    assert SECRET not in shown.text


@pytest.mark.parametrize("text", ["\u00e9" * 30_000, "\U0001f600" * 10_000])
def test_123_characters_are_not_cut_in_two(tmp_path: Path, secrets: Secrets, text: str) -> None:
    (tmp_path / "log").write_text(text, encoding="utf-8")
    shown = debug.tail(tmp_path, "log", secrets.hide)
    assert shown is not None
    assert set(shown.text) == {text[0]}


def test_123_what_is_no_text_is_spelt(tmp_path: Path, secrets: Secrets) -> None:
    (tmp_path / "log").write_bytes(b"\xff\x00\x1b[2J\tdone\n" + bytes(range(256)) * 200)
    shown = debug.tail(tmp_path, "log", secrets.hide)
    assert shown is not None
    assert len(shown.text) == LONGEST_TAIL
    assert all(character == "\n" or character.isprintable() for character in shown.text)
    shown.text.encode("utf-8")


def test_123_no_link_is_followed_and_no_name_leads_out(tmp_path: Path, secrets: Secrets) -> None:
    (tmp_path / "secret").write_text("the pilot's own")
    job = tmp_path / "job"
    (job / "sub").mkdir(parents=True)
    (job / "sub" / "log").write_text("fine")
    (job / "link").symlink_to(tmp_path / "secret")
    (job / "out").symlink_to(tmp_path)
    os.mkfifo(job / "pipe")
    for name in (
        "link",
        "out/secret",
        "../secret",
        str(tmp_path / "secret"),
        "sub/../../secret",
        "pipe",
        "sub",
        "",
        ".",
        "a\0b",
    ):
        assert debug.tail(job, name, secrets.hide) is None, name
    assert debug.tail(job, "sub/log", secrets.hide) == (4, "fine")


def test_123_the_newest_file_is_none_of_those_that_are_shown_anyway_or_were_brought(tmp_path: Path) -> None:
    assert debug.newest(tmp_path) == ""
    for age, name in enumerate(["payload.stdout", "inputs/a", "bundle/b", "sub/log", "old"]):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (1000 - age, 1000 - age))
    (tmp_path / "link").symlink_to("old")
    assert debug.newest(tmp_path) == "sub/log"
    assert debug.newest(tmp_path / "gone") == ""


def test_123_listing_and_sizes_tell_links_and_odd_names_in_one_line_each(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 100_000)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "two\nlines").write_text("y")
    (tmp_path / "link").symlink_to("/etc")
    listed = debug.listing(tmp_path)
    assert len(listed.splitlines()) == 4
    assert "sub/two\\nlines" in listed
    total, first, *_ = debug.sizes(tmp_path).splitlines()
    assert total.endswith("in all")
    assert first.split()[1] == "big"


def test_123_directories_deep_within_each_other_are_not_gone_through(tmp_path: Path) -> None:
    test_workdir.made_deep(tmp_path / "job", 1500)
    before = len(os.listdir("/proc/self/fd"))
    assert debug.newest(tmp_path / "job").count("/") <= debug.MOST_DEEP
    assert len(debug.listing(tmp_path / "job").splitlines()) == 2 * debug.MOST_DEEP + 2
    assert len(os.listdir("/proc/self/fd")) == before
    workdir.remove(tmp_path / "job")


def test_123_listings_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debug, "MOST_LISTED", 3)
    monkeypatch.setattr(debug, "MOST_ENTRIES", 5)
    for nr in range(8):
        (tmp_path / f"f{nr}").touch()
    assert debug.listing(tmp_path).splitlines()[3:] == ["... and more"]
    assert "of the first 5 entries" in debug.sizes(tmp_path)
