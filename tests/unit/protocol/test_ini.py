"""Ini files: the dialect, the lines, and one clear sentence for each way to be wrong (FAULTS B26)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from protocol import ini
from protocol.errors import PilotageError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "pilot.ini"


def read(file: Path, text: str) -> list[ini.IniEntry]:
    file.write_bytes(text.encode())
    return list(ini.read(file).entries)


def refusal(file: Path) -> str:
    with pytest.raises(PilotageError) as caught:
        ini.read(file)
    assert caught.value.name == "BAD_SETTINGS"
    assert "\n" not in caught.value.detail
    return caught.value.detail


def test_each_key_knows_its_line(file: Path) -> None:
    text = "# head\n\n[a]\nx = 1\n; no\n\ny: 2\n[b]\nx=3\n"
    assert read(file, text) == [("a", "x", "1", 4), ("a", "y", "2", 7), ("b", "x", "3", 9)]


def test_names_are_read_as_the_slides_write_them(file: Path) -> None:
    text = "[rabbit settings]\nRABBITMQ HOST=1\nPROCESSOR\\_TYPE = cpu\n[Node\\_Settings]\nPilot ID = 1"
    assert [entry[:2] for entry in read(file, text)] == [
        ("rabbit_settings", "rabbitmq_host"),
        ("rabbit_settings", "processor_type"),
        ("node_settings", "pilot_id"),
    ]


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("x = 10485760 # 10MB", "10485760"),
        ("x = 5 ; five", "5"),
        ("x = 5\t# five", "5"),
        ("x = a#b", "a#b"),
        ("x = http://h/#f", "http://h/#f"),
        ("x = %(y)s ${HOME} 100%", "%(y)s ${HOME} 100%"),
        ("x = a = b", "a = b"),
        ("x =", ""),
        ("x = # nothing", ""),
        ("\tx\t=\t5\t", "5"),
        ("x = 5\r", "5"),
        ("x = !!python/object/apply:os.system ['id']", "!!python/object/apply:os.system ['id']"),
        ("x = &a [*a, *a]", "&a [*a, *a]"),
    ],
)
def test_b26_a_value_is_text_without_its_inline_comment(file: Path, line: str, value: str) -> None:
    assert read(file, f"[a]\n{line}\n") == [("a", "x", value, 2)]


def test_b26_indentation_joins_no_two_lines(file: Path) -> None:
    """configparser would make `BACKUP COUNT` a part of the value above it."""
    text = "   [logging]\n MAX_LOG_SIZE = 1\n     BACKUP COUNT = 5\n\tLOG_LEVEL = INFO\n"
    assert [(key, value) for _, key, value, _ in read(file, text)] == [
        ("max_log_size", "1"),
        ("backup_count", "5"),
        ("log_level", "INFO"),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\n", "line 1: a key before the first section"),
        ("[a]\nx = 1\nX = 2\n", "line 3: the key X occurs twice in [a]"),
        ("[a]\nx y = 1\nx_y = 1\n", "line 3: the key X_Y occurs twice in [a]"),
        ("[a b]\nx = 1\n[A_B]\ny = 2\n", "line 3: the section [a_b] occurs twice"),
        ("[a]\nx 1\n", "line 2: 'x' has no value; write KEY = VALUE"),
        ("[a]\n= 1\n", "line 2: '=' has no value"),
        ("[a\nx = 1\n", "line 1: '[a' is no section header"),
        ("[a] b\n", "line 1: '[a] b' is no section header"),
        ("[]\n", "line 1: '[]' is no section header"),
        ("[a]\nx = \x00\n", r"line 2: holds the control character \x00"),
        ("[a]\nx = \x1b[2J\n", r"line 2: holds the control character \x1b"),
        ("[a]\nx = 1\ry = 2\n", r"line 2: holds the control character \r"),
        ("\ufeff[a]\nx = 1\n", "begins with a byte order mark: save it as UTF-8 without BOM"),
    ],
)
def test_b26_a_wrong_file_is_refused_with_its_line(file: Path, text: str, words: str) -> None:
    file.write_bytes(text.encode())
    assert words in refusal(file)
    assert str(file) in refusal(file)


def test_b26_utf16_is_refused(file: Path) -> None:
    file.write_bytes("[a]\nx = 1\n".encode("utf-16"))
    assert "byte order mark" in refusal(file)


def test_b26_what_is_not_utf8_is_refused_with_its_line(file: Path) -> None:
    file.write_bytes(b"[a]\nx = 1\ny = \xff\n")
    assert "line 3: is not UTF-8" in refusal(file)


def test_b26_a_file_above_1_mib_is_refused_without_reading_it_all(file: Path) -> None:
    with file.open("wb") as stream:
        stream.truncate(100 << 20)
    assert "larger than 1 MiB" in refusal(file)


def test_a_file_of_1_mib_is_read(file: Path) -> None:
    text = "[a]\nx = 1\n"
    assert read(file, text + "#" * (ini.LARGEST_FILE - len(text))) == [("a", "x", "1", 2)]


def test_b26_a_file_that_cannot_be_read_is_refused(file: Path) -> None:
    assert "No such file" in refusal(file)
    file.mkdir()
    assert "not a plain file" in refusal(file)
    assert "embedded null" in refusal(Path("a\0b"))


def test_b26_a_file_that_we_may_not_read_is_refused(file: Path) -> None:
    file.touch(mode=0)
    is_root = os.geteuid() == 0
    if is_root:  # who may read everything
        os.seteuid(65534)
    try:
        detail = refusal(file)
    finally:
        if is_root:
            os.seteuid(0)
    assert "Permission denied" in detail


def test_b26_a_pipe_does_not_hold_up_the_start(file: Path) -> None:
    os.mkfifo(file)
    assert "not a plain file" in refusal(file)


def test_a_password_on_a_broken_line_is_not_repeated(file: Path) -> None:
    file.write_text("[a]\nRABBITMQ_PASSWORD hunter22\n")
    assert "hunter22" not in refusal(file)


def test_a_path_that_would_forge_a_line_is_spelt_out(tmp_path: Path) -> None:
    assert r"a\nb.ini" in refusal(tmp_path / "a\nb.ini")


@pytest.mark.parametrize(("mode", "exposed"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
def test_a_file_that_others_may_read_is_exposed(file: Path, mode: int, exposed: bool) -> None:
    file.write_text("[a]\n")
    file.chmod(mode)
    assert ini.read(file).exposed is exposed
