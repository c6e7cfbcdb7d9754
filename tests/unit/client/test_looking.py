"""Following the end of a text by looking at it now and then: nothing is printed twice, and what is missing is told."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from client.looking import LATEST, Follower, new_part
from protocol.messages.views import DebugView

WINDOW = 20


def view(text: str, file: str = "", other: str = "", at: str | None = "2026-11-21T12:00:00Z") -> DebugView:
    return DebugView(
        1, 1, 1, "RUNNING", "n", "p", False, 20, at=at, stdout=text[-WINDOW:], stdout_size=len(text),
        file=file, text=other[-WINDOW:], size=len(other),
    )  # fmt: skip


@given(st.lists(st.text("ab\n", max_size=WINDOW), max_size=10))
def test_123_what_is_followed_is_the_text_however_much_it_repeats(parts: list[str]) -> None:
    follower, text, printed = Follower(None), "", ""
    for part in parts:
        text += part
        printed += follower.of(view(text))
    assert "[..." in printed or printed == text


def test_123_a_line_that_is_printed_again_and_again_is_seen_each_time() -> None:
    assert new_part("tick\n" * 3, "tick\n" * 4, 5) == "tick\n"
    assert new_part("tick\n" * 4, "tick\n" * 4, 5) == "tick\n"
    assert new_part("tick\n" * 4, "tick\n" * 4, 0) == ""


def test_123_what_was_missed_is_told() -> None:
    follower = Follower(None)
    assert follower.of(view("a" * 30)) == "a" * WINDOW
    assert "too much" in follower.of(view("a" * 30 + "b" * 50))


def test_123_another_file_begins_anew_with_its_name() -> None:
    follower = Follower(LATEST)
    assert follower.of(view("", "log", "one\n")) == "==> log <==\none\n"
    assert follower.of(view("", "log", "one\ntwo\n")) == "two\n"
    assert follower.of(view("", "other", "x\n")) == "==> other <==\nx\n"
    assert follower.of(view("", "other", "")) == "==> other <==\n"


def test_123_nothing_is_shown_before_the_pilot_has_sent_that_file() -> None:
    follower = Follower("log")
    assert follower.of(view("out", at=None)) == ""
    assert follower.of(view("out", "other", "x")) == ""
    assert follower.of(view("out", "log", "y")) == "y"


def test_123_what_strangers_send_drives_no_terminal() -> None:
    assert Follower(None).of(view("\x1b[2Jx\n")) == "\\x1b[2Jx\n"
