"""What the waiting process takes for a request, and what it refuses."""

from __future__ import annotations

import json

import pytest

from protocol.errors import PilotageError
from server.http import wire
from server.waiting import process, wake
from server.waiting.process import read_head, read_query
from server.waiting.wake import News


def test_a_request_is_read() -> None:
    request = read_head(b"GET /v1/wait?ticket=a.b HTTP/1.1\r\nHost: x\r\nAccept: */*\r\nContent-Length: 0")
    assert (request.method, request.path, request.query) == ("GET", "/v1/wait", "ticket=a.b")
    assert request.keep_alive
    assert not read_head(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Close").keep_alive
    assert not read_head(b"GET / HTTP/1.0").keep_alive


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"GET",
        b"GET / HTTP/2.0\r\nHost: x",
        b"GET  / HTTP/1.1\r\nHost: x",
        b"GET / HTTP/1.1\nHost: x",
        b"GET / HTTP/1.1\r\nHost: x\nX: y",
        b"GET / HTTP/1.1\r\nHost: x\r\n X: folded",
        b"GET / HTTP/1.1\r\nHost : x",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y",
        b"GET / HTTP/1.1\r\nX: y",
        b"GET / HTTP/1.1\r\nHost: x\r\nno colon",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: \x00",
        b"GET /\xff HTTP/1.1\r\nHost: x",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 5",
        b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked",
        b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\nContent-Length: 0",
        b"GET / HTTP/1.1\r\nHost: x" + b"\r\nA: b" * 1000,
        b"\x16\x03\x01\x02\x00\x01\x00",
    ],
)
def test_b09_what_two_readers_could_take_for_two_things_is_refused(head: bytes) -> None:
    with pytest.raises(PilotageError) as caught:
        read_head(head)
    assert caught.value.name == "BAD_REQUEST"


def test_ticket_and_time_are_read_and_the_time_is_bounded() -> None:
    assert read_query("ticket=a.b&timeout=7") == ("a.b", 7)
    assert read_query("ticket=a.b") == ("a.b", process.USUAL_WAIT_SECONDS)
    assert read_query("timeout=999999999") == ("", process.LONGEST_WAIT_SECONDS)


@pytest.mark.parametrize(
    "query",
    ["timeout=-1", "timeout=1e9", "timeout=", "timeout=nan", "timeout=1.5", "timeout=1&timeout=2", "tickets=a",
     "ticket=%ff", "timeout=%D9%A3", "timeout=9999999999", "&".join(["a=b"] * 100)],
)  # fmt: skip
def test_b13_other_parameters_are_refused(query: str) -> None:
    with pytest.raises(PilotageError) as caught:
        read_query(query)
    assert caught.value.name == "BAD_REQUEST"


def test_its_statuses_are_those_of_the_server() -> None:
    """It does not import the table, since that needs Flask."""
    assert {name: wire.STATUS[name] for name in process._ERRORS} == process._ERRORS


def test_news_is_read_as_it_was_written() -> None:
    news = News({"class": 3, "other": 1}, "CPU", is_local=False)
    assert wake.read_news(news.to_bytes()) == news


@pytest.mark.parametrize(
    "data",
    [b"", b"x", b"{}", b"[]", b'[{}, ""]', b'[{"a": "b"}, "", true]', b'[[], "", true]', b"\xff", b"5"],
)
def test_what_is_no_news_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        wake.read_news(data)


def test_much_news_is_told_in_pieces_that_hold_all_of_it() -> None:
    jobs = {f"class {number} {'x' * 100}": number + 1 for number in range(200)}
    pieces = list(wake.pieces(News(jobs), 2000))
    assert len(pieces) > 5
    assert all(len(piece.to_bytes()) <= 2000 for piece in pieces)
    assert {name: n for piece in pieces for name, n in piece.jobs.items()} == jobs
    assert list(wake.pieces(News({"y" * 3000: 1}), 2000)) == []
    assert json.loads(pieces[0].to_bytes())
