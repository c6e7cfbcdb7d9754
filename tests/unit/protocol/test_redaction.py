"""What text loses before a person reads it (FAULTS B22, B25)."""

from __future__ import annotations

import threading
import time

import pytest

from protocol.redaction import Secrets, is_secret_name, one_line, redact


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("Authorization: Bearer abc.def-123", "Authorization: Bearer (hidden)"),
        ("authorization: abc123", "authorization: (hidden)"),
        ("{'Authorization': 'Basic YWJj'}", "{'Authorization': 'Basic (hidden)'}"),
        ("curl -H 'Authorization: Bearer s3cret' http://h", "curl -H 'Authorization: Bearer (hidden)' http://h"),
        ("got bearer abcdefgh12345678 from it", "got bearer (hidden) from it"),
        ("http://ann:hunter22@h/x", "http://ann:(hidden)@h/x"),
        ("postgresql://p:a@b:c@h:5/n and root://h//f", "postgresql://p:(hidden)@h:5/n and root://h//f"),
        ("http://h/x?token=abc&y=1", "http://h/x?token=(hidden)&y=1"),
        ('{"attemptToken": "abc", "x": 1}', '{"attemptToken": "(hidden)", "x": 1}'),
        ("attempt_token=abc x=1", "attempt_token=(hidden) x=1"),
        ("RABBITMQ_PASSWORD=hunter22", "RABBITMQ_PASSWORD=(hidden)"),
        ("password: hunter22", "password: (hidden)"),
        ("X-Attempt-Token: abc", "X-Attempt-Token: (hidden)"),
        ("no valid token: send the header", "no valid token: send the header"),
        ("TOKEN_FILE = /etc/token", "TOKEN_FILE = /etc/token"),
        ("token_file=/etc/token", "token_file=/etc/token"),
        ("http://h:8080/a@b and http://[::1]:80/", "http://h:8080/a@b and http://[::1]:80/"),
        ("mail ann@h at 10:30", "mail ann@h at 10:30"),
    ],
)  # fmt: skip
def test_a_secret_is_hidden_and_nothing_else(text: str, after: str) -> None:
    assert redact(text) == after
    assert redact(redact(text)) == after


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("a\r\nb\tc", r"a\r\nb\tc"),
        ("\x1b[2J\x00\x7f\x9b", r"\x1b[2J\x00\x7f\x9b"),
        ("a\u2028b\u202ec\ud800", r"a\u2028b\u202ec\ud800"),
        ("Дубна, straße, 東京", "Дубна, straße, 東京"),
    ],
)
def test_b22_text_stays_on_its_line(text: str, after: str) -> None:
    assert one_line(text) == after


@pytest.mark.parametrize(
    "piece",
    ["a", "://", "://a:", "token", "token=", "authorization ", "bearer ", "password :", "@", "Bearer a"],
)
def test_hostile_text_costs_no_more_than_its_length(piece: str) -> None:
    text = "token " + piece * (200_000 // len(piece))
    begin = time.process_time()
    redact(text)
    assert time.process_time() - begin < 2.0  # a quadratic pattern takes minutes


def test_registered_secrets_are_hidden_until_they_are_discarded() -> None:
    secrets = Secrets()
    secrets.add("abcdef")
    secrets.add("abcdef-longer")
    assert secrets.hide("x abcdef-longer y abcdef") == "x (hidden) y (hidden)"
    secrets.discard("abcdef")
    assert secrets.hide("abcdef") == "abcdef"


def test_a_very_short_secret_does_not_blot_out_the_log() -> None:
    secrets = Secrets()
    secrets.add("1")
    secrets.add("")
    assert secrets.hide("port 8011") == "port 8011"


def test_secrets_come_and_go_in_many_threads() -> None:
    secrets = Secrets()

    def work(number: int) -> None:
        for turn in range(200):
            value = f"secret-{number}-{turn}"
            secrets.add(value)
            assert secrets.hide(value) == "(hidden)"
            secrets.discard(value)

    failures: list[AssertionError] = []

    def run(number: int) -> None:
        try:
            work(number)
        except AssertionError as error:  # handed to the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures
    assert secrets.hide("secret-1-1") == "secret-1-1"


@pytest.mark.parametrize(
    ("name", "secret"),
    [("attempt_token", True), ("RABBITMQ_PASSWORD", True), ("secret_key", True), ("token_file", False), ("tokens", False)],
)  # fmt: skip
def test_a_name_tells_whether_it_holds_a_secret(name: str, secret: bool) -> None:
    assert is_secret_name(name) is secret
