"""What failures mean, and how long to wait after them."""

from __future__ import annotations

import json
import re

import pytest

from pilot import server_client
from pilot.server_client import Backoff, is_passing, user_agent
from protocol.errors import PilotageError
from protocol.messages import to_wire
from protocol.messages.views import ErrorReply


def body(name: str) -> bytes:
    return json.dumps(to_wire(ErrorReply(name, 1, "", "a detail", ""))).encode()


@pytest.mark.parametrize(
    ("status", "data", "name"),
    [
        (409, body("STALE_ATTEMPT"), "STALE_ATTEMPT"),
        (409, body("WRONG_STATE"), "WRONG_STATE"),
        (409, b"<html>", "STALE_ATTEMPT"),
        (404, body("NOT_FOUND"), "NOT_FOUND"),
        (400, b'{"error": "FROM_THE_FUTURE"}', "BAD_REQUEST"),
        (401, b"", "UNAUTHENTICATED"),
        (403, b"[]", "FORBIDDEN"),
        (408, b"", "SERVER_UNAVAILABLE"),
        (413, body("TOO_LARGE"), "TOO_LARGE"),
        (429, b"", "TOO_MANY_REQUESTS"),
        (500, body("SERVER_ERROR"), "SERVER_ERROR"),
        (500, body("STALE_ATTEMPT"), "SERVER_ERROR"),
        (502, b"Bad Gateway", "SERVER_ERROR"),
        (503, b"", "SERVER_UNAVAILABLE"),
        (302, b"", "BAD_REQUEST"),
        (418, b"", "BAD_REQUEST"),
    ],
)
def test_a_failure_is_what_the_server_names_as_far_as_its_status_agrees(
    status: int, data: bytes, name: str
) -> None:
    assert server_client._error(status, {}, data).name == name


@pytest.mark.parametrize(
    "name", ["SERVER_UNREACHABLE", "SERVER_UNAVAILABLE", "SERVER_ERROR", "UNAUTHENTICATED", "FORBIDDEN"]
)
def test_what_may_pass_is_said_again(name: str) -> None:
    assert is_passing(PilotageError(name))


@pytest.mark.parametrize("name", ["STALE_ATTEMPT", "WRONG_STATE", "BAD_REQUEST", "NOT_FOUND", "TOO_LARGE"])
def test_what_will_not_pass_is_not(name: str) -> None:
    assert not is_passing(PilotageError(name))


def test_waits_double_up_to_the_longest_and_are_spread() -> None:
    backoff = Backoff(1, 8)
    waits = [backoff.next() for _ in range(6)]
    for wait, whole in zip(waits, (1, 2, 4, 8, 8, 8)):
        assert whole / 2 <= wait <= whole
    assert len({Backoff(1, 8).next() for _ in range(20)}) > 10
    backoff.reset()
    assert backoff.next() <= 1


def test_a_wait_is_never_shorter_than_the_server_asks() -> None:
    error = server_client._error(503, {"Retry-After": "30"}, b"")
    assert 30 <= Backoff(1, 2).next(error) < 40
    assert (
        Backoff(1, 2).next(server_client._error(503, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, b""))
        <= 1
    )


def test_an_answer_that_is_no_object_is_the_servers_failure() -> None:
    for data in (b"", b"[]", b"null", b"<html>"):
        with pytest.raises(PilotageError) as caught:
            server_client._object(data)
        assert caught.value.name == "SERVER_ERROR"


def test_the_user_agent_has_the_form_that_servers_count_by() -> None:
    assert re.fullmatch(r"pilotage-pilot/\S+ \(Python [\d.]+\S*; Linux \S+\)", user_agent())


@pytest.mark.parametrize(
    ("data", "ours"),
    [(body("NOT_FOUND"), True), (b"<html>default backend", False), (b'{"error": "Not Found"}', False)],
)
def test_only_our_servers_own_word_counts_as_its_word(data: bytes, ours: bool) -> None:
    assert server_client._error(404, {}, data).fields["ours"] is ours
